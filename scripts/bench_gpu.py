"""What a GPU makes of the program, within eight minutes: training steps beside SpikingJelly's, the LIF beside memory, resume, tuning, NCCL.

Each part is a process of its own with a time limit; a part that fails says why, and the others go on. The tables are Markdown, as
docs/performance.md has them. The parts:

    train       `snnexp train` with its defaults
    resume      a run of two epochs beside one that was resumed after the first, with deterministic=true: are their weights equal?
    layer       one LIF layer, [10, 128, 64, 48, 48], forward and backward: bytes per second beside those of a copy
    vggsnn      a training step, T=10, 48x48, batch 128: SpikingJelly's layers and ours, by precision
    spikformer  the same of Spikformer 4-384, T=4, 32x32, batch 128
    compiled    ours of both networks, compiled, and as CUDA graphs
    overhead    an epoch with the LIF statistics, the timing log and TensorBoard beside one without
    svrt        S-VRT on clips of 4 frames, 256x256, made faster by `snnexp profile tune=true`
    nccl        two processes, where there are two devices

"SpikingJelly" is the same network with SpikingJelly's LIFNode in fp32, contiguous, as its users have it: with torch's operations, and with
its Triton kernel, which it takes in fp32 only. The convolutions of the network are also timed alone, for their share of the bf16 peak.

    python scripts/bench_gpu.py
    python scripts/bench_gpu.py --only vggsnn layer --steps 50
    python scripts/bench_gpu.py --tiny                # tiny sizes, on a CPU too, where parts that need a GPU are left out
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import date
from io import StringIO
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.functional import neuron_implementation
from torch import nn

import snnexp
from snnexp import build
from snnexp.api.loaded_run import Run
from snnexp.api.training import begin
from snnexp.engine import loop
from snnexp.engine.distributed import Ranks
from snnexp.engine.experiment import Experiment
from snnexp.engine.signals import StopFlag
from snnexp.engine.state import State
from snnexp.engine.terminal import Terminal
from snnexp.models.neurons import LIFNode, lif_implementation, make_lif
from snnexp.profile.steps import matmul_peak
from snnexp.provenance import cpu

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
SECONDS = {
    "train": 40, "resume": 40, "layer": 25, "vggsnn": 75, "spikformer": 55, "compiled": 110, "overhead": 35, "svrt": 70, "nccl": 30
}  # fmt: skip
"""The time limits of the parts, eight minutes in all."""
NEED_CUDA = ("compiled", "svrt", "nccl")


def main() -> None:
    """Run the parts, one process after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS), metavar="PART")
    parser.add_argument("--steps", type=int, default=20, help="of each side")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, all parts in this process and without a time limit")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        PARTS[arguments.only[0]](arguments)
        return
    if not CUDA and not arguments.tiny:
        sys.exit("There is no CUDA device here. --tiny tries the script without one.")
    about = f"{torch.cuda.get_device_name(DEVICE)}, CUDA {torch.version.cuda}" if CUDA else f"{cpu()['model']}, no GPU"
    print(f"{about}; torch {torch.__version__}; LIF: {lif_implementation(DEVICE)}; {date.today()}", flush=True)
    for part in arguments.only:
        print(f"\n## {part}\n", flush=True)
        if not CUDA and part in NEED_CUDA:
            print("Left out: it needs a GPU.")
        elif arguments.tiny:
            PARTS[part](arguments)
        else:
            command = [sys.executable, __file__, *sys.argv[1:], "--here", "--only", part]
            try:
                if code := subprocess.run(command, timeout=SECONDS[part]).returncode:
                    print(f"Failed: exit code {code}.")
            except subprocess.TimeoutExpired:
                print(f"Not done after {SECONDS[part]} s.")


def train(arguments: argparse.Namespace) -> None:
    """Print the speed and the accuracy of the default run."""
    with tempfile.TemporaryDirectory() as folder:
        run = trained(["logger=tensorboard", *small(arguments, "epochs=1")], arguments, folder)
        print(in_words(run))


def resume(arguments: argparse.Namespace) -> None:
    """Print whether a run that was resumed after an epoch has the weights of one that was left alone, bit for bit."""
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["deterministic=true", "scheduler=none", "limit_train=256", *small(arguments)]
        for epochs in (2, 1):
            run = trained([*fixed, f"epochs={epochs}"], arguments, folder)
            if epochs == 1:
                command = [sys.executable, "-m", "snnexp", "resume", run.path, "epochs=2"]
                threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # on a CPU other sums follow from another number
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)
            saved = torch.load(run.path / "checkpoints/checkpoint_latest.pth", weights_only=True)
            weights.append(saved["state_dict"])
    differing = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    print("The weights are equal, bit for bit." if not differing else f"The weights differ: {', '.join(differing)}")


