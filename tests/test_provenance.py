"""What made a run, recorded whatever the state of git and of the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snnexp
from snnexp import provenance

ME = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(directory, *arguments):
    return subprocess.run(
        ["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True, env=os.environ | ME
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, which is the working directory."""
    root = tmp_path / "mine"
    (root / "pkg").mkdir(parents=True)
    git(root, "init", "-q", "-b", "topic")
    (root / "pkg" / "code.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("*.log\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.chdir(root / "pkg")
    monkeypatch.setattr(provenance, "_source_checkout", lambda: None)
    return root


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def written(run_dir):
    provenance.write(run_dir, ["train", "T=4"], 3)
    return json.loads((run_dir / "provenance.json").read_text())


def test_clean_repository(repository, run_dir):
    record = written(run_dir)
    assert record["git"] == {
        "root": str(repository.resolve()),
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "topic",
        "dirty": False,
        "changed": 0,
        "untracked": [],
        "untracked_count": 0,
        "reason": None,
    }
    assert record["diff"] is None
    assert not (run_dir / "diff.patch").exists()


def test_diff_patch_restores_the_code_that_ran(repository, run_dir, tmp_path):
    (repository / "pkg" / "code.py").write_text("x = 2\ny = 'größer'\n")
    (repository / "staged.py").write_text("new\n")
    git(repository, "add", "staged.py")
    (repository / "loose file.py").write_text("z\n")
    (repository / "noise.log").write_text("ignored\n")
    git(repository, "config", "diff.noprefix", "true")
    record = written(run_dir)
    assert record["git"]["dirty"] is True
    assert record["git"]["changed"] == 2
    assert record["git"]["untracked"] == ["loose file.py"]
    assert record["diff"] == {"file": "diff.patch", "cut": False}
    patch = run_dir / "diff.patch"
    assert "#   loose file.py\n" in patch.read_text()

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "apply", str(patch))
    assert (clone / "pkg" / "code.py").read_text() == "x = 2\ny = 'größer'\n"
    assert (clone / "staged.py").read_text() == "new\n"


def test_a_renamed_file_and_a_detached_head(repository, run_dir):
    git(repository, "mv", "pkg/code.py", "pkg/moved.py")
    git(repository, "checkout", "-q", "--detach")
    record = written(run_dir)
    assert (record["git"]["branch"], record["git"]["changed"], record["git"]["dirty"]) == (None, 1, True)
    assert record["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert "rename to pkg/moved.py" in (run_dir / "diff.patch").read_text()


def test_a_huge_diff_is_cut_and_says_so(repository, run_dir, monkeypatch):
    monkeypatch.setattr(provenance, "PATCH_BYTES", 1000)
    (repository / "pkg" / "code.py").write_text("".join(f"line {number}\n" for number in range(1000)))
    record = written(run_dir)
    patch = (run_dir / "diff.patch").read_text()
    assert record["diff"] == {"file": "diff.patch", "cut": True}
    assert "CUT: only the first" in patch
    assert len(patch) < 1200
    assert patch.endswith("\n")


def test_the_list_of_untracked_files_is_bounded(repository, run_dir, monkeypatch):
    monkeypatch.setattr(provenance, "UNTRACKED_NAMES", 2)
    for number in range(5):
        (repository / f"f{number}").write_text("")
    record = written(run_dir)
    assert record["git"]["untracked"] == ["f0", "f1"]
    assert record["git"]["untracked_count"] == 5
    assert "and 3 more" in (run_dir / "diff.patch").read_text()


@pytest.mark.parametrize("place", ["outputs/run", "outputs/sweep/0_lr", "run"])
def test_the_runs_themselves_do_not_make_the_code_dirty(repository, place):
    run_dir = repository / place
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text("{}")
    (run_dir.parent / "older").mkdir()
    (run_dir.parent / "older" / "config.json").write_text("{}")
    record = written(run_dir)
    assert record["git"]["untracked"] == (["older/"] if place == "run" else [])


def test_a_run_outside_the_repository_hides_nothing(repository, run_dir):
    (repository / "loose.py").write_text("")
    assert run_dir.parent == repository.parent
    assert written(run_dir)["git"]["untracked"] == ["loose.py"]


def test_no_commit_yet(tmp_path, run_dir, monkeypatch):
    root = tmp_path / "fresh"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "a.py").write_text("a = 1\n")
    git(root, "add", "a.py")
    monkeypatch.chdir(root)
    monkeypatch.setattr(provenance, "_source_checkout", lambda: None)
    record = written(run_dir)
    assert (record["git"]["commit"], record["git"]["branch"]) == (None, "main")
    assert record["git"]["reason"] == "the repository has no commit yet"
    assert "+a = 1" in (run_dir / "diff.patch").read_text()


