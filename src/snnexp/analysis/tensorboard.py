"""Curves from TensorBoard event files of snnexp or another program, with tags such as train_kl_step, val_auc, Train/KL."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.posterior.curves import MEANS, Curves, make_curve
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
"""Names of each metric, without the part (train, val) and the ending (step, epoch)."""
WEIGHTS = {"recon": "Recon", "rec": "Recon", "reconstruction": "Recon", "pred": "CE", "prediction": "CE", "ce": "CE", "cls": "CE"}
OWN_TAG = re.compile(r"(?:Train|Val|Test)/[A-Z]\w*|LR|Posterior/.*|Spikes/.*")
"""Tags that snnexp writes, over epochs (those of the posterior over optimizer steps)."""


LARGEST = 2**31
"""Bytes of event files that are read; a scalar has about 50."""


@dataclass
class Events:
    """The content of one directory of event files: `curves`, their `tags`, and the `unknown` tags."""

    directory: Path
    curves: Curves
    tags: dict[str, str] = field(default_factory=dict)  # name of a curve -> tag
    unknown: list[str] = field(default_factory=list)
    problem: str = ""


def find(directory: Path) -> list[Path]:
    """Return the directories at or below `directory` that hold event files, by name (version_2 before version_10).

    Raises: UserError if there is no such directory, or no event file in it.
    """
    if not directory.is_dir():
        raise UserError(f"--tensorboard {directory}: no such directory. Name one with event files (events.out.tfevents...) in or below it.")
    directories = [Path(folder) for folder, _, files in os.walk(directory) if any("tfevents" in name for name in files)]
    if not directories:
        raise UserError(f"--tensorboard {directory}: there is no event file (events.out.tfevents...) in it or below it.")
    return sorted(directories, key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))])


def read(directory: Path) -> Events:
    """Read the scalars of the event files in a directory; several files are joined as in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every file with an incomplete last record
    sizes = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
    reader = EventAccumulator(str(directory), size_guidance=sizes)
    events = Events(directory, Curves(from_snnexp=False))
    files = [path for path in directory.iterdir() if "tfevents" in path.name]
    if odd := [path for path in files if not path.is_file()]:
        events.problem = f"{odd[0]} is no regular file; the event files beside it are left out."
        return events
    if (size := sum(path.stat().st_size for path in files)) > LARGEST:
        events.problem = f"{directory}: its event files have {size:,} bytes; at most {LARGEST:,} are read, all into memory."
        return events
    try:
        reader.Reload()
    except Exception as error:  # damaged records raise any error of the parser
        events.problem = f"{directory}: the event files cannot be read: {error}."
        return events
    scalars = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    scalars |= _scalars_in_tensors(reader)
    snnexp_tags = [tag for tag in scalars if OWN_TAG.fullmatch(tag)]
    if {"LR", "Train/Loss"} <= set(snnexp_tags):  # the logger of snnexp writes both; Train/Loss alone may be of another program
        events.curves = Curves(unit="epoch", from_snnexp=True)
    for tag, points in scalars.items():
        name = snnexp_curve_name(tag) if tag in snnexp_tags else foreign_curve_name(tag)
        points = make_curve(points)
        if name is None or not len(points[0]):
            events.unknown.append(tag)
            continue
        if name.endswith("/Accuracy") or name.endswith(f"/Accuracy{MEANS}"):
            points = points if points[1].max() > 1 or tag in snnexp_tags else (points[0], 100 * points[1])
        if name in events.tags:  # train_loss beside train/loss: take the longer one
            if len(points[0]) <= len(events.curves.by_name[name][0]):
                events.unknown.append(tag)
                continue
            events.unknown.append(events.tags[name])
        events.curves.by_name[name], events.tags[name] = points, tag
    _merge_epoch_means(events)
    events.curves.best = best_validation(events.curves)
    return events


def _scalars_in_tensors(reader: Any) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars that TensorFlow 2 writes: tensors of the plugin `scalars`; those that hold something else are left out."""
    scalars = {}
    for tag in reader.Tags()["tensors"]:
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            values = [(event.step, _number_in(event.tensor_proto)) for event in reader.Tensors(tag)]
            scalars[tag] = [(step, value) for step, value in values if value is not None]
    return scalars


def _number_in(tensor: Any) -> float | None:
    """Return the one number in a tensor; None if it holds something else, which may be far more than its bytes once it is written out."""
    from tensorboard.util import tensor_util

    if any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None
    try:
        return float(tensor_util.make_ndarray(tensor).reshape(()))
    except Exception:  # of another kind than numbers, or damaged
        return None


def snnexp_curve_name(tag: str) -> str:
    """Return the name of the curve of a tag of snnexp."""
    part, _, metric = tag.partition("/")
    return {"Train/Beta": "Beta"}.get(tag, f"{part}/Accuracy" if metric == "Acc1" else tag)


def foreign_curve_name(tag: str) -> str | None:
    """Return the name of the curve of another program's tag; None if it is unknown."""
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


def _merge_epoch_means(events: Events) -> None:
    """Use means over epochs as the curve itself if there are no values by step; drop those of β and weights if there are."""
    for name in [name for name in events.curves.by_name if name.endswith(MEANS)]:
        plain = name.removesuffix(MEANS)
        if plain not in events.curves.by_name:
            events.curves.by_name[plain], events.tags[plain] = events.curves.by_name.pop(name), events.tags.pop(name)
        elif "/" not in plain or plain.startswith("Weight/"):
            del events.curves.by_name[name], events.tags[name]


def best_validation(curves: Curves) -> tuple[float, str] | None:
    """Return the position of the best validation, and a text: by the highest AUROC, else AUPRC, else accuracy, else the lowest loss."""
    for metric in ("AUROC", "AUPRC", "Accuracy", "Loss"):
        if f"Val/{metric}" in curves.by_name:
            positions, values = curves.by_name[f"Val/{metric}"]
            place = int(values.argmin() if metric == "Loss" else values.argmax())
            where = f", epoch {positions[place]:,.0f}" if curves.unit == "epoch" else ""
            return float(positions[place]), f"best Val/{metric}, {values[place]:.4g}{where}"
    return None
