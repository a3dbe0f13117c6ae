"""A model as `compile` wants it: as it is, compiled by torch, or compiled and replayed as CUDA graphs."""

from typing import Any

import torch
from torch import nn

from snnexp import targets
from snnexp.contracts import Model, optional_member
from snnexp.errors import UserError
from snnexp.machine import why_no_triton

CUDA_GRAPHS = "reduce-overhead"


def compiled(model: nn.Module, how: bool | str) -> nn.Module:
    """Return the form of a model that training and evaluation call; `how` is False, True or "reduce-overhead", a mode of torch."""
    if not how:
        return model
    torch.compiler.config.recompile_limit = 32  # attention is compiled once for each way it is used, and for dynamic sizes
    # Left to itself, torch would compile for dynamic sizes, for good, from the first smaller batch on.
    net = torch.compile(model, dynamic=None if optional_member(model, "shapes_vary") else False, mode=None if how is True else how)
    if how == CUDA_GRAPHS:
        net.register_forward_pre_hook(begin_pass)
    return net


def begin_pass(*_: Any) -> None:
    """Let CUDA graphs use the memory of the pass before again, all of whose results have been read."""
    torch.compiler.cudagraph_mark_step_begin()


def check_compile(settings: dict[str, Any], device: torch.device) -> None:
    """Raises: UserError if what `compile` asks for cannot be had with these settings or on this machine."""
    how = settings["compile"]
    if not how:
        return
    if how == CUDA_GRAPHS:
        if device.type != "cuda":
            raise UserError("compile=reduce-overhead replays CUDA graphs, so it needs a CUDA device; on a CPU use compile=true or false.")
        model = targets.locate(settings["model"]["_target_"], settings["trust"])
        if optional_member(model, "shapes_vary", Model):
            raise UserError(
                f"compile=reduce-overhead records a CUDA graph for each shape, and with model={settings['choices']['model']} nearly every "
                "batch has one of its own. Use compile=true or false."
            )
        if settings["accumulate"] > 1:
            raise UserError(
                f"accumulate={settings['accumulate']} with compile=reduce-overhead: a CUDA graph would overwrite the gradients of the "
                "batch before. Use accumulate=1, or compile=true."
            )
    if lacking := why_no_triton() if device.type == "cuda" else why_no_cpp_compiler():
        raise UserError(
            f"compile={str(how).lower()}: torch.compile does not work here: {lacking}. Install what it lacks, or use compile=false."
        )


def why_no_cpp_compiler() -> str:
    """Return why torch.compile finds no C++ compiler for a CPU, or ""."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # torch has no public way; importing it takes a second

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return ""
