"""Optimizers that torch does not have; importing this module requires bitsandbytes."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from snnexp.errors import UserError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of missing kernels that are not needed here
try:
    from bitsandbytes.optim import AdamW8bit as _AdamW8bit
except Exception as error:  # a wrong CUDA, glibc or numpy makes the import fail in many ways
    raise UserError(f"optimizer=adamw8bit: bitsandbytes cannot be loaded here ({error}). Use optimizer=adamw.") from error


class AdamW8bit(_AdamW8bit):
    """AdamW with 8-bit, blockwise quantised moments (Dettmers et al. 2022), on CUDA or CPU.

    Raises: UserError where bitsandbytes cannot compute; it never falls back to another optimizer silently.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        weights = [p for group in self.param_groups for p in group["params"]]
        for p in weights:
            p.data = p.data.contiguous()  # as bitsandbytes does in its first step, so that a resumed run starts with the same layout
        self._check_device(weights[0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights, and return the value of the closure; the host does not wait for the device.

        The step of bitsandbytes waits after each weight, which only moments in paged memory need. Here the kernels are in the order of
        torch's own, on the default stream.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for place, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                if not self.state[weight]:
                    self.init_state(group, weight, number, place)
                self.update_step(group, weight, number, place)
        return loss

    @staticmethod
    def _check_device(device: torch.device) -> None:
        weight = nn.Parameter(torch.zeros(4096, device=device))
        weight.grad = torch.ones_like(weight)
        try:
            _AdamW8bit([weight]).step()
        except Exception as error:
            raise UserError(f"optimizer=adamw8bit: bitsandbytes cannot compute on {device} ({error}). Use optimizer=adamw.") from error
