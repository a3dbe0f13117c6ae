"""What the timing log costs: the runner's own training step with tracker=timing (depth 2) and without a tracker, in turn in one process.

Each round takes the same batch through both, beginning with the other each time; medians, and the median of the ratios round by round. The
step is that of the loop, with its spans, hooks on the modules and the log's own work; blocks of the file fall into one step of fifty, which
a median does not see: one is timed apart.

    python scripts/bench_timing.py                 # small (a quarter of vggsnn, T=4, 16x16), vggsnn (T=10, 48x48, batch 8), gnn (T=4)
    python scripts/bench_timing.py gnn --rounds 500 --depth 3 --device cuda
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import bench_tracker

CASES = {
    "small": ["model=vggsnn", "dataset=digits_dvs", "model.width=0.25", "dataset.size=16", "T=4", "batch_size=32"]
} | bench_tracker.CASES
bench_tracker.CASES = CASES


def main() -> None:
    """Each case named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; all of them if none is named")
    parser.add_argument("--rounds", type=int, default=100, help="steps of each kind")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides, such as compile=true")
    arguments = parser.parse_args()
    for case in arguments.cases or CASES:
        if case not in CASES:
            parser.error(f"{case}: choose from {', '.join(CASES)}")
        steps(case, arguments)


def steps(case: str, arguments: argparse.Namespace) -> None:
    """Time the steps of a case, and print what they took."""
    import torch

    from snnexp import build
    from snnexp.engine import allocator, loop
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.state import State, seed_everything
    from snnexp.engine.terminal import Terminal
    from snnexp.rundir import RunDir
    from snnexp.trackers.timing import log
    from snnexp.trackers.timing.tracker import TimingTracker, timed

    allocator.keep_memory()
    settings, device = bench_tracker.compose(case, arguments), choose_device(arguments.device)
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        run.logs.mkdir()
        experiment = build.make_experiment(run, settings, Ranks(0, 1, device), Terminal(None, main=False))
        experiment.trackers = {}
        seed_everything(0, 0)
        state = State()
        tracker = TimingTracker(model=experiment.model, folder=run.root, depth=arguments.depth, warmup=arguments.warmup)

        def batches() -> Iterator[Any]:
            while True:
                experiment.train_batches.seek(state.epoch, 0)
                yield from itertools.islice(experiment.train_loader, len(experiment.train_batches) - 1)  # whole batches only
                state.epoch += 1

        def step(listening: bool, batch: Any) -> float:
            with tracker.listening(experiment.net) if listening else nullcontext():  # in a run, once an epoch
                if cuda:
                    torch.cuda.synchronize(device)
                began = time.perf_counter()
                with timed("step"):
                    loop.set_rate(experiment, state)
                    loss, _ = loop.forward_backward(experiment, state, range(1), iter([batch]))
                    with timed("optimizer"):
                        torch.stack([loss, loop.clip_gradient(experiment)]).tolist()
                    with timed("optimizer"):
                        loop.update(experiment)
                if cuda:
                    torch.cuda.synchronize(device)
                return time.perf_counter() - began

        experiment.net.train()
        plain, with_it = [], []
        for round_index, batch in enumerate(itertools.islice(batches(), arguments.warmup + arguments.rounds)):
            for listening in (True, False) if round_index % 2 else (False, True):
                seconds = step(listening, batch)
                if round_index >= arguments.warmup:
                    (with_it if listening else plain).append(seconds)
        spans = tracker.logger.spans
        parts = sum(node.stats.count > 0 for node in spans.root.walk())
        began = time.perf_counter()
        log.step_block(1, spans.root, {})
        block = time.perf_counter() - began

        name = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
        ratio = statistics.median(a / b for a, b in zip(with_it, plain, strict=True))
        first, second = (1e3 * statistics.median(seconds) for seconds in (plain, with_it))
        options = " ".join(CASES[case][2:] + arguments.set)
        print(f"{case} ({options}), depth {arguments.depth}: {parts} parts; {name}; {arguments.rounds} rounds")
        print(f"  without {first:.3f} ms, with {second:.3f} ms: {100 * (second / first - 1):+.2f} %; by rounds {100 * (ratio - 1):+.2f} %")
        print(f"  a block of the file: {1e3 * block:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
