"""What tracker=posterior costs: its part of the time of 2,000 training steps of a SeqSetVAE of width 64 on real stays, in one run.

Every call of the tracker is timed, with the pass over the held-out stays, the figure and the record. A plain step is what is left.

    python scripts/bench_posterior.py data/physionet2012                            # both presets; 2,000 steps take minutes
    python scripts/bench_posterior.py data/physionet2012 --presets posterior
"""

import argparse
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import nn

from snnexp.data.sampler import TrainBatches
from snnexp.data.stays.physionet2012 import PhysioNet2012
from snnexp.engine import allocator
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.probe import ValidationProbe
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.tasks.set_vae import StayOutcome
from snnexp.trackers.posterior.tracker import PosteriorTracker

PRESETS = {"posterior": (200, 2000), "posterior_fast": (100, 1000)}
"""Steps between updates, and between figures, with a window of 50."""


def main() -> None:
    """Train, and print the share of each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds set-a and Outcomes-a.txt")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--every", nargs=2, type=int, metavar=("UPDATE", "FIGURE"), help="steps between them, instead of the preset's")
    arguments = parser.parse_args()
    data = PhysioNet2012(root=arguments.root)
    allocator.keep_memory()
    print(f"{torch.get_num_threads()} threads, batch {arguments.batch}, {arguments.steps} steps")
    print("| preset | step without it, ms | observe, ms a step | updates, ms a step | of a step |\n|---|---|---|---|---|")
    for preset in arguments.presets:
        update_every, plot_every = arguments.every or PRESETS[preset]
        with tempfile.TemporaryDirectory() as folder:
            step, observed, updated = share(data, arguments.steps, arguments.batch, update_every, plot_every, Path(folder))
        print(f"| `{preset}` | {step:.1f} | {observed:.2f} | {updated:.2f} | {(observed + updated) / step:.2%} |", flush=True)


def share(data: PhysioNet2012, steps: int, batch: int, update_every: int, plot_every: int, folder: Path) -> tuple[float, float, float]:
    """Milliseconds a step: all but the tracker, its look at each forward, its updates."""
    torch.manual_seed(0)
    model, task = SeqSetVAE(num_variables=len(data.variables)), StayOutcome()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    device = torch.device("cpu")
    probe = ValidationProbe(model, task, data, batch, device, resolve("fp32", device))
    options = {"update_every": update_every, "plot_every": plot_every, "window": 50}
    tracker = PosteriorTracker(model=model, task=task, probe=probe, folder=folder, **options)
    order, view = TrainBatches(np.arange(data.splits["train"]), batch, 0, lengths=data.lengths("train")), data.view("train")
    done, observed, updated = 0, 0.0, 0.0
    for index in range(3):  # the first batches of a process are slow
        task.loss(model, view.__getitems__([(0, index)]), 0)[0].backward()
    began = time.perf_counter()
    for epoch in count():
        order.seek(epoch, 0)
        for keys in order:
            loss, _ = task.loss(model, view.__getitems__(keys), done)
            mark = time.perf_counter()
            tracker.observe("train")
            observed += time.perf_counter() - mark
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            mark = time.perf_counter()
            tracker.stepped(done)
            updated += time.perf_counter() - mark
            if done == steps:
                rest = time.perf_counter() - began - observed - updated
                return tuple(1e3 * seconds / steps for seconds in (rest, observed, updated))
    raise AssertionError("an epoch without end")


if __name__ == "__main__":
    main()
