"""Bytes by hand: what is held, what autograd saves, what the formula says."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnexp.profile import memory


def net() -> nn.Sequential:
    """Linear 3 -> 4 and ReLU: 16 weights."""
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU())


def test_a_storage_counts_once_however_many_views_it_has():
    x = torch.zeros(10, 10)
    assert memory.storage_bytes([x, x[2:], x.t(), x.view(-1)]) == 400
    assert memory.storage_bytes([x[0]]) == 400  # a view keeps all of it
    assert memory.storage_bytes([x, torch.zeros(5, dtype=torch.uint8), None, 3]) == 405
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 7, dtype=torch.int64), torch.ones(7), (3, 3))
    assert memory.storage_bytes([sparse]) == 2 * 7 * 8 + 7 * 4
    rows = torch.sparse_csr_tensor(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 2]), torch.ones(3), (3, 3))
    assert memory.storage_bytes([rows]) == 4 * 8 + 3 * 8 + 3 * 4


def test_activations_of_linear_and_relu_are_its_input_and_the_outcome_of_the_relu():
    model, x = net(), torch.randn(5, 3)
    assert memory.activation_bytes(model, lambda: model(x).sum().backward()) == 4 * (5 * 3 + 5 * 4)
    with torch.no_grad():
        assert memory.activation_bytes(model, lambda: model(x)) == 0


def test_saved_twice_is_held_once_and_what_is_freed_is_no_more_held():
    x = torch.randn(100, requires_grad=True)
    with memory.SavedForBackward() as saved:
        y = (x * x) * x  # x three times, x * x once
        assert saved.now == saved.peak == 800
        y.sum().backward()
        assert saved.now == 0
        for _ in range(3):
            (x * x).sum().backward()
    assert saved.peak == 800 and saved.now == 0
    assert torch.allclose(x.grad, 3 * x**2 + 6 * x)  # looking changes no gradient


def test_views_of_parameters_are_no_activations():
    model, x = nn.Linear(6, 6, bias=False), torch.randn(2, 6)
    with memory.SavedForBackward(model.parameters()) as saved:
        torch.relu(x @ model.weight.t()[:, :3]).sum().backward()
    assert saved.peak == 4 * (2 * 6 + 2 * 3)


def test_of_a_checkpointed_part_only_the_inputs_are_held():
    parts, x = [net(), nn.Linear(4, 4)], torch.randn(5, 3, requires_grad=True)
    model = nn.ModuleList(parts)

    def work(saving: bool) -> None:
        y = checkpoint(parts[0], x, use_reentrant=False) if saving else parts[0](x)
        parts[1](y).sum().backward()

    plain, saving = memory.activation_bytes(model, lambda: work(False)), memory.activation_bytes(model, lambda: work(True))
    assert plain == 4 * (15 + 20)  # the second layer's input is the first one's outcome
    assert saving in (plain, plain + 4)  # here nothing is saved by it: the input and the outcome stay (and an empty marker)
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.ReLU()) for _ in range(4)))
    z = torch.randn(8, 50, requires_grad=True)
    assert memory.activation_bytes(deep, lambda: deep(z).sum().backward()) == 5 * 4 * 400
    assert memory.activation_bytes(deep, lambda: checkpoint(deep, z, use_reentrant=False).sum().backward()) in (4 * 400, 4 * 400 + 4)


@pytest.mark.parametrize(
    ("optimizer", "expected", "held"),
    [
        (lambda p: torch.optim.Adam(p), 8 * 16, 8 * 16 + 2 * 4),  # a counter for each tensor beside the rule
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 12 * 16, 12 * 16 + 2 * 4),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 4 * 16, 4 * 16),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
    ],
)
def test_the_formula_and_the_optimizer_as_it_is(optimizer, expected, held):
    model = net()
    built = optimizer(model.parameters())
    with memory.collect_gradient_bytes(built) as seen:
        model(torch.randn(5, 3)).sum().backward()
        built.step()
    assert seen == [64]
    rules = memory.bytes_by_formula(model, built)
    assert rules["parameters"] == (64, "4 B x 16") and rules["gradients"][0] == 64 and rules["optimizer"][0] == expected
    assert memory.storage_bytes(memory.tensors_in(built.state)) == held
    model[0].bias.requires_grad_(False)
    assert memory.bytes_by_formula(model, built)["gradients"][0] == 48


def test_eight_bit_moments_are_counted_as_they_are():
    optimizers = pytest.importorskip("snnexp.engine.optimizers")
    model = nn.Linear(64, 130)  # 8,320 weights in 8 bits, 130 biases in 32
    built = optimizers.AdamW8bit(model.parameters())
    model(torch.randn(2, 64)).sum().backward()
    built.step()
    blocks = 33  # of 256
    expected = 2 * 8320 + 2 * 4 * blocks + 8 * 130
    assert memory.bytes_by_formula(model, built)["optimizer"][0] == expected
    assert memory.storage_bytes(memory.tensors_in(built.state)) == expected + 2 * 4 * 256  # and the maps of the two codes


def test_the_rule_of_an_unknown_optimizer_is_left_out():
    class Mine(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1.0})

    assert memory.bytes_by_formula(net(), Mine(net().parameters()))["optimizer"] is None


def test_the_peak_of_the_process_grows_with_what_it_touches():
    before = memory.peak_bytes(torch.device("cpu"))
    block = torch.ones(before + 2**26, dtype=torch.uint8)
    assert memory.peak_bytes(torch.device("cpu")) >= before + 2**26
    del block
