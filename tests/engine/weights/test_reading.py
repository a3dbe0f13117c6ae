"""Weights of files that others wrote: out of any wrapping, and no code of theirs is run."""

import datetime
import io
import os
import pathlib
import pickle
import random
import types
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from engine.test_checkpoint import Program, content
from snnexp.engine import checkpoint
from snnexp.engine.weights import reading
from snnexp.errors import UserError

ENTRIES = OrderedDict({"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2), "seen": torch.tensor(7)})


def saved(what: object, path: Path) -> Path:
    torch.save(what, path)
    return path


@pytest.mark.parametrize(
    ("wrapped", "under"),
    [
        (ENTRIES, ""),
        ({"state_dict": ENTRIES, "epoch": 3}, "state_dict"),
        ({"model": ENTRIES, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "model"),
        ({"params": {"layer.weight": torch.zeros(1)}, "params_ema": ENTRIES}, "params_ema"),
        ({"state_dict": {"layer.weight": torch.zeros(1)}, "state_dict_ema": ENTRIES}, "state_dict_ema"),
        ({"model": {"layer.weight": torch.zeros(1)}, "ema": ENTRIES}, "ema"),
        ({"model": ENTRIES, "ema": None, "model_ema": {"decay": 0.9}}, "model"),
        ({"net": {"state_dict": ENTRIES}, "acc": 90.0}, "net.state_dict"),
        ({"checkpoint": {"state_dict": ENTRIES}, "optimizer": {"state": {"a": {"b": torch.ones(1)}}}}, "checkpoint.state_dict"),
        ({"model_state_dict": ENTRIES, "rng": torch.get_rng_state()}, "model_state_dict"),
        (ENTRIES | {"epoch": 3, "_extra": None}, ""),
    ],
)
def test_any_wrapping(wrapped, under, tmp_path):
    weights = reading.read(saved(wrapped, tmp_path / "weights"))[0]
    assert weights.kept_under == under and list(weights.entries) == list(ENTRIES)
    assert all(torch.equal(weights.entries[name], value) for name, value in ENTRIES.items())


def test_parts_side_by_side_have_the_names_of_their_parts(tmp_path):
    parts = {"encoder": {"weight": torch.ones(2)}, "head": {"weight": torch.zeros(2)}, "optimizer": {"momentum": torch.ones(3)}, "epoch": 4}
    assert list(reading.read(saved(parts, tmp_path / "parts.pt"))[0].entries) == ["encoder.weight", "head.weight"]


def test_a_number_beside_the_weights_hides_none(tmp_path):
    for wrapped in (
        {"epoch": torch.tensor(3), "generator": ENTRIES},
        {"state_dict": ENTRIES, "ema": {"decay": torch.tensor(0.9)}},
        {"params": {"lr": torch.tensor(0.1)}, "backbone": ENTRIES},
    ):
        assert list(reading.read(saved(wrapped, tmp_path / "x.pt"))[0].entries) == list(ENTRIES)


def test_all_that_a_file_may_mean_is_offered(tmp_path):
    weights = reading.read(saved({"weights": {"class": torch.ones(10)}, "encoder": ENTRIES}, tmp_path / "x.pt"))
    together = ["weights.class", *(f"encoder.{name}" for name in ENTRIES)]
    assert [list(each.entries) for each in weights] == [["class"], together, list(ENTRIES)]
    inner = {"0": {"weight": torch.ones(3)}, "optimizer_state": {"x": torch.ones(9)}}
    nested = {"model": {"head.weight": torch.ones(2), "features": inner}}
    assert list(reading.read(saved(nested, tmp_path / "x.pt"))[0].entries) == ["head.weight", "features.0.weight"]
    beside = {"hypernet": {"weight": torch.ones(2)}, "scheduler": {"a": torch.ones(2)}, "lr_schedulers": {"a": torch.ones(2)}}
    assert list(reading.read(saved(beside | {"encoder": {"weight": torch.ones(2)}}, tmp_path / "x.pt"))[0].entries) == [
        "hypernet.weight", "encoder.weight"
    ]  # fmt: skip


def test_an_average_of_parameters_alone_has_the_statistics_of_what_it_averages(tmp_path):
    plain = {"weight": torch.zeros(2, 2), "running_mean": torch.ones(2)}
    wrapped = {"model": plain, "ema": {"decay": torch.tensor(0.9), "shadow": {"weight": torch.full((2, 2), 7.0)}}}
    weights = reading.read(saved(wrapped, tmp_path / "x.pt"))[0]
    assert weights.averaged and (weights.kept_under, weights.completed_from) == ("ema.shadow", "model")
    assert weights.entries["weight"].mean() == 7 and torch.equal(weights.entries["running_mean"], torch.ones(2))


@pytest.mark.parametrize("change", [{"data": {"variables": 3}}, {"args": {"choices": 3}}, {"state_dict": None}, {"pruned": 3}, {"args": 3}])
def test_a_checkpoint_with_something_else_in_its_places_is_one_message(change, tmp_path):
    torch.save(content() | change, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"but not what belongs under {next(iter(change))}"):
        reading.read(tmp_path / "x.pth")


def test_the_version_of_torch_is_a_plain_value(tmp_path):
    assert list(reading.read(saved({"torch": torch.__version__, "state_dict": ENTRIES}, tmp_path / "x.pt"))[0].entries) == list(ENTRIES)


def test_of_a_run_the_weights_by_which_it_is_judged(tmp_path):
    path = tmp_path / "checkpoint_best.pth"
    checkpoint.save(path, content() | {"data": {"variables": ["b", "a"]}, "pruned": {"kept": {"lif": [1]}}})
    weights = reading.read(path)[0]
    assert weights.entries["weight"].mean() == 1 and weights.variables == ["b", "a"] and weights.pruned and weights.settings["T"] == 4
    checkpoint.save(path, content() | {"ema": {"weight": torch.zeros(2)}})
    weights = reading.read(path)[0]
    assert torch.equal(weights.entries["weight"], torch.zeros(2)) and weights.variables is None and not weights.pruned


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_objects_beside_the_weights_do_no_harm(legacy, tmp_path):
    beside = {
        "args": Namespace(lr=0.1, nested=Namespace(where=pathlib.Path("/data"), when=datetime.datetime.now())),
        "metric": np.float64(95.2), "best": np.float32(0.5), "counts": np.arange(3), "epoch": np.int64(3),
        "found": defaultdict(list, {"a": [1]}), "config": OmegaConf.create({"lr": 0.1, "layers": [1, 2], "name": "x", "flag": True}),
        "more": types.SimpleNamespace(a=1), "size": torch.Size([2]), "span": slice(1, 2), "group": frozenset({1}), "kind": torch.float16,
    }  # fmt: skip
    path = tmp_path / "model_best.pth.tar"
    torch.save(beside | {"state_dict": ENTRIES}, path, _use_new_zipfile_serialization=not legacy)
    before = set(torch.serialization.get_safe_globals())
    weights = reading.read(path)[0]
    assert list(weights.entries) == list(ENTRIES) and weights.kept_under == "state_dict"
    assert set(torch.serialization.get_safe_globals()) == before  # admitted for this file alone


def test_what_libraries_admit_changes_nothing(tmp_path):
    with torch.serialization.safe_globals([defaultdict, dict, Namespace, Fraction]):  # PyTorch Geometric, say, admits defaultdict
        path = saved({"state_dict": ENTRIES, "args": Namespace(found=defaultdict(dict, a=1))}, tmp_path / "x.pt")
        assert list(reading.read(path)[0].entries) == list(ENTRIES)
        with pytest.raises(UserError, match="it holds fractions.Fraction, which is no number"):
            reading.read(saved({"state_dict": ENTRIES, "of": Fraction(1, 3)}, tmp_path / "y.pt"))
        assert Fraction in torch.serialization.get_safe_globals()


def test_a_namespace_may_hold_the_weights(tmp_path):
    assert list(reading.read(saved({"model": defaultdict(int, ENTRIES)}, tmp_path / "x.pt"))[0].entries) == list(ENTRIES)


def test_safetensors_by_their_content(tmp_path):
    save_file({name: value.contiguous() for name, value in ENTRIES.items()}, tmp_path / "model.bin", metadata={"format": "pt"})
    weights = reading.read(tmp_path / "model.bin")[0]
    assert sorted(weights.entries) == sorted(ENTRIES) and torch.equal(weights.entries["layer.weight"], ENTRIES["layer.weight"])
    whole = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="model.bin is no whole safetensors file"):
        reading.read(tmp_path / "model.bin")


class Evil:
    """Unpickled, it leaves a mark by way of a name that is given."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["beside", "in the namespace", "as a weight"])
@pytest.mark.parametrize("function", ["os.system", "exec", "getattr", "importlib"])
def test_no_code_is_run(place, function, tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    evil = {
        "os.system": Evil(os.system, f"touch {mark}"),
        "exec": Evil(exec, f"open({str(mark)!r}, 'w').close()"),
        "getattr": Evil(getattr, Namespace(a=1), "a"),
        "importlib": Evil(__import__, "antigravity"),
    }[function]
    wholes = {
        "beside": {"state_dict": ENTRIES, "args": evil},
        "in the namespace": {"state_dict": ENTRIES, "args": Namespace(lr=evil)},
        "as a weight": {"state_dict": {**ENTRIES, "other": evil}},
    }
    torch.save(wholes[place], path)
    with pytest.raises(UserError, match="(?s)evil.pth: it holds .*never runs code.*save the weights alone") as refused:
        reading.read(path)
    assert not mark.exists() and str(refused.value).count("\n") == 0
    path.write_bytes(pickle.dumps(wholes[place]))
    with pytest.raises(UserError):
        reading.read(path)
    assert not mark.exists()
    if function in ("os.system", "exec"):  # the mark does show where pickle is let loose
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_stand_ins_hold_no_function_of_their_own():
    kinds = {stand_in.__mro__[1] for stand_in, _ in reading.STAND_INS}
    assert kinds == {reading.Blank, reading.PlainDict}
    assert all(stand_in.__module__ == reading.__name__ for stand_in, _ in reading.STAND_INS)


def test_a_file_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights; it holds epoch \(int\), history \(list\)\. In the program that made it"):
        reading.read(saved({"epoch": 3, "history": [1.0]}, tmp_path / "a.pth"))
    with pytest.raises(UserError, match="holds a single list, and no weights"):
        reading.read(saved([1, 2], tmp_path / "b.pth"))
    with pytest.raises(UserError, match="holds a single Tensor"):
        reading.read(saved(torch.ones(2), tmp_path / "c.pth"))
    with pytest.raises(UserError, match="it holds torch.nn.modules.linear.Linear, .*never runs code.*model.state_dict"):
        reading.read(saved({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth"))
    with pytest.raises(UserError, match="no checkpoint .*nowhere.pth: no such file. There is: a.pth"):
        reading.read(tmp_path / "nowhere.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_files_of_other_kinds(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    with pytest.raises(UserError, match="scripted.pt is a TorchScript program"):
        reading.read(tmp_path / "scripted.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "table.pth").write_text("{}")
    (tmp_path / "protocol.pth").write_bytes(pickle.dumps({"state_dict": 1}, protocol=4))
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    for name in ("other.zip", "page.pth", "empty.pth", "arrays.npz"):
        with pytest.raises(UserError, match=name):
            reading.read(tmp_path / name)
    for name, reason in {"text.pth": r"\(KeyError \d+\)", "table.pth": r"\(Unsupported operand \d+\)"}.items():
        with pytest.raises(UserError, match=reason):
            reading.read(tmp_path / name)
    with warnings.catch_warnings(), pytest.raises(UserError, match="protocol.pth"):
        warnings.simplefilter("error")  # torch has something to say of the protocol, in three lines of its own
        reading.read(tmp_path / "protocol.pth")[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_one_message(legacy, tmp_path):
    path, chance, file = tmp_path / "weights.pth", random.Random(0), io.BytesIO()
    torch.save({"state_dict": ENTRIES, "args": Namespace(a=1)}, file, _use_new_zipfile_serialization=not legacy)
    whole, refused = file.getvalue(), 0
    for round_ in range(100):
        damaged = bytearray(whole)
        if round_ % 2:
            damaged = damaged[: chance.randrange(len(whole))]
        else:
            for _ in range(8):
                damaged[chance.randrange(len(whole) // 2)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            reading.read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50


def test_a_program_of_the_checkpoint_tests_is_refused_too(tmp_path):
    with pytest.raises(UserError, match="never runs code"):
        reading.read(saved({"state_dict": ENTRIES, "hook": Program(tmp_path / "mark")}, tmp_path / "x.pth"))
    assert not (tmp_path / "mark").exists()
