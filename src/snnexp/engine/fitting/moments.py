"""Holds the moments in a checkpoint against the parameters: a fused step writes past the end of a moment that is too small."""

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.engine.experiment import make_optimizer
from snnexp.engine.fitting.content import Misfit, brief, part

NOT_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "step", "exp_inf")
"""Names of moments that are sums of squares or counts, in torch's optimizers."""


def check_moments(checkpoint: dict[str, Any], settings: dict[str, Any], model: nn.Module, path: object) -> None:
    """Check the state of an optimizer against what a new one makes of parameters of these shapes in one step.

    `settings`: those with which the run goes on. Raises: UserError that names the part, the parameter and the moment.
    """
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    saved, may_be_empty = checkpoint["optimizer"], checkpoint["step"] == 0 or bool(checkpoint["scaler"])  # fp16 leaves out first steps
    with part(path, "optimizer"):
        optimizer = make_optimizer(settings, model)
        groups = saved["param_groups"]
        if len(groups) != len(optimizer.param_groups):
            raise Misfit(f"it has {len(groups)} groups of parameters, and the run has {len(optimizer.param_groups)}")
        names = [parameters.get(id(p), "?") for group in optimizer.param_groups for p in group["params"]]
        numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
        if [group["params"] for group in groups] != numbers:
            there, here = [len(group["params"]) for group in groups], list(map(len, numbers))
            raise Misfit(f"the parameters of its groups are not the run's (there {there} of them, here {here}), or in another order")
        if unknown := [index for index in saved["state"] if not 0 <= index < len(names)]:
            raise Misfit(f"state[{unknown[0]}] is of no parameter; there are {len(names)}")
        expected = _first_state(optimizer)
        if expected and not saved["state"] and not may_be_empty and not _begins_anew(groups):
            raise Misfit("`state` is empty: the moments of all parameters are missing")
        for index, moments in saved["state"].items():
            for key, value in expected.get(index, {}).items():
                place = f"state[{index}][{key!r}] (of {names[index]})"
                if key not in moments:
                    if key == "momentum_buffer":  # made at the first step with a momentum, which the run may not have had before
                        continue
                    raise Misfit(f"{place} is missing")
                _compare(moments[key], value, place)
            for key, value in moments.items():
                _check_range(value, key, f"state[{index}][{brief(key)}] (of {names[index]})")


def owned(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer in which each tensor has its own memory, in order, whatever parts of it the file shares."""
    own = {index: dict(moments) for index, moments in saved.items()}
    for moments in own.values():
        moments.update({key: value.clone() for key, value in moments.items() if isinstance(value, Tensor)})
    return own


def _first_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return the state of a new optimizer, which is used up, after a step on zeros; empty if it cannot take one alone."""
    for group in optimizer.param_groups:
        group["params"] = [torch.zeros(p.shape, dtype=p.dtype, requires_grad=p.requires_grad) for p in group["params"]]
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    except Exception:  # one of the user's own, which needs more than gradients: its form is unknown
        return {}
    return optimizer.state_dict()["state"]


def _begins_anew(groups: list[dict[str, Any]]) -> bool:
    return all(group.get("momentum") == 0 for group in groups)


def _compare(value: Any, expected: Any, place: str) -> None:
    """Raises: Misfit unless a moment has the shape and the kind of numbers of another."""
    if not isinstance(expected, Tensor):
        if isinstance(expected, bool | int | float) and type(value) not in (int, float, bool):
            raise Misfit(f"{place} is {brief(value)}, and must be a number")
        return
    if expected.dim() == 0 and type(value) in (int, float):
        return
    if not isinstance(value, Tensor) or value.shape != expected.shape or value.is_floating_point() != expected.is_floating_point():
        raise Misfit(f"{place} is {brief(value)}, and must be {brief(expected)}")
    if value.dtype != expected.dtype and not value.is_floating_point():
        raise Misfit(f"{place} is {brief(value)}, and must be {brief(expected)}")


def _check_range(value: Any, key: Any, place: str) -> None:
    """Raises: Misfit for a moment that is NaN, or negative although it sums up squares or steps."""
    values = value if isinstance(value, Tensor) else torch.tensor(value) if type(value) in (int, float) else None
    if values is None or not values.numel() or values.dtype == torch.bool:
        return
    if values.is_floating_point() and values.isnan().any():
        raise Misfit(f"{place} holds NaN")
    if key in NOT_NEGATIVE and (values < 0).any():
        raise Misfit(f"{place} holds {values.min().item():g}, and cannot be negative")
