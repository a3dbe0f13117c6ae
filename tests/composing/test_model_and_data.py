"""Model and data that suit each other, or do not: what is chosen, what is refused before anything is prepared, and what is suggested."""

import pytest
import yaml

from conftest import composed
from snnexp import check, targets
from snnexp.composing import conf, model_and_data
from snnexp.composing.command_line import read_command_line
from snnexp.errors import UserError


def suited(*words: str, command: str = "train") -> list[str]:
    return model_and_data.suitable_model(command, read_command_line(list(words)))


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["dataset=zinc"], ["model=spiking_gnn"]),
        (["dataset=physionet2012", "epochs=3"], ["model=seqset_vae"]),
        (["dataset=gopro"], ["model=svrt_small"]),
        (["dataset=cifar10"], []),  # the default suits it
        (["model=vggsnn", "dataset=zinc"], []),  # whoever chooses one has chosen
        (["dataset=tu", "experiment=spiking_gnn_zinc"], []),
        (["~model", "+model._target_=mine.Mine", "dataset=zinc"], []),
        (["--config-name", "mine", "dataset=zinc"], []),
        (["-m", "dataset=zinc,mutag"], ["model=spiking_gnn"]),
        (["-m", "dataset=zinc,digits_dvs"], []),
        (["dataset=nothing"], []),
        (["dataset=[1"], []),
        (["model.width=2"], []),
    ],
)
def test_a_data_set_names_the_model_for_who_chose_none(words, added):
    assert suited(*words) == added


def test_so_may_one_of_the_users_own_and_a_primary_config_of_theirs_is_a_choice(tmp_path, monkeypatch):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/zinc.yaml").write_text("# @package _global_\n# @model resnet19\n# mine\n")
    monkeypatch.setattr(conf.SearchPath, "in_front", [f"file://{tmp_path}"])
    assert suited("dataset=zinc") == ["model=resnet19"] and suited("dataset=mutag") == ["model=spiking_gnn"]
    (tmp_path / "train.yaml").write_text("")
    assert suited("dataset=mutag") == []


def test_every_model_that_is_named_is_there_and_fits():
    named = {path.stem: model_and_data.header(path).get("model") for path in (conf.conf_dir() / "dataset").glob("*.yaml")}
    assert len([name for name in named.values() if name]) == 17
    for dataset, model in named.items():
        node = yaml.safe_load((conf.conf_dir() / f"dataset/{dataset}.yaml").read_text())["dataset"]
        kind = targets.locate(node["_target_"], trust=[]).kind
        assert (model or "vggsnn") in model_and_data.models_for(kind), dataset


def test_the_models_of_a_kind():
    assert model_and_data.models_for("graphs") == ["spiking_gnn"]
    assert model_and_data.models_for("video") == ["svrt", "svrt_small", "vrt"]
    assert set(model_and_data.models_for("frames")) == {"vggsnn", "vggsnn_woap", "resnet19", "spikformer", "spikformer_dvs"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=zinc", "model=vggsnn"], "model=vggsnn: the model needs in_channels, which zinc does not have: .* Try model=spiking_gnn"),
        (["dataset=cifar10", "model=spiking_gnn"], "num_features, which cifar10 does not have: .* Try model=resnet19, .*model=vggsnn"),
        (["dataset=cifar10", "model=svrt_small"], "the model takes video, and these data are events or images. Try model=resnet19"),
        (["dataset=zinc", "model=spiking_gnn", "task=set_vae"], "task=set_vae: the task is for stays of medical events, .* are graphs"),
        (["dataset=cifar10", "task=deblurring"], "task=deblurring: the task is for video, and these data are events or images"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_data_are_asked_for(words, said):
    with pytest.raises(UserError, match=said):
        model_and_data.check_match(composed(*words, "data_dir=nowhere"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=cifar10", "model.lif.tau=1"], "model.lif.tau: 1 is not allowed"),
        (["dataset=cifar10", "model.lif.surrogate=triangel"], "Did you mean 'triangle'"),
        (["dataset=cifar10", "model.neuron=foo"], "model.neuron: 'foo' is not known"),
        (["dataset=cifar10", "model.width=-1"], "model.width: -1 is not allowed"),
        (["dataset=cifar10", "model=spikformer", "model.heads=5"], "model.heads: 5 does not divide"),
        (["dataset=zinc", "model=spiking_gnn", "model.conv_type=foo"], "model.conv_type: 'foo' is not known"),
        (["dataset=physionet2012", "model=seqset_vae", "model.heads=3"], "multiple of model.heads=3"),
        (["dataset=gopro", "model=svrt_small", "model.encoder=foo"], "foo"),
        (["dataset=gopro", "model=vrt", "model.flow_weights=nothing.pth"], "nothing.pth"),
    ],
)
def test_mistakes_in_the_model_are_found_before_the_data_are_asked_for(words, said):
    with pytest.raises(UserError, match=said):
        check.try_model(composed(*words, "data_dir=nowhere"))


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=cifar10"],
        ["dataset=cifar10", "model.size=7"],  # too small, which the shape of the data is to tell
        ["dataset=digits", "dataset.size=12", "model=spikformer", "model.pools=3"],
        ["dataset=zinc", "model=spiking_gnn", "model.embed_atoms=true"],  # there is data that fits
        ["dataset=gopro", "model=svrt", "dataset.spike_source=none"],  # here it is the data that have no spikes
    ],
)
def test_what_only_the_data_can_tell_is_left_to_them(words):
    check.try_model(composed(*words, "data_dir=nowhere"))


def test_a_model_that_asks_for_special_data_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, in_channels, num_classes):\n"
        "        if in_channels != 4: raise ValueError('four channels')\n        super().__init__(in_channels, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["~model", "+model._target_=own_net.Net", "+model.in_channels=null", "+model.num_classes=null"]
    check.try_model(composed("dataset=cifar10", *own))
