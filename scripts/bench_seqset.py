"""A step of a SeqSetVAE of width 64 on real stays beside a loop over patients and sets, in one process and in turn: stays/s, ratios.

The loop is the way of the system this one replaces: each set of each stay is encoded, decoded and compared by itself, and each stay goes
through the transformer by itself. It uses the same layers with the same weights and the same AdamW, and must come to the same loss (1e-4,
without dropout, at the posterior's mean) before anything is timed. A step is forward, loss, backward, clipping and optimizer. Batches are
those of the runner (stays of like length together). Peak memory: each side and size in a process of its own, whose first step is on the
batch with the most events (of the first 16); the most resident memory during the step less that before it.

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
    allocator.keep_memory()  # for both: one process has one allocator
    steps = agreeing(data)
    print(
        f"SeqSetVAE, {data.splits['train']} training stays of physionet2012; {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    print("| batch | batched, ms | looped, ms | batched, stays/s | looped, stays/s | looped / batched | peak batched, MB | looped, MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in arguments.batch:
        chosen = batches(data, size)[: arguments.rounds]
        steps["batched"](chosen[0])  # the loop has nothing to warm up that an earlier size has not
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number, batch in enumerate(chosen):
            for side in SIDES if number % 2 else SIDES[::-1]:  # who is second pays for what the first left behind
                times[side].append(steps[side](batch))
        ours, loop = (statistics.median(times[side]) for side in SIDES)
        # Batches differ in length: the stays of all of them over the time of all of them would be ruled by the longest.
        ratio = statistics.median(b / a for a, b in zip(times["batched"], times["looped"], strict=True))
        memory = [in_process_of_its_own(arguments.root, side, size) for side in SIDES]
        print(f"| {size} | {1e3 * ours:.0f} | {1e3 * loop:.0f} | {size / ours:.1f} | {size / loop:.2f} | {ratio:.1f} | ", end="")
        print(" | ".join(f"{value:.0f}" for value in memory) + " |", flush=True)
    print("\n| batch | padding of stays to the longest of the batch, like lengths together | in any order |\n|---|---|---|")
    for size in (16, 32):
        print(f"| {size} | {padding(data, size, True):.1%} | {padding(data, size, False):.1%} |")


def batches(data: PhysioNet2012, size: int) -> list[Batch]:
    """A few batches of the runner's first epoch, in its order."""
    view = data.view("train")
    order = TrainBatches(np.arange(len(view)), size, 0, lengths=data.lengths("train"))
    return [view.__getitems__(keys) for _, keys in zip(range(16), order, strict=False)]


def padding(data: PhysioNet2012, size: int, alike: bool) -> float:
    """The part of the transformer's places [N, S] that is padding in an epoch; within sets there is none."""
    lengths = data.lengths("train")
    order = TrainBatches(np.arange(len(lengths)), size, 0, lengths=lengths if alike else None)
    counts = [lengths[[index for _, index in keys]] for keys in order]
    return 1 - lengths.sum() / sum(len(part) * part.max() for part in counts)


def fresh(data: PhysioNet2012, dropout: float) -> SeqSetVAE:
    """The default network, the same every time."""
    torch.manual_seed(0)
    return SeqSetVAE(num_variables=len(data.variables), dropout=dropout)


def agreeing(data: PhysioNet2012) -> dict[str, Step]:
    """A step of each side, on weights of its own, after both came to the same loss and gradients."""
    batch, came = batches(data, 4)[0], []
    for side in SIDES:
        model = fresh(data, dropout=0)
        model.set_vae.eval()  # the posterior's mean, not a draw
        loss = losses(side, model, StayOutcome())(batch)
        loss.backward()
        came.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (ours, gradient), (loop, other) = came
    off = ((gradient - other).norm() / other.norm()).item()
    if abs(ours - loop) > 1e-4 * abs(loop) or off > 1e-3:
        sys.exit(f"The two sides do not agree: losses {ours} and {loop}, gradients {off:.1e} apart.")
    print(f"loss of 4 stays: batched {ours:.6f}, looped {loop:.6f}; gradients {off:.0e} apart")
    steps = {side: stepping(side, fresh(data, dropout=0.1)) for side in SIDES}
    for step in steps.values():
        step(batch)
    return steps


def losses(side: str, model: SeqSetVAE, task: StayOutcome) -> Callable[[Batch], Tensor]:
    """The loss of a batch, by one of the sides."""
    if side == "batched":
        return lambda batch: task.loss(model, batch, 250)[0]
    return lambda batch: looped_loss(model, batch, task.beta * task.rise(250), task.weight)