def layer(arguments: argparse.Namespace) -> None:
    """Print the traffic of one LIF layer beside that of a copy."""
    shape = (2, 2, 4, 8, 8) if arguments.tiny else (10, 128, 64, 48, 48)
    print("| LIF layer | forward | backward | GB/s | copy, GB/s | share |\n|---|---|---|---|---|---|")
    shares = []
    for dtype in (torch.float32, torch.bfloat16):
        lif, x = make_lif("tet"), torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_()
        gradient, other = torch.randn_like(x), torch.empty_like(x)

        def forward(lif: nn.Module = lif, x: torch.Tensor = x) -> torch.Tensor:
            functional.reset_net(lif)
            return lif(x)

        one_way = x.nbytes
        copied = 2 * one_way / median_seconds(lambda: other.copy_(x.detach()), arguments.steps)  # noqa: B023, called before x changes
        first = median_seconds(forward, arguments.steps)
        both = median_seconds(lambda: forward().backward(gradient, inputs=[x]), arguments.steps)  # noqa: B023
        moved = 5 * one_way / both  # x and spikes; x, their gradient and that of x
        shares.append(moved / copied)
        rates = f"{moved / 1e9:.0f} | {copied / 1e9:.0f} | {percent(shares[-1])}"
        print(f"| {str(dtype).removeprefix('torch.')} | {1e3 * first:.2f} ms | {1e3 * (both - first):.2f} ms | {rates} |", flush=True)
    goal("traffic of the LIF, at least 80 % of a copy's", min(shares) >= 0.8)


def vggsnn(arguments: argparse.Namespace) -> None:
    """Compare the training steps of a VGGSNN."""
    compare("vggsnn", PLAIN, arguments)


def spikformer(arguments: argparse.Namespace) -> None:
    """Compare the training steps of a Spikformer 4-384."""
    compare("spikformer", PLAIN, arguments)


def compiled(arguments: argparse.Namespace) -> None:
    """Compare the compiled forms of both networks."""
    for network in NETWORKS:
        print(f"{network}:\n")
        compare(network, COMPILED, arguments)


NETWORKS = {
    "vggsnn": (
        ["model=vggsnn", "T=10", "dataset.size=48", "batch_size=128"],
        ["model=vggsnn", "T=2", "dataset.size=16", "batch_size=4", "model.width=0.125"],
    ),
    "spikformer": (
        ["model=spikformer", "dataset=digits", "T=4", "dataset.size=32", "batch_size=128"],
        ["model=spikformer", "dataset=digits", "T=2", "dataset.size=16", "batch_size=4", "model.dim=32", "model.heads=2", "model.depth=1"],
    ),
}
"""The settings of each network, and those of a tiny one."""
PLAIN: dict[str, tuple[str, list[str]]] = {
    "SpikingJelly, fp32": ("torch", ["precision=fp32", "channels_last=false"]),
    "SpikingJelly, tf32": ("torch", ["precision=tf32", "channels_last=false"]),
    "SpikingJelly, bf16": ("torch", ["precision=bf16", "channels_last=false"]),
    "SpikingJelly's Triton, fp32": ("triton", ["precision=fp32", "channels_last=false"]),
    "SpikingJelly's Triton, tf32": ("triton", ["precision=tf32", "channels_last=false"]),
    "ours, fp32": ("", ["precision=fp32"]),
    "ours, tf32": ("", ["precision=tf32"]),
    "ours, bf16": ("", ["precision=bf16"]),
}
"""By name of a side: which LIF of SpikingJelly it has ("": ours), and its settings."""
COMPILED = {
    "ours, bf16": PLAIN["ours, bf16"],
    "compile=true": ("", ["precision=bf16", "compile=true"]),
    "compile=reduce-overhead": ("", ["precision=bf16", "compile=reduce-overhead"]),
}
"""The same, for the compiled forms."""


