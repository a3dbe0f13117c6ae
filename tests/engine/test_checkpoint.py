"""Checkpoints: whole or not at all, and never a program."""

import errno
import io
import os
import pickle
import random
import resource
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from snnexp import files
from snnexp.engine import checkpoint
from snnexp.engine.weights import reading
from snnexp.errors import RunFailed, UserError


def content(value: float = 1.0) -> dict:
    """A checkpoint as far as this file's reader looks."""
    return dict.fromkeys(checkpoint.REQUIRED, 0) | {
        "epoch": 3,
        "model": "vggsnn",
        "state_dict": {"weight": torch.full((64, 64), value)},
        "args": {"T": 4, "lif": {"tau": "preset"}, "trust": []},
        "pruned": {"kept": {}, "ratio": 0.0},
        "ema": None,
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_latest.pth"
    checkpoint.save(path, content())
    return path


def in_a_child(work) -> int:
    """Exit status of `work` in a forked process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # whatever it is must not let the child go on as a second pytest
            os._exit(99)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_what_is_saved_comes_back(saved):
    loaded = checkpoint.load(saved)
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(64, 64)) and loaded["args"] == content()["args"]
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint_latest.pth"]


def test_a_kill_before_the_rename_leaves_the_old_one(saved, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
    status = in_a_child(lambda: checkpoint.save(saved, content(2.0)))
    assert os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.undo()
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    checkpoint.save(saved, content(3.0))
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 3.0


def test_a_full_disk_leaves_the_old_one_and_says_so(saved, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="(?s)cannot write .*No space left.*MiB are free.*unharmed"):
        checkpoint.save(saved, content(2.0))
    monkeypatch.undo()
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint_latest.pth"]


def test_a_disk_that_refuses_in_mid_file_leaves_the_old_one(saved):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        with pytest.raises(RunFailed, match="cannot write"):
            checkpoint.save(saved, content(2.0))

    assert in_a_child(work) == 0
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint_latest.pth"]


def test_a_second_name_replaces_the_first_owner_of_it(saved):
    best = saved.with_name("checkpoint_best.pth")
    best.write_bytes(b"the old best")
    checkpoint.link(saved, best)
    checkpoint.save(saved, content(2.0))  # a new file: the second name keeps the old content
    assert checkpoint.load(best)["state_dict"]["weight"][0, 0] == 1.0
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 2.0


def test_a_second_name_of_the_same_file_is_not_written_to(saved):
    # A rename between two names of one file does nothing: the third name that it leaves must not be the next file's.
    best = saved.with_name("checkpoint_best.pth")
    checkpoint.link(saved, best)
    checkpoint.link(best, saved)
    checkpoint.save(saved, content(2.0))
    assert checkpoint.load(best)["state_dict"]["weight"][0, 0] == 1.0
    os.link(best, saved.with_name(".checkpoint_latest.pth.tmp"))  # as a kill before the rename leaves it
    checkpoint.save(saved, content(3.0))
    assert checkpoint.load(best)["state_dict"]["weight"][0, 0] == 1.0 and checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 3.0
    assert {path.name for path in saved.parent.iterdir()} == {"checkpoint_latest.pth", "checkpoint_best.pth"}


def test_a_second_name_where_the_file_system_knows_no_links(saved, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.link(saved, saved.with_name("checkpoint_best.pth"))
    assert saved.with_name("checkpoint_best.pth").read_bytes() == saved.read_bytes()


class Program:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "torch before 1.6", "pickle", "beside the tensors"])
def test_a_checkpoint_never_runs_code(form, tmp_path):
    path, mark = tmp_path / "checkpoint_latest.pth", tmp_path / "mark"
    evil = content() | {"optimizer": Program(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif form == "beside the tensors":
        checkpoint.save(path, content())
        with zipfile.ZipFile(path) as before:
            parts = {name: before.read(name) for name in before.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as after:
            for name, data in parts.items():
                after.writestr(name, pickle.dumps(evil) if name.endswith("data.pkl") else data)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError, match="never runs code"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="code"):
        reading.read(path)
    assert not mark.exists()
    try:  # the mark does show where pickle is let loose
        torch.load(path, weights_only=False)
    except (AttributeError, pickle.UnpicklingError, RuntimeError):
        pickle.loads(pickle.dumps(evil))
    assert mark.exists()


def test_foreign_files_are_told_by_what_they_lack(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"net": {"weight": torch.ones(2)}, "acc": 90.0}, path)
    with pytest.raises(UserError, match="not a checkpoint of snnexp.*found: net, acc"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="found: list"):
        checkpoint.load(path)
    (tmp_path / "there.pth").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint .*missing.pth. There is: theirs.pth, there.pth"):
        checkpoint.load(tmp_path / "missing.pth")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_one_message_whatever_the_damage(legacy, tmp_path):
    path, chance = tmp_path / "checkpoint_latest.pth", random.Random(0)
    file = io.BytesIO()
    torch.save(content(), file, _use_new_zipfile_serialization=not legacy)
    whole = file.getvalue()
    refused = 0
    for round_ in range(200):
        damaged = bytearray(whole)
        if round_ % 2:
            damaged = damaged[: chance.randrange(len(whole))]
        else:
            for _ in range(8):
                damaged[chance.randrange(600)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 150
