"""The precision that is asked for, and the one the hardware has."""

import pytest
import torch

from snnexp.engine.arithmetic import precision
from snnexp.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True, "amx_bf16": False}, False)],
)
def test_which_processors_have_bf16(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.computes_bf16(CPU) is native
    assert precision.resolve("bf16", CPU).name == "bf16"  # asked for, it is taken anywhere


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_what_a_cpu_does_not_have_is_refused(name):
    with pytest.raises(UserError, match=f"precision={name} needs a CUDA device.*bf16, fp32 or auto"):
        precision.resolve(name, CPU)


def test_tf32_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(UserError, match="precision=tf32: Tesla V100 has no TF32.*fp32, fp16 or auto"):
        precision.resolve("tf32", CUDA)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert precision.resolve("tf32", CUDA).name == "tf32"


def test_fp32_is_exact_on_cuda_unless_tf32_is_asked_for():
    before = precision.tf32_allowed()
    assert before == (False, True), "torch takes TF32 for convolutions by itself"
    with precision.restore_tf32():
        for name in precision.NAMES:
            precision.Precision(name, "cuda").set_kernels()
            assert precision.tf32_allowed() == (name == "tf32",) * 2
            # What torch.compile asks, which fails after some of torch's switches.
            assert torch.get_float32_matmul_precision() == ("high" if name == "tf32" else "highest")
            assert torch.backends.cudnn.allow_tf32 is (name == "tf32")
    assert precision.tf32_allowed() == before
    precision.Precision("fp32", "cpu").set_kernels()
    assert precision.tf32_allowed() == before


def test_tf32_is_no_autocast():
    with precision.Precision("tf32", "cpu").autocast():
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == torch.float32
    assert not precision.Precision("tf32", "cuda").scaler().is_enabled()


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