def compare(network: str, sides: dict[str, tuple[str, list[str]]], arguments: argparse.Namespace) -> None:
    """Time a training step of each side on the same batch, and print the table; after PLAIN also the convolutions alone."""
    overrides, first = NETWORKS[network][arguments.tiny], next(iter(sides))
    print(f"| | LIF | median step | samples/s | times {first} | peak memory |\n|---|---|---|---|---|---|")
    medians: dict[str, float] = {}
    alone = None
    for side, (implementation, settings) in sides.items():
        if not CUDA and any(word in side for word in ("tf32", "Triton")):
            continue
        os.environ["SJ_LIF_CUDA_IMPLEMENTATION"] = implementation or "auto"
        try:
            with experiment_of([*overrides, *settings], arguments) as x:
                runs = as_spikingjelly(x.model) if implementation else x.neuron_implementation
                step = step_of(x)
                if CUDA:
                    torch.cuda.reset_peak_memory_stats(DEVICE)
                medians[side] = median_seconds(step, arguments.steps)
                samples = x.config.batch_size
                if side == "ours, bf16" and sides is PLAIN:
                    alone = convolutions(x, step)
        except torch.OutOfMemoryError:
            print(f"| {side} | | out of memory | | | |", flush=True)
            continue
        ratio = medians.get(first, float("nan")) / medians[side]
        peak = f"{torch.cuda.max_memory_allocated(DEVICE) / 2**30:.2f} GiB" if CUDA else ""
        cells = [runs, f"{1e3 * medians[side]:.1f} ms", f"{samples / medians[side]:.0f}", f"{ratio:.2f}", peak]
        print(f"| {side} | {' | '.join(cells)} |", flush=True)
        if CUDA:
            torch.cuda.empty_cache()
    if alone is None:
        return
    flops, seconds = alone
    peak = matmul_peak(DEVICE, "bf16")["flops_per_s"]
    print(f"\nConvolutions alone, bf16, channels_last: {1e3 * seconds:.1f} ms, {flops / seconds / 1e12:.1f} TFLOP/s, ", end="")
    print(f"{percent(flops / seconds / peak)} of the {peak / 1e12:.1f} TFLOP/s of a large product;")
    print(f"the step takes {medians['ours, bf16'] / seconds:.2f} times as long.")
    goal("a step at least 4 times as fast as SpikingJelly's in fp32", medians.get(first, float("inf")) / medians["ours, bf16"] >= 4)
    goal("at least 40 % of the bf16 peak within convolutions", flops / seconds / peak >= 0.4)


def overhead(arguments: argparse.Namespace) -> None:
    """Print what the LIF statistics, the timing log and TensorBoard add to an epoch."""
    overrides = ["dataset.size=48", "T=10", "batch_size=64", *small(arguments, "dataset.size=16")]
    seconds: dict[str, list[float]] = {"bare": [], "full": []}
    with (
        experiment_of(overrides, arguments) as bare,
        experiment_of([*overrides, "tracker=[lif,timing]", "logger=tensorboard"], arguments) as full,
    ):
        full.start_loggers(State())
        for round_index in range(6):  # the first is not counted
            for name, x in (("bare", bare), ("full", full)):
                began = time.perf_counter()
                loop.train_epoch(x, State(), StopFlag())
                if CUDA:
                    torch.cuda.synchronize(DEVICE)
                if round_index:
                    seconds[name].append(time.perf_counter() - began)
        full.close(), bare.close()
    added = statistics.median(b / a for a, b in zip(seconds["bare"], seconds["full"], strict=True)) - 1
    print(f"An epoch without: {statistics.median(seconds['bare']):.2f} s; with all three: {100 * added:+.2f} %")
    goal("at most 1 % together", added <= 0.01)


def svrt(arguments: argparse.Namespace) -> None:
    """Let `snnexp profile` find the fastest settings of S-VRT."""
    sizes = ["dataset.size=256", "dataset.crop=256", "dataset.frames=4", "dataset.clips=16", "batch_size=1", "steps=3", "warmup=2"]
    with tempfile.TemporaryDirectory() as folder:
        words = ["model=svrt", *common(arguments, folder), *sizes, "tune=true", "tune_budget_minutes=1"]
        subprocess.run([sys.executable, "-m", "snnexp", "profile", *words], check=True)


def nccl(arguments: argparse.Namespace) -> None:
    """Train the default run in two processes."""
    if torch.cuda.device_count() < 2:
        print("Left out: it needs two GPUs.")
        return
    with tempfile.TemporaryDirectory() as folder:
        print(in_words(trained(["devices=2"], arguments, folder)))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train, "resume": resume, "layer": layer, "vggsnn": vggsnn, "spikformer": spikformer, "compiled": compiled,
    "overhead": overhead, "svrt": svrt, "nccl": nccl,
}  # fmt: skip