def nothing_known(record, reason):
    assert [record["git"][key] for key in ("root", "commit", "branch", "dirty")] == [None] * 4
    assert reason in record["git"]["reason"]


def test_not_a_repository(tmp_path, run_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    nothing_known(written(run_dir), "not a git repository")


def test_git_is_not_installed(repository, run_dir, monkeypatch):
    monkeypatch.setenv("PATH", str(run_dir))
    nothing_known(written(run_dir), "git is not installed")


def test_a_broken_repository(repository, run_dir):
    (repository / ".git" / "HEAD").write_text("nonsense\n")
    nothing_known(written(run_dir), "not a git repository")


def test_a_broken_index(repository, run_dir):
    (repository / ".git" / "index").write_bytes(b"nonsense")
    record = written(run_dir)
    assert record["git"]["commit"] is None
    assert record["git"]["reason"]


def test_git_that_hangs(repository, run_dir, monkeypatch):
    slow = run_dir / "git"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{run_dir}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    nothing_known(written(run_dir), "took more than 0.2 s")


def test_the_working_directory_is_gone(tmp_path, run_dir, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    record = written(run_dir)
    assert record["directory"] is None
    assert "FileNotFoundError" in record["reasons"]["directory"]
    nothing_known(record, "working directory is gone")


def test_a_part_that_fails_is_null_with_its_reason(repository, run_dir, monkeypatch):
    def broken():
        raise RuntimeError("driver on fire")

    monkeypatch.setattr(provenance, "_gpus", broken)
    record = written(run_dir)
    assert record["hardware"]["gpus"] is None
    assert record["reasons"] == {"gpus": "RuntimeError: driver on fire"}


def test_git_variables_of_a_hook_do_not_mislead(repository, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert written(run_dir)["git"]["branch"] == "topic"


def test_both_repositories_are_recorded_and_one_twice_only_once(repository, run_dir, tmp_path, monkeypatch):
    source = tmp_path / "theirs"
    source.mkdir()
    git(source, "init", "-q", "-b", "dev")
    (source / "s.py").write_text("s = 1\n")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "s")
    (source / "s.py").write_text("s = 2\n")
    (repository / "pkg" / "code.py").write_text("x = 9\n")
    record = provenance.collect(["train"], 0, source)
    assert (record["snnexp"]["git"]["branch"], record["git"]["branch"]) == ("dev", "topic")
    assert record["snnexp"]["git"]["dirty"] and record["git"]["dirty"]

    monkeypatch.setattr(provenance, "_source_checkout", lambda: source)
    written(run_dir)
    patch = (run_dir / "diff.patch").read_text()
    assert patch.index("+s = 2") < patch.index("+x = 9")
    monkeypatch.setattr(provenance, "_source_checkout", lambda: repository)
    written(run_dir)
    assert (run_dir / "diff.patch").read_text().count("+x = 9") == 1


def test_the_rest_of_the_record(repository, monkeypatch):
    home = repository.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JWT", "secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    argv = [f"{home}/env/bin/snnexp", "train", f"data_dir={home}/my data", f"a=/x{home}/b", f"home={home}"]
    record = provenance.collect(argv, 11)
    assert record["argv"] == ["train", "data_dir=~/my data", f"a=/x{home}/b", "home=~"]
    assert record["command"].startswith("snnexp train 'data_dir=~/my data'")
    assert record["seed"] == 11
    assert record["environment"]["SLURM_JOB_ID"] == "77"
    assert "secret" not in json.dumps(record)
    assert record["snnexp"]["version"] == snnexp.__version__
    assert record["python"]["version"] == ".".join(str(number) for number in sys.version_info[:3])
    assert record["packages"]["pytest"] == pytest.__version__
    assert record["hardware"]["memory_gib"] > 0.1
    assert record["hardware"]["cpu"]["threads"] == os.cpu_count()
    assert record["started"].endswith("+00:00")
    assert record["reasons"] == {}


@pytest.mark.parametrize("first", [["/opt/my env/bin/snnexp", "train"], ["snnexp train"], ["train"]])
def test_the_command_line_is_the_same_however_it_is_handed_over(repository, first):
    assert provenance.collect([*first, "T=4"], 0)["command"] == "snnexp train T=4"


def test_it_does_not_import_torch(repository, run_dir):
    (repository / "pkg" / "code.py").write_text("x = 2\n")
    program = (
        "import sys; from pathlib import Path; from snnexp import provenance\n"
        "provenance.write(Path(sys.argv[1]), ['train'], 0); assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(snnexp.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program, str(run_dir)], check=True, capture_output=True, env=environment)
    assert "code.py" in (run_dir / "diff.patch").read_text()


def test_an_imported_torch_is_asked_for_its_threads():
    torch = pytest.importorskip("torch")
    assert provenance.collect([], 0)["torch"]["threads"] == torch.get_num_threads()
