"""Checkpoints: whole or not at all, and never a program."""

import errno
import io
import os
import pickle
import random
import resource
import signal
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from contents import content
from snnexp import files
from snnexp.engine import checkpoint
from snnexp.engine.weights import reading
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, write_json


def with_weights(value: float) -> dict:
    """A checkpoint whose weights all have this value."""
    return content(state_dict={"weight": torch.full((64, 64), value)})


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
    status = in_a_child(lambda: checkpoint.save(saved, with_weights(2.0)))
    assert os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.undo()
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    checkpoint.save(saved, with_weights(3.0))
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 3.0


def test_a_full_disk_leaves_the_old_one_and_says_so(saved, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="(?s)cannot write .*No space left.*MiB are free.*unharmed"):
        checkpoint.save(saved, with_weights(2.0))
    monkeypatch.undo()
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint_latest.pth"]


def test_a_disk_that_refuses_in_mid_file_leaves_the_old_one(saved):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        with pytest.raises(RunFailed, match=r"(?s)cannot write .*limit on the size of one file.*raise it \(ulimit -f\), then"):
            checkpoint.save(saved, with_weights(2.0))

    assert in_a_child(work) == 0
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint_latest.pth"]


def test_a_second_name_replaces_the_first_owner_of_it(saved):
    best = saved.with_name("checkpoint_best.pth")
    best.write_bytes(b"the old best")
    checkpoint.link(saved, best)
    checkpoint.save(saved, with_weights(2.0))  # a new file: the second name keeps the old content
    assert checkpoint.load(best)["state_dict"]["weight"][0, 0] == 1.0
    assert checkpoint.load(saved)["state_dict"]["weight"][0, 0] == 2.0


def test_a_second_name_of_the_same_file_is_not_written_to(saved):
    # A rename between two names of one file does nothing: the third name that it leaves must not be the next file's.
    best = saved.with_name("checkpoint_best.pth")
    checkpoint.link(saved, best)
    checkpoint.link(best, saved)
    checkpoint.save(saved, with_weights(2.0))
    assert checkpoint.load(best)["state_dict"]["weight"][0, 0] == 1.0
    os.link(best, saved.with_name(".checkpoint_latest.pth.tmp"))  # as a kill before the rename leaves it
    checkpoint.save(saved, with_weights(3.0))
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


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit, of the largest tensor if no place is given."""
    data = bytearray(path.read_bytes())
    if at is None:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            at = data.index(archive.read(largest)) + largest.file_size // 2
    data[at] ^= 1
    path.unlink()  # another name of the file keeps its content
    path.write_bytes(data)


def test_one_bit_is_enough_to_refuse_it(saved):
    flip(saved)
    for read in (checkpoint.load, reading.read):
        with pytest.raises(UserError, match="(?s)checkpoint_latest.pth .*Bad CRC-32 for file 'archive/data/0'"):
            read(saved)


def run_with(tmp_path: Path, *epochs: int) -> RunDir:
    """A run directory with a checkpoint for each epoch, the last of which is the latest."""
    run = RunDir(tmp_path / "a run")
    run.checkpoints.mkdir(parents=True)
    for epoch in epochs:
        checkpoint.save(run.checkpoint(f"epoch{epoch}"), content() | {"epoch": epoch})
        os.utime(run.checkpoint(f"epoch{epoch}"), ns=(epoch, epoch))
    checkpoint.link(run.checkpoint(f"epoch{epochs[-1]}"), run.checkpoint("latest"))
    return run


def test_of_a_damaged_latest_the_newest_sound_one_is_named_with_its_command(tmp_path):
    run = run_with(tmp_path, 2, 1, 10, 11, 12)
    checkpoint.save(run.checkpoint("error"), content())  # for inspection only, however new
    flip(run.checkpoint("latest"))
    run.checkpoint("epoch12").unlink()
    flip(run.checkpoint("epoch11"))
    os.utime(run.checkpoint("epoch11"), ns=(11, 11))
    with pytest.raises(UserError, match=r"is checkpoint_epoch10.pth \(10 epochs done\)") as refused:
        checkpoint.load(run.checkpoint("latest"))
    assert str(refused.value).endswith(f"\n  snnexp resume '{run.checkpoint('epoch10')}'")
    for epoch in (1, 2, 10):
        flip(run.checkpoint(f"epoch{epoch}"))
    with pytest.raises(UserError, match="none is sound") as refused:
        checkpoint.load(run.checkpoint("latest"))
    assert str(refused.value).endswith(f"\n  snnexp train from='{run.root}'")


def test_a_lost_latest_is_refused_unless_nothing_was_ever_saved(tmp_path):
    run = run_with(tmp_path, 1, 2)
    checkpoint.check_not_lost(run)
    run.checkpoint("latest").unlink()
    for status in ({}, {"saved_step": 8, "step": 9}):
        write_json(run.status, status)
        with pytest.raises(UserError, match=r"(?s)checkpoint_latest.pth is lost.*epoch1.pth, checkpoint_epoch2.pth.*resume '.*epoch2.pth'"):
            checkpoint.check_not_lost(run)
    write_json(run.status, {"saved_step": 0, "step": 9})  # killed between the two names of the first checkpoint
    checkpoint.check_not_lost(run)
    for epoch in (1, 2):
        run.checkpoint(f"epoch{epoch}").unlink()
    write_json(run.status, {"saved_step": 8})
    with pytest.raises(UserError, match="(?s)is lost.*Others there: none"):
        checkpoint.check_not_lost(run)
    run.status.write_text("[]")
    with pytest.raises(UserError, match="status.json holds a list, not an object"):
        checkpoint.check_not_lost(run)
    write_json(run.status, {"step": 8})  # of an earlier version, killed before its first checkpoint
    checkpoint.check_not_lost(run)


def test_a_full_disk_names_the_room_that_is_needed(saved, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    shared = torch.ones(2**19)
    with pytest.raises(RunFailed, match=r"(?s)No space left on device.\n.* are free in .*, 4.0 MiB are needed.*snnexp resume") as refused:
        checkpoint.save(saved, content() | {"state_dict": {"a": shared, "b": [shared[:9], {"c": torch.ones(2**19)}]}})
    assert str(refused.value).startswith(f"cannot write {saved}: ")


def test_tensors_of_a_device_are_saved_as_those_of_the_cpu():
    with FakeTensorMode():  # of a device that need not be there
        shared = torch.ones(3, device="cuda")
        content = {"a": shared, "again": [shared, (shared, 1)], "state": OrderedDict(w=torch.zeros(2, device="cuda")), "n": 1}
        content["state"]._metadata = {"": {"version": 2}}
        found = checkpoint.on_cpu(content)
        tensors = [found["a"], *found["again"][:1], found["again"][1][0], found["state"]["w"]]
        assert {tensor.device.type for tensor in tensors} == {"cpu"} and tensors[0] is tensors[1] is tensors[2]
        assert content["a"].device.type == "cuda" and found["n"] == 1 and found["again"][1][1] == 1
        assert type(found["state"]) is OrderedDict and found["state"]._metadata == {"": {"version": 2}}
    tensor = torch.ones(2)
    assert checkpoint.on_cpu([tensor])[0] is tensor


def test_what_a_device_says_while_a_checkpoint_is_saved_is_not_told_as_a_full_disk(tmp_path):
    class Broken(torch.Tensor):
        def cpu(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="^CUDA error: an illegal memory access was encountered$"):
        checkpoint.save(tmp_path / "x.pth", {"w": torch.ones(2).as_subclass(Broken)})
    assert list(tmp_path.iterdir()) == []
