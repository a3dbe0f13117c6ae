"""The configuration as a whole: ranges, nodes against their constructors, what a saved run may name."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conftest import composed
from snnexp import config, targets
from snnexp.errors import UserError


def settings(**changes: object) -> dict:
    return composed("data_dir=somewhere") | changes


def node(**arguments: object) -> dict:
    given = {"in_channels": None, "num_classes": None, "size": None, "T": 4} | arguments
    return {"model": {"_target_": "snnexp.models.vggsnn.VGGSNN"} | given}


def test_it_resolves_to_plain_values():
    whole = composed("T=7", "lr=0.25", "data_dir=/elsewhere", "model=resnet19", "+extra.mine=3", "model.lif.tau=4")
    assert whole["T"] == whole["model"]["T"] == whole["dataset"]["T"] == 7
    assert whole["optimizer"]["lr"] == 0.25 and whole["dataset"]["root"] == "/elsewhere/digits_dvs"
    assert whole["model"]["lif"]["tau"] == 4 and whole["extra"] == {"mine": 3}
    assert whole["choices"] == {
        "model": "resnet19", "dataset": "digits_dvs", "task": "classification", "optimizer": "adam", "scheduler": "cosine",
        "logger": "tensorboard", "tracker": "none", "pruner": "none", "experiment": None, "debug": None,
    }  # fmt: skip
    assert config.top_level(whole).T == 7
    assert whole["trust"] == []


def test_what_suits_a_data_set_is_beaten_by_an_experiment_and_that_by_the_command_line():
    assert composed("dataset=cifar10_dvs")["T"] == 10
    whole = composed("experiment=tet_cifar10_dvs")
    assert (whole["epochs"], whole["seed"], whole["choices"]["dataset"]) == (100, 1000, "cifar10_dvs")
    assert composed("experiment=tet_cifar10_dvs", "epochs=3")["epochs"] == 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs=0", "epochs=0: must be at least 1"),
        ("T=0", "T=0: must be at least 1"),
        ("batch_size=-1", "batch_size=-1"),
        ("workers=-1", "workers=-1: must be at least 0"),
        ("keep_last=0", "keep_last=0"),
        ("seed=-1", "seed=-1"),
        ("seed=9223372036854775808", "below 2.63"),
        ("exp_name=../up", "exp_name=.*a name below output_dir=outputs"),
        ("lr=0", "lr=0.0: must be greater than 0"),
        ("lr=nan", "lr=nan: must be greater than 0"),
        ("lr=inf", "lr=inf: must be greater than 0, and finite"),
        ("save_minutes=0", "save_minutes=0"),
        ("clip_grad=-1", "clip_grad=-1"),
        ("ema=1", "ema=1.0: the decay must lie between 0 and 1"),
        ("precision=bf61", "precision=bf61: not one of auto, fp32, tf32, bf16, fp16, fp32_or_tf32. Did you mean 'bf16'"),
        ("device=gpu", "device=gpu: not one of auto, cpu, cuda, cuda:N"),
        ("device=cuda:x", "device=cuda:x"),
        ("batch_size=3 devices=4", "batch_size=3: must be at least devices=4"),
        ("~dataset", "dataset has no value"),
        ("model.widht=2", "widht"),
        ("+model.widht=2", "model.widht: snnexp.models.vggsnn.VGGSNN takes no argument 'widht'. Did you mean 'width'"),
        ("model.width=wide", "model.width='wide': snnexp.models.vggsnn.VGGSNN wants float, not str"),
        ("dataset.size=24.5", "dataset.size=24.5: .* wants int, not float"),
        ("dataset.roll=true", "dataset.roll=True: .* wants int, not bool"),
        ("dataset.flip=1", "dataset.flip=1: .* wants bool, not int"),
        ("model.lif=3", "model.lif=3: .* wants dict"),
        ("optimizer._target_=torch.optim.Adan", "torch.optim has no 'Adan'. Did you mean 'Adam'"),
        ("optimizer._target_=torhc.optim.Adam", "there is no module 'torhc'"),
        ("optimizer._target_=torch.nn.functional.relu", "is not a class"),
        ("~model.T", "model: snnexp.models.vggsnn.VGGSNN needs the argument 'T'; give .model.T=VALUE"),
        ("+logger.run_dir=elsewhere", "logger.run_dir=.elsewhere.: the runner itself supplies"),
        ("+extra.x=${nowhere}", "nowhere"),
    ],
)
def test_a_mistake_is_named(setting, words):
    with pytest.raises(Exception, match=words):
        composed(*setting.split())


def test_numbers_fit_where_they_lose_nothing():
    targets.check_nodes(node(width=1))  # an int is a float
    targets.check_nodes(node(lif=None))
    targets.check_nodes({"task": {"_target_": "snnexp.tasks.classification.Classification", "means": 1}})
    for wrong in ({"width": True}, {"width": "1"}, {"T": 4.0}, {"T": True}, {"T": None}, {"neuron": 3}, {"lif": [1]}):
        with pytest.raises(UserError, match=f"model.{next(iter(wrong))}="):
            targets.check_nodes(node(**wrong))


def test_what_the_data_supply_may_be_left_open():
    targets.check_nodes(node())
    with pytest.raises(UserError, match="needs the argument 'T'"):
        targets.check_nodes({"model": {"_target_": "snnexp.models.vggsnn.VGGSNN"}})


def test_nodes_are_found_in_lists_and_under_extra():
    with pytest.raises(UserError, match="extra.these.1.T="):
        targets.check_nodes({"extra": {"these": [{}, node(T="x")["model"]]}})


class Open:
    def __init__(self, a: int, **rest: object) -> None: ...


def test_a_constructor_that_takes_anything_takes_anything(monkeypatch):
    monkeypatch.setitem(sys.modules, "opened", sys.modules[__name__])
    targets.check_nodes({"extra": {"_target_": "opened.Open", "a": 1, "anything": "goes"}})
    with pytest.raises(UserError, match="extra.a='x'"):
        targets.check_nodes({"extra": {"_target_": "opened.Open", "a": "x"}})


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "names code outside snnexp"),
        ("subprocess.Popen", "names code outside snnexp"),
        ("builtins.eval", "names code outside snnexp"),
        ("snnexp.rundir.shutil.rmtree", "has no 'shutil'"),
        ("snnexp.engine.checkpoint.shutil.rmtree", "is not a class"),
        ("snnexp.provenance.subprocess.Popen", "which a saved run may not name without trust=.subprocess"),
        ("snnexp.rundir.Path", "may not name without trust=.pathlib"),
        ("torch.hub.load", "is not a class"),
        ("torch.load", "is not a class"),
        ("torch.jit.load", "is not a class"),
        ("torch.utils.tensorboard.SummaryWriter", "may not name"),
        ("torch.utils.data.DataLoader", "may not name"),
        ("torch.os.system", "is not a class"),
        ("torch", "is not a class|no module"),
        ("snnexp.models.nothing.Net", "has no 'nothing'"),
        ("snnexp.data.video.gopro.GoPro", "is now .*VideoFolders with the settings of dataset=gopro"),
    ],
)
def test_a_saved_run_may_name_only_what_is_trusted(target, reason):
    with pytest.raises(UserError, match=reason):
        targets.locate(target, trust=[])


def test_what_a_saved_run_may_name():
    assert targets.locate("snnexp.models.vggsnn.VGGSNN", trust=[]).__name__ == "VGGSNN"
    assert targets.locate("torch.optim.SGD", trust=[]).__name__ == "SGD"
    assert targets.locate("torch.nn.Linear", trust=[]).__name__ == "Linear"
    assert targets.locate("pathlib.Path", trust=["pathlib"]) is Path


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's: it leaves a mark when it is imported."""
    mark = tmp_path / "imported"
    (tmp_path / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nfrom snnexp.models.vggsnn import VGGSNN\nclass Net(VGGSNN): ...\n")
    (tmp_path / "broken.py").write_text("def x(:\n")
    (tmp_path / "needy.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    for name in ("theirs", "broken", "needy"):
        sys.modules.pop(name, None)


def test_untrusted_code_is_not_even_imported(own_package):
    foreign = settings(model=node()["model"] | {"_target_": "theirs.Net"})
    with pytest.raises(UserError, match="add trust=.theirs."):
        targets.check_nodes(foreign, trust=[])
    assert not own_package.exists()
    targets.check_nodes(foreign, trust=["theirs"])
    assert own_package.exists()


def test_the_users_own_configuration_is_trusted_and_says_whom(own_package):
    assert composed("model._target_=theirs.Net")["trust"] == ["theirs"]


def test_a_module_that_does_not_import_says_why(own_package):
    with pytest.raises(UserError, match="importing broken failed: SyntaxError: .*line 1"):
        targets.locate("broken.Net", trust=None)
    with pytest.raises(UserError, match="importing needy failed: No module named 'nowhere_at_all'"):
        targets.locate("needy.Net", trust=None)


def test_differences_are_those_that_change_the_training():
    before = settings()
    assert config.differences(before, settings(workers=4, epochs=9, output_dir="x", save_freq=1, trust=["x"])) == []
    assert config.differences(before, settings(lr=0.5, T=8)) == ["T 4 -> 8", "lr 0.001 -> 0.5"]
    changed = settings()
    changed["model"] = changed["model"] | {"width": 0.5, "of_mine": 1}
    assert config.differences(before, changed) == ["model.of_mine unset -> 1", "model.width 1.0 -> 0.5"]


LEFT_OUT = [("model", "pool"), ("optimizer", "decay"), ("optimizer", "betas"), ("dataset", "normalise"), ("scheduler", "per_epoch")]


def test_a_key_that_a_node_lacks_is_what_its_class_does_without():
    now, before = settings(), settings()
    for group, key in (
        ("model", "pool"),
        ("optimizer", "decay"),
        ("optimizer", "betas"),
        ("dataset", "normalise"),
        ("scheduler", "per_epoch"),
    ):
        before[group] = {name: value for name, value in before[group].items() if name != key}
    assert config.differences(before, now) == config.differences(now, before) == []
    now["optimizer"], now["dataset"] = now["optimizer"] | {"decay": "weights"}, now["dataset"] | {"normalise": "none"}
    assert config.differences(before, now) == ["dataset.normalise rms -> none", "optimizer.decay all -> weights"]
    assert "pool" not in before["model"]


SEEN = {
    "root": "/data", "seed": 0, "frames": 6, "stride": None, "spike_source": "simulated", "spike_size": None, "theta": 1.0,
    "sub_frames": 8, "sensor_seed": 0, "spikes": "voxel", "window": 25, "bins": 5, "crop": 192, "crops": 1, "flip": True, "reverse": True,
    "tfp_window": 9,
}  # fmt: skip
"""What gopro, dvd and reds had in common in config.json when each was a class."""


@pytest.mark.parametrize(
    "target, own",
    [
        ("snnexp.data.video.gopro.GoPro", {"gamma": False, "val_fraction": 0.1}),
        ("snnexp.data.gopro.GoPro", {"gamma": True, "val_fraction": 0.1}),
        ("snnexp.data.video.dvd.DVD", {"test_clips": None, "val_fraction": 0.1}),
        ("snnexp.data.dvd.DVD", {"test_clips": ["a"], "val_fraction": 0.2}),
        ("snnexp.data.video.reds.REDS", {"test_clips": None}),  # which leaves its class's own val_fraction out
    ],
)
def test_a_class_that_became_settings_of_another_is_what_its_file_is_today(target, own):
    earlier = settings(dataset={"_target_": target} | SEEN | own)
    config.fill_in_earlier(earlier)
    changes = [f"dataset.{name}={value}" for name, value in own.items() if value is not None]
    changes = [word.replace("['a']", "[a]").replace("True", "true") for word in changes]
    today = composed(f"dataset={target.rpartition('.')[2].lower()}", "model=svrt_small", "data_dir=somewhere", *changes)["dataset"]
    # Pictures are decoded as they were.
    differing = config.differences({"dataset": today | {"root": "/data"}}, {"dataset": earlier["dataset"]}, ignoring=set())
    assert [line.split()[0] for line in differing] == ["dataset.decoding"]
    assert earlier["dataset"]["decoding"] == 1
    targets.check_nodes({"dataset": earlier["dataset"]}, trust=[])


@pytest.mark.parametrize("target", ["snnexp.data.cifar.CIFAR10", "snnexp.data.frames.image_folder.ImageFolder"])
def test_arguments_that_nobody_read_are_taken_out_of_earlier_runs(target):
    read = {"_target_": target, "root": "somewhere", "size": 32}
    earlier = settings(dataset=read | {"T": 4} | ({"download": False} if "image_folder" in target else {}))
    config.fill_in_earlier(earlier)
    added = {"decoding": 1} if "image_folder" in target else {}
    assert earlier["dataset"] == read | {"_target_": target.replace("data.cifar", "data.frames.cifar")} | added
    targets.check_nodes({"dataset": earlier["dataset"]}, trust=[])


def test_a_layout_of_ones_own_is_given_on_the_command_line():
    words = ["dataset.blurry='{clip}/input'", "dataset.sharp='{part}/{clip}'", """dataset.parts={train:'{clip}',val:'val_{clip}'}"""]
    words += ["model=svrt_small", "dataset.root=clips", "dataset.test_clips=[walk,street]"]
    chosen = composed("dataset=video_folder", *words)["dataset"]
    assert (chosen["blurry"], chosen["sharp"]) == ("{clip}/input", "{part}/{clip}") and chosen["test_clips"] == ["walk", "street"]
    assert chosen["parts"] == {"train": "{clip}", "val": "val_{clip}"}


@pytest.mark.parametrize("target", ["snnexp.data.stays.ehr_folder.EHRFolder", "users_data.Stays"])
def test_every_path_of_a_data_set_is_made_absolute(target, tmp_path, monkeypatch):
    (tmp_path / "users_data.py").write_text(
        "from pathlib import Path\nclass Stays:\n    def __init__(self, root: str, embeddings: Path | None = None, outcome=''): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    node = {"_target_": target, "root": "~/stays", "embeddings": "names.csv", "file": "${table}", "outcome": "a/b"}
    cfg = OmegaConf.create({"data_dir": "data", "init_from": None, "table": "t.csv", "trust": [], "dataset": node})
    config.anchor_paths(strange := cfg.copy(), saved=True)
    config.anchor_paths(cfg)
    changed = {"root": str(Path.home() / "stays"), "embeddings": str(tmp_path / "names.csv"), "file": str(tmp_path / "t.csv")}
    assert OmegaConf.to_container(cfg, resolve=False)["dataset"] == node | changed and cfg.data_dir == str(tmp_path / "data")
    is_ours = target.startswith("snnexp.")
    assert (strange.dataset.embeddings == "names.csv") != is_ours, "the class of a stranger was imported to learn its arguments"
    assert strange.dataset.root == changed["root"]
    sys.modules.pop("users_data", None)


def test_the_paths_of_every_part_are_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "parts_with_paths.py").write_text(
        "from os import PathLike\nfrom pathlib import Path\nclass Part:\n    paths = ('table',)\n"
        "    def __init__(self, a: Path, b: str | PathLike | None, many: list[Path], by: dict[str, Path], text: str, "
        "table: str = '', part=0): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/one")
    part = {"_target_": "parts_with_paths.Part", "a": "x", "b": "~/y", "many": ["p", "/q"], "by": {"k": "v"}, "text": "./t", "table": "u"}
    nodes = {"model": part | {"part": part}, "tracker": {"own": part}, "task": part | {"a": "${extra.here}", "b": "${data_dir}/z"}}
    top = {
        "data_dir": "~/data",
        "init_from": "../w.pth",
        "output_dir": "~/runs",
        "trust": [],
        "extra": {"here": "./h", "text": "a/b", "n": 1},
    }
    cfg = OmegaConf.create(nodes | top)
    one = cfg.copy()
    config.anchor_paths(one, only={"model.a", "tracker"})
    config.anchor_paths(cfg)
    here = str(tmp_path)
    done = {
        "a": f"{here}/x",
        "b": "/home/of/one/y",
        "many": [f"{here}/p", "/q"],
        "by": {"k": f"{here}/v"},
        "text": "./t",
        "table": f"{here}/u",
    }
    found = OmegaConf.to_container(cfg, resolve=False)
    assert found["tracker"]["own"] == found["model"]["part"] == part | done and found["model"]["a"] == f"{here}/x"
    assert found["task"] == part | done | {"a": "${extra.here}", "b": "${data_dir}/z"}  # which follow others that are absolute now
    assert (found["data_dir"], found["init_from"], found["output_dir"]) == (
        "/home/of/one/data",
        str(tmp_path.parent / "w.pth"),
        "/home/of/one/runs",
    )
    assert found["extra"] == {"here": f"{here}/h", "text": "a/b", "n": 1}
    only = OmegaConf.to_container(one, resolve=False)
    assert only == nodes | top | {"model": part | {"a": f"{here}/x", "part": part}, "tracker": {"own": part | done}}
    sys.modules.pop("parts_with_paths", None)


def test_the_nearest_word():
    assert config.nearest("modle", ["model", "dataset"]) == " Did you mean 'model'?"
    assert config.nearest("zzz", ["model", "dataset"]) == ""
