"""The moving average of the weights, by its formula."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from snnexp.engine.ema import MovingAverage
from snnexp.models.neurons import make_lif


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), make_lif("tet"))


def test_the_average_follows_its_formula():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    average = MovingAverage(net, decay=0.9)
    for value in (2.0, 3.0):
        nn.init.constant_(net.weight, value)
        average.update()
    # The first updates decay by 1/10 and 2/11: 1 -> 0.1 * 1 + 0.9 * 2 = 1.9 -> (2 * 1.9 + 9 * 3) / 11 = 2.8
    assert average.weights["weight"].item() == pytest.approx(2.8)
    average.updates = 1000
    nn.init.constant_(net.weight, 1.0)
    average.update()
    assert average.weights["weight"].item() == pytest.approx(0.9 * 2.8 + 0.1 * 1)


def test_statistics_are_averaged_and_counters_copied():
    net = model()
    average = MovingAverage(net, decay=0.5)
    net(torch.ones(2, 4, 2, 5, 5))
    functional.reset_net(net)
    before = torch.zeros(3)
    average.update()
    norm = net[0][1]
    torch.testing.assert_close(average.weights["0.1.running_mean"], 0.1 * before + 0.9 * norm.running_mean)
    assert average.weights["0.1.num_batches_tracked"] == norm.num_batches_tracked == 1


def test_it_is_applied_and_taken_back_bit_for_bit():
    net = model()
    average = MovingAverage(net, decay=0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    own = copy.deepcopy(net.state_dict())
    identities = [id(parameter) for parameter in net.parameters()]
    with pytest.raises(ZeroDivisionError), average.swap_into(net):
        assert all(torch.equal(value, average.weights[name]) for name, value in net.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())
    assert [id(parameter) for parameter in net.parameters()] == identities  # the optimizer's references stay good


def test_it_is_made_of_a_model_whose_membranes_stand_in_mid_sequence(monkeypatch):
    net = model()
    net(torch.ones(2, 4, 2, 5, 5))  # a membrane with a graph behind it cannot be deep-copied

    def refuse(*arguments: object) -> None:
        raise AssertionError("the moving average copies weights, never modules")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    average = MovingAverage(net, decay=0.9)
    average.update()
    assert set(average.weights) == set(net.state_dict())
    assert not any(value.requires_grad for value in average.weights.values())
