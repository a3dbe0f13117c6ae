"""Files as the authors' code saves them: each entry in its place, whatever wraps them; and from such a file to a tested run."""

import hashlib
import importlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY, assert_same, load
from parity import FOLDER, Upstream
from snnexp.contracts import DataSet
from snnexp.engine.weights import transfer
from snnexp.models.vggsnn import VGGSNN
from whole.test_resume import assert_same_run

NAMES = sorted(path.stem for path in FOLDER.glob("*.json")) or ["vggsnn"]  # the one will say why it is skipped
WRAPPINGS = [(name, which) for name in NAMES for which in range({"setvae": 2, "spikformer_cifar": 3, "spikformer_dvs": 3}.get(name, 1))]
WRAPPINGS += [(name, 1) for name in ("svrt", "vrt") if name in NAMES]


def made(upstream: Upstream, **more: object) -> torch.nn.Module:
    """The model of a fixture."""
    module, _, name = upstream.spec["model"]["snnexp"]["class"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**upstream.arguments, **more)


@pytest.mark.parametrize(("name", "which"), WRAPPINGS)
def test_every_entry_of_a_file_finds_its_place(name, which, tmp_path):
    upstream = Upstream(name)
    own = {"embeddings": torch.zeros(9, 40)} if name == "setvae" else {}
    model = made(upstream, **own)
    path = upstream.save(tmp_path, which)
    message, record = transfer.transfer(model, str(path), data=DataSet(), partial=False, arguments={})
    state = model.state_dict()
    for entry, value in upstream.weights().items():
        assert torch.equal(state[entry], value.view(state[entry].shape)), entry
    entries, numbers = record["file_entries"], record["file_numbers"]
    assert entries["all"] == len(upstream.spec["entries"]) == entries["placed"] + entries["without_counterpart"]
    assert numbers["all"] == numbers["placed"] + numbers["without_counterpart"]
    lacking = sum(state[entry].numel() for entry in ("codes", "embeddings") if own)
    assert record["model_numbers"]["filled"] == record["model_numbers"]["all"] - lacking
    assert f"{numbers['placed']:,} of {numbers['placed']:,} numbers of the file" in message
    assert len(upstream.spec["saved_as"]) == sum(each == name for each, _ in WRAPPINGS)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A small VGGSNN under TET's names, wrapped as training scripts do, and its weights under ours."""
    torch.manual_seed(1)
    model = VGGSNN(in_channels=2, num_classes=10, size=16, T=2, width=0.125)
    theirs = {
        name.replace(".conv.", ".fwd.module.").replace("classifier.1", "classifier.module"): v for name, v in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("published") / "model_best.pth.tar"
    content = {
        "epoch": 99,
        "args": Namespace(lr=1e-3),
        "metric": np.float64(81.2),
        "state_dict": {f"module.{n}": v for n, v in theirs.items()},
    }
    torch.save(content, path)
    return path, model.state_dict()


def test_from_a_published_file_to_a_tested_run(published, snnexp, tmp_path):
    path, weights = published
    output = snnexp("train", *TINY, f"init_from={path}", "epochs=0", "exp_name=run", "tracker=[lif,timing]", cwd=tmp_path)
    run, count = tmp_path / "outputs/run", sum(value.numel() for value in weights.values())
    first = next(line for line in output.splitlines() if not line.startswith("Preparing"))
    assert first == f"Weights from {path} (VGGSNN of TET): {count:,} of {count:,} numbers of the file, 100 % of the model's."
    result, provenance = (json.loads((run / name).read_text()) for name in ("result.json", "provenance.json"))
    assert result["init_from"] == provenance["init_from"] and result["init_from"]["file_numbers"]["placed"] == count
    assert result["init_from"]["kept_under"] == "state_dict" and result["init_from"]["prefix"] == "module."
    assert result["init_from"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["epochs"] == 0 and result["best"] is None and 0 <= result["test"]["Acc1"] <= 100
    assert "trained on" not in result["protocol"]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    for name in ("latest", "final"):
        state = load(run / f"checkpoints/checkpoint_{name}.pth")
        assert_same(dict(state["state_dict"]), dict(weights))
        assert state["epoch"] == state["step"] == 0
    assert len(np.load(run / "test_y_pred.npy")) == 32
    assert "nothing is left to do" in snnexp("resume", run, cwd=tmp_path)
    snnexp("evaluate", run, cwd=tmp_path)
    (judged,) = run.glob("evaluations/*/test.json")
    assert json.loads(judged.read_text())["samples"] > 200
    assert "0/0" in snnexp("runs", run.parent, cwd=tmp_path)
    snnexp("analyze", run, cwd=tmp_path)
    assert "0" in (run / "plots/report.txt").read_text()
    assert "0 of 0 epochs" in snnexp("watch", run, "once=true", cwd=tmp_path)


def test_what_was_tested_untrained_trains_on_as_if_it_had_begun_so(published, snnexp, tmp_path):
    path, _ = published
    settings = [*TINY, f"init_from={path}", "ema=0.9"]
    snnexp("train", *settings, "epochs=2", "exp_name=whole", cwd=tmp_path)
    snnexp("train", *settings, "epochs=0", "exp_name=later", cwd=tmp_path)
    later = tmp_path / "outputs/later"
    snnexp("resume", later, "epochs=2", cwd=tmp_path)
    assert_same_run(tmp_path / "outputs/whole", later)
    assert json.loads((later / "result.json").read_text())["init_from"]["file"] == str(path)


def test_what_fits_badly_makes_no_run(published, snnexp, tmp_path):
    path, weights = published
    named = [*TINY, "exp_name=run", f"init_from={path}"]
    output = snnexp("train", *named, "model=vggsnn_woap", cwd=tmp_path, code=2)
    assert "numbers have a place in this model" in output and "init_partial=true" in output
    output = snnexp("train", *named, "dataset.size=32", "epochs=0", cwd=tmp_path, code=2)
    assert "epochs=0 would judge a network of which" in output and "leaves" in output and "classifier.1.weight" in output
    assert "With init_from=FILE, 0 tests the weights" in snnexp("train", *TINY, "epochs=0", cwd=tmp_path, code=2)
    assert not (tmp_path / "outputs").exists()
    output = snnexp("train", *named, "dataset.size=32", "epochs=1", cwd=tmp_path)
    assert "classifier.1 is of another size there; left as initialised: classifier.1.weight, classifier.1.bias" in output
    run = tmp_path / "outputs/run"
    assert json.loads((run / "result.json").read_text())["init_from"]["head_of_another_size"] == "classifier.1"


@pytest.mark.parametrize(
    ("source", "reason"), [("nowhere.pth", "no such file"), ("", "init_from= names nothing"), ("page.pth", "no file of torch.save")]
)
def test_a_file_that_is_none_is_told_before_the_data_are_prepared(source, reason, snnexp, tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    output = snnexp("train", *TINY, f"init_from={source}", f"data_dir={tmp_path}/data", cwd=tmp_path, code=2)
    assert reason in output and "Preparing" not in output
    assert not (tmp_path / "data").exists() and not (tmp_path / "outputs").exists()


def test_judged_elsewhere_a_file_is_told_the_way(published, snnexp, tmp_path):
    path, _ = published
    output = snnexp("evaluate", path, "dataset=digits_dvs", "T=2", "split=test", cwd=tmp_path, code=2)
    assert f"snnexp train init_from={path} epochs=0 model=... dataset=digits_dvs T=2\n" in output
    snnexp("train", *TINY, "epochs=1", "exp_name=run", cwd=tmp_path)
    (tmp_path / "lone.pth").write_bytes((tmp_path / "outputs/run/checkpoints/checkpoint_best.pth").read_bytes())
    output = snnexp("evaluate", "lone.pth", cwd=tmp_path, code=2)
    (command,) = [line.split()[1:] for line in output.splitlines() if line.startswith("  snnexp train")]
    assert command == ["train", "init_from=lone.pth", "epochs=0", "model=vggsnn", "dataset=digits_dvs", "task=classification", "T=2",
                       "model.width=0.125"]  # fmt: skip
    snnexp(*command, *TINY[1:6], "logger=none", "exp_name=judged", cwd=tmp_path)
    (tmp_path / "notes.pth").write_text("none")
    assert "no file of torch.save" in snnexp("evaluate", "notes.pth", cwd=tmp_path, code=2)


def test_an_earlier_run_takes_what_fits(published, snnexp, tmp_path):
    path, _ = published
    named = [*TINY, "model=vggsnn_woap", f"init_from={path}", "init_partial=true", "epochs=1", "exp_name=run", "start=false"]
    snnexp("train", *named, cwd=tmp_path)
    run = tmp_path / "outputs/run"
    settings = json.loads((run / "config.json").read_text())
    del settings["init_partial"]  # as one that was made before there was such a key, and killed before its first step
    (run / "config.json").write_text(json.dumps(settings))
    saved = (run / ".hydra/config.yaml").read_text()
    (run / ".hydra/config.yaml").write_text(saved.replace("init_partial: true\n", ""))
    assert "init_partial" not in (run / ".hydra/config.yaml").read_text()
    output = snnexp("resume", run, cwd=tmp_path)
    assert "Weights from" in output and "left as initialised" in output and "not placed" in output
    assert json.loads((run / "config.json").read_text())["init_partial"] is True
    path.rename(path.with_name("moved"))  # what has begun needs its source no more
    try:
        snnexp("resume", run, "epochs=2", cwd=tmp_path)
    finally:
        path.with_name("moved").rename(path)
