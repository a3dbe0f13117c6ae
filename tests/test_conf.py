"""Every file of conf/: it composes, it fits its constructor, it says what it is."""

from itertools import chain

import pytest

from conftest import composed
from snnexp import app, build, config, targets
from snnexp.config import GROUPS
from snnexp.errors import MissingData

CONF = app.conf_dir()
OPTIONS = sorted(
    (folder.name, path.stem) for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra" for path in folder.glob("*.yaml")
)


def test_all_groups_are_known():
    assert {group for group, _ in OPTIONS} == set(GROUPS)
    assert len(OPTIONS) >= 20


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_and_fits_its_constructor(group, option):
    given = ["dataset.root=somewhere"] if option.endswith("_folder") else []
    whole = composed(f"{group}={option}", *given)  # holds every node to its constructor
    assert whole["choices"][group] == option
    if group == "dataset":
        assert whole["dataset"]["root"] == (given or [f"{whole['data_dir']}/{option}"])[0].removeprefix("dataset.root=")
    if group in ("optimizer", "scheduler", "logger", "task", "dataset", "model"):
        target = whole[group]["_target_"]
        assert target is None or targets.locate(target, trust=[])  # a saved run of ours needs no trust=
        accepted = targets.parameters(targets.locate(target, trust=[])) if target else {}
        settable = set(accepted) - targets.SUPPLIED - {"download"} if str(target).startswith("snnexp") else set()
        assert settable <= set(whole[group]), "every argument of the constructor is a key that --help shows"


@pytest.mark.parametrize("option", sorted(option for group, option in OPTIONS if group == "dataset" and option != "digits_dvs"))
def test_a_data_set_that_is_not_there_says_how_to_get_it(option, tmp_path):
    given = [f"dataset.root={tmp_path / 'none'}"] if option.endswith("_folder") else []
    with pytest.raises(MissingData) as missing:
        build.data(composed(f"dataset={option}", f"data_dir={tmp_path / 'none'}", *given))
    said = str(missing.value)
    assert str(tmp_path / "none") in said
    assert f"snnexp data dataset={option}" in said or "dataset.root" in said or option.endswith("_folder")


@pytest.mark.parametrize("name", ["optuna", "slurm"])
def test_a_preset_of_a_sweep_composes(name):
    pytest.importorskip({"optuna": "hydra_plugins.hydra_optuna_sweeper", "slurm": "hydra_plugins.hydra_submitit_launcher"}[name])
    composed(f"hydra={name}")


@pytest.mark.parametrize("model", sorted(option for group, option in OPTIONS if group == "model"))
@pytest.mark.parametrize("dataset", ["digits_dvs"])
def test_every_model_takes_the_shape_of_the_embedded_data(model, dataset, data_dir):
    whole = composed(f"model={model}", f"dataset={dataset}", f"data_dir={data_dir}", "dataset.size=16", "T=2")
    build.check(whole)


@pytest.mark.parametrize("path", sorted(chain(CONF.rglob("*.yaml"))), ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_begins_with_a_comment_that_says_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# ") and len(lines[0]) > 20
    assert max(map(len, lines)) <= 140


def test_every_key_of_the_top_level_is_explained_in_the_primary_config():
    text = (CONF / "train.yaml").read_text()
    whole = composed()
    for key in config.top_level(whole).__dict__:
        if key not in GROUPS:
            line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
            assert "#" in line or key in ("T", "epochs", "lr", "output_dir", "data_dir", "seed"), f"{key} is not explained"
