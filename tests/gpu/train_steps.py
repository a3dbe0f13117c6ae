"""Run as a program: what a training step of each model asks of a GPU. No GPU is needed: the device is a pretended one.

python tests/gpu/train_steps.py                     the figures as a table in Markdown
python tests/gpu/train_steps.py --before CHECKOUT   beside those of another checkout
python tests/gpu/train_steps.py --write             and they become the budgets, in budgets.yaml
A name of `STEPS`, or settings as "model=svrt T=1", measure that step alone.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parents[1])]

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import composed
from gpu.pretended_device import Device, environment, failure, lacking, outside, place, pretend
from gpu.recipe_grids import measured_grids
from models.fake_cuda import Waits, put_on_fake_cuda
from snnexp import build
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine import loop
from snnexp.engine.distributed import Ranks
from snnexp.engine.evaluation import forward
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device
from snnexp.engine.signals import StopFlag
from snnexp.engine.state import State
from snnexp.engine.terminal import Terminal
from snnexp.rundir import claim, write_json

BUDGETS = Path(__file__).with_name("budgets.yaml")

FIGURES = {"kernels": "kernels", "waits": "waits", "saved_mb": "kept for the backward, MB", "traffic_mb": "traffic, MB"}
"""What budgets.yaml and a table have of each step, and the titles in the table."""

VIDEO = "dataset.clips=24 dataset.crops=1"
"""Few clips, for they take long to make."""

SHALLOW = "model.depth=2 model.last_depth=1 model.groups=2 model.still_groups=1"
"""The two large networks with one layer of each kind, because each of their thousand layers takes its time here too."""

STEPS = {
    "vggsnn": "model=vggsnn T=10 dataset.size=48 batch_size=128",
    "vggsnn_woap": "model=vggsnn_woap T=10 dataset.size=48 batch_size=128",
    "resnet19": "model=resnet19 dataset=digits dataset.size=32 dataset.channels=3 batch_size=128",
    "spikformer": "model=spikformer dataset=digits dataset.size=32 dataset.channels=3 batch_size=128",
    "spikformer_dvs": "model=spikformer_dvs T=10 dataset.size=48 batch_size=16",
    "spiking_gnn": "model=spiking_gnn",
    "spiking_gnn, gin": "model=spiking_gnn model.conv_type=gin",
    "spiking_gnn, gat": "model=spiking_gnn model.conv_type=gat",
    "seqset_vae": "model=seqset_vae",
    "set_vae": "model=set_vae",
    "svrt_small": f"model=svrt_small {VIDEO}",
    "svrt, shallow": f"model=svrt {SHALLOW} {VIDEO}",
    "vrt, shallow": f"model=vrt {SHALLOW} {VIDEO}",
}
"""The settings of each step: the model's own, at the sizes of its published recipe where the data that come with snnexp can have them."""

FRAMES = "dataset.size=16 T=2 batch_size=8"
NARROW = "model.width=8 model.last_width=8 model.depth=2 model.last_depth=1 model.groups=1 model.still_groups=0 model.heads=2"
CLIPS = "dataset.clips=16 dataset.size=32 dataset.crop=16 dataset.crops=1 dataset.window=9 batch_size=4"

SMALL_STEPS = {
    "vggsnn": f"model=vggsnn model.width=0.125 {FRAMES}",
    "vggsnn_woap": f"model=vggsnn_woap model.width=0.125 {FRAMES}",
    "resnet19": f"model=resnet19 model.width=0.125 {FRAMES}",
    "spikformer": f"model=spikformer model.depth=1 model.dim=48 {FRAMES}",
    "spikformer_dvs": f"model=spikformer_dvs model.depth=1 model.dim=64 {FRAMES}",
    "spiking_gnn": "model=spiking_gnn model.width=16 T=2 batch_size=8",
    "spiking_gnn, gin": "model=spiking_gnn model.conv_type=gin model.width=16 T=2 batch_size=8",
    "spiking_gnn, gat": "model=spiking_gnn model.conv_type=gat model.width=16 T=2 batch_size=8",
    "seqset_vae": "model=seqset_vae model.width=16 dataset.stays=80 batch_size=8",
    "set_vae": "model=set_vae model.width=16 dataset.stays=80 batch_size=8",
    "svrt_small": f"model=svrt_small model.width=8 model.last_width=8 {CLIPS}",
    "svrt": f"model=svrt {NARROW} model.deform_groups=2 model.flow_width=4 {CLIPS}",
    "vrt": f"model=vrt {NARROW} model.deform_groups=2 model.flow_width=4 {CLIPS}",
}
"""The same models in sizes for a CPU."""


