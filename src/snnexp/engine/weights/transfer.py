"""Starts a model from the weights of another run or file, and checks that enough of them fit."""

import copy
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp import config, targets
from snnexp.engine.weights import reading
from snnexp.engine.weights.placement import OWN_NAMES, Fit, best_fit, count_numbers, shape_text, trim_shape
from snnexp.engine.weights.reading import Weights
from snnexp.errors import UserError
from snnexp.files import pastable
from snnexp.rundir import find_run, is_run

ENOUGH = 0.9
"""The fraction of a file's numbers that must find a place in the model."""
SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors")
"""The usual suffixes of files of weights; files with any other name are read too."""
UNQUANTISED = "Give the file of the network in fp32, fp16 or bf16."
SHOWN = 4
"""The number of names of each kind that a message lists."""


def read(source: str) -> list[Weights]:
    """Return the weights that `init_from` names: those of a run's best epoch, or all candidates in a file.

    Raises: UserError if there are none.
    """
    if not source.strip():
        raise UserError("init_from= names nothing; give a run, a checkpoint or a file of weights, or null.")
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        if files and not is_run(path):
            raise UserError(f"init_from={source} is a directory, and no run; name the file in it: {first_of(files)}.")
        run, _ = find_run(source)
        path = run.checkpoint("best") if run.checkpoint("best").exists() else run.checkpoint("latest")
    return reading.read(path)


def fit(model: nn.Module, source: str, data: Any, partial: bool, only_evaluated: bool = False) -> tuple[Weights, Fit]:
    """Return the weights of another run or file, and their places in a model, which may be on the meta device.

    The weights may be of a part of the model, if that places more of them: a set_vae in a seqset_vae. `partial` accepts whatever fits;
    `only_evaluated`: nothing will be trained, so every entry of the model must be filled.
    Raises: UserError if too little fits, or if what fits are not weights.
    """
    weights, entries, best = choose_weights(model, source, data)
    model_entries = model.state_dict()
    if weights.pruned and any(name in model_entries and model_entries[name].shape != value.shape for name, value in entries.items()):
        raise UserError(
            f"init_from={source}: a pruned network, whose channels are not those of this model. To train it on: "
            f"snnexp prune {pastable(source)} stages=[finetune]."
        )
    if not any(value.dim() > 1 for value in best.placed.values()):  # counters and biases alone are not weights
        raise UserError(
            f"init_from={source}: no weight there has a name and shape of this model.\nIn the file: {first_of(with_shapes(entries))}\n"
            f"In the model: {first_of(with_shapes(model_entries))}"
        )
    for name, value in best.placed.items():
        refuse_odd_numbers(source, name, value, model_entries[name].dtype)
    if not partial and (reason := why_too_little(best, entries, model_entries)):
        leftovers = list_leftovers(best, entries, model_entries)
        raise UserError(f"init_from={source}: {reason}\n{leftovers}To take what fits all the same: init_partial=true.")
    if only_evaluated and not partial and (missing := [*best.unfilled, *best.of_head]):
        reasons = [f"it lacks {first_of(best.unfilled)}"] if best.unfilled else []
        reasons += [f"there {place} is of another size ({best.unplaced[name]})" for name, place in best.misshapen.items()][:SHOWN]
        raise UserError(
            f"epochs=0 would judge a network of which init_from={source} leaves {len(missing)} entries as initialised: "
            f"{'; '.join(reasons)}. Make the model of the file's sizes, train it (epochs=...), or judge it so with init_partial=true."
        )
    return weights, best


def choose_weights(model: nn.Module, source: str, data: Any) -> tuple[Weights, dict[str, Tensor], Fit]:
    """Return the candidate in a file that places most numbers in a model (the first among equals), its entries, and their places.

    Raises: UserError if there are no weights, or if they are of a kind that no model has.
    """
    every = read(source)
    plain = [weights for weights in every if not odd_kinds(weights.entries)]
    choices = []
    for weights in plain or every[:1]:
        refuse_odd_kinds(source, weights.entries)
        entries = by_variable(weights.entries, weights.variables, data.variables, source)
        choices.append((weights, entries, best_fit(entries, model)))
    best = max(choices, key=lambda choice: count_numbers(choice[1], choice[2].places))
    if not best[2].places:  # the user must have meant those that were left out, if there are any
        for weights in every:
            refuse_odd_kinds(source, weights.entries)
    return best


