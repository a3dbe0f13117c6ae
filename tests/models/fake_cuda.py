"""What the host would wait for on a GPU, seen on tensors that only pretend to be there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive", "unique_dim"}
"""Operations whose result the host needs: a number, or the size of a tensor. Some of them have no fake form and raise an error."""


class Waits(TorchDispatchMode):
    """Notes in `found` each operation for which the host waits, and each copy between it and the device; counts all in `count`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.split("::")[1]
        chosen = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else ()
        if name in ASKING or any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in chosen):
            self.found.append(name)
        result = operation(*args, **(kwargs or {}))
        devices = {part.device.type for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor) and part.dim()}
        self.count += 1
        if len(devices) > 1:
            self.found.append(f"{name} between {' and '.join(sorted(devices))}")
        return result


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation._schema.name.split("::")[1])
        return operation(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Yield the list of what the host waits for in the context, in which tensors of the device "cuda" are fake."""
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as mode:
        yield mode.found


def put_on_fake_cuda(model: nn.Module) -> nn.Module:
    """Put a model made on the CPU on the device, within `waits` or another context of fake tensors."""
    for module in model.modules():
        for held in (module._buffers, module._parameters):
            for name, value in held.items():
                if value is not None:
                    there = torch.empty_like(value, device="cuda")
                    held[name] = nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
    return model
