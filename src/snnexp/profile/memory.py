"""The memory of a training step by kind of tensor: measured, each storage counted once, and estimated by formula."""

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

BLOCK_SIZE, MIN_8BIT_SIZE = 256, 4096
"""bitsandbytes: elements that share one scale, and the smallest tensor, in elements, whose moments are stored in 8 bits."""


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Return the bytes of each storage of the tensors, by its address; views of one storage are one entry."""
    return {address: size for tensor in tensors if isinstance(tensor, Tensor) for address, size in _storage_sizes(tensor)}


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Return the total bytes of the storages of the tensors."""
    return sum(storages(tensors).values())


def _storage_sizes(tensor: Tensor) -> Iterator[tuple[int, int]]:
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
    """Counts the bytes of the storages that autograd saves for the backward pass, without the `known` ones (parameters, buffers): `now`,
    and `peak`, their maximum while the context is open.

    Of a part under activation checkpointing these are its inputs; what it computes again during backward is not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.known = set(storages(known))
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}  # number of saved tensors by the address of their storage
        self._hooks = saved_tensors_hooks(lambda tensor: _SavedTensor(tensor, self), lambda saved: saved.tensor)

    def __enter__(self) -> "SavedForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def add(self, address: int, size: int) -> None:
        """Count a saved tensor in the storage at `address`."""
        if address in self.known:
            return
        self._holders[address] = self._holders.get(address, 0) + 1
        if self._holders[address] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def remove(self, address: int, size: int) -> None:
        """Stop counting a tensor in that storage, which autograd has released."""
        if address in self.known:
            return
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.now -= size


class _SavedTensor:
    """A saved tensor, counted for as long as autograd keeps it."""

    def __init__(self, tensor: Tensor, tally: SavedForBackward) -> None:
        self.tensor, self.tally = tensor, tally
        self.storages = list(_storage_sizes(tensor))
        for address, size in self.storages:
            tally.add(address, size)

    def __del__(self) -> None:
        for address, size in self.storages:
            self.tally.remove(address, size)


def activation_bytes(model: nn.Module, work: Callable[[], Any]) -> int:
    """Return the peak bytes that `work`, forward and backward of a model, saves for the backward pass."""
    with SavedForBackward([*model.parameters(), *model.buffers()]) as saved:
        work()
    return saved.peak


@contextmanager
def collect_gradient_bytes(optimizer: torch.optim.Optimizer) -> Iterator[list[int]]:
    """Give a list, to which each optimizer step inside the context appends the bytes of all gradients."""
    sizes: list[int] = []

    def append_size(optimizer: torch.optim.Optimizer, *_: object) -> None:
        sizes.append(storage_bytes(p.grad for group in optimizer.param_groups for p in group["params"]))

    handle = optimizer.register_step_pre_hook(append_size)
    try:
        yield sizes
    finally:
        handle.remove()


def persistent_bytes(experiment: Experiment) -> dict[str, int]:
    """Return the bytes that persist between steps: parameters, optimizer state (8-bit moments as they are), buffers and moving average."""
    average = experiment.ema.weights.values() if experiment.ema is not None else ()
    return {
        "parameters": storage_bytes(experiment.model.parameters()),
        "optimizer": storage_bytes(tensors_in(experiment.optimizer.state)),
        "buffers": storage_bytes(experiment.model.buffers()) + storage_bytes(average),
    }


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_in(value)


def bytes_by_formula(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, str] | None]:
    """Return bytes by formula, and the formula: of parameters and gradients in 32 bits, and of the optimizer state (None: unknown)."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rules = {"parameters": (4 * count, f"4 B x {count:,}"), "gradients": (4 * trained, f"4 B x {trained:,}")}
    return rules | {"optimizer": _moments(optimizer)}


def _moments(optimizer: torch.optim.Optimizer) -> tuple[int, str] | None:
    options = optimizer.param_groups[0]
    sizes = [p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    count = sum(sizes)
    if "betas" in options and type(optimizer).__name__.endswith("8bit"):
        large = [size for size in sizes if size >= MIN_8BIT_SIZE]
        blocks = sum(-(-size // BLOCK_SIZE) for size in large)
        total = 2 * sum(large) + 8 * blocks + 8 * (count - sum(large))
        return total, f"2 B x {sum(large):,} + 8 B x {blocks:,} blocks + 8 B x {count - sum(large):,} in small tensors"
    if "betas" in options:
        moments = 3 if options.get("amsgrad") else 2
        return 4 * moments * count, f"{4 * moments} B x {count:,}"
    if "momentum" in options:
        return (4 * count, f"4 B x {count:,}") if options["momentum"] else (0, "no momentum")
    return None


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far: allocated on a CUDA device, elsewhere the resident pages of this process."""
    if device.type != "cuda" and sys.platform == "linux":
        # getrusage may give the peak of the parent process, which is carried over when a new program starts.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 2**10
    return round(peak_memory_mib(device) * 2**20)
