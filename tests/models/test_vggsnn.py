"""VGGSNN: parameters, shapes, names, still images, and its step against SpikingJelly's nodes."""

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.errors import UserError
from snnexp.models.neurons import LIFNode
from snnexp.models.vggsnn import VGGSNN


def small(**changes):
    return VGGSNN(**{"in_channels": 2, "num_classes": 10, "size": 16, "T": 3, "width": 0.125} | changes)


@pytest.mark.parametrize("pool", ["avg", "stride"])
def test_parameter_count(pool):
    model = VGGSNN(in_channels=2, num_classes=10, size=48, T=10, pool=pool)
    assert sum(p.numel() for p in model.parameters()) == 9_271_498


@pytest.mark.parametrize("pool", ["avg", "stride"])
@pytest.mark.parametrize("size", [16, 17, 24, 34])
def test_any_size_and_channel_count(size, pool):
    model = small(size=size, in_channels=5, num_classes=7, pool=pool)
    assert model(torch.rand(4, 2, 5, size, size)).shape == (4, 2, 7)


def test_kaiming_fan_out():
    conv = VGGSNN(in_channels=2, num_classes=10, size=16, T=1).features[1].conv[0]
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_names_of_the_layers():
    names = dict(small().named_modules())
    assert isinstance(names["features.0.lif"], LIFNode) and isinstance(names["features.1.conv.0"], nn.Conv2d)
    assert isinstance(names["features.2.0"], nn.AvgPool2d) and isinstance(names["classifier.1"], nn.Linear)
    assert sum(isinstance(m, LIFNode) for m in names.values()) == 8


def test_still_image_is_repeated_and_left_alone():
    model = small(in_channels=3).eval()
    x = torch.rand(2, 3, 16, 16)
    before = x.clone()
    out = model(x)
    functional.reset_net(model)
    assert out.shape == (3, 2, 10) and torch.equal(x, before)
    assert torch.equal(out, model(before.unsqueeze(0).repeat(3, 1, 1, 1, 1)))


def test_neuron_and_overrides_reach_every_lif():
    lifs = [m for m in small(neuron="spikingjelly", lif={"tau": 3, "alpha": "preset"}).modules() if isinstance(m, LIFNode)]
    assert {(m.tau, m.decay_input, m.surrogate_function.alpha) for m in lifs} == {(3.0, True, 4.0)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 15}, ["model.size", "15", "dataset.size of 16"]),
        ({"pool": "max"}, ["model.pool", "'max'", "avg, stride"]),
        ({"width": 0}, ["model.width", "0"]),
        ({"neuron": "lif"}, ["model.neuron", "'lif'"]),
        ({"lif": {"tua": 2}}, ["'tua'", "'tau'"]),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as error:
        small(**changes)
    assert all(part in str(error.value) for part in message)


@pytest.mark.parametrize("shape", [(3, 2, 2, 24, 24), (3, 2, 3, 16, 16), (2, 16, 16)])
def test_input_of_another_shape(shape):
    with pytest.raises(UserError, match=r"\[T, N, 2, 16, 16\]"):
        small()(torch.rand(shape))


def test_training_step_equals_the_one_with_spikingjellys_nodes(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sums of a convolution depend on it, and a deep SNN amplifies the last bit
    try:
        torch.manual_seed(0)
        model = small()
        x = torch.randint(0, 4, (3, 2, 2, 16, 16)).float()
        results = []
        for fast in (True, False):
            with monkeypatch.context() as patch:
                if not fast:
                    patch.setattr(LIFNode, "_has_fast_form", lambda self, x: False)
                out = model(x)
                out.square().mean().backward()
                results.append((out.detach(), [p.grad.clone() for p in model.parameters()]))
                model.zero_grad()
                functional.reset_net(model)
    finally:
        torch.set_num_threads(threads)
    (out, grads), (want, want_grads) = results
    assert out.abs().sum() > 0 and torch.equal(out, want)
    for grad, expected in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


def test_bf16_channels_last_step_keeps_the_layout():
    model = small().to(memory_format=torch.channels_last)
    seen = []
    for module in model.modules():
        if isinstance(module, LIFNode):
            module.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.rand(3, 2, 2, 16, 16))
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for x, spikes in seen:
        assert x.dtype == spikes.dtype == torch.bfloat16
        assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