def stepping(side: str, model: SeqSetVAE) -> Step:
    """A training step of one side, which returns the seconds it took."""
    loss_of = losses(side, model, StayOutcome())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(batch: Batch) -> float:
        began = time.perf_counter()
        loss_of(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step


def peak(data: PhysioNet2012, side: str, size: int) -> float:
    """Megabytes that a step on the batch with the most events adds, at its highest, to the process; Linux only."""
    batch = max(batches(data, size), key=lambda batch: len(batch[0].variable))
    step = stepping(side, fresh(data, dropout=0.1))
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten; getrusage would also hold the parent's
    before = resident("VmRSS")
    step(batch)
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> int:
    """Kilobytes of resident memory: VmRSS now, VmHWM at most."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:"))


def in_process_of_its_own(root: Path, side: str, size: int) -> float:
    command = [sys.executable, __file__, str(root), "--memory", side, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# The loop. Every function takes one set, or one stay, and the layers of our model.


def looped_loss(model: SeqSetVAE, batch: Batch, beta: float, weight: float) -> Tensor:
    """Reconstruction + beta KL + weight x cross entropy, stay by stay and set by set."""
    stays, y = batch
    errors, kls, logits = [], [], []
    for sets in by_stay(stays):
        latents = []
        for _, variable, value in sets:
            mu, logvar, z = encode(model.set_vae, variable, value)
            made = decode(model.set_vae.decoder, z, len(variable))
            target = torch.cat([model.set_vae.codes[variable], value.unsqueeze(1)], dim=1)
            distances = (made.unsqueeze(1) - target.unsqueeze(0)).square().sum(2)
            errors.append((distances.amin(0).sum() + distances.amin(1).sum()) / 4)
            kls.append(0.5 * (logvar.exp() + mu.square() - 1 - logvar))
            latents.append(mu.mean(0))
        logits.append(outcome(model, torch.stack(latents), torch.stack([minute for minute, _, _ in sets])))
    bound = torch.stack(errors).mean() + beta * torch.stack(kls).mean(0).sum()
    return bound + weight * F.cross_entropy(torch.stack(logits), y)


def by_stay(stays: Stays) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Of each stay its sets in order: minute, variables [n], values [n]."""
    sizes = [n for n, k in stays.runs for _ in range(k)]
    parts = zip(stays.stay.tolist(), stays.place.tolist(), stays.minute, stays.variable.split(sizes), stays.value.split(sizes), strict=True)
    found: list[list] = [[None] * length for length in stays.lengths.tolist()]
    for stay, place, *one in parts:
        found[stay][place] = tuple(one)
    return found


def encode(vae: SetVAE, variable: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log variance and draw [L, D] of one set."""
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
    """As many rows [n, W] as the set has events, from its latents [L, W]."""
    x = z
    for layer, expand, mix in zip(decoder.exchange, decoder.expand, decoder.mix, strict=True):
        x = mix(block(expand, decoder.points[:n], exchange(layer, x)))
    return decoder.out(x)


def exchange(layer: InducedAttention, x: Tensor) -> Tensor:
    """An ISAB on one set [n, W]."""
    return x + block(layer.spread, x, block(layer.gather, layer.points, x))


def block(layer: AttentionBlock, queries: Tensor, context: Tensor) -> Tensor:
    """A MAB on one set."""
    h = layer.norm1(attention(layer.attention, queries, context))
    return layer.norm2(h + layer.feed_forward(h))


def attention(layer: Attention, queries: Tensor, context: Tensor, causal: bool = False) -> Tensor:
    """Attention of one set's, or one stay's, queries [n, W] to its contexts [m, W]."""
    q, k, v = (
        linear(x).unflatten(1, (layer.heads, -1)).transpose(0, 1)
        for linear, x in ((layer.query, queries), (layer.key, context), (layer.value, context))
    )
    return layer.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1).flatten(1))


def outcome(model: SeqSetVAE, z: Tensor, minute: Tensor) -> Tensor:
    """The logits [2] of one stay from its sets' latents [S, W]."""
    place = torch.arange(len(z))
    x = z + model.of_minute(minute.unsqueeze(1) / MINUTES_OF_A_DAY) + torch.sin(place / 100).unsqueeze(1) * model.of_place
    for layer in model.transformer:
        h = layer.norm1(x)
        x = x + layer.dropout(attention(layer.attention, h, h, causal=True))
        x = x + layer.dropout(layer.feed_forward(layer.norm2(x)))
    return model.head(x.mean(0))


if __name__ == "__main__":
    main()
