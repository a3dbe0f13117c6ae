"""A run directory that somebody else has made: each command refuses what no run writes, in one message, and writes nowhere else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import load


@pytest.fixture
def strange(trained, tmp_path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_importing_main_runs_nothing():
    done = subprocess.run([sys.executable, "-c", "import snnexp.__main__; print('on')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
    done = subprocess.run([sys.executable, "-m", "snnexp", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("snnexp ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"choices": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested deeper"),
        ('{"T": ' + "9" * 5000 + "}", "cannot read"),
        ("[1]", "it is a list"),
        ('{"T": "\udcff"}', "it lacks"),
    ],
)
def test_a_configuration_that_is_none_is_told(strange, said, text, words):
    (strange / "config.json").write_text(text, errors="surrogateescape" if words != "it lacks" else "replace")
    for command in ("resume", "evaluate", "prune"):
        assert words in said(command, strange, code=2)


def test_a_configuration_in_another_encoding_is_told(strange, said):
    (strange / "config.json").write_bytes('{"T": "größe"}'.encode("latin-1"))
    assert "config.json" in said("resume", strange, code=2)


@pytest.mark.parametrize(
    ("key", "value"), [("choices", []), ("choices", {"model": 3}), ("T", "4"), ("tracker", [1]), ("trust", {"a": 1}), ("model", 7)]
)
def test_a_key_of_another_type_is_named(strange, said, key, value):
    edit(strange / "config.json", **{key: value})
    for command in ("resume", "evaluate", "prune"):
        assert f"({key}" in said(command, strange, code=2)


def test_a_link_is_not_written_through(strange, said, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    for name in ("logs/train.log", "logs/progress.jsonl", ".lock"):
        path = strange / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere / "file")
        text = said("resume", strange, "epochs=2", code=2)
        assert f"{name} is a link to" in text
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    for name, command in (("logs", "resume"), ("resumes", "resume"), ("plots", "analyze"), ("evaluations", "evaluate")):
        shutil.rmtree(strange / name, ignore_errors=True)
        (strange / name).symlink_to(elsewhere)
        assert f"{name} is a link to" in said(command, strange, code=2)
        (strange / name).unlink()
    assert [path.name for path in elsewhere.iterdir()] == ["file"] and (elsewhere / "file").read_text() == "mine"


def test_control_characters_are_shown_escaped(strange, said):
    bell = "\x1b]0;owned\x07\x1b[2J\u202e"
    edit(strange / "status.json", state="failed", error=bell)
    edit(strange / "config.json", extra={bell: bell}, monitor=bell)
    edit(strange / "result.json", protocol=bell)
    assert r"\x1b]0;owned\x07\x1b[2J\u202e" in said("runs", strange.parent)
    assert json.loads(said("runs", strange.parent, "--json"))
    for command in ("runs", "analyze", "evaluate", "resume"):
        argv = [strange.parent] if command == "runs" else [strange]
        text = said(command, *argv, code=None)
        assert not set(text) & set("\x1b\x07\u202e"), command


def test_a_refused_pickle_comes_with_no_advice_to_execute_it(strange, said):
    class Program:
        def __reduce__(self):
            return print, ("run",)

    path = strange / "checkpoints/checkpoint_latest.pth"
    saved = load(path)
    torch.save(saved | {"data": Program()}, path)
    for argv in (["resume", strange], ["evaluate", strange, "checkpoint=latest"], ["train", f"init_from={path}", "dataset=digits_dvs"]):
        text = said(*argv, code=2)
        assert "print" in text and "weights_only" not in text and "\nrun" not in text


def test_moments_of_another_size_are_refused_before_anything_is_written(strange, said):
    path = strange / "checkpoints/checkpoint_latest.pth"
    saved = load(path)
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(saved, path)
    before = sorted(strange.rglob("*"))
    assert "its part 'optimizer' does not fit: state[0]['exp_avg']" in said("resume", strange, "epochs=9", code=2)
    assert sorted(strange.rglob("*")) == before
