"""Which parameters decay, by name and by value, and which words choose them."""

import importlib

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from conftest import composed
from snnexp.engine import experiment
from snnexp.engine.decay import parameter_groups
from snnexp.errors import UserError
from snnexp.models.spikformer import Spikformer


class Everything(nn.Module):
    """One of each kind of parameter, and one that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.linear, self.tied = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.tied.weight = self.linear.weight
        self.scale, self.points = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(1, 4, 3))
        self.plif, self.glif = neuron.ParametricLIFNode(init_tau=2.0), neuron.GatedLIFNode(T=4)
        self.psn, self.sliding, self.masked = neuron.PSN(T=4), neuron.SlidingPSN(k=2), neuron.MaskedPSN(k=2, T=4)
        self.hidden = layer.SeqToANNContainer(nn.Linear(3, 3), nn.LayerNorm(3))


def split(model: nn.Module) -> tuple[set[str], set[str]]:
    """The names of what decays, and of what does not."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, "weights")
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    every = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(every) == sorted(names.values())  # each once
    return tuple({names[id(p)] for p in group["params"]} for group in groups)


def test_weights_decay_and_neither_biases_nor_norms_nor_what_a_neuron_learns():
    decaying, others = split(Everything())
    assert decaying == {"conv.weight", "linear.weight", "points", "hidden.0.weight"}
    assert {"plif.w", "glif.conduct", "psn.weight", "psn.bias", "sliding.weight", "masked.weight", "scale", "norm.weight"} < others


def test_all_is_one_group_in_the_models_order():
    model = Everything()
    optimizer = torch.optim.AdamW(parameter_groups(model, "all"))
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in model.parameters()]
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("pools", [2, 4])
def test_of_spikformer_it_is_what_timm_takes_out(pools):
    from timm.optim import param_groups_weight_decay

    model = Spikformer(in_channels=2, num_classes=10, size=32, T=2, depth=2, dim=64, heads=4, pools=pools, qkv_bias=pools == 2)
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in param_groups_weight_decay(model, weight_decay=0.06)
    }
    assert split(model) == (theirs[0.06], theirs[0.0])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adamw8bit"])
@pytest.mark.parametrize("decay", ["all", "weights"])
def test_a_step_without_gradient_shrinks_what_decays(name, decay):
    model = nn.Sequential(nn.Linear(128, 64), nn.LayerNorm(64))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
    words = [f"optimizer={name}", f"optimizer.decay={decay}", "optimizer.weight_decay=0.5", "lr=0.1"]
    optimizer = experiment.make_optimizer(composed(*words), model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {key: float(p.detach().flatten()[0]) for key, p in model.named_parameters()}
    assert moved["0.weight"] < 1.95
    assert {value == 2.0 for key, value in moved.items() if key != "0.weight"} == {decay == "weights"}
    if "adamw" in name:
        assert moved["0.weight"] == pytest.approx(2 * (1 - 0.1 * 0.5), abs=1e-6)


def test_a_group_without_parameters_takes_no_part():
    model = nn.LayerNorm(4)
    for name in ("adamw", "adamw8bit", "sgd"):
        optimizer = experiment.make_optimizer(composed(f"optimizer={name}", "optimizer.decay=weights"), model)
        model.weight.grad = torch.ones(4)
        optimizer.step()


@pytest.mark.parametrize("value", ["foo", "weight", "null", "true", "0.1", "[all]"])
def test_another_word_is_refused(value):
    with pytest.raises(UserError, match=r"optimizer.decay=.*: not one of all, weights\."):
        composed(f"optimizer.decay={value}")


def test_a_node_without_it_decays_all():
    settings = composed("~optimizer.decay")
    assert len(experiment.make_optimizer(settings, nn.Linear(2, 2)).param_groups) == 1


OWN = """
import torch
class Plain(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
class Open(torch.optim.SGD):
    def __init__(self, params, **given):
        super().__init__(params, **given)
class Fading(torch.optim.SGD):
    def __init__(self, params, lr=0.1, decay=0.9):
        super().__init__(params, lr=lr)
        self.decay = decay
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module of optimizers."""
    (tmp_path / "own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def with_own(name: str, *words: str) -> dict:
    return composed("~optimizer", f"+optimizer._target_=own_optimizers.{name}", "+optimizer.lr=0.1", *words)


def test_a_users_own_optimizer(own):
    model = nn.Linear(2, 2)
    assert len(experiment.make_optimizer(with_own("Plain"), model).param_groups) == 1
    for name in ("Plain", "Open"):
        assert len(experiment.make_optimizer(with_own(name, "+optimizer.decay=all"), model).param_groups) == 1
    groups = experiment.make_optimizer(with_own("Open", "+optimizer.decay=weights", "+optimizer.weight_decay=0.1"), model).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (1, 0.0)]
    with pytest.raises(UserError, match="optimizer.decay=weights: own_optimizers.Plain has no weight_decay; leave optimizer.decay=all"):
        experiment.make_optimizer(with_own("Plain", "+optimizer.decay=weights"), model)
    with pytest.raises(UserError, match="optimizer.decay=foo: not one of all, weights"):
        with_own("Open", "+optimizer.decay=foo")


def test_an_argument_of_that_name_is_the_users_own(own):
    made = experiment.make_optimizer(with_own("Fading", "+optimizer.decay=0.5"), nn.Linear(2, 2))
    assert made.decay == 0.5 and len(made.param_groups) == 1
    assert experiment.make_optimizer(with_own("Fading"), nn.Linear(2, 2)).decay == 0.9
