"""What only a CUDA device can show; elsewhere all of it is skipped."""

import itertools
import json

import pytest
import torch

from conftest import GRAPHS, STAYS, TINY, assert_same, last_path, load
from snnexp.machine import why_no_triton
from snnexp.models.lif_kernel import SURROGATES
from snnexp.models.multi_step_lif import Dynamics, multi_step_lif

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

ON_CUDA = [word for word in TINY if not word.startswith(("device", "epochs", "precision"))] + ["device=cuda", "scheduler=none"]
FREE_WIDTH = [word for word in ON_CUDA if not word.startswith("model.width")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last, "transposed"])
def test_the_kernel_on_the_device_equals_the_form_of_the_cpu(dtype, form):
    if why := why_no_triton():
        pytest.skip(why)
    chance = torch.Generator().manual_seed(0)
    for name, decay, reset in itertools.product(SURROGATES, (True, False), (0.0, None)):
        x = (torch.randn(10, 3, 8, 6, 6, generator=chance) * 1.5).to(dtype)
        if form == "transposed":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        else:
            x = x.flatten(0, 1).contiguous(memory_format=form).unflatten(0, (10, 3))
        gradient = torch.randn(x.shape, generator=chance).to(dtype)
        dynamics, results = Dynamics(2.0, decay, 1.0, reset, False, name, 1.0), []
        for device in ("cpu", "cuda"):
            there = x.to(device).requires_grad_()
            spikes, v, counts = multi_step_lif(there, None, dynamics, count=True)
            (g,) = torch.autograd.grad(spikes, there, gradient.to(device))
            results.append([each.cpu() for each in (spikes, v, counts, g)])
        (spikes, v, counts, g), (spikes_there, v_there, counts_there, g_there) = results
        assert torch.equal(spikes, spikes_there) and torch.equal(counts, counts_there) and torch.equal(v, v_there), name
        torch.testing.assert_close(g_there, g, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)


def resumed_as_if_never_stopped(settings, snnexp, tmp_path) -> dict:
    """Compare a run of two epochs with one that was resumed after the first, bit for bit, and return the circumstances of the first."""
    settings = [*settings, "deterministic=true"]
    whole = last_path(snnexp("train", *settings, "epochs=2", "exp_name=whole", cwd=tmp_path, fresh=True))
    resumed = last_path(snnexp("train", *settings, "epochs=1", "exp_name=resumed", cwd=tmp_path, fresh=True))
    snnexp("resume", resumed, "epochs=2", cwd=tmp_path, fresh=True)
    one, other = (load(tmp_path / run / "checkpoints/checkpoint_latest.pth") for run in (whole, resumed))
    for part in ("step", "state_dict", "optimizer", "ranks"):
        assert_same(one[part], other[part], part)
    return one["circumstances"]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_resumed_run_is_the_same_bit_for_bit(precision, snnexp, tmp_path):
    circumstances = resumed_as_if_never_stopped([*ON_CUDA, f"precision={precision}"], snnexp, tmp_path)
    assert circumstances["neuron"] == "Triton kernel" and circumstances["precision"] == precision


@pytest.mark.parametrize(
    "words",
    [
        ["model=resnet19", *ON_CUDA],
        ["model=spikformer", "model.depth=1", "model.dim=48", *FREE_WIDTH],
        GRAPHS,
        [*GRAPHS, "model.conv_type=sage"],
        [*GRAPHS, "model.conv_type=gat"],
        STAYS,
    ],
)
def test_so_is_that_of_every_model_that_says_so(words, snnexp, tmp_path):
    resumed_as_if_never_stopped([*words, "device=cuda", "scheduler=none"], snnexp, tmp_path)


@pytest.mark.parametrize("how", ["true", "reduce-overhead"])
def test_compiled_it_learns_as_it_does_without(how, snnexp, tmp_path):
    losses = []
    for compile in ("false", how):
        words = [*ON_CUDA, "precision=fp32", f"compile={compile}", "epochs=2", "tracker=lif"]
        run = last_path(snnexp("train", *words, cwd=tmp_path, fresh=True, timeout=600))
        losses.append(json.loads((tmp_path / run / "result.json").read_text())["test"]["Loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
def test_two_processes(snnexp, tmp_path):
    run = last_path(snnexp("train", *ON_CUDA, "devices=2", "epochs=1", cwd=tmp_path, fresh=True))
    assert load(tmp_path / run / "checkpoints/checkpoint_latest.pth")["circumstances"]["processes"] == 2
