"""The settings of a sweep: which are swept, which would undo a sweep, which faults all jobs share."""

import sys

import pytest

from snnexp.composing import sweep
from snnexp.composing.command_line import read_command_line
from snnexp.errors import MissingData, UserError


def test_a_sweep_takes_the_place_of_an_earlier_setting(capsys):
    assert sweep.settle(["lr=0.1", "seed=1", "lr=0.01,0.02"]) == ["seed=1", "lr=0.01,0.02"]
    assert "lr=0.1: left out, lr=0.01,0.02 comes after it" in capsys.readouterr().err
    assert sweep.settle(["model=resnet19", "model=vggsnn,resnet19", "model.width=0.5"]) == ["model=vggsnn,resnet19", "model.width=0.5"]
    assert sweep.settle(["lr=0.1", "lr=0.2", "seed=0,1"]) == ["lr=0.1", "lr=0.2", "seed=0,1"]


@pytest.mark.parametrize(
    "words", [["lr=0.1,0.2", "lr=0.3"], ["lr=1,2", "lr=3,4"], ["model.lif.tau=2,3", "model.lif={tau: 4}"], ["+extra.a=1,2", "++extra.a=3"]]
)
def test_a_later_setting_that_would_undo_a_sweep_is_refused(words):
    with pytest.raises(UserError, match="would undo the sweep"):
        sweep.settle(words)


@pytest.mark.parametrize("word", ["exp_name=a,b", "output_dir=a,b", "exp_name=choice(a,b)"])
def test_where_the_whole_sweep_lies_is_not_swept(word):
    with pytest.raises(UserError, match="a sweep lies in one directory"):
        sweep.settle([word])


def test_a_directory_that_all_jobs_would_share_is_refused():
    with pytest.raises(UserError, match="would share one directory"):
        sweep.settle(["seed=1,2", "hydra.sweep.subdir=all"])
    own = ["seed=1,2", "hydra.sweep.subdir=${hydra.job.num}"]
    assert sweep.settle(own) == own


def test_every_swept_key_is_in_the_name_of_a_job():
    line = read_command_line(["-m", "data_dir=A,B", "lr=0.1", "lr=1,2", "logger=none,tensorboard", "T=2", "seed=range(3)", "trust=[a],[b]"])
    assert sweep.unswept_keys(line) == ["T"]


@pytest.mark.parametrize(
    ("swept", "error", "expected"),
    [
        ("lr=1,2", MissingData("zinc is not there"), True),
        ("model.width=1,2", MissingData("zinc is not there"), True),
        ("dataset=zinc,digits", MissingData("zinc is not there"), False),
        ("dataset.root=a,b", MissingData("a is not there"), False),
        ("data_dir=a,b", MissingData("a is not there"), False),
        ("experiment=a,b", MissingData("zinc is not there"), False),
        ("lr=1,2", UserError("device=cuda:7: there is none"), True),
        ("device=cpu,cuda:7", UserError("device=cuda:7: there is none"), False),
        ("precision=fp32,fp16", UserError("precision=fp16, device=cpu: no"), False),
        ("task=a,b", UserError("monitor=Val/X: not a metric"), False),
        ("model.width=1,-1", UserError("model.width: -1 must be above 0"), False),
        ("lr=1,2", UserError("logger=wandb needs wandb: pip install 'snnexp[wandb]'"), True),
        ("logger=none,wandb", UserError("logger=wandb needs wandb: pip install 'snnexp[wandb]'"), False),
        ("lr=1,2", RuntimeError("anything"), False),
    ],
)
def test_which_faults_all_jobs_share(swept, error, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["snnexp", swept, "T=2", "-m"])
    assert sweep.all_share(error) == expected
