"""What auto comes to: by made speeds, by what the run chose before, and on every rank the same."""

import json
import signal

import pytest
import torch
from torch import nn

from conftest import TINY, assert_same, composed, load
from snnexp.engine import checkpoint, loop, restart
from snnexp.engine.arithmetic import auto, settle
from snnexp.engine.arithmetic.auto import choose, fastest, weight_shares
from snnexp.engine.arithmetic.layer_speed import Speeds
from snnexp.engine.distributed import Ranks
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.errors import UserError
from snnexp.models.spikformer import Spikformer
from snnexp.models.spiking_gnn import SpikingGNN
from snnexp.models.vggsnn import VGGSNN

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AUTO = ["precision=auto", "channels_last=auto"]
NAMES = ("fp32", "fp32 channels_last", "bf16", "bf16 channels_last")


def convolution(*gflops: float) -> Speeds:
    """Speeds of a convolution: fp32, fp32 channels_last, bf16, bf16 channels_last."""
    return Speeds("convolution", dict(zip(NAMES, map(float, gflops), strict=False)), "2026-11-30T12:00:00+00:00")


def matmul(*gflops: float) -> Speeds:
    """Speeds of a matrix product: fp32, bf16."""
    return Speeds("matmul", dict(zip(NAMES[::2], map(float, gflops), strict=False)), "2026-11-30T12:00:00+00:00")


FOR_BF16 = [convolution(100, 120, 300, 400), matmul(100, 300)]
FOR_FP32 = [convolution(167, 274, 167, 176), matmul(100, 60)]


@pytest.fixture
def machine(monkeypatch):
    """Let this machine have these speeds, or none that may be asked for."""

    def machine(speeds: list[Speeds]) -> None:
        by_kind = {each.kind: each for each in speeds}
        monkeypatch.setattr(auto, "load_or_measure", by_kind.__getitem__)

    return machine


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((167, 274, 167, 176), ("fp32", True)),  # a Xeon with avx512_bf16 and no AMX, where auto used to take bf16
        ((100, 101, 240, 260), ("bf16", False)),
        ((231, 259, 801, 1278), ("bf16", True)),  # one with AMX
        ((100, 100, 109, 110), ("fp32", False)),  # by a tenth, and not more
        ((100, 100, 111, 100), ("bf16", False)),
        ((100, 150, 155, 160), ("fp32", True)),  # bf16 would win if the layout of fp32 were not open
        ((100, 109), ("fp32", False)),  # a processor without bf16
        ((100, 112), ("fp32", True)),
    ],
)
def test_the_faster_one_by_more_than_a_tenth(speeds, expected):
    assert fastest("auto", "auto", {"convolution": 1.0}, [convolution(*speeds)]) == expected


@pytest.mark.parametrize(
    ("precision", "channels_last", "expected"),
    [
        ("fp32", "auto", ("fp32", False)),
        ("bf16", "auto", ("bf16", True)),
        ("fp16", "auto", ("fp16", False)),  # not measured: as fp32
        ("auto", False, ("bf16", False)),
        ("auto", True, ("bf16", True)),
        ("fp32", True, ("fp32", True)),
    ],
)
def test_what_is_given_stays(precision, channels_last, expected):
    assert fastest(precision, channels_last, {"convolution": 1.0}, [convolution(100, 100, 300, 400)]) == expected


def test_kinds_count_by_their_share():
    speeds = [convolution(100, 150, 50, 60), matmul(100, 400)]
    assert fastest("auto", "auto", {"convolution": 0.9, "matmul": 0.1}, speeds) == ("fp32", True)
    assert fastest("auto", "auto", {"convolution": 0.2, "matmul": 0.8}, speeds) == ("bf16", True)
    assert fastest("auto", "auto", {"matmul": 1.0}, speeds[1:]) == ("bf16", False)
    assert fastest("auto", "auto", {}, []) == ("fp32", False)


def test_a_gain_that_its_layout_would_not_get_does_not_count():
    # bf16 is 11 % faster in channels_last, which is not taken for 9 %; in the layout that it would get it is 2 % faster.
    assert fastest("auto", "auto", {"convolution": 1.0}, [convolution(100, 100, 102, 111)]) == ("fp32", False)


