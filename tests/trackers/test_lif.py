"""LIF statistics: the documented files, sums over batches and ranks, and a record that a resume goes on with."""

import resource
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from snnexp.errors import RunFailed, UserError
from snnexp.models.neurons import make_lif
from snnexp.trackers.lif import LIFTracker
from trackers.watched import SEEN, Counted, Twice, by_step, constant, forward, random, read

# The documented files.


def test_latest_forward_of_a_trace_by_hand(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, folder=tmp_path)
    forward(model, random(), tracker)
    forward(model, constant(), tracker)
    (path,) = tracker.finish()
    assert path == tmp_path / "lif_activation_stats.json"
    assert read(path) == {
        "model_type": "Twice",
        "num_timesteps": 4,
        "latest_forward": {f"gnn_model.{layer}": by_step(rates) for layer, rates in SEEN.items()},
    }
    assert list(read(path)["latest_forward"]) == ["gnn_model.lif1", "gnn_model.lif2"]


def test_every_forward_has_exactly_the_documented_keys(tmp_path):
    torch.manual_seed(0)
    model = Twice()
    model.model_type = "GCN"
    tracker = LIFTracker(model=model, every_forward=True, flush_every=2, folder=tmp_path)
    true = [forward(model, random(n=5), tracker) for _ in range(3)]
    (path,) = tracker.finish()
    stats = read(path)
    assert path == tmp_path / "lif_activation_stats.json"
    assert list(stats) == ["model_type", "num_timesteps", "total_forward_count", "all_forward_steps", "summary"]
    assert (stats["model_type"], stats["num_timesteps"], stats["total_forward_count"]) == ("GCN", 4, 3)
    assert list(stats["all_forward_steps"]) == ["gnn_model.lif1", "gnn_model.lif2"] and list(stats["summary"]) == ["timestep_averages"]
    for layer, forwards in stats["all_forward_steps"].items():
        assert forwards == [{"forward_idx": i, "timesteps": by_step(rates[layer])} for i, rates in enumerate(true)]
        mean = [sum(rates[layer][t] for rates in true) / 3 for t in range(4)]
        assert stats["summary"]["timestep_averages"][layer] == pytest.approx(by_step(mean), abs=1e-6)


def test_a_smaller_last_batch_weighs_by_its_size(tmp_path):
    model = Twice()
    trackers = [LIFTracker(model=model, every_forward=every, folder=tmp_path) for every in (False, True)]
    for n, value in ((8, 3.0), (8, 3.0), (2, 0.0)):  # 3.0 fires at every step
        forward(model, constant(n, value=value), *trackers)
    for tracker in trackers:
        assert tracker.close_epoch(1)["Spikes/gnn_model.lif1"] == [16 / 18] * 4
    (path,) = trackers[1].finish()
    assert read(path)["summary"]["timestep_averages"]["gnn_model.lif1"] == by_step([16 / 18] * 4)
    assert [f["timesteps"]["T0"] for f in read(path)["all_forward_steps"]["gnn_model.lif1"]] == [1, 1, 0]


READING = """
import json

# 读取统计文件
with open('output_dir/lif_activation_stats.json', 'r') as f:
    stats = json.load(f)

# 标准模式
if 'latest_forward' in stats:
    print(f"模型: {stats['model_type']}")
    print(f"时间步数: {stats['num_timesteps']}")
    
    for layer, timesteps in stats['latest_forward'].items():
        print(f"\\n{layer}:")
        for t, ratio in timesteps.items():
            print(f"  {t}: {ratio:.4f} ({ratio*100:.2f}%)")

# 完整模式
if 'all_forward_steps' in stats:
    print(f"总Forward次数: {stats['total_forward_count']}")
    
    # 查看第一层的前5次forward
    layer_name = list(stats['all_forward_steps'].keys())[0]
    forwards = stats['all_forward_steps'][layer_name][:5]
    
    print(f"\\n{layer_name} 前5次forward:")
    for forward_data in forwards:
        idx = forward_data['forward_idx']
        timesteps = forward_data['timesteps']
        print(f"  Forward {idx}: {timesteps}")
    
    # 查看时间步平均值
    print("\\n时间步平均值:")
    for layer, timesteps in stats['summary']['timestep_averages'].items():
        print(f"  {layer}: {timesteps}")
"""  # noqa: W293 - the script is the documented one to the letter, spaces in its empty lines included

