"""Every file of conf/: it composes, it fits its constructor, it says what it is."""

from itertools import chain

import pytest

from conftest import composed
from snnexp import check, config, parts, targets
from snnexp.composing import conf
from snnexp.config import GROUPS
from snnexp.errors import MissingData, UserError

CONF = conf.conf_dir()
OPTIONS = sorted(
    (folder.name, path.stem) for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra" for path in folder.glob("*.yaml")
)

MUST_BE_GIVEN = {
    "image_folder": ["dataset.root=somewhere"],
    "event_folder": ["dataset.root=somewhere"],
    "tu": ["dataset.name=PROTEINS"],
    "ehr_folder": ["dataset.root=somewhere"],
    "video_folder": ["dataset.root=somewhere"],
    "smiles_csv": ["dataset.file=somewhere.csv", "dataset.target=y"],
}
EMBEDDED = ("digits", "digits_dvs", "digits_graph", "synthetic_icu", "photo_pan")
KINDS = {"spiking_gnn": "digits_graph", "seqset_vae": "synthetic_icu", "set_vae": "synthetic_icu"} | dict.fromkeys(
    ("vrt", "svrt", "svrt_small"), "photo_pan"
)
SMALL = {"photo_pan": ["dataset.clips=8", "dataset.size=32", "dataset.crop=32"]}


def test_all_groups_are_known():
    assert {group for group, _ in OPTIONS} == set(GROUPS)
    assert len(OPTIONS) >= 20


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_and_fits_its_constructor(group, option):
    given = MUST_BE_GIVEN.get(option, [])
    whole = composed(f"{group}={option}", *given)  # holds every node to its constructor
    assert whole["choices"][group] == (option.removesuffix("_fast") if group == "tracker" else option)
    if group == "dataset":
        assert whole["dataset"]["root"] == ("somewhere" if option.endswith("_folder") else f"{whole['data_dir']}/{option}")
    if group == "tracker":
        assert list(whole["tracker"]) == ([] if option == "none" else [option.removesuffix("_fast")])
    if group in ("optimizer", "scheduler", "logger", "task", "dataset", "model"):
        target = whole[group]["_target_"]
        assert target is None or targets.locate(target, trust=[])  # a saved run of ours needs no trust=
        accepted = targets.parameters(targets.locate(target, trust=[])) if target else {}
        settable = set(accepted) - set(targets.SUPPLIED.get(group, ())) - {"download"} if str(target).startswith("snnexp") else set()
        assert settable <= set(whole[group]), "every argument of the constructor is a key that --help shows"


@pytest.mark.parametrize("option", sorted(option for group, option in OPTIONS if group == "dataset" and option not in EMBEDDED))
def test_a_data_set_that_is_not_there_says_how_to_get_it(option, tmp_path):
    given = [word.replace("somewhere", f"{tmp_path / 'none'}") for word in MUST_BE_GIVEN.get(option, [])]
    with pytest.raises(MissingData) as missing:
        parts.make_data(composed(f"dataset={option}", f"data_dir={tmp_path / 'none'}", *given))
    said = str(missing.value)
    assert str(tmp_path / "none") in said
    assert f"snnexp data dataset={option}" in said or "dataset.root" in said or "dataset.file" in said


@pytest.mark.parametrize("name", ["optuna", "slurm"])
def test_a_preset_of_a_sweep_composes(name):
    pytest.importorskip({"optuna": "hydra_plugins.hydra_optuna_sweeper", "slurm": "hydra_plugins.hydra_submitit_launcher"}[name])
    composed(f"hydra={name}")


@pytest.mark.parametrize("model", sorted(option for group, option in OPTIONS if group == "model"))
@pytest.mark.parametrize("dataset", EMBEDDED)
def test_every_model_takes_the_shape_of_embedded_data_of_its_kind(model, dataset, data_dir):
    size = SMALL.get(dataset, []) if dataset in KINDS.values() else ["dataset.size=16"]
    whole = composed(f"model={model}", f"dataset={dataset}", f"data_dir={data_dir}", *size, "T=2")
    if dataset == KINDS.get(model) or (model not in KINDS and dataset not in KINDS.values()):
        check.check(whole)
    else:
        with pytest.raises(
            UserError, match=f"model={model} needs .*, which {dataset} does not have|{dataset} are no stays|{dataset} is no video"
        ):
            check.check(whole)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["model=spiking_gnn"], {"dataset": "digits_graph", "task": "graph_classification"}),
        (["model=spiking_gnn", "dataset=zinc"], {"dataset": "zinc", "task": "graph_regression"}),
        (["dataset=mutag", "task=classification"], {"dataset": "mutag", "task": "classification"}),
        (["experiment=spiking_gnn_zinc", "dataset=tu", "dataset.name=X"], {"dataset": "tu", "task": "graph_regression"}),
        (["tracker=[lif,lif_full]"], {"tracker": "lif+lif_full"}),
        (["experiment=sgt_zinc"], {"tracker": "lif", "dataset": "zinc_full"}),
        (["experiment=sgt_zinc", "tracker=none"], {"tracker": "none"}),
    ],
)
def test_a_later_group_suits_the_earlier_ones_and_the_command_line_beats_all(words, chosen):
    choices = composed(*words)["choices"]
    assert {group: choices[group] for group in chosen} == chosen


@pytest.mark.parametrize("path", sorted(chain(CONF.rglob("*.yaml"))), ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_begins_with_a_comment_that_says_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @")]
    assert lines[0].startswith("# ") and len(lines[0]) > 20
    assert max(map(len, lines)) <= 140


def test_every_key_of_the_top_level_is_explained_in_the_primary_config():
    text = (CONF / "train.yaml").read_text()
    whole = composed()
    for key in config.top_level(whole).__dict__:
        if key not in GROUPS:
            line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
            assert "#" in line or key in ("T", "epochs", "lr", "output_dir", "data_dir", "seed"), f"{key} is not explained"
