"""Weights of another run or file to start from, where they fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.engine import checkpoint
from snnexp.engine.terminal import Terminal
from snnexp.errors import UserError
from snnexp.rundir import find_run


def weights_of(source: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weights that `init_from` names: of a run's best epoch, or of a file.

    Raises: UserError if there are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        run, _ = find_run(source)
        path = run.checkpoint("best") if run.checkpoint("best").exists() else run.checkpoint("latest")
    return path, checkpoint.load_weights(path)


def transfer(model: nn.Module, source: str, data: Any, terminal: Terminal) -> None:
    """Load the weights of another run or file where name and shape agree, and say what was left out.

    They may be those of a part of the model, if that takes more of them: a set_vae, of a seqset_vae. Raises: UserError if nothing fits.
    """
    path, weights = weights_of(source)
    weights = by_variable(weights, checkpoint.variables(path), getattr(data, "variables", None), source)
    own = model.state_dict()
    if any(name in own and own[name].shape != value.shape for name, value in weights.items()) and checkpoint.is_pruned(path):
        raise UserError(
            f"init_from={source}: a pruned network, whose channels are not those of this model. To train it on: "
            f"snnexp prune {source} stages=[finetune]."
        )
    placed = [{f"{place}{name}": value for name, value in weights.items()} for place in ("", *(f"{n}." for n, _ in model.named_children()))]
    choices = [{name: value for name, value in there.items() if name in own and own[name].shape == value.shape} for there in placed]
    fitting = max(choices, key=len)
    if not any(value.dim() > 1 for value in fitting.values()):  # counters and biases alone are no weights
        raise UserError(f"init_from={source}: no weight there has a name and shape of this model.")
    model.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting]
    rest = f"; left as initialised: {', '.join(left[:6])}{' ...' if len(left) > 6 else ''}." if left else "."
    terminal.say(f"Weights from {path}: {len(fitting)} of {len(own)} entries{rest}")


def by_variable(
    weights: dict[str, torch.Tensor], theirs: list[str] | None, ours: Sequence[str] | None, source: str
) -> dict[str, torch.Tensor]:
    """The weights of a model of medical events with the rows that belong to a variable each in the order of these data's variables.

    Raises: UserError if the variables are others.
    """
    if theirs is None or ours is None or list(theirs) == list(ours):
        return weights
    if odd := sorted(set(theirs) ^ set(ours)):
        raise UserError(
            f"init_from={source}: it was trained on other variables than these data have (only one of them has {', '.join(odd[:8])}"
            f"{' ...' if len(odd) > 8 else ''}), and its vectors and codes are of single variables. Pre-train on data with the same ones."
        )
    order = [list(theirs).index(name) for name in ours]
    text = any(name.endswith("embeddings") for name in weights)  # then a layer makes the vectors, and has no row for each
    with_rows = ("codes", "embeddings" if text else "names.weight")
    return {name: value[order] if name.endswith(with_rows) else value for name, value in weights.items()}
