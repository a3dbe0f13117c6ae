"""Rates of layers, steps and units against the spikes themselves."""

import json

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snnexp.contracts import DataSet
from snnexp.data.sampler import pool
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.measures.activity import Activity, measure_activity
from snnexp.errors import UserError
from snnexp.models.neurons import make_lif

CPU = torch.device("cpu")
FP32 = resolve("fp32", CPU)
T = 3


class Samples(DataSet):
    """`count` samples x [T, N, F] with a class, or no samples in the split "val"."""

    name = "samples"

    def __init__(self, count=20, features=6):
        self.x = torch.rand(T, count, features, generator=torch.Generator().manual_seed(0)) * 2
        self.asked = []

    def view(self, split, augment=False):
        assert not augment
        self.count = 0 if split == "val" else self.x.shape[1]
        return self

    def __len__(self):
        return self.count

    def __getitems__(self, keys):
        indices = [index for _, index in keys]
        self.asked.append(indices)
        return self.x[:, indices], torch.zeros(len(indices), dtype=torch.int64)

    def prepare(self, batch):
        return batch[0] + 0.5, batch[1]


class Task:
    def loss(self, model, batch, step):
        output = model(batch[0])
        return output.mean(), output


def network(features=6, hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(
        layer.SeqToANNContainer(nn.Linear(features, hidden), nn.BatchNorm1d(hidden)),
        make_lif("tet"),
        layer.SeqToANNContainer(nn.Linear(hidden, 2)),
    )


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_rates_equal_those_of_a_plain_forward(batch_size, tmp_path):
    model, data = network().train(), Samples()
    activity = measure_activity(model, Task(), data, split="test", batch_size=batch_size, device=CPU, precision=FP32)

    model.eval()
    with torch.no_grad():
        spikes = model[1](model[0](data.x + 0.5))  # [T, N, hidden]
    functional.reset_net(model)
    expected = spikes.mean(1).numpy()
    assert 0 < expected.mean() < 1
    assert activity.rates.keys() == {"1"} and activity.rates["1"].dtype == np.float32
    np.testing.assert_allclose(activity.rates["1"], expected, rtol=1e-6)

    summary = activity.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["split"], summary["samples"]) == ("test", 20)
    lines = summary["layers"]["1"]
    assert lines["rate"] == pytest.approx(expected.mean()) and lines["rate_per_step"] == pytest.approx(expected.mean(1))
    assert (lines["units"], lines["dead"], lines["saturated"]) == (
        8,
        int((expected.mean(0) == 0).sum()),
        int((expected.mean(0) >= 0.99).sum()),
    )
    assert summary["energy"]["synaptic_operations"] == pytest.approx(float(spikes.sum()) * 2 / 20)
    assert summary["energy"]["macs"] == T * 6 * 8

    activity.write(tmp_path / "test_spikes.npz")
    with np.load(tmp_path / "test_spikes.npz", allow_pickle=False) as file:
        assert np.array_equal(file["1"], activity.rates["1"])


def test_it_leaves_the_model_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    measure_activity(model.train(), Task(), Samples(), split="test", batch_size=8, device=CPU, precision=FP32)
    assert torch.equal(torch.rand(3), expected)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1]._forward_hooks and not isinstance(model[1].v, torch.Tensor)
    assert all(p.grad is None for p in model.parameters())


def test_a_fixed_choice_of_samples():
    data = Samples(count=50)
    activity = measure_activity(network(), Task(), data, split="train", batch_size=16, device=CPU, precision=FP32, limit=20)
    assert activity.samples == 20 and sum(data.asked, []) == pool(50, 20).tolist()


def test_dead_and_saturated_units():
    model = nn.Sequential(make_lif("tet"))
    data = Samples(features=4)
    data.x[..., 0], data.x[..., 1], data.x[..., 3] = -5, 5, 5
    data.x[1, 7, 3] = -5  # fires almost always
    data.x[..., 2] = -5
    data.x[0, 0, 2] = 5  # once
    lines = measure_activity(model, Task(), data, split="test", batch_size=6, device=CPU, precision=FP32).summary()["layers"]["0"]
    assert (lines["units"], lines["dead"], lines["saturated"]) == (4, 1, 1)
    assert lines["rate"] == pytest.approx((0 + 1 + 1 / 60 + 59 / 60) / 4)


