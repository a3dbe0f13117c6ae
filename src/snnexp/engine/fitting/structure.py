"""Builds a network that a stranger may have described, once the weights of his checkpoint are known to be of that size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from snnexp.engine import checkpoint
from snnexp.engine.fitting.content import Misfit, part
from snnexp.pruning import surgery

LARGEST = 100_000
"""Layers, weights and buffers that a network may have; the largest model here, svrt, has 3,130."""
UNSAVED = 2**30
"""Bytes that its buffers outside of the state dict may have; those of vrt, the most here, have 33 MB."""


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on the meta device in the context, which takes no memory for weights, and end one that would go on and on.

    Raises: Misfit for a network of more than LARGEST parts.
    """
    count = 0

    def register(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > LARGEST:
            raise Misfit(f"the network has more than {LARGEST:,} layers and weights")

    hooks = [
        registration.register_module_module_registration_hook(register),
        registration.register_module_parameter_registration_hook(register),
        registration.register_module_buffer_registration_hook(register),
    ]
    try:
        with torch.device("meta"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def build_fitting(make: Callable[[], nn.Module], saved: dict[str, Any], path: object) -> nn.Module:
    """Return the network that `make` builds, after one without memory has shown that the weights of a checkpoint fit it.

    Raises: UserError if they do not.
    """
    with without_memory():
        trial = make()
    surgery.rebuild(trial, saved["pruned"]["kept"], path)
    checkpoint.check_fits(trial, checkpoint.weights(saved), path)
    with part(path, "shape"):
        of_file = trial.state_dict()
        unsaved = sum(value.numel() * value.element_size() for name, value in trial.named_buffers() if name not in of_file)
        if unsaved > UNSAVED:
            raise Misfit(f"the network it describes has {unsaved:,} bytes beside its weights")
    return make()