def transfer(model: nn.Module, source: str, data: Any, partial: bool, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Load the weights of another run or file into a model built with `arguments`, and return a message and a record of it.

    Raises: UserError if too little fits.
    """
    weights, best = fit(model, source, data, partial)
    model.load_state_dict(best.placed, strict=False)
    model_entries = model.state_dict()
    record = record_of(weights, best, model_entries) | {"other_form": other_form(weights, best, arguments)}
    in_file, in_model = record["file_numbers"], record["model_numbers"]
    text = f"Weights from {weights.path}"
    text += f" ({best.names.source})" if best.names is not OWN_NAMES else ""
    text += f", the average under {weights.kept_under}" if weights.averaged else ""
    text += f" with what it lacks of {weights.completed_from}" if weights.completed_from else ""
    text += f", into {best.into.rstrip('.')}" if best.into else ""
    with_counterpart = in_file["all"] - in_file["without_counterpart"]
    text += f": {in_file['placed']:,} of {with_counterpart:,} numbers of the file, "
    text += f"{percentage(in_model['filled'], in_model['all'])} of the model's"
    if best.head:
        text += f"; {best.head} is of another size there"
    if initialised := [*best.unfilled, *best.of_head]:
        text += f"; left as initialised: {first_of(initialised, 6)}"
    if unplaced := unplaced_outside_head(best):
        text += f"; not placed: {first_of(unplaced, 6)}"
    if other_types := {value.dtype for name, value in best.placed.items() if value.dtype != model_entries[name].dtype}:
        text += f"; kept there as {' and '.join(sorted(str(dtype).removeprefix('torch.') for dtype in other_types))}"
    if record["other_form"]:
        wanted = " ".join(f"model.{name}={str(value).lower()}" for name, value in record["other_form"].items())
        if weights.settings is not None:
            text += f"; that run has {wanted}"
        else:
            text += f"; they were made for {wanted}, and this model computes something else with them"
    return f"{text}.", record


def other_form(weights: Weights, best: Fit, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the weights were made with where those of this model differ, which the shapes do not show."""
    arguments = targets.with_defaults({"model": arguments})["model"]
    if weights.settings is None:
        return best.names.other_form(arguments)
    settings = copy.deepcopy(weights.settings)
    config.fill_in_earlier(settings)
    source_arguments, current = config.flatten(targets.with_defaults(settings)["model"]), config.flatten(arguments)
    return {name: value for name, value in source_arguments.items() if name != "_target_" and current.get(name, value) != value}


def record_of(weights: Weights, best: Fit, model_entries: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a run records about the origin of its weights."""
    entries = weights.entries
    return {
        "file": str(weights.path),
        "sha256": checksum(weights.path),
        "kept_under": weights.kept_under or None,
        "completed_from": weights.completed_from or None,
        "names": best.names.source,
        "prefix": best.prefix or None,
        "into": best.into.rstrip(".") or None,
        "file_entries": {"all": len(entries), "placed": len(best.places), "without_counterpart": len(best.without_counterpart)},
        "file_numbers": {
            "all": count_numbers(entries, entries),
            "placed": count_numbers(entries, best.places),
            "without_counterpart": count_numbers(entries, best.without_counterpart),
        },
        "model_numbers": {"all": count_numbers(model_entries, model_entries), "filled": count_numbers(model_entries, best.placed)},
        "head_of_another_size": best.head,
        "not_placed": [*best.unplaced],
        "as_initialised": [*best.unfilled, *best.of_head],
    }


# ---- whether it is enough


def why_too_little(best: Fit, entries: dict[str, Tensor], model_entries: dict[str, Tensor]) -> str | None:
    """Return why too little fits, in words, or None if it is enough."""
    unplaced = unplaced_outside_head(best)
    fitting = count_numbers(entries, best.places)
    total = fitting + count_numbers(entries, unplaced)
    if fitting < ENOUGH * total:
        return f"only {percentage(fitting, total)} of its {total:,} numbers have a place in this model."
    filled = {name.partition(".")[0] for name in best.placed}
    missing: dict[str, Counter] = defaultdict(Counter)
    for name in best.unfilled:
        missing[name.partition(".")[0]][trim_shape(model_entries[name].shape)] += 1
    if incomplete := sorted(missing.keys() & filled):
        return f"it has only a part of {', '.join(incomplete)}."
    unplaced_shapes = Counter(trim_shape(entries[name].shape) for name in unplaced)
    if renamed := [part for part, shapes in missing.items() if weight_shapes(shapes) <= unplaced_shapes]:
        return f"it has no {', '.join(renamed)}, but entries of such shapes under names that are not known here."
    return None


def weight_shapes(shapes: Counter) -> Counter:
    """Return those of the shapes that are of weights, or all of them if there are only biases and the like, which a file may lack."""
    return Counter({size: count for size, count in shapes.items() if len(size) > 1}) or shapes


def unplaced_outside_head(best: Fit) -> list[str]:
    """Return the entries of the file without a place, except those of a head of another size."""
    return [name for name in best.unplaced if best.head is None or name not in best.misshapen]


def list_leftovers(best: Fit, entries: dict[str, Tensor], model_entries: dict[str, Tensor]) -> str:
    """Return the leftovers of the file and of the model as text, a line each."""
    text = ""
    if unplaced := unplaced_outside_head(best):
        names = [f"{name} ({best.unplaced[name]})" for name in unplaced]
        text += f"In the file without a place ({len(unplaced)} of {len(entries)} entries): {first_of(names)}\n"
    if best.unfilled:
        text += f"In the model and not in the file ({len(best.unfilled)} of {len(model_entries)}): {first_of(best.unfilled)}\n"
    return text


def odd_kinds(entries: dict[str, Tensor]) -> list[str]:
    """Return the names of the entries that are quantised, sparse or the like."""
    return [name for name, value in entries.items() if value.is_quantized or value.layout != torch.strided or value.is_meta]


def refuse_odd_kinds(source: str, entries: dict[str, Tensor]) -> None:
    """Raises: UserError if entries are quantised, sparse or the like."""
    if odd := odd_kinds(entries):
        kind = f"{entries[odd[0]].dtype}, {entries[odd[0]].layout}, on {entries[odd[0]].device}".replace("torch.", "")
        raise UserError(f"init_from={source}: {odd[0]} is no plain tensor there ({kind}). {UNQUANTISED}")


def refuse_odd_numbers(source: str, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raises: UserError if weights are whole numbers, as after quantisation, NaN or infinite."""
    if not dtype.is_floating_point:
        return
    if not value.dtype.is_floating_point or value.dtype.itemsize < 2:
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(f"init_from={source}: {name} is of {kind} there. {UNQUANTISED}")
    if not torch.isfinite(value.to(dtype)).all():
        raise UserError(f"init_from={source}: {name} holds NaN or infinite numbers; the training that made it has failed.")


# ---- words


def with_shapes(entries: dict[str, Tensor]) -> list[str]:
    """Return the names of entries, each with its shape."""
    return [f"{name} {shape_text(value)}" for name, value in entries.items()]


def first_of(names: Sequence[str], most: int = SHOWN) -> str:
    """Return the first names of a list as text."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def percentage(part: int, whole: int) -> str:
    """Return a part in per cent, rounded down, so that only the whole is 100 %."""
    return f"{int(1000 * part / max(whole, 1)) / 10:g} %"


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- medical events


def by_variable(
    entries: dict[str, Tensor], trained_on: list[str] | None, variables: Sequence[str] | None, source: str
) -> dict[str, Tensor]:
    """Return the weights of a model of medical events, with its rows per variable reordered from `trained_on` to the data's `variables`.

    Raises: UserError if the variables differ in more than their order.
    """
    if trained_on is None or variables is None or list(trained_on) == list(variables):
        return entries
    if odd := sorted(set(trained_on) ^ set(variables)):
        raise UserError(
            f"init_from={source}: it was trained on other variables than these data have (only one of them has {', '.join(odd[:8])}"
            f"{' ...' if len(odd) > 8 else ''}), and its vectors and codes are of single variables. Pre-train on data with the same ones."
        )
    order = [list(trained_on).index(name) for name in variables]
    has_text = any(name.endswith("embeddings") for name in entries)  # then a layer makes the vectors, and has no row per variable
    with_rows = ("codes", "embeddings" if has_text else "names.weight", "statistics.mean", "statistics.square")
    moved = {name: value[order] if name.endswith(with_rows) else value for name, value in entries.items()}
    with_columns = ("statistics.linear.weight", "statistics.enter.weight", "latest.value.weight", "latest.measured.weight")
    for name, value in entries.items():
        if name.endswith(with_columns):  # the columns of a variable are adjacent
            moved[name] = value.unflatten(1, (len(order), -1))[:, order].flatten(1)
    return moved
