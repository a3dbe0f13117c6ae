"""The claim of a run's directory: never twice, never over what is another's, and again after a kill."""

import os
import subprocess
import sys

import pytest

from snnexp import rundir
from snnexp.errors import UserError


def left_over(parent, name="run"):
    """What a kill leaves between the directory and config.json."""
    run = rundir.claim(parent, name, exclusive=True)
    (run.hydra / "config.yaml").write_text("lr: 1\n")
    return run


def test_what_a_kill_left_is_taken_over_and_said(tmp_path, capsys):
    run = left_over(tmp_path)
    with pytest.raises(UserError, match="stopped before it wrote one; begin the run again, with the same exp_name"):
        rundir.find_run(str(run.root))
    assert rundir.claim(tmp_path, "run", exclusive=True).root == run.root
    assert "was left by a command that ended before it wrote a configuration: taken over" in capsys.readouterr().err
    assert rundir.claim(tmp_path, "run", exclusive=False).root.name == "run_2"
    with rundir.being_made(run):
        rundir.write_json(run.config, {})
    assert not (run.root / rundir.MARK).exists()
    with pytest.raises(UserError, match="go on with that run"):
        rundir.claim(tmp_path, "run", exclusive=True)


@pytest.mark.parametrize("spoil", ["no mark", "a linked mark", "a checkpoint", "a config", "a link inside", "itself a link", "a file"])
def test_what_is_not_surely_ours_is_not_taken_over(spoil, tmp_path):
    run = left_over(tmp_path)
    mark = run.root / rundir.MARK
    (tmp_path / "else").mkdir()
    if "mark" in spoil:
        mark.unlink()
    if spoil == "a linked mark":
        mark.symlink_to(run.hydra / "config.yaml")
    if spoil == "a checkpoint":
        run.checkpoint("latest").touch()
    if spoil == "a config":
        run.config.symlink_to(tmp_path / "nowhere")
    if spoil == "a link inside":
        (run.logs / "train.log").symlink_to(tmp_path / "else")
    if spoil == "itself a link":
        run.root.rename(tmp_path / "other")
        run.root.symlink_to(tmp_path / "other")
    if spoil == "a file":
        run.root.rename(tmp_path / "other")
        run.root.touch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="exists already, and a run is never overwritten"):
        rundir.claim(tmp_path, "run", exclusive=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_directory_whose_lock_is_held_is_not_taken_over(tmp_path):
    run = left_over(tmp_path)
    code = "import sys; from pathlib import Path; from snnexp import rundir\nwith rundir.being_made(rundir.RunDir(Path(sys.argv[1]))):\n"
    code += "    print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, run.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="Another command is making it right now"):
        rundir.claim(tmp_path, "run", exclusive=True)
    holder.communicate()
    assert holder.returncode == 0


def test_each_kind_of_directory_gets_its_own_advice(tmp_path):
    for name, files in {"sweep": ["multirun.yaml", "0_lr=1/config.json", "1_lr=2/config.json"], "folder": ["a/config.json"]}.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/config.json").touch()
    expected = {
        "sweep": "is a sweep of 2 jobs.\nChoose another exp_name, or go on with the sweep by the command that began it: "
        "snnexp train -m ... exp_name=sweep",
        "folder": "holds the runs a.\nChoose another exp_name.",
        "a b": f"go on with that run: snnexp resume '{tmp_path}/a b'",
    }
    for name, advice in expected.items():
        with pytest.raises(UserError) as refused:
            rundir.refuse_existing(tmp_path, name)
        assert advice in str(refused.value)


def test_no_run_is_made_inside_another(tmp_path):
    outer = rundir.claim(tmp_path, "outer", exclusive=True)
    outer.config.write_text("{}")
    for name in ("outer/x", "outer/checkpoints/y/z"):
        with pytest.raises(UserError, match="would lie inside the run"):
            rundir.claim(tmp_path, name, exclusive=True)
    with pytest.raises(UserError, match="would lie inside the run"):
        rundir.claim(outer.root, "x", exclusive=False)
    assert sorted(path.name for path in outer.root.iterdir()) == [".begun", ".hydra", "checkpoints", "config.json", "logs"]
