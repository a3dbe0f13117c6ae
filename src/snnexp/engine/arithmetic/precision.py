"""The precision of the forward and backward pass: fp32, exact or in TF32, or autocast to bf16 or fp16 with fp32 weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from snnexp.errors import UserError

NAMES = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """A precision on a device; `name` is one of NAMES."""

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager:
        """Return the context for a forward pass."""
        if self.name in ("fp32", "tf32"):
            return nullcontext()
        return torch.autocast(self.device_type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.name])

    def set_kernels(self) -> None:
        """Choose for this process how CUDA multiplies fp32: in TF32 (inputs of 10 bits of mantissa) if that is the precision, else exactly.

        By itself torch takes TF32 for convolutions and not for matrix products. This cannot be a context of the forward pass alone, because
        the backward pass multiplies too.
        """
        if self.device_type == "cuda":
            set_tf32(*[self.name == "tf32"] * 2)

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
    """Raises: UserError for fp16 or tf32 on a CPU, and for tf32 on a GPU that has none."""
    if requested in ("fp16", "tf32") and device.type == "cpu":
        raise UserError(f"precision={requested} needs a CUDA device; on a CPU use precision=bf16, fp32 or auto.")
    if requested == "tf32" and not torch.cuda.is_tf32_supported():
        raise UserError(
            f"precision=tf32: {torch.cuda.get_device_name(device)} has no TF32 (NVIDIA GPUs have it from compute capability 8.0, Ampere). "
            "Use precision=fp32, fp16 or auto."
        )


@contextmanager
def restore_tf32() -> Iterator[None]:
    """Restore at the end of the context how CUDA multiplies fp32."""
    before = tf32_allowed()
    try:
        yield
    finally:
        if tf32_allowed() != before:
            set_tf32(*before)


def tf32_allowed() -> tuple[bool, bool]:
    """Return whether CUDA may take TF32 for matrix products and for convolutions."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32", torch.backends.cudnn.conv.fp32_precision == "tf32"


def set_tf32(matmul: bool, convolution: bool) -> None:
    """Allow CUDA to multiply fp32 in TF32, or not.

    These are torch's older switches: after its newer ones (`fp32_precision`), torch.compile fails where it reads the older.
    """
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution


def resolve(name: str, device: torch.device) -> Precision:
    """Return the precision `name` (one of NAMES; arithmetic/auto.py replaces the values that leave it open) on a device.

    Raises: UserError where the device does not have it.
    """
    check_precision(name, device)
    return Precision(name, device.type)
