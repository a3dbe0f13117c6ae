"""Compare our training step with a plain one: one process for each side, which take turns step by step; medians and ratios.

"Plain" is what people usually write: fp32, contiguous layout, SpikingJelly's LIFNode over a folded VGGSNN, cross entropy of the time mean,
Adam, and the defaults of torch and the C library. "Ours" is the runner's own step (of `engine/loop.py`) with default settings, the same
loss, and each precision that is named. All sides see the same batches of digits_dvs and start from the same weights. At the end the
network's convolutions are timed alone, forward and backward in channels_last: the best rate at which a step could run.

    python scripts/bench_train.py                      # T=10, 48x48, batch 8, 20 steps of plain, auto, fp32 and bf16: some 5 minutes
    python scripts/bench_train.py --precision auto --steps 50
    python scripts/bench_train.py --steps 10 --size 24
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from snnexp.provenance import cpu


def main() -> None:
    """Run the sides in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--T", type=int, default=10)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--precision", nargs="+", choices=["auto", "fp32", "bf16"], default=["auto", "fp32", "bf16"])
    parser.add_argument("--side", choices=["ours", "plain", "convolutions"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"ours": ours, "plain": plain, "convolutions": convolutions}[arguments.side](arguments)
        return

    sides = {"plain": start("plain")} | {f"ours, {precision}": start("ours", precision) for precision in dict.fromkeys(arguments.precision)}
    alone = start("convolutions")
    for process in (*sides.values(), alone):  # they load at the same time; one of them prepares the data
        read_line(process)
    our_sides = [side for side in sides if side != "plain"]
    about = {side: ask(sides[side], "about") for side in our_sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    waits: dict[str, list[float]] = {side: [] for side in sides}
    for step in range(arguments.warmup + arguments.steps):
        for side, process in sides.items():
            answer = ask(process)
            losses[side].append(answer["loss"])
            if step >= arguments.warmup:
                times[side].append(answer["seconds"])
                waits[side].append(answer["wait"])
    logging = ask(sides[our_sides[0]], "log")
    for process in sides.values():
        end(process)

    machine = about[our_sides[0]]
    print(f"VGGSNN, T={arguments.T}, {arguments.size}x{arguments.size}, batch {arguments.batch}; {arguments.steps} steps of each, in turn")
    print(f"{cpu()['model']}, {machine['threads']} threads; torch {machine['torch']}; LIF: {machine['lif']}")
    print("| | median step | least and most | samples/s | plain / this, step by step |\n|---|---|---|---|---|")
    for side, seconds in times.items():
        median = statistics.median(seconds)
        name = f"{side} ({about[side]['precision']})" if side == "ours, auto" else side
        ratio = statistics.median(p / o for p, o in zip(times["plain"], seconds, strict=True))
        print(f"| {name} | {1e3 * median:.0f} ms | {1e3 * min(seconds):.0f}, {1e3 * max(seconds):.0f} | ", end="")
        print(f"{arguments.batch / median:.2f} | {ratio:.2f} |")
    first = our_sides[0]
    print(f"wait for data in {first}: {100 * sum(waits[first]) / sum(times[first]):.2f} % of the steps")
    epoch = logging["steps"] * statistics.median(times[first])
    spent = logging["per_epoch"] + logging["per_line"] * epoch / logging["every"] + logging["per_step"] * logging["steps"]
    print(f"TensorBoard, jsonl and progress: {1e3 * spent:.0f} ms of an epoch of {epoch:.0f} s, {100 * spent / epoch:.3f} %")
    tenth = max(1, len(losses["plain"]) // 10)
    for name, part in (("first", slice(0, tenth)), ("last", slice(-tenth, None))):
        means = "; ".join(f"{side} {statistics.mean(losses[side][part]):.3f}" for side in losses)
        print(f"mean loss of the {name} {tenth} steps: {means}")
    for dtype in dict.fromkeys(value["precision"] for value in about.values()):
        answer = ask(alone, dtype)
        least = min(statistics.median(times[side]) for side in our_sides if about[side]["precision"] == dtype)
        rate = f"{1e3 * answer['seconds']:.0f} ms, {answer['flops'] / answer['seconds'] / 1e9:.0f} GFLOP/s"
        print(f"convolutions alone, {dtype} channels_last: {rate}; the whole step: {100 * answer['seconds'] / least:.0f} % of that rate")
    end(alone)


def start(side: str, precision: str = "auto") -> subprocess.Popen:
    """Start the process of one side, which takes a step whenever it is asked."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--precision", precision]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen) -> str:
    """Return the next line that a side prints.

    Raises: SystemExit if the process ended instead; it has printed the reason itself.
    """
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(process.args)} ended with exit code {process.wait()}.")
    return line


def end(process: subprocess.Popen) -> None:
    """End the process of a side."""
    process.stdin.close()
    process.wait()


def ask(process: subprocess.Popen, what: str = "step") -> dict:
    """Return the answer of a side: for "step" its seconds, the seconds it waited for data, and the loss."""
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return json.loads(read_line(process))


def serve(**answers: Callable[[], dict]) -> None:
    """Read lines from standard input, and print the answer that each of them asks for."""
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        answer = answers[line.strip()]()
        print(json.dumps({"seconds": time.perf_counter() - began, "wait": 0.0} | answer), flush=True)


def compose(arguments: argparse.Namespace) -> dict:
    """Return the configuration of `snnexp train` with these settings."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from snnexp import config
    from snnexp.composing import conf

    ConfigStore.instance().store("schema", config.TrainConfig)
    overrides = [
        f"T={arguments.T}", f"dataset.size={arguments.size}", f"batch_size={arguments.batch}", f"data_dir={arguments.data_dir}",
        f"precision={arguments.precision[0]}", "task.loss=ce", "scheduler=none", "device=cpu", "epochs=1000",
    ]  # fmt: skip
    with conf.initialize_hydra():
        return config.finish(hydra.compose("train", overrides=overrides), {"model": "vggsnn", "dataset": "digits_dvs"})


def ours(arguments: argparse.Namespace) -> None:
    """Serve the runner's own step, with its default logger."""
    import torch

    from snnexp import build
    from snnexp.engine import allocator, loop, results
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.progress import EVERY_S, Stopwatch
    from snnexp.engine.state import State, seed_everything
    from snnexp.engine.terminal import Terminal
    from snnexp.rundir import RunDir

    allocator.keep_memory()
    folder = RunDir(Path(tempfile.mkdtemp()))
    folder.logs.mkdir()
    experiment = build.make_experiment(folder, compose(arguments), Ranks(0, 1, choose_device("cpu")), Terminal(None, main=False))
    seed_everything(0, 0)
    state, waited = State(), [0.0]

    def batches() -> Iterator[object]:
        while True:
            experiment.train_batches.seek(state.epoch, 0)
            fetched = iter(experiment.train_loader)
            for _ in range(len(experiment.train_batches) - 1):  # whole batches only
                began = time.perf_counter()
                batch = next(fetched)
                waited[0] = time.perf_counter() - began
                yield batch
            state.epoch += 1

    stream = batches()
    experiment.net.train()

    def step() -> dict[str, float]:
        loop.set_rate(experiment, state)
        loss, _ = loop.forward_backward(experiment, state, range(1), stream)
        loss, _ = torch.stack([loss, loop.clip_gradient(experiment)]).tolist()
        loop.update(experiment)
        return {"loss": loss, "wait": waited[0]}

    def log() -> dict[str, float]:
        """Return what logging costs: for an epoch, for a line of progress, and for each step."""
        experiment.start_loggers(state)
        began = time.perf_counter()
        results.log_epoch(experiment, state, dict.fromkeys(("Loss", "Acc1", "Acc5"), 1.0), dict.fromkeys(("Loss", "Acc1", "Acc5"), 1.0), {})
        per_epoch = time.perf_counter() - began
        watch = Stopwatch(experiment, state)
        began = time.perf_counter()
        watch.write(began)
        per_line = time.perf_counter() - began
        with experiment.terminal.bar("epoch", 1000) as bar:
            began = time.perf_counter()
            for _ in range(1000):
                watch.step()
                bar.advance(1, f"loss {1.0:.3f}  {watch.rate():.0f} samples/s")
            per_step = (time.perf_counter() - began) / 1000
        steps = len(experiment.train_batches)
        return {"per_epoch": per_epoch, "per_line": per_line, "per_step": per_step, "steps": steps, "every": EVERY_S}

    def about() -> dict:
        return {
            "precision": experiment.precision.name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "lif": experiment.neuron_implementation,
        }

    serve(step=step, log=log, about=about)


def plain(arguments: argparse.Namespace) -> None:
    """Serve steps of VGGSNN as people usually write it; its batches are ready in memory as floats."""
    import torch
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from torch import nn

    from snnexp import build
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.terminal import Terminal
    from snnexp.rundir import RunDir

    folder = RunDir(Path(tempfile.mkdtemp()))
    folder.logs.mkdir()
    experiment = build.make_experiment(folder, compose(arguments), Ranks(0, 1, choose_device("cpu")), Terminal(None, main=False))
    data, batches, weights = experiment.data, experiment.train_batches, experiment.model.state_dict()

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        lif = neuron.LIFNode(
            tau=2.0, decay_input=False, v_threshold=1.0, v_reset=0.0, surrogate_function=surrogate.PiecewiseQuadratic(1.0), step_mode="m"
        )
        return [layer.SeqToANNContainer(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)), lif]

    layers: list[nn.Module] = []
    for inputs, outputs, pooled in (
        (2, 64, False), (64, 128, True), (128, 256, False), (256, 256, True), (256, 512, False), (512, 512, True), (512, 512, False),
        (512, 512, True),
    ):  # fmt: skip
        layers += block(inputs, outputs) + ([layer.SeqToANNContainer(nn.AvgPool2d(2))] if pooled else [])
    side = arguments.size // 16
    model = nn.Sequential(*layers, layer.SeqToANNContainer(nn.Flatten(), nn.Linear(512 * side * side, 10)))
    model.load_state_dict(dict(zip(model.state_dict(), (value.clone().contiguous() for value in weights.values()), strict=True)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    view = data.view("train", augment=True)
    del experiment

    def stream() -> Iterator[tuple]:
        epoch = 0
        while True:
            batches.seek(epoch, 0)
            for keys in list(batches)[: len(batches) - 1]:
                yield data.prepare(view.__getitems__(keys))
            epoch += 1

    ready = stream()
    upcoming = [next(ready)]
    model.train()

    def step() -> dict[str, float]:
        frames, target = upcoming.pop()
        loss = criterion(model(frames).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(model)
        return {"loss": loss.item()}

    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        answer = step()
        seconds = time.perf_counter() - began
        upcoming.append(next(ready))
        print(json.dumps(answer | {"seconds": seconds, "wait": 0.0}), flush=True)


def convolutions(arguments: argparse.Namespace) -> None:
    """Serve the times of the network's convolutions alone, forward and backward in channels_last, in fp32 and bf16."""
    import torch
    from torch import nn

    from snnexp.engine import allocator

    allocator.keep_memory()
    frames = arguments.T * arguments.batch

    def measure(dtype: torch.dtype) -> dict[str, float]:
        flops, pairs = 0, []
        for inputs, outputs, scale in (
            (2, 64, 1), (64, 128, 1), (128, 256, 2), (256, 256, 2), (256, 512, 4), (512, 512, 4), (512, 512, 8), (512, 512, 8),
        ):  # fmt: skip
            side = arguments.size // scale
            conv = nn.Conv2d(inputs, outputs, 3, padding=1).to(dtype, memory_format=torch.channels_last)
            image = torch.rand(frames, inputs, side, side).bernoulli().to(dtype, memory_format=torch.channels_last)
            image.requires_grad_(inputs != 2)
            gradient = torch.randn(frames, outputs, side, side).to(dtype, memory_format=torch.channels_last)
            flops += (3 if inputs != 2 else 2) * 2 * 9 * inputs * outputs * side * side * frames
            pairs.append((conv, image, gradient))

        def once() -> float:
            total = 0.0
            for conv, image, gradient in pairs:
                began = time.perf_counter()
                conv(image).backward(gradient)
                total += time.perf_counter() - began
                conv.zero_grad()
                image.grad = None
            return total

        once()
        return {"seconds": statistics.median(once() for _ in range(7)), "flops": flops}

    serve(fp32=lambda: measure(torch.float32), bf16=lambda: measure(torch.bfloat16))


if __name__ == "__main__":
    main()