def test_the_kinds_of_a_network():
    assert weight_shares(VGGSNN(in_channels=2, num_classes=10, size=16, T=2, width=0.25)).keys() == {"convolution"}
    mixed = weight_shares(Spikformer(in_channels=3, num_classes=10, size=16, T=2, depth=1, dim=64, heads=4))
    assert mixed.keys() == {"convolution", "matmul"} and sum(mixed.values()) == pytest.approx(1, abs=0.01)
    assert weight_shares(SpikingGNN(num_features=3, num_outputs=2, T=2, width=16)).keys() == {"matmul"}
    assert weight_shares(nn.Sequential(nn.Embedding(100, 8), nn.Conv1d(8, 8, 3), nn.Conv3d(1, 2, 3))) == {"convolution": 1.0}
    assert weight_shares(nn.Sequential(nn.Linear(10, 30), nn.Conv2d(10, 10, 1))) == {"convolution": 0.25, "matmul": 0.75}
    assert weight_shares(nn.LSTM(8, 8)).keys() == {"matmul"} and weight_shares(nn.BatchNorm2d(3)) == {}
    assert weight_shares(nn.Sequential(nn.Linear(10, 10), nn.Conv2d(100, 100, 3))).keys() == {"convolution"}  # too little to count


def test_only_what_nobody_has_chosen_is_measured(machine):
    model, settings = nn.Conv2d(4, 4, 3), {"precision": "auto", "channels_last": "auto"}
    machine(FOR_BF16)
    choice = choose(settings, model, CPU)
    assert (choice.precision, choice.channels_last, choice.auto_keys) == ("bf16", True, auto.AUTO_KEYS)
    assert "convolution fp32 100, fp32 channels_last 120, bf16 300, bf16 channels_last 400 (measured 2026-11-30)" in choice.how
    choice = choose(settings, model, CPU, [{"precision": "fp32"}])
    assert (choice.precision, choice.channels_last) == ("fp32", True)
    machine([])  # asking would be a KeyError
    choice = choose(settings, model, CPU, [{"precision": "fp32"}, {"precision": "bf16", "channels_last": False}])
    assert (choice.precision, choice.channels_last, choice.how) == ("fp32", False, "as chosen before")
    choice = choose(settings | {"precision": "fp32"}, nn.Linear(4, 4), CPU)  # which has no convolution to lay out
    assert (choice.precision, choice.channels_last, choice.auto_keys, choice.how) == ("fp32", False, ("channels_last",), "")
    choice = choose({"precision": "bf16", "channels_last": False}, model, CPU, [{"precision": "fp32"}])
    assert (choice.precision, choice.channels_last, choice.auto_keys, choice.how) == ("bf16", False, (), "")


@pytest.mark.parametrize("native", [True, False])
def test_on_cuda_a_rule_decides(native, machine, monkeypatch):
    machine([])
    monkeypatch.setattr(auto, "computes_bf16", lambda device: native)
    choice = choose({"precision": "auto", "channels_last": "auto"}, nn.Conv2d(4, 4, 3), CUDA)
    assert (choice.precision, choice.channels_last) == ("bf16" if native else "fp32", True) and "not measured" in choice.how
    choice = choose({"precision": "fp16", "channels_last": "auto"}, nn.Conv2d(4, 4, 3), CUDA)
    assert (choice.precision, choice.channels_last) == ("fp16", True)


