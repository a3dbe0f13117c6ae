"""snnexp train from=RUN, and the command that a run remembers."""

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import IO, Any

import pytest

from conftest import GRAPHS

QUICK = [*GRAPHS, "epochs=1"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def said_of(run: Path) -> str:
    return read(run / "provenance.json")["command"]


@pytest.fixture(scope="module")
def source(snnexp, tmp_path_factory) -> Path:
    """A run with a difficult name and keys of its user's own."""
    cwd = tmp_path_factory.mktemp("source")
    words = ["tracker=lif", "optimizer=adamw", "optimizer.weight_decay=0.25", "lr=0.002", "+mine=7", "+extra.a=1", "shapes=true"]
    snnexp("train", *QUICK, *words, "exp_name='a = 1, b'", cwd=cwd)
    return cwd / "outputs/a = 1, b"


def test_a_new_run_with_the_configuration_of_another(snnexp, source, tmp_path):
    snnexp("train", f"from={source}", "seed=3", "model.width=8", "exp_name=new", cwd=tmp_path)
    before, after = read(source / "config.json"), read(tmp_path / "outputs/new/config.json")
    changed = {"seed": 3, "exp_name": "new", "shapes": False, "model": before["model"] | {"width": 8}}
    assert after == before | changed and after["mine"] == 7 and after["optimizer"]["weight_decay"] == 0.25
    assert after["choices"]["optimizer"] == "adamw" and after["choices"]["tracker"] == "lif"
    assert (tmp_path / "outputs/new/lif_activation_stats.json").exists()
    first, second = (read(run / "result.json") for run in (source, tmp_path / "outputs/new"))
    assert first["parameters"] > second["parameters"]


def test_the_same_again_is_the_same(snnexp, source, tmp_path):
    snnexp("train", f"from={source / 'checkpoints/checkpoint_best.pth'}", "exp_name=again", cwd=tmp_path)
    assert (source / "logs/metrics.jsonl").read_bytes() == (tmp_path / "outputs/again/logs/metrics.jsonl").read_bytes()


def test_another_option_replaces_a_group_as_a_whole(snnexp, source, tmp_path):
    words = ["optimizer=sgd", "tracker=[lif,timing]", "dataset=digits", "model=vggsnn", "model.width=0.125", "dataset.size=16"]
    snnexp("train", f"from={source}", *words, "task=classification", "exp_name=other", cwd=tmp_path)
    after = read(tmp_path / "outputs/other/config.json")
    assert "betas" not in after["optimizer"] and after["optimizer"]["_target_"] == "torch.optim.SGD" and after["optimizer"]["lr"] == 0.002
    assert list(after["tracker"]) == ["lif", "timing"] and "conv_type" not in after["model"]
    assert {name: after["choices"][name] for name in ("model", "dataset", "task", "tracker", "scheduler")} == {
        "model": "vggsnn", "dataset": "digits", "task": "classification", "tracker": "lif+timing", "scheduler": "cosine",
    }  # fmt: skip


def test_a_sweep_over_it_and_commands_that_work_when_pasted(snnexp, source, tmp_path):
    snnexp("train", "-m", f"from={source}", "seed=1,2", "exp_name=sweep", cwd=tmp_path)
    run = tmp_path / "outputs/sweep/1_seed=2"
    assert said_of(run) == shlex.join(["snnexp", "train", f"from={source}", "seed=2"])
    snnexp(*shlex.split(said_of(run))[1:], cwd=tmp_path)  # where the sweep still lies
    (again,) = (path.parent for path in (tmp_path / "outputs").glob("*/config.json"))
    assert read(again / "config.json") == read(run / "config.json") | {"exp_name": None}
    assert (again / "logs/metrics.jsonl").read_bytes() == (run / "logs/metrics.jsonl").read_bytes()


def test_a_command_keeps_what_the_users_own_configs_need(snnexp, tmp_path):
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/own.yaml").write_text("_target_: torch.optim.SGD\nlr: ${lr}\n")
    (tmp_path / "mine/main.yaml").write_text("defaults: [train, _self_]\nlr: 0.03\n")
    words = ["--config-dir", "mine", "--config-name", "main", "optimizer=own", "exp_name=run"]
    snnexp("train", *QUICK, *words, cwd=tmp_path)
    command = shlex.split(said_of(tmp_path / "outputs/run"))
    assert command[-4:] == ["--config-dir", str(tmp_path / "mine"), "--config-name", "main"] and "exp_name=run" not in command
    snnexp(*command[1:], cwd=tmp_path)
    (again,) = (path for path in (tmp_path / "outputs").glob("spiking_gnn*/config.json"))
    assert read(again) == read(tmp_path / "outputs/run/config.json") | {"exp_name": None} and read(again)["lr"] == 0.03


def test_what_made_a_pruned_run_names_its_source(snnexp, source, tmp_path):
    words = ["pruner.ratio=0.3", "stages=[prune]", "pruner.calibration_samples=32"]
    snnexp("prune", source, *words, "exp_name=pruned", cwd=tmp_path)
    command = said_of(tmp_path / "outputs/pruned")
    assert shlex.split(command) == ["snnexp", "prune", str(source), *words]
    snnexp(*shlex.split(command)[1:], cwd=tmp_path)
    message = snnexp("train", f"from={tmp_path / 'outputs/pruned'}", cwd=tmp_path, code=2)
    assert "was made by pruning" in message and str(source) in message


def test_mistakes(said, source, tmp_path):
    for words, message in (
        (["from="], "which run"),
        (["from=nowhere"], "no such run directory"),
        ([f"from={source}", f"from={source}"], "which run"),
        ([f"from={source}", "--config-name", "mine"], "leave out one of the two"),
        ([f"from={source}", "optimizer=adma"], "Did you mean 'adam'"),
        ([f"from={source}", "model.widht=3"], "model.width"),
        ([f"from={source}", f"exp_name={source.name!r}", f"output_dir={source.parent}"], "exists already"),
    ):
        assert message in said("train", *words, code=2), words
    assert [path.name for path in tmp_path.iterdir()] == []


def test_its_runs_are_completed(said, tmp_path, monkeypatch):
    (tmp_path / "outputs/run").mkdir(parents=True)
    monkeypatch.setenv("COMP_LINE", "snnexp train from=outputs/r")
    assert said("-sc", "query=bash").split() == ["from=outputs/run/"]


def test_a_stranger_cannot_reach_hydra_through_a_node(said, source, tmp_path):
    stranger = shutil.copytree(source, tmp_path / "stranger")
    text = (stranger / ".hydra/config.yaml").read_text()
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    for node in ("optimizer", "scheduler"):
        start = text.index(f"\n{node}:\n") + len(f"\n{node}:\n")
        changed = text[:start] + "  defaults:\n  - /model@hydra.callbacks.x: of_run\n  - _self_\n" + text[start:]
        (stranger / ".hydra/config.yaml").write_text(changed.replace("snnexp.models.spiking_gnn.SpikingGNN", "evil.Thing"))
        assert "names code outside snnexp" in said("train", f"from={stranger}", code=2)
    assert not (tmp_path / "ran").exists()


def test_a_disk_that_is_full_before_there_is_a_configuration_is_told_in_words(said, tmp_path, monkeypatch):
    def no_room(file: IO[Any]) -> None:
        if "config.yaml" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("snnexp.files.flush_to_disk", no_room)
    output = said("train", *QUICK, "exp_name=run", code=1)
    hydra = tmp_path / "outputs/run/.hydra"
    assert f"snnexp: cannot write {hydra / 'config.yaml'}: No space left on device" in output and "KiB are needed" in output
    assert sorted(path.name for path in hydra.iterdir()) == ["hydra.yaml", "overrides.yaml"]
