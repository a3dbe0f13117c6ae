"""The processes of one run: their ranks and devices, and what they must agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnexp import machine
from snnexp.engine.signals import Stopped, unhandled
from snnexp.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: its rank, the number of processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True on the one process that writes."""
        return self.rank == 0

    def agree(self, *flags: int) -> tuple[int, ...]:
        """Return the largest value of each flag over all ranks, so that they decide the same at the same step."""
        if self.world == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each value over all ranks, on the device, for which the host does not wait; may change `values`."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def total(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return the sums over all ranks as numbers, with one transfer from the device."""
        if not sums:
            return {}
        values = torch.stack([value.double() for value in sums.values()]).cpu()
        if self.world > 1:
            dist.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on the CPU."""
        value = value.cpu()
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module, constants: bool = False) -> None:
        """Give every rank the buffers (running statistics) of rank 0; with `constants`, also those that no checkpoint holds."""
        if self.world > 1:
            saved = model.state_dict().keys()
            for name, buffer in model.named_buffers():
                if constants or name in saved:
                    dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for the other ranks."""
        if self.world > 1:
            dist.barrier()


def choose_device(requested: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process; `auto` is CUDA if available, else the CPU.

    Raises: UserError if the device does not exist.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(requested[5:] or 0) if requested.startswith("cuda:") else local_rank
        if index >= count:
            raise UserError(f"device={requested}: CUDA device {index} is not there ({count} found). Use device=cpu or fewer devices.")
        return torch.device("cuda", index)
    return torch.device(requested)


@contextmanager
def process_group(requested_device: str) -> Iterator[Ranks]:
    """Give this process its ranks, from torchrun's environment; the process group lives as long as the context.

    Control messages use gloo on the CPU, gradients the backend of the device.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = choose_device(requested_device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(0, 1, device)
        return
    if device.type == "cpu":
        torch.set_num_threads(max(1, machine.cores() // local_world))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with unhandled():  # a process that waits here for one that has ended has nothing to save
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        try:
            yield Ranks(rank, world, device)
        except Stopped:
            dist.barrier()
            raise
        dist.barrier()  # no rank leaves while another still writes or communicates
    finally:
        dist.destroy_process_group()