def test_fp32_or_tf32_by_device(machine, monkeypatch):
    model, settings = nn.Conv2d(4, 4, 3), {"precision": "fp32_or_tf32", "channels_last": False}
    machine([])  # asking would be a KeyError
    choice = choose(settings, model, CPU)
    assert (choice.precision, choice.channels_last, choice.auto_keys) == ("fp32", False, ("precision",))
    assert choose(settings, model, CPU, [{"precision": "bf16"}]).precision == "bf16", "a run keeps what it began with"
    machine(FOR_BF16)
    choice = choose(settings | {"channels_last": "auto"}, model, CPU)
    assert (choice.precision, choice.channels_last) == ("fp32", True)
    monkeypatch.setattr(auto, "computes_bf16", lambda device: True)
    choice = choose(settings, model, CUDA)
    assert (choice.precision, choice.channels_last, choice.auto_keys) == ("tf32", False, ("precision",))
    assert choose(settings, model, CPU, [{"precision": "tf32"}]).precision == "fp32", "it began on a GPU"
    monkeypatch.setattr(auto, "computes_bf16", lambda device: False)
    assert choose(settings, model, CUDA).precision == "fp32"


@pytest.mark.parametrize("model", ["seqset_vae", "set_vae", "svrt_small"])
def test_models_of_narrow_layers_never_take_bf16_by_themselves(model):
    assert composed(f"model={model}", "device=cpu")["precision"] == "fp32_or_tf32"


def test_fp32_or_tf32_is_recorded_and_kept(make, machine):
    machine([])
    x = make("precision=fp32_or_tf32", "channels_last=false")
    assert auto.read_record(x.run.arithmetic) == {"precision": "fp32"} and x.precision.name == "fp32"


def is_laid_out(model: nn.Module) -> bool:
    return all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in model.modules() if isinstance(m, nn.Conv2d))


def test_the_choice_is_recorded_before_the_first_step_and_kept(make, machine):
    machine(FOR_BF16)
    x = make(*AUTO)
    record = json.loads(x.run.arithmetic.read_text())
    assert (record["precision"], record["channels_last"]) == ("bf16", True) == (x.precision.name, x.choice.channels_last)
    assert record["measured"]["convolution"]["gflops"] == FOR_BF16[0].gflops
    assert is_laid_out(x.model) and not x.run.checkpoint("latest").exists()
    written = x.run.arithmetic.read_bytes()
    machine([])
    again = make(*AUTO)
    assert again.precision.name == "bf16" and is_laid_out(again.model) and x.run.arithmetic.read_bytes() == written


def test_what_is_given_needs_no_record(make, machine):
    machine([])
    x = make("precision=fp32", "channels_last=false")
    assert not x.run.arithmetic.exists() and x.choice.auto_keys == () and not is_laid_out(x.model)
    assert is_laid_out(make("precision=fp32", "channels_last=true", name="other").model)


def test_a_key_that_opens_later_is_measured_then(make, machine):
    machine(FOR_FP32)
    x = make("channels_last=auto")  # precision=fp32 is given
    assert auto.read_record(x.run.arithmetic) == {"channels_last": True}
    machine(FOR_BF16)
    assert make(*AUTO).precision.name == "bf16"
    assert auto.read_record(x.run.arithmetic) == {"precision": "bf16", "channels_last": True}
    assert make("precision=fp32", "channels_last=auto").precision.name == "fp32"  # what is given wins
    assert make(*AUTO).precision.name == "bf16"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"precision": "fp64"}', '{"channels_last": "yes"}', '{"precision": []}'])
def test_a_damaged_record_is_named(content, make, machine):
    machine(FOR_FP32)
    x = make(*AUTO)
    x.run.arithmetic.write_text(content)
    with pytest.raises(UserError, match="arithmetic.json"):
        make(*AUTO)


