"""The precision of the forward and backward pass: fp32, or autocast to bf16 or fp16 with fp32 weights."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from snnexp.errors import UserError


@dataclass(frozen=True)
class Precision:
    """A precision on a device; `name` is fp32, bf16 or fp16."""

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager:
        """Return the context for a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler, which does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def computes_bf16(device: torch.device) -> bool:
    """Return True if the hardware multiplies bf16 natively (AVX512-BF16, AMX or Arm BF16; CUDA from compute capability 8.0)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_precision(requested: str, device: torch.device) -> None:
    """Raises: UserError for fp16 on a CPU, where convolutions have no fp16 form."""
    if requested == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a CUDA device; on a CPU use precision=bf16, fp32 or auto.")


def resolve(name: str, device: torch.device) -> Precision:
    """Return the precision `name` (fp32, bf16 or fp16; arithmetic/auto.py replaces auto) on a device.

    Raises: UserError for fp16 on a CPU.
    """
    check_precision(name, device)
    return Precision(name, device.type)