# ---- what the parts share


def common(arguments: argparse.Namespace, folder: str) -> list[str]:
    """Return the settings of every run."""
    return [f"device={DEVICE.type}", f"data_dir={Path(arguments.data_dir).resolve()}", f"output_dir={folder}", "logger=none"]


def small(arguments: argparse.Namespace, *more: str) -> list[str]:
    """Return the settings that make a VGGSNN and its data tiny, if that is wanted."""
    tiny = ["T=2", "dataset.size=16", "model.width=0.125", "batch_size=16", "limit_train=32", "limit_val=16", *more]
    return tiny if arguments.tiny else []


def trained(settings: list[str], arguments: argparse.Namespace, folder: str) -> Run:
    """Train a run in this process, without what it prints."""
    with redirect_stdout(StringIO()):
        return snnexp.train([*common(arguments, folder), *settings])


def in_words(run: Run) -> str:
    """Return what a run came to, as a line."""
    result = run.result
    rate, seconds = result["samples_per_s"], result["wall_time_s"]
    return f"{seconds:.0f} s, {rate:.0f} samples/s in training, {result['precision']}, test Acc1 {result['test']['Acc1']:.2f}"


@contextmanager
def experiment_of(overrides: list[str], arguments: argparse.Namespace) -> Iterator[Experiment]:
    """Give the experiment of a run with these settings, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        run, settings = begin([*common(arguments, folder), *overrides])
        yield build.make_experiment(run, settings, Ranks(0, 1, DEVICE), Terminal(None, main=False))
    torch.compiler.reset()


def as_spikingjelly(model: nn.Module) -> str:
    """Replace the LIF layers of a model by SpikingJelly's, and return which implementation of theirs runs."""
    for parent in list(model.modules()):
        for name, node in list(parent.named_children()):
            if isinstance(node, LIFNode):
                dynamics = {key: getattr(node, key) for key in ("tau", "decay_input", "v_threshold", "v_reset", "detach_reset")}
                setattr(parent, name, neuron.LIFNode(**dynamics, surrogate_function=node.surrogate_function, step_mode="m"))
    functional.invalidate_reset_cache(model)
    return neuron_implementation("lif", DEVICE, execution="eager")["implementation"] if CUDA else "torch"


def step_of(x: Experiment) -> Callable[[], None]:
    """Return a function that takes the runner's own step, on the same batch of the host each time."""
    state, batch = State(), next(iter(x.train_loader))
    x.net.train()

    def step() -> None:
        loop.set_rate(x, state)
        loss, _ = loop.forward_backward(x, state, range(1), repeat(batch))
        torch.stack([loss, loop.clip_gradient(x)]).tolist()
        loop.update(x)

    return step


def convolutions(x: Experiment, step: Callable[[], None]) -> tuple[int, float]:
    """Return the operations and the seconds of the 2-D convolutions of a step, forward and backward, each alone in bf16, channels_last."""
    seen: list[tuple[nn.Conv2d, torch.Tensor]] = []
    convs = [module for module in x.model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda conv, inputs, _: seen.append((conv, inputs[0].shape))) for conv in convs]
    step()
    for hook in hooks:
        hook.remove()
    flops, seconds = 0, 0.0
    for conv, shape in seen:
        form = {"device": DEVICE, "dtype": torch.bfloat16}
        image = torch.rand(shape, **form).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = conv.weight.detach().to(**form, memory_format=torch.channels_last).requires_grad_()

        def forward(conv: nn.Conv2d = conv, image: torch.Tensor = image, weight: torch.Tensor = weight) -> torch.Tensor:
            return nn.functional.conv2d(image, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

        output = forward()
        gradient = torch.ones_like(output)
        flops += 3 * 2 * output.numel() * weight[0].numel()
        seconds += median_seconds(lambda: torch.autograd.grad(forward(), (image, weight), gradient), 5)  # noqa: B023, called at once
    return flops, seconds


def median_seconds(work: Callable[[], Any], times: int, warmup: int = 3) -> float:
    """Return the median of the seconds that some work takes, to the end of what it gives the device."""
    seconds = []
    for _ in range(warmup + times):
        if CUDA:
            torch.cuda.synchronize(DEVICE)
        began = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize(DEVICE)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[warmup:])


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.0f} %"


def goal(what: str, met: bool) -> None:
    """Print whether a goal is met."""
    print(f"Goal: {what}: {'met' if met else 'not met'}.", flush=True)


if __name__ == "__main__":
    main()
