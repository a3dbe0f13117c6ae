"""Optimizers that torch does not bring; importing this module needs bitsandbytes."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from snnexp.errors import UserError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for other ends that are not there
try:
    from bitsandbytes.optim import AdamW8bit as _AdamW8bit
except Exception as error:  # a wrong CUDA, glibc or numpy shows itself in many ways at import
    raise UserError(f"optimizer=adamw8bit: bitsandbytes cannot be loaded here ({error}). Use optimizer=adamw.") from error


class AdamW8bit(_AdamW8bit):
    """AdamW with 8-bit moments, blockwise quantised (Dettmers et al. 2022), on CUDA or CPU.

    Raises: UserError where bitsandbytes cannot compute; there is no silent change of optimizer.
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
            p.data = p.data.contiguous()  # bitsandbytes does so in its first step; a resumed run must start with the same layout
        self._try(weights[0].device)

    @staticmethod
    def _try(device: torch.device) -> None:
        weight = nn.Parameter(torch.zeros(4096, device=device))
        weight.grad = torch.ones_like(weight)
        try:
            _AdamW8bit([weight]).step()
        except Exception as error:
            raise UserError(f"optimizer=adamw8bit: bitsandbytes cannot compute on {device} ({error}). Use optimizer=adamw.") from error
