"""Where the memory of a training step goes: the bytes that are held, each counted once, and beside them what a formula says."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from snnexp.engine.experiment import Experiment
from snnexp.engine.progress import peak_memory_mib

BLOCK, SMALLEST = 256, 4096
"""bitsandbytes: elements that share one scale, and elements from which on a tensor's moments are kept in 8 bits."""


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of each storage that holds one of the tensors, by its address; views of one storage are one entry."""
    return {place: size for tensor in tensors if isinstance(tensor, Tensor) for place, size in _parts(tensor)}


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors' storages together."""
    return sum(storages(tensors).values())


def _parts(tensor: Tensor) -> Iterator[tuple[int, int]]:
    if tensor.layout == torch.sparse_coo:
        dense = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        columns = tensor.layout in (torch.sparse_csc, torch.sparse_bsc)
        dense = [tensor.ccol_indices(), tensor.row_indices()] if columns else [tensor.crow_indices(), tensor.col_indices()]
        dense.append(tensor.values())
    else:
        dense = [tensor] if tensor.layout == torch.strided else []
    for part in dense:
        storage = part.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()


class SavedForBackward:
    """Bytes of the storages that autograd keeps for the backward pass, beside the `known` ones (parameters, buffers); `peak` is the most at
    any time while the context is open.

    Of a part under activation checkpointing these are its inputs; what it computes again during backward is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.known = set(storages(known))
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}  # how many saved tensors lie in a storage
        self._hooks = saved_tensors_hooks(lambda tensor: _Held(tensor, self), lambda kept: kept.tensor)

    def __enter__(self) -> "SavedForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def take(self, place: int, size: int) -> None:
        """A tensor in the storage at `place` is saved."""
        if place in self.known:
            return
        self._holders[place] = self._holders.get(place, 0) + 1
        if self._holders[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def give_back(self, place: int, size: int) -> None:
        """Autograd needs a tensor in that storage no more."""
        if place in self.known:
            return
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.now -= size


class _Held:
    """A saved tensor, for as long as autograd holds it."""

    def __init__(self, tensor: Tensor, tally: SavedForBackward) -> None:
        self.tensor, self.tally = tensor, tally
        self.parts = list(_parts(tensor))
        for part in self.parts:
            tally.take(*part)

    def __del__(self) -> None:
        for part in self.parts:
            self.tally.give_back(*part)


def activations(model: nn.Module, work: Callable[[], Any]) -> int:
    """Bytes that `work`, forward and backward of a model, keeps for backward at its height."""
    with SavedForBackward([*model.parameters(), *model.buffers()]) as saved:
        work()
    return saved.peak


@contextmanager
def gradients(optimizer: torch.optim.Optimizer) -> Iterator[list[int]]:
    """The list that gets the bytes of all gradients before each optimizer step inside the context."""
    seen: list[int] = []

    def look(of: torch.optim.Optimizer, *_: object) -> None:
        seen.append(held(p.grad for group in of.param_groups for p in group["params"]))

    handle = optimizer.register_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def standing(experiment: Experiment) -> dict[str, int]:
    """Bytes that stay from step to step: parameters, optimizer state (8-bit moments as they are), buffers and moving average."""
    return {
        "parameters": held(experiment.model.parameters()),
        "optimizer": held(_tensors(experiment.optimizer.state)),
        "buffers": held(experiment.model.buffers()) + (held(experiment.ema.weights.values()) if experiment.ema is not None else 0),
    }


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def formula(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, str] | None]:
    """Bytes by rule of thumb, and the rule: of parameters and gradients in 32 bits, and of the optimizer's state (None: no rule for it)."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rules = {"parameters": (4 * count, f"4 B x {count:,}"), "gradients": (4 * trained, f"4 B x {trained:,}")}
    return rules | {"optimizer": _moments(optimizer)}


def _moments(optimizer: torch.optim.Optimizer) -> tuple[int, str] | None:
    options = optimizer.param_groups[0]
    sizes = [p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    count = sum(sizes)
    if "betas" in options and type(optimizer).__name__.endswith("8bit"):
        large = [size for size in sizes if size >= SMALLEST]
        blocks = sum(-(-size // BLOCK) for size in large)
        total = 2 * sum(large) + 8 * blocks + 8 * (count - sum(large))
        return total, f"2 B x {sum(large):,} + 8 B x {blocks:,} blocks + 8 B x {count - sum(large):,} in small tensors"
    if "betas" in options:
        moments = 3 if options.get("amsgrad") else 2
        return 4 * moments * count, f"{4 * moments} B x {count:,}"
    if "momentum" in options:
        return (4 * count, f"4 B x {count:,}") if options["momentum"] else (0, "no momentum")
    return None


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated on a CUDA device, of this process's own pages elsewhere."""
    if device.type != "cuda" and sys.platform == "linux":
        # getrusage would give the parent's peak where that was higher: it survives the start of a new program.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 2**10
    return round(peak_memory_mib(device) * 2**20)