class Enough(Exception):
    """The step that counts is done."""


def train_two_steps(experiment: Experiment, reset: Callable[[], None]) -> None:
    """Train on the first batch of an epoch, twice, with `reset` called before each step.

    The first step is not like the others: it makes the state of the optimizer, and brings constants to the device.
    """
    loader = experiment.train_loader
    read = outside(lambda keys: loader.collate_fn(loader.dataset.__getitems__(keys)))

    def batches() -> Iterator[Any]:
        for _ in range(2):
            experiment.train_batches.seek(0, 0)
            batch = read(next(iter(experiment.train_batches)))
            reset()
            yield batch
        raise Enough

    experiment.train_loader = batches()
    try:
        loop.train_epoch(experiment, State(), StopFlag())
    except Enough:
        return
    raise AssertionError("an epoch of these settings has fewer than three batches")


@contextmanager
def made(words: str, data_dir: Path, device: str) -> Iterator[Experiment]:
    """Make the experiment of some settings, in a directory that does not last."""
    settings = composed(f"data_dir={data_dir}", f"device={device}", "accumulate=1", "logger=none", *words.split())
    with tempfile.TemporaryDirectory() as folder:
        run = claim(Path(folder), "run", exclusive=True)
        write_json(run.config, settings)
        yield build.make_experiment(run, settings, Ranks(0, 1, torch.device(device)), Terminal(run.train_log, main=False))


def on_pretended_device(words: str, data_dir: Path) -> dict[str, Any]:
    """Return what the second training step asks of the device, and the largest grids of it and of the validation of a batch."""
    make_data, make_model = build.make_data, build.make_model

    def data_with_content(*args: Any) -> Any:
        data = outside(make_data)(*args)
        data.view = outside(data.view)
        return data

    def model_on_device(*args: Any) -> Any:
        model = put_on_fake_cuda(outside(make_model)(*args))
        model.to = lambda *_: model
        return model

    with (
        FakeTensorMode(allow_non_fake_inputs=True) as tensors,
        mock.patch.multiple(build, make_data=data_with_content, make_model=model_on_device),
        made(words, data_dir, "cuda:0") as x,
    ):
        device, loaded = Device(tensors), outside(x.train_loader.collate_fn)
        with device.counting(x.model):
            train_two_steps(x, device.reset)
            figures = {
                "kernels": device.kernels,
                "waits": list(device.waits),
                "saved_mb": round(sum(device.saved.values()) / 1e6, 1),
                "traffic_mb": round(device.traffic / 1e6, 1),
            }
            validate_batch(x, loaded)
    return figures | {"grids": device.grids}


def validate_batch(experiment: Experiment, loaded: Callable[[Any], Any]) -> None:
    """Run the network on a full batch of the validation split, as it is `loaded`; samples are repeated where there are too few."""
    x, size = experiment, experiment.config.batch_size
    view = x.data.view("val", augment=False)
    keys = next(iter(EvaluationBatches(pool(len(view), None), size)))
    batch = loaded(outside(view.__getitems__)([keys[i % len(keys)] for i in range(size)]))
    batch = x.data.prepare(to_device(batch, x.ranks.device))
    x.model.eval()
    loss, output = forward(x.model, x.task, batch, x.precision)
    x.task.counts(loss, output, batch)


