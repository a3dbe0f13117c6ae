"""A checkpoint whose parts are not what the run would have written: one message each, with the name of the part."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch

from conftest import load
from contents import content
from snnexp.check import check_checkpoint
from snnexp.engine import checkpoint, loop, restart
from snnexp.engine.fitting import moments, structure
from snnexp.engine.fitting.content import Misfit
from snnexp.engine.signals import StopFlag
from snnexp.errors import UserError


def set_at(tree: dict, keys: tuple, value: object) -> None:
    *way, last = keys
    for key in way:
        tree = tree[key]
    if value is REMOVED:
        del tree[last]
    else:
        tree[last] = value


REMOVED = object()
LOOP: list = []
LOOP.append(LOOP)
DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]
WIDE: list = [1] * 10
for _ in range(12):
    WIDE = [WIDE] * 10


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("epoch",), -1, "part 'epoch' does not fit: it is -1"),
        (("epoch",), True, "part 'epoch'"),
        (("step",), 2.5, "part 'step'"),
        (("state_dict",), [1], "part 'state_dict'"),
        (("state_dict", "weight"), 3, "part 'state_dict'"),
        (("state_dict", "weight"), torch.ones(4, 4).to_sparse(), "part 'state_dict'.*sparse_coo"),
        (("ema",), {"weight": None}, "part 'ema'"),
        (("optimizer",), {"state": {}}, "part 'optimizer' does not fit: it lacks param_groups"),
        (("optimizer", "param_groups"), [{}], "part 'optimizer'.*lacks params, lr"),
        (("optimizer", "param_groups", 0, "lr"), math.nan, "part 'optimizer'.*'lr'. is nan"),
        (("optimizer", "state"), [], "part 'optimizer'"),
        (("optimizer", "state"), {"0": {}}, "part 'optimizer'.*state.'0'."),
        (("scheduler",), None, "part 'scheduler' does not fit: it is None, and must be a mapping. "),
        (("model",), 7, "part 'model' does not fit: it is 7, and must be a name"),
        (("best_acc1",), math.nan, "part 'best_acc1'"),
        (("samples_digest",), {}, "part 'samples_digest'"),
        (("shape",), {"num_classes": {}}, "part 'shape' does not fit: num_classes is dict of 0"),
        (("epoch",), 2**70, "part 'epoch' does not fit: it is a number of 71 bits"),
        (("args", "choices"), [], "part 'args'.*choices is .., and must be dict"),
        (("args", "T"), "4", "part 'args'.*T is '4', and must be int"),
        (("args", "model"), REMOVED, "part 'args'.*lacks model"),
        (("state",), {"targets": 3}, "part 'state'.*'targets' is nothing"),
        (("state", "metrics_offset"), -1, "part 'state'.*metrics_offset is -1"),
        (("state", "best"), {"epoch": 1}, "part 'state'.*best lacks step"),
        (("state", "ranking"), [[1.0]], "part 'state'.*ranking"),
        (("ranks",), [], "part 'ranks'"),
        (("ranks", 0, "random"), {}, "part 'ranks'.*random lacks python"),
        (("ranks", 0, "random", "numpy", 2), 100_000, "part 'ranks'.*position of NumPy"),
        (("ranks", 0, "random", "numpy", 1, 5), 2**32, "part 'ranks'.*32 bits"),
        (("ranks", 0, "random", "torch"), torch.zeros(3), "part 'ranks'.*random.'torch'. is a tensor .3. of float32"),
        (("ranks", 0, "counts"), {"Loss": 1.0}, "part 'ranks'"),
        (("sampler",), {}, "part 'sampler'.*lacks epoch"),
        (("sampler", "samples"), -4, "part 'sampler'.*samples is -4"),
        (("sampler", "world"), 0, "part 'sampler'.*world is 0"),
        (("trackers",), {"lif": 1}, "part 'trackers'"),
        (("data",), [], "part 'data'"),
        (("circumstances",), {"precision": "fp64"}, "part 'circumstances'"),
        (("pruned",), {}, "part 'pruned'.*lacks kept"),
        (("pruned", "kept"), {"a": [2, 1]}, "part 'pruned'.*ascending"),
        (("pruned", "ratio"), math.nan, "part 'pruned'.*ratio is nan"),
        (("data",), {"names": LOOP}, "part 'data'.*deeper than 64"),
        (("data",), {"names": DEEP}, "part 'data'.*deeper than 64"),
        (("data",), {"names": WIDE}, "part 'data'.*more than 20,000,000 values"),
        (("data",), {"mean": torch.zeros(1).expand(2**40)}, "part 'data'.*repeats the 4 bytes"),
        (("shape",), 3, "part 'shape'"),
    ],
)
def test_each_part_has_its_form(tmp_path, keys, value, words):
    saved, path = content(), tmp_path / "checkpoint_latest.pth"
    set_at(saved, keys, value)
    torch.save(saved, path)
    with pytest.raises(UserError, match=words) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: its part") and len(str(caught.value)) < 600


def test_what_a_run_writes_is_loaded(tmp_path):
    saved, path = content(), tmp_path / "checkpoint_latest.pth"
    torch.save(saved, path)
    assert checkpoint.load(path).keys() == saved.keys()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))


OPTIMIZERS = {
    "adam": {"_target_": "torch.optim.Adam", "lr": 0.1, "fused": True},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 0.1, "amsgrad": True},
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
    "adafactor": {"_target_": "torch.optim.Adafactor", "lr": 0.1},
    "rmsprop": {"_target_": "torch.optim.RMSprop", "lr": 0.1, "centered": True},
}


def settings_of(name: str) -> dict:
    return {"optimizer": OPTIMIZERS[name], "trust": None}


def stepped(model: torch.nn.Module, name: str) -> dict:
    """The checkpoint of a run that has taken two steps."""
    net = copy.deepcopy(model)
    optimizer = moments.make_optimizer(settings_of(name), net)
    for _ in range(2):
        net(torch.rand(3, 64)).square().sum().backward()
        optimizer.step()
    return content(optimizer=optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_moments_of_every_optimizer_fit_its_parameters(model, name):
    saved = stepped(model, name)
    moments.check_moments(saved, settings_of(name), model, "FILE")
    with torch.device("meta"):
        shapes = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
    moments.check_moments(saved, settings_of(name), shapes, "FILE")
    for index, state in saved["optimizer"]["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                for wrong in (value.flatten()[:1], value[..., None], torch.ones(2, 2), value.long(), None, value * math.nan):
                    broken = copy.deepcopy(saved)
                    broken["optimizer"]["state"][index][key] = wrong
                    with pytest.raises(UserError, match=rf"FILE: its part 'optimizer' does not fit: state\[{index}\]\['{key}'\] \(of "):
                        moments.check_moments(broken, settings_of(name), model, "FILE")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("state",), {}, "`state` is empty"),
        (("state", 7), {}, "state.7. is of no parameter"),
        (("state", 0, "exp_avg_sq"), REMOVED, r"state\[0\]\['exp_avg_sq'\] \(of 0.weight\) is missing"),
        (("state", 1, "exp_avg_sq"), -torch.ones(32), "cannot be negative"),
        (("state", 1, "step"), torch.tensor(-3.0), "cannot be negative"),
        (("state", 1, "step"), torch.ones(5), "must be a tensor .. of float32"),
        (("param_groups", 0, "params"), [0, 1, 2, 9], "not the run's"),
        (("param_groups", 0, "params"), [0, 1, 2], "not the run's .there .3. of them, here .4.."),
        (("param_groups",), [], "0 groups of parameters, and the run has 1"),
    ],
)
def test_what_the_moments_lack_is_named(model, keys, value, words):
    saved = stepped(model, "adam")
    set_at(saved["optimizer"], keys, value)
    with pytest.raises(UserError, match=f"FILE: its part 'optimizer' does not fit: .*{words}"):
        moments.check_moments(saved, settings_of("adam"), model, "FILE")


def test_before_the_first_step_there_are_no_moments(model):
    saved = content(step=0)
    saved["optimizer"]["param_groups"][0]["params"] = [0, 1, 2, 3]
    moments.check_moments(saved, settings_of("adam"), model, "FILE")


def test_moments_that_share_memory_get_their_own():
    one = torch.ones(3)
    own = moments.owned({0: {"exp_avg": one, "exp_avg_sq": one, "step": 3}, 1: {"exp_avg": one.expand(2, 3)}})
    own[0]["exp_avg"].zero_(), own[1]["exp_avg"][0].zero_()
    assert own[0]["exp_avg_sq"].tolist() == [1, 1, 1] and own[1]["exp_avg"].tolist() == [[0, 0, 0], [1, 1, 1]] and own[0]["step"] == 3


SMALL = ("epochs=1", "limit_train=32", "ema=0.9", "scheduler=plateau", "tracker=[lif,timing]")


def test_what_a_run_saved_is_held_against_the_run(make):
    x = make(*SMALL)
    with StopFlag() as stop:
        loop.train(x, stop)
    path = x.run.checkpoint("latest")
    whole = load(path)
    check_checkpoint(x.settings, whole, path)
    for keys, value, words in (
        (("optimizer", "state", 0, "exp_avg"), torch.ones(1), "part 'optimizer'.*exp_avg.*of "),
        (("ema", "stem.weight"), torch.ones(1), "moving average.*stem.weight is not in the model"),
        (("scheduler",), {"reduced": "a half", "best": None, "waited": 0}, "part 'scheduler'"),
        (("scheduler",), {"reduced": 1.0}, "part 'scheduler'.*it lacks 'best'"),
        (("data", "classes"), REMOVED, "part 'data'.*it lacks 'classes'"),
        (("data", "split"), REMOVED, "part 'data'.*it lacks 'split'"),
        (("data", "std"), torch.zeros(2), "std: numbers that are not all finite, and those to divide by above 0"),
        (("data", "mean"), torch.full((2,), math.inf), "mean: numbers that are not all finite"),
        (("data", "std"), torch.ones(3), r"std: \[3\] of float32, and not \[2\]"),
        (("trackers", "lif", "splits"), REMOVED, "part 'trackers.lif'.*'splits'"),
        (("trackers", "lif", "splits", "train", "latest"), [[1]], r"part 'trackers.lif'.*counts \[1, 1\]"),
        (("trackers", "lif", "rates"), {"stem": [math.nan] * 4}, "part 'trackers.lif'.*rates"),
        (("trackers", "timing", "figures"), {"step": [{}, {}]}, "part 'trackers.timing'"),
        (("ranks", 0, "random", "torch"), torch.zeros(5, dtype=torch.uint8), "part 'ranks'"),
        (("sampler", "samples"), 33, "part 'sampler'.*samples is 33, but an epoch has 32"),
        (("sampler", "epoch"), 7, "part 'sampler'.*different places of the run"),
        (("state", "step"), 99, "part 'sampler'.*different places of the run"),
    ):
        saved = copy.deepcopy(whole)
        set_at(saved, keys, value)
        torch.save(saved, path)
        with pytest.raises(UserError, match=words) as caught:
            restart.restore(make(*SMALL))
            pytest.fail(f"{keys} passed")
        assert str(path) in str(caught.value) or "data state" in str(caught.value)


def test_sums_of_another_shape_are_not_spread_over_those_of_the_run():
    from snnexp.engine.state import add_counts

    with pytest.raises(UserError, match=r"sum 'Loss' .part `ranks`, counts. is \[7\], and the run's is \[\]"):
        add_counts({"Loss": torch.zeros(7)}, {"Loss": torch.ones(())})


def test_moments_that_are_too_small_end_no_process(model, tmp_path):
    saved = stepped(model, "adam")
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(saved["optimizer"], tmp_path / "moments.pt")
    code = (
        "import sys, torch; from snnexp.engine.fitting import moments; from snnexp.errors import UserError\n"
        "net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)); saved = torch.load(sys.argv[1])\n"
        "settings = {'optimizer': {'_target_': 'torch.optim.Adam', 'lr': 0.1, 'fused': True}, 'trust': None}\n"
        "try: moments.check_moments({'optimizer': saved, 'step': 2, 'scaler': {}}, settings, net, 'FILE')\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "moments.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and "state[0]['exp_avg'] (of 0.weight) is a tensor [1] of float32" in done.stdout, done.stderr


class Described(torch.nn.Module):
    """A network of as many layers and as much memory as its arguments say."""

    def __init__(self, width: int = 4, depth: int = 1, mask: int = 1) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("mask", torch.zeros(mask), persistent=False)


def of(net: torch.nn.Module) -> dict:
    return {"state_dict": net.state_dict(), "pruned": {"kept": {}}}


def test_a_network_is_built_once_its_weights_are_known_to_fit():
    built = []

    def make(**arguments):
        built.append(Described(**arguments).layers[0].weight.device.type)
        return Described(**arguments)

    net = structure.build_fitting(lambda: make(width=5, depth=2, mask=7), of(Described(5, 2)), "FILE")
    assert built == ["meta", "cpu"] and net.layers[1].weight.device.type == "cpu" and net.mask.shape == (7,)
    for arguments, words in (
        ({"width": 10**9}, r"FILE does not fit the model: layers.0.weight is \(4, 4\) there, \(1000000000, 1000000000\) in the model"),
        ({"depth": 10**12}, "the network has more than 100,000 layers and weights"),
        ({"mask": 10**12}, "FILE: its part 'shape' does not fit: .* 4,000,000,000,000 bytes beside its weights"),
    ):
        built.clear()
        with pytest.raises((UserError, Misfit), match=words):
            structure.build_fitting(lambda: make(**arguments), of(Described()), "FILE")  # noqa: B023
        assert built in ([], ["meta"])
    assert len(Described(depth=50_000).layers) == 50_000  # the limit has ended with the trial


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("0.weight", math.inf, "0.weight holds values that are not finite"),
        ("1.running_mean", math.nan, "1.running_mean holds NaN"),
        ("1.running_var", -1.0, "1.running_var holds a negative variance"),
    ],
)
def test_weights_and_statistics_that_no_run_has_are_refused(name, value, words):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    net.register_buffer("limits", torch.tensor([-math.inf, math.inf]))  # a buffer of a model's own may be infinite
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    checkpoint.check_fits(net, weights, "FILE")
    weights[name].view(-1)[0] = value
    with pytest.raises(UserError, match=words):
        checkpoint.check_fits(net, weights, "FILE")
