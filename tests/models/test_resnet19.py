"""ResNet-19: parameters, shapes of events and still images, the caller's tensor."""

import pytest
import torch
from spikingjelly.activation_based import functional

from snnexp.errors import UserError
from snnexp.models.neurons import LIFNode
from snnexp.models.resnet19 import ResNet19


def small(**changes):
    return ResNet19(**{"in_channels": 3, "num_classes": 10, "size": 8, "T": 2, "width": 0.125} | changes)


@pytest.mark.parametrize("classes, count", [(10, 12_630_858), (100, 12_653_988)])
def test_parameter_count(classes, count):
    model = ResNet19(in_channels=3, num_classes=classes, size=32, T=2)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 17
    assert sum(isinstance(m, LIFNode) for m in model.modules()) == 18


def test_events_of_two_channels_and_any_size():
    model = small(in_channels=2, size=13)
    out = model(torch.rand(4, 2, 2, 13, 13))
    out.sum().backward()
    assert out.shape == (4, 2, 10)
    assert all(p.grad is not None for p in model.parameters())


def test_still_image_is_repeated_and_left_alone():
    model = small().eval()
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    out = model(x)
    functional.reset_net(model)
    assert out.shape == (2, 2, 10) and torch.equal(x, before)
    assert torch.equal(out, model(before.repeat(2, 1, 1, 1, 1)))


def test_strides():
    model = small(size=32)
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1]))
    model(torch.rand(1, 2, 3, 32, 32))
    assert sizes == [32, 32, 32, 16, 16, 16, 8, 8]


def test_first_weights_of_the_convolutions():
    for kind, variance in (("kaiming", lambda fan_in, fan_out: 2 / fan_out), ("torch", lambda fan_in, fan_out: 1 / (3 * fan_in))):
        model = small(width=0.5, conv_init=kind)
        for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 10_000):
            area = conv.kernel_size[0] ** 2
            expected = variance(conv.in_channels * area, conv.out_channels * area) ** 0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(model.stem[0].weight).max() <= 1 / 27**0.5  # uniform


@pytest.mark.parametrize(
    "changes, message",
    [({"size": 3}, "model.size: 3"), ({"width": -1}, "model.width: -1"), ({"conv_init": "he"}, "model.conv_init: 'he' is not known")],
)
def test_errors(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_input_of_another_channel_count():
    with pytest.raises(UserError, match="model.in_channels"):
        small()(torch.rand(2, 2, 2, 8, 8))
