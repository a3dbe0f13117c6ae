"""What goes wrong, as its user is told: one message without a traceback, and nothing lost that was written."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from conftest import EVENTS, TINY, load
from snnexp.engine import loop


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["epcohs=3"], ["there is no key 'epcohs'", "Did you mean 'epochs'"]),
        (["model.widht=2"], ["there is no key 'model.widht'", "Did you mean 'model.width'"]),
        (["model=gnn"], ["Did you mean 'spiking_gnn'"]),
        (["dataset=ZINC"], ["Did you mean 'zinc'"]),
        (["model=spiking_gnn", "conv_type=gin"], ["Did you mean 'model.conv_type'"]),
        (["tracker.lif.save_every=3"], ["no tracker=lif was chosen. Add tracker=lif"]),
        (["+tracker.lif.save_every=3"], ["tracker.lif names no class; choose it with tracker=lif"]),
        (["-m", "seed=0,1", "--cfg", "job"], ["-m and --cfg exclude one another"]),
        (["extra={a: 1}"], ["no key 'extra.a'. (Braces only change keys that exist; '+extra={a: 1}' also adds new ones.)"]),
        (["extra.a=1"], ["there is no key 'extra.a'. (+extra.a=... adds a key of your own.)"]),
        (["extra=3"], ["extra=3: extra takes keys with values; add one with +extra.NAME=VALUE."]),
        (['extra={"a": 1}'], ["cannot be read. The keys in braces have no quotes: KEY={NAME: VALUE}."]),
        (["trust={a: 1}"], ["trust={a: 1}: trust is a list; write trust=[VALUE]."]),
        (["model={widht: 2}"], ["there is no key 'model.widht'. Did you mean 'model.width'?"]),
        (["tracker={lif: 1}"], ["no tracker=lif was chosen. Add tracker=lif"]),
        (["pruner={ratio: 1}"], ["no pruner was chosen. Add pruner=spike_map"]),
        (["--run", "--multirun"], ["--run and --multirun exclude one another"]),
        (["--resolve"], ["--resolve goes with --cfg"]),
        (["lr=???"], ["lr has no value: give it on the command line, lr=VALUE."]),
        (["data_dir=???"], ["data_dir has no value"]),
        (["lr=${nothing}"], ["lr does not resolve: Interpolation key 'nothing' not found."]),
        (["lr=${oc.env:SNNEXP_NOTHING}"], ["lr: ", "Environment variable 'SNNEXP_NOTHING' not found"]),
        (["seed='1"], ["seed='1: cannot be read. A value with spaces, commas, brackets or quotes is quoted twice: seed=\"'1'\"."]),
        (["model=vgsnn"], ["model=vgsnn", "vggsnn, vggsnn_woap", "Did you mean 'vggsnn'"]),
        (["optimzer=sgd"], ["optimzer", "Did you mean 'optimizer'"]),
        (["hydra/launcher=submitit_slrum"], ["hydra/launcher=submitit_slrum"]),
        (["tracker=lif", "tracker.lif.sav_every=3"], ["no key 'tracker.lif.sav_every'. Did you mean 'tracker.lif.save_every'"]),
        (["tracker=[lif,timing]", "tracker.lif.sav_every=3"], ["Did you mean 'tracker.lif.save_every'"]),
        (["pruner=spike_map", "pruner.rato=1"], ["no key 'pruner.rato'. Did you mean 'pruner.ratio'"]),
        (["tracker.lfi.every=3"], ["there is no tracker=lfi; there are lif, lif_full, posterior", "Did you mean 'lif'?"]),
        (["tracker=timing", "tracker.timin.x=3"], ["there is no tracker=timin", "Did you mean 'timing'?"]),
        (["logger.project=x"], ["there is no key 'logger.project' here; logger=wandb has it."]),
        (["+lr=1e-3"], ["+lr: this key is there already; without the plus it is changed: lr=VALUE."]),
        (["model.dim=32"], ["there is no key 'model.dim'.", "(+model.dim=... adds a key of your own.)"]),
        (["optimizer.momentum=0.9"], ["there is no key 'optimizer.momentum' here; optimizer=sgd has it."]),
        (["hydra.sweeper.n_trials=3"], ["no key 'hydra.sweeper.n_trials' here", "hydra=optuna"]),
        (["model=[vggsnn,resnet19]"], ["model takes one option (tracker takes several)", "-m model=vggsnn,resnet19"]),
        (["logger=[tensorboard,wandb]"], ["logger takes one option"]),
        (["lr =1e-3"], ["a key has no blanks around it; write lr=1e-3."]),
        (["=3"], ["settings are KEY=VALUE, and here the key is missing"]),
        (["T=1e1"], ["T=1e1", "It takes a whole number."]),
        (["exp_name=[a]"], ["exp_name is one text; write exp_name=\"'[a]'\"."]),
        (["exp_name=a,b"], ["For one text, write exp_name=\"'a,b'\".", "several values are a sweep"]),
        (["exp_name={a}"], ["quoted twice: exp_name=\"'{a}'\"."]),
        (["exp_name=a\nb"], ["exp_name='a\\nb': it holds a character that cannot be printed"]),
        (["exp_name=a/.5"], ["exp_name=a/.5: `snnexp runs` does not list what begins with a dot"]),
        (["exp_name=" + 300 * "x"], ["File name too long. Choose a shorter exp_name."]),
        (["data_dir="], ["data_dir= names no directory. Write data_dir=. for the one you are in."]),
        (["output_dir="], ["output_dir= names no directory"]),
        (["optimizer.betas=[0.9,0.9,0.9]"], ["optimizer.betas=[0.9, 0.9, 0.9]", "not a list of 3"]),
        (["clip_grad=None"], ["clip_grad=None: for no value write clip_grad=null."]),
        (["early_stop=none"], ["early_stop=none: for no value write early_stop=null."]),
        (["monitor=None"], ["monitor=None: for no value write monitor=null."]),
        (["dataset=image_folder", "dataset.root=None"], ["dataset.root=None: for no value write dataset.root=null."]),
        (["optimizer.fused=None"], ["optimizer.fused=None: for no value write optimizer.fused=null."]),
        (["epochs=None"], ["epochs=None: epochs needs a value"]),
        (["lr=inf"], ["lr=inf: must be greater than 0, and finite."]),
        (["optimizer.weight_decay=nan"], ["optimizer.weight_decay=nan: must be a finite number."]),
        (["optimizer.betas=[0.9,inf]"], ["optimizer.betas=inf: must be a finite number."]),
        (["+extra.größe=1"], ["The name of a key has letters from a to z, digits and _"]),
        (["output_dir=~nobody_at_all/x"], ["output_dir=~nobody_at_all/x: ~nobody_at_all is no user of this machine"]),
        (["epochs=three"], ["epochs=three", "'three'", "Integer"]),
        (["lr=[1]"], ["lr"]),
        (["model=null"], ["model=null: a group takes the name of one of its options"]),
        (["epochs"], ["'epochs' is not a setting; settings are KEY=VALUE"]),
        (["lr=1e-3,1e-2"], ["lr=1e-3,1e-2: several values are a sweep; add -m"]),
        (["lr=[1,"], ["lr=[1,"]),
        (["dataset=cifar10_dvs"], ["snnexp data dataset=cifar10_dvs", "cifar10_dvs"]),
        (["dataset=zinc"], ["snnexp data dataset=zinc"]),  # the model that it names suits it
        (["dataset=zinc", "model=resnet19"], ["needs in_channels, which zinc does not have", "Try model=spiking_gnn"]),
        (["dataset=cifar10_dvs", "model.lif.tau=1"], ["model.lif.tau", "above 1"]),
        (["dataset=cifar10_dvs", "task.lamb=2"], ["task.lamb: 2"]),
        (["dataset=cifar10_dvs", "scheduler.warmup_start=2"], ["scheduler.warmup_start=2"]),
        (["dataset=cifar10_dvs", "tracker=lif", "tracker.lif.splits=[foo]"], ["tracker.lif.splits: 'foo'"]),
        (["dataset=cifar10_dvs", "pruner=spike_map", "pruner.layers=[foo]"], ["pruner.layers: there is no layer 'foo'"]),
        (["dataset=image_folder"], ["dataset.root"]),
        (["monitor=Val/F1"], ["monitor=Val/F1", "Val/Acc1, Val/Acc5, Val/Loss"]),
        (["dataset.size=8"], ["size", "8", "16"]),
        (["dataset.size=1000"], ["dataset.size", "1000", "256"]),
        (["T=0"], ["T=0: must be at least 1"]),
        (["optimizer.decay=foo"], ["optimizer.decay=foo: not one of all, weights"]),
        (["model.lif.tau=1"], ["model.lif.tau", "above 1"]),
        (["model.lif.surrogate=triangel"], ["triangel", "Did you mean 'triangle'"]),
        (["precision=fp16", "device=cpu"], ["fp16", "bf16"]),
        (["device=cuda:7"], ["device=cuda:7"]),
        (["sync_bn=true", "device=cpu"], ["sync_bn=true needs CUDA"]),
        (["logger._target_=snnexp.loggers.nothing.X"], ["snnexp.loggers", "nothing"]),
        (["--cofnig-dir", "x"], ["--cofnig-dir"]),
    ],
)
def test_a_mistake_is_one_message_with_the_nearest_right_word(words, expected, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SNNEXP_DATA", str(tmp_path / "nothing"))
    message = said("train", *words, code=2)
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").iterdir())  # no run was begun


@pytest.mark.parametrize(
    ("name", "text", "word", "expected"),
    [
        ("tracker/own", "_target_: own_parts.OwnTracker\n", "tracker=own", "lacks its first line, `# @package tracker.NAME`"),
        ("dataset/own", "T: 2\ndataset:\n  _target_: own_axes.Noise\n", "dataset=own", "it needs `# @package _global_` as its first line"),
        ("dataset/own", "T: 2\n", "dataset=own", "it needs a line `_target_: package.module.Class`"),
    ],
)
def test_a_file_without_its_header_is_told(name, text, word, expected, said, tmp_path):
    (tmp_path / "conf" / name).parent.mkdir(parents=True)
    (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    assert expected in said("train", "--config-dir", "conf", word, code=2)


def test_a_model_made_for_another_shape_is_told_in_words(said, tmp_path):
    message = said("train", *TINY, "model.size=32", "exp_name=run", code=2)
    assert "[T, N, 2, 32, 32]" in message and "16, 16" in message
    assert json.loads((tmp_path / "outputs/run/status.json").read_text())["state"] == "failed"


def test_a_view_whose_axes_are_in_another_order_is_told_with_its_line(said, tmp_path, monkeypatch):
    (tmp_path / "own_axes.py").write_text(
        "import torch\nclass Noise:\n"
        "    shape, classes, splits = (2, 1, 16, 16), ('a', 'b'), {'train': 8, 'val': 0, 'test': 0}\n"
        "    provides, protocol = {'in_channels': 1, 'num_classes': 2, 'size': 16}, 'noise'\n"
        "    def __len__(self): return 8\n"
        "    def view(self, split, augment=False): return self\n"
        "    def __getitems__(self, keys):\n"
        "        return torch.rand(len(keys), *self.shape), torch.zeros(len(keys), dtype=torch.int64)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = said("train", *[word for word in TINY if "dataset" not in word], "~dataset", "+dataset._target_=own_axes.Noise", code=2)
    assert "x float32 [3, 2, 1, 16, 16], where [2, 3, 1, 16, 16] was expected: [T, N, C, H, W], time first" in message
    assert "(own_axes.py:7)" in message and not (tmp_path / "outputs").exists()


def test_a_truncated_event_file_is_named_with_its_byte(said, events, tmp_path):
    shutil.copytree(events, tmp_path / "cut", ignore=shutil.ignore_patterns(".cache", "cache*", "prepared*"))
    path = tmp_path / "cut/cifar10_dvs/cat/cifar10_cat_3.aedat"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    message = said("train", *EVENTS, "data_dir=cut", code=2)
    assert "cifar10_cat_3.aedat" in message and re.search(rf"byte {len(whole) - 8}\b", message), message


def test_a_loss_that_explodes_stops_the_run_in_words(said, tmp_path):
    message = said("train", *TINY, "lr=1e30", "scheduler=none", "exp_name=run", code=1)
    found = re.search(r"the loss is (nan|inf) at step (\d+) .epoch 1., learning rate 1e\+30; the last finite loss was (\d\.\d+)", message)
    assert found and int(found[2]) > 1
    run = tmp_path / "outputs/run"
    assert load(run / "checkpoints/checkpoint_error.pth")["step"] == int(found[2]) - 1
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1) and "the loss is" in status["error"]
    assert "failed" in said("runs") and message.count("snnexp resume") == 1
    advice = shlex.split(re.search(r"snnexp (resume .*)", message)[1])
    said(*advice, "lr=1e-3", "epochs=1")  # what it advises does work, at a rate of this world
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_an_error_inside_training_saves_and_tells_where(said, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(loop, "update", fail)
    message = said("train", *TINY, "exp_name=run", code=1)
    assert "ValueError: a mistake of ours" in message and "train.log" in message
    assert "Traceback" in (tmp_path / "outputs/run/logs/train.log").read_text()
    assert (tmp_path / "outputs/run/checkpoints/checkpoint_error.pth").exists()


def test_a_batch_too_small_for_batch_norm_is_told_before_the_run(said, tmp_path):
    words = [*TINY, "T=1", "limit_train=17", "model=vggsnn_woap", "batch_size=16", "exp_name=run"]
    message = said("train", *words, code=2)
    assert "batch_size=16: 17 training samples leave a batch of one sample" in message and "Take batch_size=15 or 17" in message
    assert not (tmp_path / "outputs").exists()
    for number, word in enumerate(["batch_size=17", "T=2", "limit_train=18", "model=vggsnn"]):  # vggsnn normalises before it pools
        said("train", *words, word, "epochs=1", f"exp_name=run{number}")


def test_a_full_disk_keeps_what_was_written(said, environment, tmp_path):
    """A limit on the size of a file stands for the disk: metrics and status fit, a checkpoint does not."""
    said("train", *TINY, "debug=one_step", "exp_name=before")  # the prepared data would not fit either
    command = f"ulimit -f 900; exec {sys.executable} -m snnexp.cli train {' '.join(TINY)} exp_name=run"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "raise it (ulimit -f)" in done.stderr and "snnexp resume" in done.stderr
    run = tmp_path / "outputs/run"
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert list((run / "checkpoints").iterdir()) == []
    assert json.loads((run / "logs/metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1


def test_foreign_and_damaged_checkpoints_are_refused(trained, said, tmp_path):
    run = tmp_path / "outputs/copy"
    shutil.copytree(trained[0], run)
    latest, final = run / "checkpoints/checkpoint_latest.pth", run / "checkpoints/checkpoint_final.pth"
    latest.unlink()
    latest.write_bytes(final.read_bytes()[:-1000])
    message = said("resume", run, "epochs=3", code=2)
    assert "checkpoint_latest.pth" in message and "not a whole checkpoint" in message and "checkpoint_final.pth" in message
    torch.save({"net": {}}, latest)
    assert "not a checkpoint of snnexp" in said("resume", run, "epochs=3", code=2)
    saved = load(final)
    saved["state_dict"] = {f"x.{name}": value for name, value in saved["state_dict"].items()}
    torch.save(saved, latest)
    assert "does not fit the model" in said("resume", run, "epochs=3", code=2)
    (tmp_path / "notes.txt").write_text("")
    assert "neither a run directory nor a checkpoint" in said("resume", tmp_path / "notes.txt", code=2)
    (run / "config.json").write_text("{")
    assert "cannot read" in said("resume", run, code=2)
    (run / "config.json").unlink()
    assert "no config.json" in said("resume", run, code=2)
    assert "It holds the runs" in said("evaluate", trained[0].parent, code=2)


EVIL = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Net:\n    def __init__(self, **given): pathlib.Path({mark!r}).touch()\n"


@pytest.mark.parametrize(
    "call", ["${oc.env:HOME}", '"\\x24{oc.env:HOME}"', "${oc.${mine.e}:HOME}", "[1, '${ oc.env : HOME}']", "{a: '${oc.decode:${T}}'}"]
)
def test_a_strangers_run_directory_reads_no_environment(call, trained, said, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text() + f"mine:\n  e: env\n  stolen: {call}\n")
    output = said("evaluate", run, "--cfg", "job", "--resolve", code=2)
    assert "mine.stolen" in output and "in a saved run is not resolved" in output and str(Path.home()) not in output.replace(str(run), "")


def test_a_strangers_run_directory_runs_no_code(trained, said, tmp_path, monkeypatch):
    run, mark = tmp_path / "outputs/strange", tmp_path / "mark"
    (tmp_path / "evil_module.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(trained[0], run)
    path = run / ".hydra/config.yaml"
    whole = yaml.safe_load(path.read_text())
    spoilt = {
        "a target": whole | {"model": whole["model"] | {"_target_": "evil_module.Net"}},
        "a target that it trusts itself": whole | {"trust": ["evil_module"], "model": whole["model"] | {"_target_": "evil_module.Net"}},
        "a target in a list": whole | {"extra": {"these": [{"_target_": "evil_module.Net"}]}},
        "a callback of Hydra": whole | {"hydra": {"callbacks": {"x": {"_target_": "evil_module.Net"}}}},
        "a launcher of Hydra": whole | {"hydra": {"launcher": {"_target_": "evil_module.Net"}, "mode": "MULTIRUN"}},
    }
    for name, config in spoilt.items():
        path.write_text(yaml.safe_dump(config))
        refused = "Hydra" not in name
        for command in (["evaluate", run], ["resume", run, "epochs=3", "--cfg", "job"] if not refused else ["resume", run, "epochs=3"]):
            message = said(*command, code=2 if refused else 0)
            assert not refused or "add trust=[evil_module]" in message, name
            assert not mark.exists(), f"{name}: {command}"
    path.write_text(yaml.safe_dump(spoilt["a target"]))
    assert "not a model" in said("evaluate", run, "trust=[evil_module]", code=2)  # with the user's word for it, it is looked at
    assert mark.exists()


def test_all_packages_that_need_trust_are_named_at_once(trained, said, tmp_path, monkeypatch):
    run = tmp_path / "outputs/strange"
    shutil.copytree(trained[0], run)
    path = run / ".hydra/config.yaml"
    whole = yaml.safe_load(path.read_text())
    foreign = {"model": {"_target_": "one.Net"}, "task": {"_target_": "two.Task"}, "extra": {"a": {"_target_": "three.Part"}}}
    path.write_text(yaml.safe_dump(whole | foreign))
    for command in (["evaluate", run], ["resume", run, "epochs=3"], ["train", f"from={run}"]):
        assert "add trust=[one,three,two]" in said(*command, code=2)
    assert "add trust=[one,three,two]" in said("evaluate", run, "trust=[two]", code=2)
    for name, base in (("one", "defined_a"), ("two", "defined_b")):
        (tmp_path / f"{base}.py").write_text("class Net: ...\nclass Task: ...\n")
        (tmp_path / f"{name}.py").write_text(f"from {base} import Net, Task\n")
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text(yaml.safe_dump(whole | {"extra": {"a": {"_target_": "one.Net"}, "b": {"_target_": "two.Task"}}}))
    assert "add trust=[defined_a,defined_b,one,two]" in said("evaluate", run, "trust=[one,two]", code=2)
    for name in ("one", "two", "defined_a", "defined_b"):
        sys.modules.pop(name, None)


def test_a_model_of_ones_own_trains_and_is_judged_with_trust(said, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("from snnexp.models.vggsnn import VGGSNN\nclass Net(VGGSNN): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    said("train", *TINY, "epochs=1", "model._target_=own_module.Net", "exp_name=own")
    assert json.loads((tmp_path / "outputs/own/config.json").read_text())["trust"] == ["own_module"]
    assert "trust=[own_module]" in said("evaluate", "outputs/own", code=2)
    assert "Acc1" in said("evaluate", "outputs/own", "trust=[own_module]")
    said("resume", "outputs/own", "epochs=2", "trust=[own_module]")
