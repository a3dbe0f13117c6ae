"""Memory layouts and sizes of the multi-step LIF, for the C and the plain torch form."""

import pytest
import torch

from snnexp.models import lif_kernel
from snnexp.models.multi_step_lif import Dynamics, multi_step_lif
from snnexp.models.neurons import LIFNode, make_lif

TET = Dynamics(2.0, False, 1.0, 0.0, False, "PiecewiseQuadratic", 1.0)


@pytest.fixture(params=["c", "torch"], autouse=True)
def implementation(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(lif_kernel, "load", lambda: None)
    elif lif_kernel.load() is None:
        pytest.skip(f"no compiled kernel here: {lif_kernel.reason()}")


def expected(x, g, monkeypatch):
    """Spikes and gradient by SpikingJelly's path, fp32, contiguous."""
    with monkeypatch.context() as patch:
        patch.setattr(LIFNode, "_has_fast_form", lambda self, x: False)
        x = x.detach().float().contiguous().requires_grad_()
        spikes = make_lif("tet")(x)
        spikes.backward(g.float())
    return spikes, x.grad


def channels_last(x):
    return x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "batch_first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "repeated": lambda x: x[:1].expand_as(x),
    "reversed_axes": lambda x: x.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("g_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_input_and_gradient(layout, g_layout, dtype, monkeypatch):
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(4, 3, 5, 7, 3) + 0.4).to(dtype)).detach().requires_grad_()
    g = LAYOUTS[g_layout](torch.randn(4, 3, 5, 7, 3).to(dtype))
    spikes, _, _ = multi_step_lif(x, None, TET)
    (g_x,) = torch.autograd.grad(spikes, x, g)
    want, want_g = expected(x, g, monkeypatch)
    assert spikes.dtype == dtype and torch.equal(spikes.float(), want)
    torch.testing.assert_close(g_x.float(), want_g, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_channels_last_passes_through_without_a_copy():
    x = channels_last(torch.randn(4, 3, 5, 6, 6)).requires_grad_()
    spikes, v_last, _ = multi_step_lif(x, None, TET)
    assert spikes.stride() == x.stride() and v_last.stride() == x[0].stride()
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    (g_x,) = torch.autograd.grad(spikes, x, torch.ones_like(spikes))
    assert g_x.stride() == x.stride()


SIZES = [
    (1, 1), (7, 1), (3, 1025), (2, 2048), (5, 1, 1, 1), (40, 3, 1023), (3, 4, 1, 6, 6), (16, 255), (17, 256), (2, 257), (1, 700),
]  # fmt: skip
"""Beside the edges of the blocks that the C form works in."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SIZES)
def test_odd_sizes(shape, dtype, monkeypatch):
    x = torch.randn(shape).to(dtype).requires_grad_()
    g = torch.randn(shape).to(dtype)
    spikes, v_last, _ = multi_step_lif(x, None, TET)
    (g_x,) = torch.autograd.grad(spikes, x, g)
    want, want_g = expected(x, g, monkeypatch)
    assert v_last.shape == shape[1:] and torch.equal(spikes.float(), want)
    torch.testing.assert_close(g_x.float(), want_g, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_gradient_of_the_membrane_at_both_ends():
    x, v = torch.rand(3, 8, requires_grad=True), torch.rand(8, requires_grad=True)
    spikes, v_last, _ = multi_step_lif(x, v, TET)
    g_x, g_v = torch.autograd.grad(v_last, (x, v), torch.ones(8), retain_graph=True)
    assert torch.equal(g_v, g_x[0] * 0.5)  # u1 = v / 2 + x1
    assert torch.autograd.grad(spikes.sum(), v)[0].abs().sum() > 0


def test_without_grad_nothing_is_kept():
    x = torch.rand(3, 8)
    assert multi_step_lif(x, None, TET)[0].grad_fn is None
    with torch.no_grad():
        assert multi_step_lif(x.requires_grad_(), None, TET)[0].grad_fn is None


def test_the_input_is_left_as_it_was():
    x = torch.randn(3, 8)
    before = x.clone()
    multi_step_lif(x.requires_grad_(), None, TET)[0].sum().backward()
    assert torch.equal(x, before)


def test_infinite_and_not_a_number_do_what_spikingjelly_does(monkeypatch):
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.4]] * 3)
    spikes, _, _ = multi_step_lif(x, None, TET)
    assert torch.equal(spikes, expected(x, torch.ones(3, 4), monkeypatch)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_spikes_of_each_step_are_counted_in_any_layout(layout, dtype):
    x = LAYOUTS[layout]((torch.randn(4, 3, 5, 7, 3) + 0.4).to(dtype))
    spikes, v_last, counts = multi_step_lif(x, None, TET, count=True)
    assert torch.equal(counts, spikes.count_nonzero((1, 2, 3, 4))) and counts.sum() > 0
    plain, v, uncounted = multi_step_lif(x, None, TET)
    assert torch.equal(plain, spikes) and torch.equal(v, v_last) and uncounted is None, "to count changes nothing"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_counts_are_exact_for_any_size_and_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for T, shape in enumerate(
            [(1,), (7,), (1023,), (1024,), (1025,), (3, 1025), (2, 2048), (5, 1, 1, 1), (9, 4, 31, 17), (40_001,)], 1
        ):
            x = (torch.randn(T, *shape) * 2).requires_grad_(T % 2 == 0)
            spikes, _, counts = multi_step_lif(x, None, TET, count=True)
            assert counts.tolist() == [int(step.count_nonzero()) for step in spikes], (T, shape)
    finally:
        torch.set_num_threads(before)
