"""Curves from TensorBoard event files, our own or another program's: tags such as train_kl_step, val_auc, Train/KL."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.posterior.curves import MEANS, Curves, curve
from snnexp.errors import UserError

PARTS = {"train": "Train", "training": "Train", "val": "Val", "valid": "Val", "validation": "Val", "test": "Test"}
METRICS = {
    "Loss": ("loss", "total_loss", "loss_total", "elbo_loss"),
    "KL": ("kl", "kld", "kl_loss", "kl_div", "kl_divergence", "kl_total", "kld_loss"),
    "Recon": ("recon", "rec", "recon_loss", "reconstruction", "reconstruction_loss", "rec_loss", "recon_total"),
    "CE": ("ce", "pred", "pred_loss", "prediction", "prediction_loss", "bce", "cls_loss", "class_loss", "cross_entropy"),
    "AUROC": ("auroc", "auc", "roc_auc", "auc_roc"),
    "AUPRC": ("auprc", "ap", "pr_auc", "auc_pr", "average_precision"),
    "Accuracy": ("accuracy", "acc", "acc1"),
    "Beta": ("beta", "kl_weight", "kl_beta"),
}
"""Names of a metric, without the part (train, val) and the ending (step, epoch)."""
WEIGHTS = {"recon": "Recon", "rec": "Recon", "reconstruction": "Recon", "pred": "CE", "prediction": "CE", "ce": "CE", "cls": "CE"}
OWN = re.compile(r"(?:Train|Val|Test)/[A-Z]\w*|LR|Posterior/.*|Spikes/.*")
"""Tags as this package writes them, over epochs (those of the posterior over optimizer steps)."""


@dataclass
class Events:
    """What one directory of event files holds: `curves`, the `tags` they were read from, and the `unknown` ones."""

    directory: Path
    curves: Curves
    tags: dict[str, str] = field(default_factory=dict)  # name of a curve -> tag
    unknown: list[str] = field(default_factory=list)
    problem: str = ""


def find(directory: Path) -> list[Path]:
    """The directories at or below `directory` that hold event files, by name (version_2 before version_10).

    Raises: UserError if there is no such directory, or no event file in it.
    """
    if not directory.is_dir():
        raise UserError(f"--tensorboard {directory}: no such directory. Name one with event files (events.out.tfevents...) in or below it.")
    found = [Path(folder) for folder, _, files in os.walk(directory) if any("tfevents" in name for name in files)]
    if not found:
        raise UserError(f"--tensorboard {directory}: there is no event file (events.out.tfevents...) in it or below it.")
    return sorted(found, key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))])


def read(directory: Path) -> Events:
    """The scalars of the event files in a directory, those of all its files joined as TensorBoard joins them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # its word on every file that ends in half a record
    every = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
    reader = EventAccumulator(str(directory), size_guidance=every)
    events = Events(directory, Curves(ours=False))
    try:
        reader.Reload()
    except Exception as error:  # damaged records raise whatever the parser raises
        events.problem = f"{directory}: the event files cannot be read: {error}."
        return events
    scalars = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    scalars |= _of_tensors(reader)
    own = [tag for tag in scalars if OWN.fullmatch(tag)]
    if {"LR", "Train/Loss"} <= set(own):  # our logger writes both; Train/Loss alone may be anybody's
        events.curves = Curves(unit="epoch", ours=True)
    for tag, points in scalars.items():
        name = own_name(tag) if tag in own else name_of(tag)
        points = curve(points)
        if name is None or not len(points[0]):
            events.unknown.append(tag)
            continue
        if name.endswith("/Accuracy") or name.endswith(f"/Accuracy{MEANS}"):
            points = points if points[1].max() > 1 or tag in own else (points[0], 100 * points[1])
        if name in events.tags:  # train_loss beside train/loss: the longer one
            if len(points[0]) <= len(events.curves.named[name][0]):
                events.unknown.append(tag)
                continue
            events.unknown.append(events.tags[name])
        events.curves.named[name], events.tags[name] = points, tag
    _settle_means(events)
    events.curves.best = best(events.curves)
    return events


def _of_tensors(reader: Any) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorFlow 2 writes them: tensors of the plugin `scalars`."""
    from tensorboard.util import tensor_util

    found = {}
    for tag in reader.Tags()["tensors"]:
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            found[tag] = [(event.step, float(tensor_util.make_ndarray(event.tensor_proto).reshape(-1)[0])) for event in reader.Tensors(tag)]
    return found


def own_name(tag: str) -> str:
    """The curve that a tag of our own names."""
    part, _, metric = tag.partition("/")
    return {"Train/Beta": "Beta"}.get(tag, f"{part}/Accuracy" if metric == "Acc1" else tag)


def name_of(tag: str) -> str | None:
    """The curve that a tag of another program names; None if it is not known."""
    words = [word for word in re.split(r"[^a-z0-9]+", tag.lower()) if word]
    if words == ["epoch"]:
        return "Epoch"
    part = next((PARTS[word] for word in words if word in PARTS), "")
    ending = words[-1] if words and words[-1] in ("step", "epoch") else ""
    rest = "_".join(word for word in (words[:-1] if ending else words) if word not in PARTS)
    metric = next((metric for metric, names in METRICS.items() if rest in names), None)
    if metric == "Beta":
        name = "Beta"
    elif metric:
        name = f"{part or 'Train'}/{metric}"
    elif rest.removesuffix("_weight") in WEIGHTS and rest.endswith("_weight"):
        name = f"Weight/{WEIGHTS[rest.removesuffix('_weight')]}"
    else:
        return None
    return name + (MEANS if ending == "epoch" else "")


def _settle_means(events: Events) -> None:
    """Means over epochs are the curve itself where nothing is there of each step; of β and weights the steps tell all."""
    for name in [name for name in events.curves.named if name.endswith(MEANS)]:
        plain = name.removesuffix(MEANS)
        if plain not in events.curves.named:
            events.curves.named[plain], events.tags[plain] = events.curves.named.pop(name), events.tags.pop(name)
        elif "/" not in plain or plain.startswith("Weight/"):
            del events.curves.named[name], events.tags[name]


def best(curves: Curves) -> tuple[float, str] | None:
    """Where validation was best: the highest AUROC, else AUPRC, else accuracy, else the lowest loss; with words."""
    for metric in ("AUROC", "AUPRC", "Accuracy", "Loss"):
        if f"Val/{metric}" in curves.named:
            positions, values = curves.named[f"Val/{metric}"]
            place = int(values.argmin() if metric == "Loss" else values.argmax())
            where = f", epoch {positions[place]:,.0f}" if curves.unit == "epoch" else ""
            return float(positions[place]), f"best Val/{metric}, {values[place]:.4g}{where}"
    return None