@pytest.mark.parametrize(
    ("shape", "units", "axis"),
    [((4, 5), 5, 2), ((4, 3, 6, 6), 3, 2), ((4, 16, 7), 7, 3), ((4,), 1, None)],
)
def test_a_unit_is_a_channel_of_images_tokens_and_flat_layers(shape, units, axis):
    model = make_lif("tet")
    x = torch.rand(T, *shape) * 2

    class Data(Samples):
        def __getitems__(self, keys):
            return x, torch.zeros(4, dtype=torch.int64)

    activity = measure_activity(nn.Sequential(model), Task(), Data(count=4), split="test", batch_size=4, device=CPU, precision=FP32)
    with torch.no_grad():
        spikes = model(x + 0.5)
    expected = spikes.mean(1, keepdim=True) if axis is None else spikes.movedim(axis, 1).flatten(2).mean(2)
    assert activity.rates["0"].shape == (T, units)
    np.testing.assert_allclose(activity.rates["0"], expected.numpy(), rtol=1e-6)


def test_single_step_neurons_count_step_by_step():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = neuron.LIFNode(step_mode="s")

        def forward(self, x):
            return torch.stack([self.lif(step) for step in x])

    data = Samples()
    activity = measure_activity(Loop(), Task(), data, split="test", batch_size=7, device=CPU, precision=FP32)
    with torch.no_grad():
        expected = Loop()(data.x + 0.5).mean(1)
    np.testing.assert_allclose(activity.rates["lif"], expected.numpy(), rtol=1e-6)


def test_a_model_without_spikes_has_energy_only(tmp_path):
    activity = measure_activity(nn.Sequential(nn.Linear(6, 2)), Task(), Samples(), split="test", batch_size=8, device=CPU, precision=FP32)
    assert activity.summary()["layers"] == {} and activity.summary()["energy"]["macs"] == T * 6 * 2
    activity.write(tmp_path / "test_spikes.npz")
    assert not list(tmp_path.iterdir())


def test_the_precision_of_the_run(tmp_path):
    activity = {}
    for name in ("fp32", "bf16"):
        model = network(hidden=64)
        activity[name] = measure_activity(
            model, Task(), Samples(count=200), split="test", batch_size=64, device=CPU, precision=resolve(name, CPU)
        )
    assert not np.array_equal(activity["fp32"].rates["1"], activity["bf16"].rates["1"])
    np.testing.assert_allclose(activity["fp32"].rates["1"], activity["bf16"].rates["1"], atol=0.03)
    for name in ("macs", "dense_macs", "additions"):
        assert activity["fp32"].energy[name] == activity["bf16"].energy[name]


def test_an_empty_split():
    with pytest.raises(UserError, match="split=val: samples has no samples"):
        measure_activity(network(), Task(), Samples(), split="val", batch_size=8, device=CPU, precision=FP32)


def test_a_failure_leaves_no_hook_and_no_state():
    class Broken(Task):
        def loss(self, model, batch, step):
            super().loss(model, batch, step)
            raise ValueError("broken")

    model = network()
    with pytest.raises(ValueError, match="broken"):
        measure_activity(model, Broken(), Samples(), split="test", batch_size=8, device=CPU, precision=FP32)
    assert model.training and not model[1]._forward_hooks and not isinstance(model[1].v, torch.Tensor)


def test_a_summary_of_nothing_measured():
    assert Activity("test", 1, {}, {}).summary() == {"split": "test", "samples": 1, "layers": {}, "energy": {}}


def test_a_real_experiment(make):
    x = make()
    activity = measure_activity(x.model, x.task, x.data, split="test", batch_size=16, device=CPU, precision=x.precision, limit=40)
    assert activity.samples == 40 and len(activity.rates) == 8
    assert all(rates.shape[0] == 2 for rates in activity.rates.values())
    assert activity.energy["dense_macs"] > activity.energy["synaptic_operations"] > 0
