"""Spikes that a neuron counts itself: the same numbers on every path."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.models.neurons import LIFNode, make_lif, spikes_per_step

pytestmark = pytest.mark.usefixtures("implementation")


def counting(preset: str = "tet") -> LIFNode:
    lif = make_lif(preset)
    lif.count_spikes = True
    return lif


def test_counts_of_a_trace_by_hand():
    lif = counting("spikingjelly")
    assert lif.spike_counts is None and lif.neurons == 0
    lif(torch.tensor([1.5, 0.0, 1.5]).expand(4, 2, 3))  # 1.5 fires at every second step
    assert lif.spike_counts.tolist() == [0, 4, 0, 4] and lif.spike_counts.dtype == torch.int64 and lif.neurons == 6
    lif(torch.full((4, 2, 3), 3.0))  # adds up until the reset
    assert lif.spike_counts.tolist() == [6, 10, 6, 10] and lif.neurons == 12
    lif.reset()
    assert lif.spike_counts is None and lif.neurons == 0
    lif.count_spikes = False
    lif(torch.ones(4, 2, 3))
    assert lif.spike_counts is None and lif.neurons == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("train", [True, False])
def test_counts_are_those_of_the_spikes_on_every_path(dtype, train):
    lif = counting().train(train)
    for shape in ((3, 2, 5, 7, 3), (3, 0, 4), (1, 1, 1)):
        x = torch.randn(shape).to(dtype).requires_grad_(train)
        spikes = lif(x)
        assert torch.equal(lif.spike_counts, spikes.count_nonzero(tuple(range(1, x.ndim)))) and lif.neurons == x[0].numel()
        assert not lif.spike_counts.requires_grad
        functional.reset_net(lif)


def test_a_count_beyond_what_fp32_can_say():
    assert spikes_per_step(torch.ones(1).expand(2, 3, 5_700_001)).tolist() == [17_100_003] * 2
    assert spikes_per_step(torch.ones(1, dtype=torch.bfloat16).expand(1, 17_000_001, 1)).tolist() == [17_000_001]


def test_counts_are_no_part_of_the_state_and_are_copied():
    net = nn.Sequential(nn.Linear(4, 4), counting())
    with torch.no_grad():
        net(torch.rand(2, 3, 4))
    assert set(net.state_dict()) == {"0.weight", "0.bias"}
    net.load_state_dict(nn.Sequential(nn.Linear(4, 4), make_lif()).state_dict())
    functional.reset_net(net)
    twin = copy.deepcopy(net)
    twin(torch.full((2, 3, 4), 9.0))
    assert twin[1].count_spikes and twin[1].neurons == 12 and net[1].spike_counts is None


def test_counts_under_dynamo_in_few_graphs(implementation):
    if implementation == "torch":
        pytest.skip("under torch.compile there is one implementation")
    net = nn.Sequential(nn.Linear(5, 7), counting(), nn.Linear(7, 9), counting("spikingjelly"))
    fast = torch.compile(net, backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for step, n in enumerate([6, 6, 4, 9, 9, 11, 3, 2, 8]):
        train = step % 3 != 2
        with torch.set_grad_enabled(train):
            spikes = fast.train(train)(torch.randn(3, n, 5) * 3)
        assert torch.equal(net[3].spike_counts, spikes.count_nonzero((1, 2))) and net[3].spike_counts.dtype == torch.int64
        assert (net[1].neurons, net[3].neurons) == (7 * n, 9 * n) and type(net[3].neurons) is int
        functional.reset_net(net)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # training and not, one size and any
