"""Prints the input shape, the output shape and the parameters of every module, for one batch."""

from functools import partial

from rich.table import Table
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.engine.evaluation import forward
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device

WIDE = 240
"""The width of the table in a file, in columns, so that nothing is cut off."""


def show_shapes(experiment: Experiment) -> None:
    """Print the table; the model is unchanged afterwards."""
    table = Table("module", "kind", "input", "output", "parameters", box=None, pad_edge=False)

    def add_row(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        count = sum(p.numel() for p in module.parameters())
        table.add_row(name or "(model)", type(module).__name__, _shape(inputs), _shape(output), f"{count:,}" if count else "")

    hooks = [module.register_forward_hook(partial(add_row, name)) for name, module in experiment.model.named_modules()]
    batch = experiment.data.prepare(to_device(experiment.data.view("train", augment=False).__getitems__([(0, 0)]), experiment.ranks.device))
    experiment.model.eval()
    try:
        forward(experiment.model, experiment.task, batch, experiment.precision)
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