PLOTTING = """
import json
import matplotlib.pyplot as plt
import numpy as np

with open('lif_activation_stats.json', 'r') as f:
    stats = json.load(f)

layer_name = 'gnn_model.lif1'
forwards = stats['all_forward_steps'][layer_name]

t0_values = [f['timesteps']['T0'] for f in forwards]
t1_values = [f['timesteps']['T1'] for f in forwards]
t2_values = [f['timesteps']['T2'] for f in forwards]
t3_values = [f['timesteps']['T3'] for f in forwards]

plt.figure(figsize=(12, 6))
plt.plot(t0_values, label='T0', alpha=0.7)
plt.plot(t1_values, label='T1', alpha=0.7)
plt.plot(t2_values, label='T2', alpha=0.7)
plt.plot(t3_values, label='T3', alpha=0.7)
plt.xlabel('Forward Step')
plt.ylabel('Activation Ratio')
plt.title(f'{layer_name} Activation Over Training')
plt.legend()
plt.grid(True, alpha=0.3)
plt.savefig('lif_activation_evolution.png', dpi=300, bbox_inches='tight')
plt.show()
"""


def test_the_documented_scripts_read_and_plot_our_files(tmp_path, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "output_dir"
    for every in (False, True):
        model = Twice()
        tracker = LIFTracker(model=model, every_forward=every, folder=folder)
        folder.mkdir(exist_ok=True)
        for _ in range(6):
            forward(model, constant(), tracker)
        tracker.finish()
        exec(compile(READING, "reading", "exec"), {})
        message = capsys.readouterr().out
        if every:
            assert "Forward 4: {'T0': 0.0, 'T1': 1.0, 'T2': 0.0, 'T3': 1.0}" in message and "Forward次数: 6" in message
        else:
            assert "模型: Twice" in message and "  T1: 1.0000 (100.00%)" in message
    (folder / "lif_activation_stats.json").rename("lif_activation_stats.json")
    exec(compile(PLOTTING, "plotting", "exec"), {})
    assert Path("lif_activation_evolution.png").stat().st_size > 10_000


def test_size_of_a_thousand_forwards_of_five_layers_and_four_steps(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleList(make_lif("spikingjelly") for _ in range(5))
    tracker = LIFTracker(model=model, every_forward=True, folder=tmp_path)
    for _ in range(1000):
        x = torch.rand(4, 7, 31) * 3
        for lif in model:
            lif(x)
        tracker.observe()
        functional.reset_net(model)
    (path,) = tracker.finish()
    assert 400_000 < path.stat().st_size < 520_000  # 20 to 26 bytes a number
    stats = read(path)
    assert stats["total_forward_count"] == 1000 and len(stats["all_forward_steps"]["4"]) == 1000
    assert (tmp_path / "logs" / "lif_full_train.bin").stat().st_size == 1000 * 5 * 5 * 8


# Splits, epochs, both modes.


def test_both_modes_at_once_go_to_two_files_and_say_the_same(tmp_path):
    model = Twice()
    names = ["lif", "lif_full"]
    latest, full = (LIFTracker(model=model, every_forward=every, folder=tmp_path, trackers=names) for every in (False, True))
    true = [forward(model, random(), latest, full) for _ in range(2)]
    rates = latest.close_epoch(1)
    assert rates == full.close_epoch(1) and list(rates) == ["Spikes/gnn_model.lif1", "Spikes/gnn_model.lif2"]
    mean = [sum(each) / 2 for each in zip(*(rates["gnn_model.lif1"] for rates in true), strict=True)]
    assert rates["Spikes/gnn_model.lif1"] == pytest.approx(mean)
    assert latest.finish() == [tmp_path / "lif_activation_stats.json"] and full.finish() == [tmp_path / "lif_activation_stats_full.json"]
    assert "latest_forward" in read(tmp_path / "lif_activation_stats.json")
    assert "all_forward_steps" in read(tmp_path / "lif_activation_stats_full.json")
    name, text = latest.rows()[0]
    assert name == "training rate gnn_model.lif1" and text.startswith(f"{sum(mean) / 4:.3f}  T0 {mean[0]:.3f}  T1 {mean[1]:.3f}")
    assert full.rows() == [], "one table is enough"
    assert len(LIFTracker(model=model, every_forward=True, trackers=["lif_full"]).rows()) == 0
    assert full.close_epoch(2) == {}, "an epoch without a forward"


@pytest.mark.parametrize("every", [False, True])
def test_other_splits_on_request_and_the_epoch_is_of_training(tmp_path, every):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=every, splits=["val", "test"], folder=tmp_path)
    forward(model, constant(), tracker)
    forward(model, constant(value=3.0), tracker, split="val")
    forward(model, constant(value=0.0), tracker, split="test")
    assert tracker.close_epoch(1)["Spikes/gnn_model.lif1"] == SEEN["lif1"]
    assert tracker.finish() == [tmp_path / f"lif_activation_stats_{split}.json" for split in ("val", "test")]
    for split, rate in (("val", 1.0), ("test", 0.0)):
        stats = read(tmp_path / f"lif_activation_stats_{split}.json")
        layer = stats["all_forward_steps"] if every else stats["latest_forward"]
        expected = by_step([rate] * 4)
        assert layer["gnn_model.lif1"] == ([{"forward_idx": 0, "timesteps": expected}] if every else expected)
    assert [p.name for p in sorted((tmp_path / "logs").glob("*"))] == (["lif_full_test.bin", "lif_full_val.bin"] if every else [])


def test_a_split_that_is_not_wanted_leaves_nothing(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, folder=tmp_path)
    forward(model, constant(), tracker)
    forward(model, constant(value=3.0), tracker, split="val")
    assert tracker.finish() == [tmp_path / "lif_activation_stats.json"]
    assert read(tmp_path / "lif_activation_stats.json")["latest_forward"]["gnn_model.lif1"] == by_step(SEEN["lif1"])


def test_files_of_every_second_epoch(tmp_path):
    model = Twice()
    options = {"folder": tmp_path, "save_every": 2, "splits": ["train", "val"], "trackers": ["lif", "lif_full"]}
    trackers = [LIFTracker(model=model, every_forward=every, **options) for every in (False, True)]
    for epoch in range(1, 6):
        forward(model, constant(), *trackers)
        forward(model, constant(), *trackers, split="val")
        for tracker in trackers:
            tracker.close_epoch(epoch)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == sorted(
        f"lif_stats{full}_epoch_{n}{split}.json" for full in ("", "_full") for n in (2, 4) for split in ("", "_val")
    )
    assert read(tmp_path / "lif_stats_full_epoch_2_val.json")["total_forward_count"] == 2
    assert read(tmp_path / "lif_stats_full_epoch_4.json")["total_forward_count"] == 4
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


# Ranks, and what it costs.


@pytest.mark.parametrize("every", [False, True])
def test_counts_cross_once_a_flush_and_are_those_of_all_ranks(tmp_path, every):
    model = Twice()
    reduce = Counted()
    tracker = LIFTracker(model=model, every_forward=every, folder=tmp_path, reduce=reduce, flush_every=10)
    for step in range(1, 36):
        forward(model, constant(), tracker)
        assert reduce.calls == step // 10
    assert tracker.state_dict()["splits"]["train"]["latest"] == [[0, 12, 0, 12, 12], [0, 0, 0, 0, 12]]  # of twice six neurons
    assert reduce.calls == 4
    assert tracker.close_epoch(1)["Spikes/gnn_model.lif1"] == SEEN["lif1"]
    tracker.finish()
    assert reduce.calls == 4, "nothing was waiting"


def test_only_the_main_rank_writes(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True, folder=tmp_path / "run", main=False, save_every=1)
    forward(model, constant(), tracker)
    assert tracker.close_epoch(1)["Spikes/gnn_model.lif1"] == SEEN["lif1"]
    state = tracker.state_dict()
    tracker.load_state_dict(state)
    assert tracker.finish() == [] and not (tmp_path / "run").exists()


def test_a_round_without_a_batch_counts_as_zeros(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True, splits=["val"], folder=tmp_path, reduce=lambda value: value + 1)
    forward(model, constant(), tracker)
    functional.reset_net(model)
    tracker.observe("val")  # this rank has none; another has one spike at each step
    tracker.finish()
    assert read(tmp_path / "lif_activation_stats_val.json")["all_forward_steps"]["gnn_model.lif2"][0]["timesteps"] == by_step([1.0] * 4)


def test_a_layer_that_a_forward_does_not_reach_counts_as_zeros(tmp_path):
    model = nn.ModuleList([make_lif("spikingjelly"), make_lif("spikingjelly")])
    tracker = LIFTracker(model=model, folder=tmp_path)
    model[1](constant())
    tracker.observe()
    tracker.finish()
    assert read(tmp_path / "lif_activation_stats.json")["latest_forward"] == {"0": by_step([0.0] * 4), "1": by_step(SEEN["lif1"])}


def test_a_forward_does_not_read_from_the_device(tmp_path, monkeypatch):
    model = Twice()
    trackers = [LIFTracker(model=model, every_forward=every, folder=tmp_path, reduce=Counted()) for every in (False, True)]

    def refused(*_: object) -> None:
        raise AssertionError("this would wait for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, name, refused)
    for _ in range(99):
        with torch.no_grad():
            model(constant())
        for tracker in trackers:
            tracker.observe()
        functional.reset_net(model)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_constant_over_ten_thousand_forwards(tmp_path):
    model = nn.Sequential(make_lif("spikingjelly"), make_lif("spikingjelly"))
    tracker = LIFTracker(model=model, every_forward=True, folder=tmp_path)
    x = torch.full((2, 1, 1), 1.5)
    resident = []
    with torch.no_grad():
        for step in range(11_000):
            model(x)
            tracker.observe()
            functional.reset_net(model)
            if step in (999, 10_999):
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert resident[1] - resident[0] < 1_000_000
    tracker.finish()
    stats = read(tmp_path / "lif_activation_stats.json")
    assert stats["total_forward_count"] == 11_000 and stats["all_forward_steps"]["0"][-1]["forward_idx"] == 10_999


def test_a_compiled_model_has_the_same_numbers(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, folder=tmp_path)
    fast = torch.compile(model, backend="eager")
    with torch.no_grad():
        fast(constant())
    tracker.observe()
    assert tracker.close_epoch(1) == {f"Spikes/gnn_model.{layer}": rates for layer, rates in SEEN.items()}


# A loop of one's own, and what is refused.


def test_alone_in_a_loop_of_ones_own(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True)
    with pytest.raises(UserError, match="no training forwards"):
        tracker.save_latest_lif_stats_to_json(tmp_path / "early.json")
    with pytest.raises(UserError, match="after a forward pass of the model and before its neurons are reset"):
        tracker.observe()
    for _ in range(2):
        with torch.no_grad():
            model(constant())
        tracker.observe()
        functional.reset_net(model)
    tracker.save_latest_lif_stats_to_json(str(tmp_path / "my_stats.json"))
    tracker.save_all_lif_stats_to_json(str(tmp_path / "my_full_stats.json"))
    assert read(tmp_path / "my_stats.json")["latest_forward"]["gnn_model.lif1"] == by_step(SEEN["lif1"])
    assert read(tmp_path / "my_full_stats.json")["total_forward_count"] == 2
    with pytest.raises(RunFailed, match="cannot write .*there.x.json"):
        tracker.save_all_lif_stats_to_json(tmp_path / "not" / "there" / "x.json")

    latest = LIFTracker(model=model)
    with pytest.raises(UserError, match="tracker=lif_full"):
        latest.save_all_lif_stats_to_json(tmp_path / "none.json")


def test_a_model_without_neurons_has_nothing_to_count(tmp_path):
    tracker = LIFTracker(model=nn.Linear(2, 2), every_forward=True, folder=tmp_path)
    tracker.observe()
    assert tracker.close_epoch(1) == {} and tracker.finish() == [] and list(tmp_path.iterdir()) == []
    tracker.load_state_dict(tracker.state_dict())
    assert tracker.rows() == [("spikes", "none: the model has no spiking neurons")]


def test_one_forward_is_not_observed_twice():
    model = nn.Sequential(make_lif("spikingjelly"))
    tracker = LIFTracker(model=model)
    model(torch.rand(4, 2, 3))
    tracker.observe()
    with pytest.raises(UserError, match="called twice after one forward"):
        tracker.observe()
    functional.reset_net(model)
    model(torch.rand(4, 2, 3))
    tracker.observe()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"splits": ["vall"]}, ["tracker.lif.splits", "'vall'", "Did you mean 'val'?"]),
        ({"save_every": 0}, ["tracker.lif.save_every", "0", "at least 1"]),
        ({"flush_every": 0, "every_forward": True}, ["tracker.lif_full.flush_every", "0", "at least 1"]),
        ({"model": nn.Sequential(neuron.LIFNode())}, ["tracker=lif", "neurons of Sequential are SpikingJelly's own", "make_lif"]),
    ],
)
def test_what_is_not_allowed_is_said(options, message):
    with pytest.raises(UserError) as error:
        LIFTracker(**{"model": Twice()} | options)
    assert all(part in str(error.value) for part in message), str(error.value)


def test_another_number_of_steps_is_refused():
    model = Twice()
    tracker = LIFTracker(model=model)
    forward(model, constant(), tracker)
    with pytest.raises(RunFailed, match="ran 5 steps where 4 were counted before.*tracker=none"):
        forward(model, constant(T=5), tracker)
