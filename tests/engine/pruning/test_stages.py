"""Pruning inside a run: what survives a cut, when it is cut, what is recorded, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional

from conftest import GRAPHS, assert_same, load
from snnexp import build
from snnexp.engine import checkpoint, loop
from snnexp.engine.measures import speed
from snnexp.engine.pruning import stages as pruning
from snnexp.engine.pruning import start
from snnexp.engine.signals import StopFlag
from snnexp.engine.state import State
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import read_json

GRADUAL = ["pruner=spike_map", "pruner.ratio=0.5", "pruner.calibration_samples=32"]


def one_step(x):
    """One optimizer step, so that there are moments."""
    batch = x.data.prepare(next(iter(x.train_loader)))
    loss, _ = x.task.loss(x.net, batch, 0)
    loss.backward()
    functional.reset_net(x.model)
    loop.update(x)
    if x.ema is not None:
        x.ema.update()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_moments_and_averages_of_the_survivors_are_kept(make, optimizer):
    x = make(*GRADUAL, "ema=0.9", f"optimizer={optimizer}")
    one_step(x)
    names = [name for name, _ in x.model.named_parameters()]
    weights, average = copy.deepcopy(x.model.state_dict()), copy.deepcopy(x.ema.weights)
    moments = copy.deepcopy(x.optimizer.state_dict()["state"])
    removed = {"features.0.lif": [0, 3], "features.9.lif": [1]}  # 8 channels of 3x3 weights; the last feeds the linear layer
    before = x.parameters
    start.refit(x, x.pruner.cut(removed))

    rows, last = [1, 2, 4, 5, 6, 7], x.model.get_submodule("features.9.conv.0")
    assert (
        x.kept["features.0.lif"] == rows
        and len(x.kept["features.9.lif"]) == last.out_channels == len(weights["features.9.conv.0.bias"]) - 1
    )
    assert x.parameters < before
    after = x.model.state_dict()
    assert torch.equal(after["features.0.conv.0.weight"], weights["features.0.conv.0.weight"][rows])
    assert torch.equal(after["features.1.conv.0.weight"], weights["features.1.conv.0.weight"][:, rows])
    assert torch.equal(after["features.0.conv.1.running_mean"], weights["features.0.conv.1.running_mean"][rows])
    assert torch.equal(x.ema.weights["features.0.conv.1.weight"], average["features.0.conv.1.weight"][rows])
    assert x.ema.entries.keys() == after.keys() and all(x.ema.weights[name].shape == after[name].shape for name in after)
    state = x.optimizer.state_dict()["state"]
    key = "exp_avg" if optimizer == "adam" else "momentum_buffer"
    assert torch.equal(state[names.index("features.0.conv.0.bias")][key], moments[names.index("features.0.conv.0.bias")][key][rows])
    assert torch.equal(state[names.index("features.1.conv.0.weight")][key], moments[names.index("features.1.conv.0.weight")][key][:, rows])
    one_step(x)  # and all of it goes on together
    assert [id(p) for group in x.optimizer.param_groups for p in group["params"]] == [id(p) for p in x.model.parameters()]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_what_decays_and_what_does_not_keep_their_moments_apart(make, optimizer):
    x = make(*GRADUAL, "ema=0.9", f"optimizer={optimizer}", "optimizer.decay=weights", "optimizer.weight_decay=0.1", "model.width=0.25")
    one_step(x)
    names = {id(p): name for name, p in x.model.named_parameters()}
    before = {names[id(p)]: copy.deepcopy(x.optimizer.state[p]) for p in held_by(x)}
    cut = x.pruner.cut({"features.0.lif": [0, 3], "features.9.lif": [1]})
    start.refit(x, cut)

    key = "exp_avg" if optimizer == "adamw" else "state1"
    rows = [row for row in range(16) if row not in (0, 3)]
    for name, p in x.model.named_parameters():
        moment, earlier = x.optimizer.state[p][key], before[name][key]
        assert moment.shape == p.shape, name
        if moment.dtype != torch.uint8:  # in 8 bits the blocks are cut anew
            assert torch.equal(moment, cut.of(name, earlier)), name
    bias = x.model.get_parameter("features.0.conv.0.bias")
    assert torch.equal(x.optimizer.state[bias][key], before["features.0.conv.0.bias"][key][rows])
    assert [group["weight_decay"] for group in x.optimizer.param_groups] == [0.1, 0.0]
    assert [{p.dim() > 1 for p in group["params"]} for group in x.optimizer.param_groups] == [{True}, {False}]
    assert {id(p) for p in held_by(x)} == {id(p) for p in x.model.parameters()}

    loop.set_rate(x, State(epoch=1))
    assert len({group["lr"] for group in x.optimizer.param_groups}) == 1 and 0 < x.optimizer.param_groups[1]["lr"] < 1e-3
    one_step(x)  # and all of it goes on together


def held_by(x) -> list:
    """The parameters that the optimizer holds, group by group."""
    return [p for group in x.optimizer.param_groups for p in group["params"]]


def test_a_run_prunes_along_its_schedule(make):
    x = make(*GRADUAL, "epochs=10", "val_every=10", "ema=0.9", "limit_val=16")
    sizes = {group.name: group.size for group in x.pruner.groups}
    ratios = []
    original = pruning.cut_channels

    def watched(x, state, stop, ratio):
        ratios.append((state.epoch, round(ratio, 6)))
        return original(x, state, stop, ratio)

    pruning.cut_channels, keep = watched, original
    try:
        with StopFlag() as stop:
            loop.train(x, stop)
    finally:
        pruning.cut_channels = keep
    assert ratios == [(3, 0.1), (4, 0.2), (5, 0.3), (6, 0.4), (7, 0.5)]
    assert {name: len(units) for name, units in x.kept.items()} == {name: size - size // 2 for name, size in sizes.items()}
    record = read_json(x.run.pruning)
    assert [step["epoch"] for step in record["steps"]] == [3, 4, 5, 6, 7]
    assert record["source"] is None and record["criterion"] == "spike_map" and record["calibration"] == {"split": "train", "samples": 32}
    for earlier, later in zip(record["steps"], record["steps"][1:], strict=False):
        assert earlier["parameters"] > later["parameters"]
        for name, layer in later["layers"].items():
            assert layer["units"] == earlier["layers"][name]["kept"] and len(layer["scores"]) == len(layer["units"])
            assert set(layer["kept"]) < set(layer["units"]) or layer["kept"] == layer["units"]
    first = record["steps"][0]["layers"]["features.0.lif"]
    removed = [score for unit, score in zip(first["units"], first["scores"], strict=True) if unit not in first["kept"]]
    kept = [score for unit, score in zip(first["units"], first["scores"], strict=True) if unit in first["kept"]]
    assert max(removed, default=0) <= min(kept)
    stages = record["stages"]
    assert stages["final"]["parameters"] == x.parameters == record["steps"][-1]["parameters"]
    assert stages["dense"]["macs"] > stages["final"]["macs"] > 0 and stages["dense"]["step_ms"] > 0 and record["speedup"]["pairs"] >= 3
    result = read_json(x.run.result)
    assert result["pruning"]["dense"]["parameters"] == stages["dense"]["parameters"] and result["parameters"] == x.parameters
    assert result["best"]["epoch"] > 7  # of the epochs at the final ratio
    saved = load(x.run.checkpoint("final"))
    assert saved["pruned"] == {"kept": x.kept, "ratio": 0.5}
    maps = np.load(x.run.root / "spike_maps.npz")
    assert maps["features.0.lif"].shape == (8, 16, 16) and maps["T"] == 2 and maps["features.0.lif"].max() <= 2


def test_early_stop_waits_for_the_last_cut(make):
    x = make(*GRADUAL, "early_stop=1")
    assert not loop.is_trained(x, State(stale=5))
    x.ratio = 0.5
    assert loop.is_trained(x, State(stale=5))


def test_a_graph_network_is_pruned_and_goes_on(make):
    x = make(*GRADUAL, base=GRAPHS)
    with StopFlag() as stop:
        loop.train(x, stop)
    assert {name: len(units) for name, units in x.kept.items()} == {"gnn_model.lif1": 8, "gnn_model.lif2": 8, "output_mlp.0": 8}
    assert x.model.output_mlp[1].in_features == 24


def test_a_checkpoint_rebuilds_its_structure(make):
    x = make(*GRADUAL, "epochs=2")
    with StopFlag() as stop:
        loop.train(x, stop)
    again = make(*GRADUAL, "epochs=3")  # the same directory
    assert again.kept == x.kept and again.ratio == 0.5 and again.pruner.sizes["features.0.lif"] == 8
    with StopFlag() as stop:
        loop.train(again, stop)
    assert again.parameters == x.parameters
    record = read_json(x.run.pruning)
    assert record["stages"]["final"]["step_ms"] > 0 and len(record["steps"]) == 1


def test_the_record_is_that_of_the_network_that_there_is(make):
    x = make(*GRADUAL, "epochs=6", "save_freq=1")
    with StopFlag() as stop:
        loop.train(x, stop)
    cuts = [step["epoch"] for step in read_json(x.run.pruning)["steps"]]
    assert cuts == [2, 3, 4, 5][: len(cuts)] and len(cuts) > 2
    one_cut = load(x.run.checkpoint("epoch3"))["pruned"]["kept"]
    checkpoint.link(x.run.checkpoint("epoch3"), x.run.checkpoint("latest"))  # as resume goes back to it
    again = make(*GRADUAL, "epochs=3")
    with StopFlag() as stop:
        loop.train(again, stop)
    record, result = read_json(x.run.pruning), read_json(x.run.result)
    assert again.kept == one_cut and len(record["steps"]) == 1
    assert (
        record["steps"][0]["parameters"] == record["stages"]["final"]["parameters"] == record["speedup"]["parameters"] == again.parameters
    )
    assert result["pruning"]["final"]["parameters"] == again.parameters

    other = make(*GRADUAL, "epochs=5", "pruner.ratio=0.6", "pruner.ranking=global")
    with StopFlag() as stop:
        loop.train(other, stop)
    record = read_json(x.run.pruning)
    assert (record["ratio"], record["ranking"]) == (0.6, "global") and record["steps"][-1]["ratio"] == 0.6


def test_synchronised_norms_are_timed_alone(make):
    x = make()
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(x.model))
    functional.invalidate_reset_cache(model)
    plain = speed.isolate(model)
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in plain.modules())
    batch = x.data.prepare(next(iter(x.train_loader)))
    pruned_output, plain_output = (x.task.loss(net, batch, 0)[1] for net in (x.model, plain))
    assert torch.equal(pruned_output, plain_output)


def test_groups_that_leave_a_reader_out_are_found(make, monkeypatch):
    x = make(*GRADUAL)
    groups = type(x.model).channel_groups

    def wrong(self):
        """As if the norm of the first layer did not belong to its channels."""
        first, *rest = groups(self)
        makers = tuple(place for place in first.makers if ".conv.1." not in place.name)
        return [type(first)(first.name, first.size, first.carriers, makers, first.readers), *rest]

    monkeypatch.setattr(type(x.model), "channel_groups", wrong)
    with StopFlag() as stop, pytest.raises(RunFailed, match="channel_groups"):
        pruning.cut_channels(x, State(), stop, 0.5)


def test_a_channel_with_another_way_to_speak_is_found(make, monkeypatch):
    x = make(*GRADUAL)
    groups = type(x.model).channel_groups

    def wrong(self):
        """As if nothing carried the channels of the last layers, so that silencing them changes nothing."""
        return [
            type(group)(group.name, group.size, group.carriers if i < 4 else (), group.makers, group.readers)
            for i, group in enumerate(groups(self))
        ]

    dense = copy.deepcopy(x.model)
    kept = {group.name: [0] for group in x.pruner.groups[4:]}
    monkeypatch.setattr(type(x.model), "channel_groups", wrong)
    with torch.no_grad():
        for model in (x.model, dense):
            model.features[9].conv[1].bias.fill_(2.0)  # every neuron of the last layer fires
            model.classifier[1].weight.normal_()
    cut = pruning.Cut(x.model, kept)
    cut.apply(x.model)
    batch = x.data.prepare(next(iter(x.train_loader)))
    with pytest.raises(RunFailed, match="another way than its carriers"):
        pruning.check_surgery(x, dense, cut, batch)


def test_neurons_that_never_fire_are_refused(make):
    x = make(*GRADUAL)
    with torch.no_grad():
        for name, p in x.model.named_parameters():
            if name.endswith("conv.1.bias"):
                p.fill_(-5.0)
    with StopFlag() as stop, pytest.raises(UserError, match="0 everywhere"):
        pruning.cut_channels(x, State(), stop, 0.5)
    assert x.kept == {}


def test_a_criterion_of_weights_needs_no_spikes(make):
    x = make("model.spiking=false", "pruner=weight_magnitude", "pruner.ratio=0.5", base=GRAPHS)
    with StopFlag() as stop:
        loop.train(x, stop)
    assert len(x.kept["gnn_model.lif1"]) == 8
    y = make("model.spiking=false", "pruner=spike_map", name="other", base=GRAPHS)
    with StopFlag() as stop, pytest.raises(UserError, match="no spiking neuron.*weight_magnitude"):
        pruning.cut_channels(y, State(), stop, 0.5)


def test_timing_changes_neither_the_run_nor_its_random_numbers(make):
    x = make(*GRADUAL)
    before, state = copy.deepcopy(x.model.state_dict()), torch.get_rng_state()
    measured = speed.compare_speed(x, copy.deepcopy(x.model), copy.deepcopy(x.model))
    assert measured["pairs"] >= 3 and measured["batch_size"] == 16
    assert 0.2 < measured["forward"] < 5 and measured["step_ms"]["dense"] > measured["forward_ms"]["dense"] > 0  # the same network twice
    assert_same(dict(x.model.state_dict()), dict(before))
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_is_the_same_every_time_and_not_augmented(make):
    x = make(*GRADUAL)
    with StopFlag() as stop:
        batches, again = pruning.calibration_batches(x, stop), pruning.calibration_batches(x, stop)
    assert sum(len(batch[1]) for batch in batches) == 32
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    plain = x.data.view("train", augment=False)
    first = x.data.prepare(plain.__getitems__([(0, int(i)) for i in build.pool(len(plain), 32)[:16]]))
    assert torch.equal(batches[0][0], first[0])
