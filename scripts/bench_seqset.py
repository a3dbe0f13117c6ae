"""Compare a step of a SeqSetVAE of width 64 on real stays with a loop over patients and sets, in turn in one process: stays/s, ratios.

The loop does what the system did that this one replaces: it encodes, decodes and compares each set of each stay by itself, and sends each
stay through the transformer by itself. It uses the same layers with the same weights and the same AdamW, and must reach the same loss
(to 1e-4, without dropout, at the mean of the posterior) before anything is timed. A step is forward, loss, backward, clipping and
optimizer. Batches are those of the runner (stays of similar length together). Peak memory: each side and size runs in a process of its own,
whose first step is on the batch with the most events (of the first 16); it is the maximum of resident memory during the step minus that
before it.

    python scripts/bench_seqset.py data/physionet2012                 # batch 1, 4, 8, 16, 32
    python scripts/bench_seqset.py data/physionet2012 --batch 16 --rounds 20
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.data.sampler import TrainBatches
from snnexp.data.stays.medical import Stays
from snnexp.data.stays.physionet2012 import PhysioNet2012
from snnexp.engine import allocator
from snnexp.models.seqset_vae.attention import Attention, AttentionBlock, InducedAttention
from snnexp.models.seqset_vae.seqset_vae import MINUTES_OF_A_DAY, SeqSetVAE
from snnexp.models.seqset_vae.set_vae import LARGEST_LOG_VARIANCE, SetDecoder, SetVAE
from snnexp.tasks.set_vae import StayOutcome

Batch = tuple[Stays, Tensor]
Step = Callable[[Batch], float]
SIDES = ("batched", "looped")


def main() -> None:
    """Check that both sides agree, time them in turn, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds set-a and Outcomes-a.txt")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3, help="batches of each size, on each of which the sides take turns")
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = PhysioNet2012(root=arguments.root)
    if arguments.memory:
        print(peak(data, arguments.memory[0], int(arguments.memory[1])))
        return
    allocator.keep_memory()  # this holds for both, since they share a process
    steps = compared_steps(data)
    print(
        f"SeqSetVAE, {data.splits['train']} training stays of physionet2012; {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    print("| batch | batched, ms | looped, ms | batched, stays/s | looped, stays/s | looped / batched | peak batched, MB | looped, MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in arguments.batch:
        measured = batches(data, size)[: arguments.rounds]
        steps["batched"](measured[0])  # the loop needs no warm-up for a new size
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for index, batch in enumerate(measured):
            for side in SIDES if index % 2 else SIDES[::-1]:  # the second side pays for what the first left behind
                times[side].append(steps[side](batch))
        ours, loop = (statistics.median(times[side]) for side in SIDES)
        # Batches differ in length, so a ratio of total times would mostly show the longest batch.
        ratio = statistics.median(b / a for a, b in zip(times["batched"], times["looped"], strict=True))
        memory = [peak_in_own_process(arguments.root, side, size) for side in SIDES]
        print(f"| {size} | {1e3 * ours:.0f} | {1e3 * loop:.0f} | {size / ours:.1f} | {size / loop:.2f} | {ratio:.1f} | ", end="")
        print(" | ".join(f"{value:.0f}" for value in memory) + " |", flush=True)
    print("\n| batch | padding of stays to the longest of the batch, like lengths together | in any order |\n|---|---|---|")
    for size in (16, 32):
        print(f"| {size} | {padding(data, size, True):.1%} | {padding(data, size, False):.1%} |")


def batches(data: PhysioNet2012, size: int) -> list[Batch]:
    """Return up to 16 batches of the runner's first epoch, in its order."""
    view = data.view("train")
    order = TrainBatches(np.arange(len(view)), size, 0, lengths=data.lengths("train"))
    return [view.__getitems__(keys) for _, keys in zip(range(16), order, strict=False)]


def padding(data: PhysioNet2012, size: int, alike: bool) -> float:
    """Return the fraction of the transformer's places [N, S] that is padding in an epoch; within sets there is none."""
    lengths = data.lengths("train")
    order = TrainBatches(np.arange(len(lengths)), size, 0, lengths=lengths if alike else None)
    counts = [lengths[[index for _, index in keys]] for keys in order]
    return 1 - lengths.sum() / sum(len(part) * part.max() for part in counts)


def make_model(data: PhysioNet2012, dropout: float) -> SeqSetVAE:
    """Return the default network, with the same weights every time."""
    torch.manual_seed(0)
    return SeqSetVAE(num_variables=len(data.variables), dropout=dropout)


def compared_steps(data: PhysioNet2012) -> dict[str, Step]:
    """Return a step function for each side, with weights of its own, after checking that both give the same loss and gradients.

    Raises: SystemExit if they do not.
    """
    batch, results = batches(data, 4)[0], []
    for side in SIDES:
        model = make_model(data, dropout=0)
        model.set_vae.eval()  # the mean of the posterior, not a draw
        loss = loss_function(side, model, StayOutcome())(batch)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (ours, our_gradient), (loop, loop_gradient) = results
    distance = ((our_gradient - loop_gradient).norm() / loop_gradient.norm()).item()
    if abs(ours - loop) > 1e-4 * abs(loop) or distance > 1e-3:
        sys.exit(f"The two sides do not agree: losses {ours} and {loop}, gradients {distance:.1e} apart.")
    print(f"loss of 4 stays: batched {ours:.6f}, looped {loop:.6f}; gradients {distance:.0e} apart")
    steps = {side: step_function(side, make_model(data, dropout=0.1)) for side in SIDES}
    for step in steps.values():
        step(batch)
    return steps


def loss_function(side: str, model: SeqSetVAE, task: StayOutcome) -> Callable[[Batch], Tensor]:
    """Return the function that computes the loss of a batch in the way of one side."""
    if side == "batched":
        return lambda batch: task.loss(model, batch, 250)[0]
    return lambda batch: looped_loss(model, batch, task.beta * task.rise(250), task.weight)


def step_function(side: str, model: SeqSetVAE) -> Step:
    """Return a training step of one side, which returns the seconds it took."""
    loss_of = loss_function(side, model, StayOutcome())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(batch: Batch) -> float:
        start = time.perf_counter()
        loss_of(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def peak(data: PhysioNet2012, side: str, size: int) -> float:
    """Return by how many megabytes a step on the batch with the most events raises the memory of the process at most; Linux only."""
    batch = max(batches(data, size), key=lambda batch: len(batch[0].variable))
    step = step_function(side, make_model(data, dropout=0.1))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; that of getrusage would include the parent's
    before = resident("VmRSS")
    step(batch)
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> int:
    """Return resident memory in kilobytes: "VmRSS" now, "VmHWM" at its peak."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:"))


def peak_in_own_process(root: Path, side: str, size: int) -> float:
    """Return the peak memory of a side, measured by this script in a new process."""
    command = [sys.executable, __file__, str(root), "--memory", side, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# The loop. Every function takes one set or one stay, and layers of our model.


def looped_loss(model: SeqSetVAE, batch: Batch, beta: float, weight: float) -> Tensor:
    """Return reconstruction + beta KL + weight x cross entropy, computed stay by stay and set by set."""
    stays, y = batch
    errors, kls, logits = [], [], []
    for sets in by_stay(stays):
        latents = []
        for _, variable, value in sets:
            mu, logvar, z = encode(model.set_vae, variable, value)
            decoded = decode(model.set_vae.decoder, z, len(variable))
            target = torch.cat([model.set_vae.codes[variable], value.unsqueeze(1)], dim=1)
            distances = (decoded.unsqueeze(1) - target.unsqueeze(0)).square().sum(2)
            errors.append((distances.amin(0).sum() + distances.amin(1).sum()) / 4)
            kls.append(0.5 * (logvar.exp() + mu.square() - 1 - logvar))
            latents.append(mu.mean(0))
        logits.append(outcome(model, torch.stack(latents), torch.stack([minute for minute, _, _ in sets])))
    bound = torch.stack(errors).mean() + beta * torch.stack(kls).mean(0).sum()
    return bound + weight * F.cross_entropy(torch.stack(logits), y)


def by_stay(stays: Stays) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Return for each stay its sets in order: minute, variables [n], values [n]."""
    sizes = [n for n, k in stays.runs for _ in range(k)]
    parts = zip(stays.stay.tolist(), stays.place.tolist(), stays.minute, stays.variable.split(sizes), stays.value.split(sizes), strict=True)
    ordered: list[list] = [[None] * length for length in stays.lengths.tolist()]
    for stay, place, *events in parts:
        ordered[stay][place] = tuple(events)
    return ordered


def encode(vae: SetVAE, variable: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, log variance and draw [L, D] of one set."""
    names = F.normalize(vae.names(variable), dim=1) * math.sqrt(vae.width)
    name, direction = names.chunk(2, dim=1)
    x = vae.enter(torch.cat([name, direction * value.unsqueeze(1)], dim=1))
    pooled = []
    for layer in vae.encoder:
        x = exchange(layer, x)
        pooled.append(x.mean(0))
    mu, logvar = vae.to_posterior(torch.stack(pooled)).chunk(2, dim=1)
    logvar = logvar.clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
    return mu, logvar, mu + torch.randn_like(mu) * (0.5 * logvar).exp() if vae.training else mu


def decode(decoder: SetDecoder, z: Tensor, n: int) -> Tensor:
    """Return as many rows [n, W] as the set has events, from its latents [L, W]."""
    x = z
    for layer, expand, mix in zip(decoder.exchange, decoder.expand, decoder.mix, strict=True):
        x = mix(block(expand, decoder.points[:n], exchange(layer, x)))
    return decoder.out(x)


def exchange(layer: InducedAttention, x: Tensor) -> Tensor:
    """Return the result of an ISAB for one set [n, W]."""
    return x + block(layer.spread, x, block(layer.gather, layer.points, x))


def block(layer: AttentionBlock, queries: Tensor, context: Tensor) -> Tensor:
    """Return the result of a MAB for one set."""
    h = layer.norm1(attention(layer.attention, queries, context))
    return layer.norm2(h + layer.feed_forward(h))


def attention(layer: Attention, queries: Tensor, context: Tensor, causal: bool = False) -> Tensor:
    """Return the attention of the queries [n, W] of one set, or one stay, to its contexts [m, W]."""
    q, k, v = (
        linear(x).unflatten(1, (layer.heads, -1)).transpose(0, 1)
        for linear, x in ((layer.query, queries), (layer.key, context), (layer.value, context))
    )
    return layer.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1).flatten(1))


def outcome(model: SeqSetVAE, z: Tensor, minute: Tensor) -> Tensor:
    """Return the logits [2] of one stay from the latents [S, W] of its sets."""
    place = torch.arange(len(z))
    x = z + model.of_minute(minute.unsqueeze(1) / MINUTES_OF_A_DAY) + torch.sin(place / 100).unsqueeze(1) * model.of_place
    for layer in model.transformer:
        h = layer.norm1(x)
        x = x + layer.dropout(attention(layer.attention, h, h, causal=True))
        x = x + layer.dropout(layer.feed_forward(layer.norm2(x)))
    return model.head(x.mean(0))


if __name__ == "__main__":
    main()
