"""Weights of another run or file to start from: where they go in a model, how much of them that is, and whether it is enough."""

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
from snnexp.engine.weights.placement import AS_HERE, Fit, best_fit, numbers, shape, trimmed
from snnexp.engine.weights.reading import Weights
from snnexp.errors import UserError
from snnexp.rundir import find_run, is_run

ENOUGH = 0.9
"""The share of a file's numbers that must find a place."""
SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors")
"""What files of weights are usually called; any other name will do."""
UNQUANTISED = "Give the file of the network in fp32, fp16 or bf16."
SHOWN = 4
"""Names that a message lists of each kind."""


def read(source: str) -> list[Weights]:
    """The weights that `init_from` names: of a run's best epoch, or all that may be meant in a file.

    Raises: UserError if there are none.
    """
    if not source.strip():
        raise UserError("init_from= names nothing; give a run, a checkpoint or a file of weights, or null.")
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        if files and not is_run(path):
            raise UserError(f"init_from={source} is a directory, and no run; name the file in it: {shown(files)}.")
        run, _ = find_run(source)
        path = run.checkpoint("best") if run.checkpoint("best").exists() else run.checkpoint("latest")
    return reading.read(path)


def fit(model: nn.Module, source: str, data: Any, partial: bool, judged_alone: bool = False) -> tuple[Weights, Fit]:
    """Where the weights of another run or file go in a model, which may lie on the meta device.

    They may be those of a part of the model, if that takes more of them: a set_vae, of a seqset_vae. `partial` takes whatever fits;
    `judged_alone`: nothing is to be trained, so that all of the model has to be there.
    Raises: UserError if too little fits, or what fits is no weights.
    """
    found, entries, best = likeliest(model, source, data)
    own = model.state_dict()
    if found.pruned and any(name in own and own[name].shape != value.shape for name, value in entries.items()):
        raise UserError(
            f"init_from={source}: a pruned network, whose channels are not those of this model. To train it on: "
            f"snnexp prune {source} stages=[finetune]."
        )
    if not any(value.dim() > 1 for value in best.placed.values()):  # counters and biases alone are no weights
        raise UserError(
            f"init_from={source}: no weight there has a name and shape of this model.\nIn the file: {shown(described(entries))}\n"
            f"In the model: {shown(described(own))}"
        )
    for name, value in best.placed.items():
        refuse_odd_numbers(source, name, value, own[name].dtype)
    if not partial and (reason := too_little(best, entries, own)):
        raise UserError(f"init_from={source}: {reason}\n{leftovers(best, entries, own)}To take what fits all the same: init_partial=true.")
    if judged_alone and not partial and (missing := [*best.unfilled, *best.of_head]):
        reasons = [f"it lacks {shown(best.unfilled)}"] if best.unfilled else []
        reasons += [f"there {place} is of another size ({best.left[name]})" for name, place in best.misshapen.items()][:SHOWN]
        raise UserError(
            f"epochs=0 would judge a network of which init_from={source} leaves {len(missing)} entries as initialised: "
            f"{'; '.join(reasons)}. Make the model of the file's sizes, train it (epochs=...), or judge it so with init_partial=true."
        )
    return found, best


def likeliest(model: nn.Module, source: str, data: Any) -> tuple[Weights, dict[str, Tensor], Fit]:
    """Of the weights that a file may mean those that place most in a model, the first among equals; their entries, and where they go.

    Raises: UserError if there are none, or of a kind that no model has.
    """
    every = read(source)
    plain = [found for found in every if not odd_kinds(found.entries)]
    choices = []
    for found in plain or every[:1]:
        refuse_odd_kinds(source, found.entries)
        entries = by_variable(found.entries, found.variables, data.variables, source)
        choices.append((found, entries, best_fit(entries, model)))
    best = max(choices, key=lambda choice: numbers(choice[1], choice[2].taken))
    if not best[2].taken:  # then it is the others, if there are any, that were meant
        for found in every:
            refuse_odd_kinds(source, found.entries)
    return best


