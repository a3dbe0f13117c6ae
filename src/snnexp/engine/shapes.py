"""Every module's input and output shape and parameters, for one batch."""

from typing import TYPE_CHECKING

import torch
from rich.table import Table
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.engine.evaluation import to_device

if TYPE_CHECKING:
    from snnexp.build import Experiment

WIDE = 240
"""Columns of the table in a file, where nothing is to be cut off."""


def show_shapes(x: "Experiment") -> None:
    """Print the table; the model is left as it was."""
    table = Table("module", "kind", "input", "output", "parameters", box=None, pad_edge=False)
    hooks = []

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            own = sum(p.numel() for p in module.parameters())
            table.add_row(name or "(model)", type(module).__name__, _shape(inputs), _shape(output), f"{own:,}" if own else "")

        hooks.append(module.register_forward_hook(hook))

    for name, module in x.model.named_modules():
        note(name, module)
    batch = x.data.prepare(to_device(x.data.view("train", augment=False).__getitems__([(0, 0)]), x.ranks.device))
    x.model.eval()
    try:
        with torch.no_grad(), x.precision.autocast():
            x.task.loss(x.model, batch, step=0)
    finally:
        functional.reset_net(x.model)
        x.model.train()
        for hook in hooks:
            hook.remove()
    console = x.terminal.console
    console.print(table, width=None if console.is_terminal else WIDE)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape))
    if isinstance(value, tuple | list):
        return ", ".join(filter(None, map(_shape, value)))
    return ""