def test_a_run_stopped_and_resumed_is_the_same_bit_for_bit_where_a_second_measurement_would_differ(make, machine, monkeypatch):
    settings = [*AUTO, "epochs=2", "ema=0.9"]
    machine(FOR_BF16)
    whole, part, flag = make(*settings, name="whole"), make(*settings, name="part"), StopFlag()
    loop.train(whole, StopFlag())
    update, steps = loop.update, []

    def stop_at_the_second(x):
        update(x)
        steps.append(1)
        flag.signum = signal.SIGTERM if len(steps) == 1 else 0  # the loop looks before each update

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "update", stop_at_the_second)
        loop.train(part, flag)
    assert load(part.run.checkpoint("latest"))["step"] == 2
    machine(FOR_FP32)
    resumed = make(*settings, name="part")
    assert resumed.precision.name == "bf16"
    loop.train(resumed, StopFlag())
    expected, actual = (load(x.run.checkpoint("final")) for x in (whole, resumed))
    for name in ("step", "state_dict", "optimizer", "ema", "best_acc1", "circumstances"):
        assert_same(expected[name], actual[name], name)
    assert whole.run.metrics_log.read_bytes() == resumed.run.metrics_log.read_bytes()
    assert expected["circumstances"]["precision"] == "bf16" and expected["circumstances"]["channels_last"] is True
    fp32 = make("precision=fp32", "channels_last=true", "epochs=2", "ema=0.9", name="fp32")
    loop.train(fp32, StopFlag())
    name = "classifier.1.bias"
    assert not torch.equal(load(fp32.run.checkpoint("final"))["state_dict"][name], expected["state_dict"][name])


def older(run) -> None:
    """Make a run one of before there were records: its layout was given, its checkpoint names the precision alone."""
    run.arithmetic.unlink()
    for path in run.checkpoints.glob("*.pth"):
        saved = checkpoint.load(path)
        del saved["circumstances"]["channels_last"]
        saved["args"]["channels_last"] = True
        checkpoint.save(path, saved)


def test_a_run_from_before_keeps_the_precision_of_its_checkpoint(make, machine):
    settings = ["precision=auto", "channels_last=true", "limit_train=32"]
    machine(FOR_BF16)
    x = make(*settings, "epochs=1")
    loop.train(x, StopFlag())
    older(x.run)
    machine([])
    again = make(*settings, "epochs=2")
    assert (again.precision.name, again.choice.channels_last, again.choice.how) == ("bf16", True, "as chosen before")
    assert auto.read_record(x.run.arithmetic) == {"precision": "bf16"}
    assert restart.changes(again, checkpoint.load(x.run.checkpoint("latest"))) == [
        "epochs 1 -> 2: the learning rate follows the new curve from here."
    ]


def test_a_checkpoint_of_a_given_precision_says_nothing_about_auto(make, machine):
    machine(FOR_BF16)
    x = make("precision=fp32", "channels_last=false", "epochs=1", "limit_train=16")
    loop.train(x, StopFlag())
    assert make(*AUTO, "epochs=2", "limit_train=16").precision.name == "bf16"
    saved = checkpoint.load(x.run.checkpoint("latest"))
    assert auto.choice_in_checkpoint(saved) == {}
    changes = restart.changes(make(*AUTO, "epochs=1", "limit_train=16"), saved)
    assert changes == ["From here the run is not the one it would have been: precision fp32 -> bf16, channels_last False -> True."]


def test_a_pruned_run_takes_the_choice_of_its_source(make, machine, tmp_path):
    machine(FOR_BF16)
    x = make(*AUTO, "epochs=1", "limit_train=32")
    loop.train(x, StopFlag())
    machine([])
    settings = composed(*TINY, f"data_dir={x.config.data_dir}", *AUTO, "pruner=spike_map")
    settings |= {"stages": ["prune", "finetune"], "prune_from": str(x.run.checkpoint("best"))}
    choice = settle.settle(type(x.run)(tmp_path), settings, x.model, Ranks(0, 1, CPU))
    assert (choice.precision, choice.channels_last) == ("bf16", True)
    assert auto.read_record(tmp_path / "arithmetic.json") == {"precision": "bf16", "channels_last": True}


class Follower(Ranks):
    """Rank 1 of two, to which rank 0 tells its choice."""

    choice: object = None

    def gather(self, value):
        assert value is None
        return [Follower.choice, value]


def test_rank_0_measures_and_the_others_follow(make, machine, tmp_path):
    machine(FOR_BF16)
    x = make(*AUTO)
    run = type(x.run)(tmp_path)
    Follower.choice = settle.settle(run, x.settings, x.model, Ranks(0, 1, CPU))
    run.arithmetic.unlink()
    machine([])
    assert settle.settle(run, x.settings, x.model, Follower(1, 2, CPU)) == Follower.choice
    assert not run.arithmetic.exists()
