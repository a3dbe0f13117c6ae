"""Every module's input and output shape and parameters, for one batch."""


import torch
from rich.table import Table
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device

WIDE = 240
"""Columns of the table in a file, where nothing is to be cut off."""


def show_shapes(experiment: Experiment) -> None:
    """Print the table; the model is left as it was."""
    table = Table("module", "kind", "input", "output", "parameters", box=None, pad_edge=False)
    hooks = []

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            own = sum(p.numel() for p in module.parameters())
            table.add_row(name or "(model)", type(module).__name__, _shape(inputs), _shape(output), f"{own:,}" if own else "")

        hooks.append(module.register_forward_hook(hook))

    for name, module in experiment.model.named_modules():
        note(name, module)
    batch = experiment.data.prepare(to_device(experiment.data.view("train", augment=False).__getitems__([(0, 0)]), experiment.ranks.device))
    experiment.model.eval()
    try:
        with torch.no_grad(), experiment.precision.autocast():
            experiment.task.loss(experiment.model, batch, step=0)
    finally:
        functional.reset_net(experiment.model)
        experiment.model.train()
        for hook in hooks:
            hook.remove()
    console = experiment.terminal.console
    console.print(table, width=None if console.is_terminal else WIDE)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape))
    if isinstance(value, tuple | list):
        return ", ".join(filter(None, map(_shape, value)))
    return ""
