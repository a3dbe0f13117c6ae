"""The precision that is asked for, and the one the hardware has."""

import pytest
import torch

from snnexp.engine.arithmetic import precision
from snnexp.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True, "amx_bf16": False}, False)],
)
def test_which_processors_have_bf16(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.computes_bf16(CPU) is native
    assert precision.resolve("bf16", CPU).name == "bf16"  # asked for, it is taken anywhere


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="precision=fp16 needs a CUDA device.*bf16, fp32 or auto"):
        precision.resolve("fp16", CPU)


def test_autocast_computes_in_bf16_and_keeps_fp32_weights():
    layer = torch.nn.Linear(4, 4)
    with precision.resolve("bf16", CPU).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with precision.resolve("fp32", CPU).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_only_fp16_scales_its_loss():
    assert not precision.resolve("bf16", CPU).scaler().is_enabled()
    assert not precision.resolve("fp32", CPU).scaler().is_enabled()
    assert precision.Precision("fp16", "cpu").scaler().is_enabled()