def transfer(model: nn.Module, source: str, data: Any, partial: bool, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Load the weights of another run or file into a model made with `arguments`; what to say of it, and what to record.

    Raises: UserError if too little fits.
    """
    found, best = fit(model, source, data, partial)
    model.load_state_dict(best.placed, strict=False)
    own = model.state_dict()
    record = recorded(found, best, own) | {"other_form": other_form(found, best, arguments)}
    there, here = record["file_numbers"], record["model_numbers"]
    text = f"Weights from {found.path}"
    text += f" ({best.names.source})" if best.names is not AS_HERE else ""
    text += f", the average under {found.kept_under}" if found.averaged else ""
    text += f" with what it lacks of {found.completed_from}" if found.completed_from else ""
    text += f", into {best.into.rstrip('.')}" if best.into else ""
    meant = there["all"] - there["without_counterpart"]
    text += f": {there['placed']:,} of {meant:,} numbers of the file, {share(here['filled'], here['all'])} of the model's"
    if best.head:
        text += f"; {best.head} is of another size there"
    if rest := [*best.unfilled, *best.of_head]:
        text += f"; left as initialised: {shown(rest, 6)}"
    if left := not_placed(best):
        text += f"; not placed: {shown(left, 6)}"
    if kinds := {str(value.dtype).removeprefix("torch.") for name, value in best.placed.items() if value.dtype != own[name].dtype}:
        text += f"; kept there as {' and '.join(sorted(kinds))}"
    if record["other_form"]:
        wanted = " ".join(f"model.{name}={str(value).lower()}" for name, value in record["other_form"].items())
        if found.settings is not None:
            text += f"; that run has {wanted}"
        else:
            text += f"; they were made for {wanted}, and this model computes something else with them"
    return f"{text}.", record


def other_form(found: Weights, best: Fit, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which the weights were made, where those of this model say something else: shapes do not tell."""
    arguments = targets.with_defaults({"model": arguments})["model"]
    if found.settings is None:
        return best.names.other_form(arguments)
    settings = copy.deepcopy(found.settings)
    config.fill_in_earlier(settings)
    theirs, ours = config.flatten(targets.with_defaults(settings)["model"]), config.flatten(arguments)
    return {name: value for name, value in theirs.items() if name != "_target_" and ours.get(name, value) != value}


def recorded(found: Weights, best: Fit, own: dict[str, Tensor]) -> dict[str, Any]:
    """What a run keeps of where its weights came from."""
    entries = found.entries
    return {
        "file": str(found.path),
        "sha256": checksum(found.path),
        "kept_under": found.kept_under or None,
        "completed_from": found.completed_from or None,
        "names": best.names.source,
        "prefix": best.prefix or None,
        "into": best.into.rstrip(".") or None,
        "file_entries": {"all": len(entries), "placed": len(best.taken), "without_counterpart": len(best.apart)},
        "file_numbers": {
            "all": numbers(entries, entries),
            "placed": numbers(entries, best.taken),
            "without_counterpart": numbers(entries, best.apart),
        },
        "model_numbers": {"all": numbers(own, own), "filled": numbers(own, best.placed)},
        "head_of_another_size": best.head,
        "not_placed": [*best.left],
        "as_initialised": [*best.unfilled, *best.of_head],
    }


# ---- whether it is enough


def too_little(best: Fit, entries: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """Why what fits is not enough to go on with, or None if it is."""
    left = not_placed(best)
    fitting = numbers(entries, best.taken)
    counted = fitting + numbers(entries, left)
    if fitting < ENOUGH * counted:
        return f"only {share(fitting, counted)} of its {counted:,} numbers have a place in this model."
    filled = {name.partition(".")[0] for name in best.placed}
    missing: dict[str, Counter] = defaultdict(Counter)
    for name in best.unfilled:
        missing[name.partition(".")[0]][trimmed(own[name].shape)] += 1
    if broken := sorted(missing.keys() & filled):
        return f"it has only a part of {', '.join(broken)}."
    loose = Counter(trimmed(entries[name].shape) for name in left)
    if renamed := [part for part, shapes in missing.items() if wide(shapes) <= loose]:
        return f"it has no {', '.join(renamed)}, but entries of such shapes under names that are not known here."
    return None


def wide(shapes: Counter) -> Counter:
    """Of some shapes those of weights, or all if there are only biases and the like, which may be left out."""
    return Counter({size: count for size, count in shapes.items() if len(size) > 1}) or shapes


def not_placed(best: Fit) -> list[str]:
    """The entries of the file that lack a place, those of a head of another size apart."""
    return [name for name in best.left if best.head is None or name not in best.misshapen]


def leftovers(best: Fit, entries: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What is left on either side, a line each."""
    text = ""
    if left := not_placed(best):
        names = [f"{name} ({best.left[name]})" for name in left]
        text += f"In the file without a place ({len(left)} of {len(entries)} entries): {shown(names)}\n"
    if best.unfilled:
        text += f"In the model and not in the file ({len(best.unfilled)} of {len(own)}): {shown(best.unfilled)}\n"
    return text


def odd_kinds(entries: dict[str, Tensor]) -> list[str]:
    """The entries that are quantised, sparse or the like."""
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


def described(entries: dict[str, Tensor]) -> list[str]:
    """Entries with their shapes."""
    return [f"{name} {shape(value)}" for name, value in entries.items()]


def shown(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names of a list."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def share(part: int, whole: int) -> str:
    """A part in per cent, never rounded up to all of it."""
    return f"{int(1000 * part / max(whole, 1)) / 10:g} %"


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- medical events


def by_variable(entries: dict[str, Tensor], theirs: list[str] | None, ours: Sequence[str] | None, source: str) -> dict[str, Tensor]:
    """The weights of a model of medical events with the rows that belong to a variable each in the order of these data's variables.

    Raises: UserError if the variables are others.
    """
    if theirs is None or ours is None or list(theirs) == list(ours):
        return entries
    if odd := sorted(set(theirs) ^ set(ours)):
        raise UserError(
            f"init_from={source}: it was trained on other variables than these data have (only one of them has {', '.join(odd[:8])}"
            f"{' ...' if len(odd) > 8 else ''}), and its vectors and codes are of single variables. Pre-train on data with the same ones."
        )
    order = [list(theirs).index(name) for name in ours]
    text = any(name.endswith("embeddings") for name in entries)  # then a layer makes the vectors, and has no row for each
    with_rows = ("codes", "embeddings" if text else "names.weight", "statistics.mean", "statistics.square")
    moved = {name: value[order] if name.endswith(with_rows) else value for name, value in entries.items()}
    with_columns = ("statistics.linear.weight", "statistics.enter.weight", "latest.value.weight", "latest.measured.weight")
    for name, value in entries.items():
        if name.endswith(with_columns):  # those of a variable lie together
            moved[name] = value.unflatten(1, (len(order), -1))[:, order].flatten(1)
    return moved