class Reads(Waits):
    """Notes each read of a tensor for which the host would wait, did the tensor lie on a device."""

    UNSEEN_BY_DISPATCH = ("tolist", "cpu", "numpy", "__array__")

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        before = len(self.found)
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        new, self.found[before:] = self.found[before:], []
        if new and not any("/torch/optim/" in frame.filename for frame in traceback.extract_stack(limit=9)):
            self.found += [f"{name} ({place()})" for name in new]  # an optimizer keeps its counters on the CPU, whatever the device
        return result

    def noting(self, name: str) -> Callable[..., Any]:
        """Return a method of tensors that notes its use."""
        method = getattr(Tensor, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.found.append(f"{name} ({place()})")
            return method(*args, **kwargs)

        return noted


def on_cpu(words: str, data_dir: Path) -> list[str]:
    """Return the reads of tensors in the second training step, on the CPU."""
    reads = Reads()
    with made(words, data_dir, "cpu") as x, mock.patch.multiple(Tensor, **{name: reads.noting(name) for name in reads.UNSEEN_BY_DISPATCH}):
        with reads:
            train_two_steps(x, reads.found.clear)
    return reads.found


def measured(steps: dict[str, str], data_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of each step; of one that cannot be done, why, as `failed`."""
    figures = {}
    for name, words in steps.items():
        try:
            figures[name] = on_pretended_device(words, data_dir)
        except Exception as error:  # which the test tells, and the table
            figures[name] = {"failed": failure(error)}
    return figures


def written(figures: dict[str, dict[str, Any]], reads: dict[str, list[str]]) -> str:
    """Return the text of budgets.yaml."""

    def line(name: str, row: dict[str, Any]) -> str:
        return f"  {json.dumps(name)}: {{{', '.join(f'{key}: {numbers(row)[key]}' for key in FIGURES)}}}"

    head = BUDGETS.read_text().partition("\nsteps:")[0]
    counts = [f"  {json.dumps(name)}: {len(found)}" for name, found in reads.items()]
    return "\n".join([head, "steps:", *map(line, figures, figures.values()), "", "reads:", *counts, ""])


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a step, with the number of its waits."""
    return row | {"waits": len(row["waits"])}


def table(after: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]] | None) -> str:
    """Return the figures of each step in Markdown, with those of another checkout before an arrow."""
    lines = [f"| step | {' | '.join(FIGURES.values())} |", "|---" * (1 + len(FIGURES)) + "|"]
    for name in after:
        rows = [after[name]] if before is None else [before[name], after[name]]
        cells = [" → ".join("-" if "failed" in row else f"{numbers(row)[key]:,}" for row in rows) for key in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure on the pretended device, which only a process that begins with it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="*", help="a name, or settings")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SNNEXP_DATA", "data")), help="where data are prepared")
    parser.add_argument("--json", action="store_true", help="measure in this process, which has the device")
    parser.add_argument("--grids", action="store_true", help="with the grids of all recipes")
    options = parser.parse_args()
    steps = {name: STEPS.get(name, name) for name in options.step or STEPS}
    if options.json:
        pretend()
        gc.disable()  # a tenth of the time, and the process ends soon
        print(json.dumps({"steps": measured(steps, options.data), "grids": measured_grids() if options.grids else None}))
        return
    if unknown := [name for name in options.step if name not in STEPS and "=" not in name]:
        parser.error(f"{unknown[0]!r} is neither settings nor a step; the steps are: {'; '.join(STEPS)}.")
    if options.write and options.step:
        parser.error("--write writes the budgets of all steps: name none.")
    if options.before and not (options.before / "src/snnexp").is_dir():
        parser.error(f"--before {options.before}: there is no src/snnexp in it; give a checkout of this repository.")
    if why := lacking():
        sys.exit(f"no device can be pretended here: {why}.")
    after = in_new_process(steps, options.data)["steps"]
    before = in_new_process(steps, options.data, source=options.before / "src")["steps"] if options.before else None
    for which, figures in (("before: ", before or {}), ("", after)):
        for name, row in figures.items():
            for line in [row["failed"]] if "failed" in row else row["waits"]:
                print(f"{which}{name}: {line}")
    if options.write:
        if failed := [name for name, row in after.items() if "failed" in row]:
            sys.exit(f"{BUDGETS.name} stays as it is, because these steps failed: {'; '.join(failed)}.")
        BUDGETS.write_text(written(after, {name: on_cpu(words, options.data) for name, words in SMALL_STEPS.items()}))
    print(table(after, before))


def in_new_process(steps: Iterable[str], data_dir: Path, *flags: str, source: Path | None = None) -> dict[str, Any]:
    """Return what a process prints that has the pretended device, and snnexp of `source` if given."""
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(Path(folder)) | ({"PYTHONPATH": str(source.resolve())} if source else {})
        command = [sys.executable, "-W", "ignore", __file__, "--json", f"--data={data_dir.resolve()}", *flags, *steps]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("the steps could not be measured.")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
