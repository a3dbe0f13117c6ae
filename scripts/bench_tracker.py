"""What the LIF statistics cost: the runner's own training step without a tracker, with lif and with lif_full, in turn in one process.

Each round takes the same batch through all three, beginning with another each time; medians, and ratios to the step without one. A flush of
lif_full falls into one step of a hundred, which a median does not see: it is timed apart, `observe` with all its flushes. `memory` is the
growth of the process over 10,000 forwards of lif_full on a small network.

    python scripts/bench_tracker.py                               # vggsnn (T=10, 48x48, batch 8), gnn (T=4, batch 128), memory
    python scripts/bench_tracker.py gnn --rounds 200 --device cuda
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES = {
    "vggsnn": ["model=vggsnn", "dataset=digits_dvs", "dataset.size=48", "T=10", "batch_size=8"],
    "gnn": ["model=spiking_gnn", "dataset=digits_graph", "T=4", "batch_size=128"],
}


def main() -> None:
    """Each case named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="vggsnn, gnn, memory; all of them if none is named")
    parser.add_argument("--rounds", type=int, default=50, help="steps of each kind")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--forwards", type=int, default=10_000, help="of memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides, such as compile=true")
    arguments = parser.parse_args()
    known = [*CASES, "memory"]
    for case in arguments.cases or known:
        if case not in known:
            parser.error(f"{case}: choose from {', '.join(known)}")
        memory(arguments.forwards) if case == "memory" else steps(case, arguments)


def compose(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of `snnexp train` with these overrides, for as many epochs as it takes."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf, open_dict

    from snnexp import config
    from snnexp.composing import conf

    ConfigStore.instance().store("schema", config.TrainConfig)
    fixed = [f"device={arguments.device}", f"data_dir={arguments.data_dir}", "logger=none", "scheduler=none", "epochs=100000"]
    with conf.initialize_hydra():
        cfg = hydra.compose("train", overrides=[*CASES[case], *fixed, *arguments.set], return_hydra_config=True)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        cfg.pop("hydra")
    return config.finish(cfg, choices)


def steps(case: str, arguments: argparse.Namespace) -> None:
    """Time the steps of a case, and print the table."""
    import torch
    from spikingjelly.activation_based import functional

    from snnexp import build
    from snnexp.engine import allocator, loop
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.loader import to_device
    from snnexp.engine.state import State, seed_everything
    from snnexp.engine.terminal import Terminal
    from snnexp.models.neurons import LIFNode
    from snnexp.rundir import RunDir
    from snnexp.trackers.lif import LIFTracker

    allocator.keep_memory()
    settings, device = compose(case, arguments), choose_device(arguments.device)
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        run.logs.mkdir()
        experiment = build.make_experiment(run, settings, Ranks(0, 1, device), Terminal(None, main=False))
        seed_everything(0, 0)
        state = State()
        nodes = [module for module in experiment.model.modules() if isinstance(module, LIFNode)]
        trackers = {
            "none": {},
            "lif": {"lif": LIFTracker(model=experiment.model, folder=run.root)},
            "lif_full": {"lif_full": LIFTracker(model=experiment.model, every_forward=True, folder=run.root)},
        }

        def batches() -> Iterator[Any]:
            while True:
                experiment.train_batches.seek(state.epoch, 0)
                yield from itertools.islice(experiment.train_loader, len(experiment.train_batches) - 1)  # whole batches only
                state.epoch += 1

        def step(kind: str, batch: Any) -> float:
            experiment.trackers = trackers[kind]
            for node in nodes:
                node.count_spikes = bool(experiment.trackers)
            if cuda:
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            loop.set_rate(experiment, state)
            loss, _ = loop.forward_backward(experiment, state, range(1), iter([batch]))
            torch.stack([loss, loop.clip_gradient(experiment)]).tolist()
            loop.update(experiment)
            if cuda:
                torch.cuda.synchronize(device)
            return time.perf_counter() - began

        def observing(tracker: LIFTracker, batch: Any, times: int = 1000) -> float:
            """Seconds of `observe` for one forward, its share of the flushes included."""
            for node in nodes:
                node.count_spikes = True
            with torch.no_grad(), experiment.precision.autocast():
                experiment.task.loss(experiment.net, experiment.data.prepare(to_device(batch, device)), 0)
            began = time.perf_counter()
            for _ in range(times):
                nodes[0].spike_counts = nodes[0].spike_counts.clone()  # as after a forward of its own
                tracker.observe()
            tracker.state_dict()  # waits for the device and the disk
            seconds = (time.perf_counter() - began) / times
            functional.reset_net(experiment.model)
            return seconds

        experiment.net.train()
        seconds_by_kind: dict[str, list[float]] = {kind: [] for kind in trackers}
        kinds, stream = list(trackers), batches()
        for round_index, batch in enumerate(itertools.islice(stream, arguments.warmup + arguments.rounds)):
            first = round_index % len(kinds)
            for kind in kinds[first:] + kinds[:first]:
                seconds = step(kind, batch)
                if round_index >= arguments.warmup:
                    seconds_by_kind[kind].append(seconds)
        batch, observe_seconds = next(stream), {}
        for kind in kinds[1:]:
            (tracker,) = trackers[kind].values()
            observe_seconds[kind] = observing(tracker, batch)

        name = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
        options = " ".join(CASES[case][2:] + arguments.set)
        print(f"{case} ({options}), {experiment.precision.name}, {experiment.neuron_implementation}; {name}; {arguments.rounds} rounds")
        plain = statistics.median(seconds_by_kind["none"])
        for kind, seconds in seconds_by_kind.items():
            line = (
                f"  {kind:<9}{1e3 * statistics.median(seconds):8.2f} ms a step (min {1e3 * min(seconds):.2f}, max {1e3 * max(seconds):.2f})"
            )
            if kind != "none":
                ratio = statistics.median(with_it / without for with_it, without in zip(seconds, seconds_by_kind["none"], strict=True))
                line += f"; {100 * (statistics.median(seconds) / plain - 1):+.2f} %, round by round {100 * (ratio - 1):+.2f} %; "
                line += f"observe and flushes {1e3 * observe_seconds[kind]:.3f} ms, {100 * observe_seconds[kind] / plain:.2f} %"
            print(line, flush=True)


def memory(forwards: int) -> None:
    """Resident memory before and after so many forwards of lif_full on three layers of 8 neurons, warmed up by a tenth as many (Linux)."""
    import resource

    import torch
    from spikingjelly.activation_based import functional
    from torch import nn

    from snnexp.models.neurons import make_lif
    from snnexp.trackers.lif import LIFTracker

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    model = nn.Sequential(*(make_lif("spikingjelly") for _ in range(3)))
    inputs = torch.rand(4, 1, 8) * 3
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tracker = LIFTracker(model=model, every_forward=True, folder=Path(folder))
        for index in range(forwards // 10 + forwards + 1):
            if index == forwards // 10:
                before = resident()
            model(inputs)
            tracker.observe()
            functional.reset_net(model)
        grown = resident() - before
        record = sum(path.stat().st_size for path in (Path(folder) / "logs").iterdir())
        (path,) = tracker.finish()
        numbers = tracker.state_dict()["splits"]["train"]["forwards"] * 3 * 4
        print(
            f"memory: {grown / 1024:+.0f} KiB over {forwards:,} forwards of lif_full (3 layers, T=4); record {record / 1e6:.2f} MB, ",
            end="",
        )
        print(f"lif_activation_stats.json {path.stat().st_size / 1e6:.2f} MB, {path.stat().st_size / numbers:.1f} bytes a number")


if __name__ == "__main__":
    main()
