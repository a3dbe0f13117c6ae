"""What is a checkpoint of a run, and what the next holder of its lock finds of the last one."""

import json
import os
import signal
from pathlib import Path

import pytest

from snnexp.errors import UserError
from snnexp.files import replacing
from snnexp.rundir import RunDir, find_run, has_checkpoint, locked, write_json


def test_a_checkpoint_lies_in_a_folder_of_its_run(tmp_path):
    path = tmp_path / "checkpoints" / "checkpoint_best.pth"
    path.parent.mkdir()
    assert not has_checkpoint(path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "choices": {}}))
    assert has_checkpoint(path)
    assert not has_checkpoint(tmp_path / "checkpoints" / "model.safetensors") and not has_checkpoint(tmp_path / "plots" / "a.pth")
    (tmp_path / "config.json").write_text('{"model": {}, "cho')  # cut off: to be reported as such
    assert has_checkpoint(path)
    assert not has_checkpoint(Path("/model.pth"))  # above whose folder there is none


@pytest.mark.parametrize("place", ["weights", "checkpoints"])
def test_a_file_below_another_programs_config_is_spoken_of_itself(place, tmp_path):
    path = tmp_path / "published" / place / "model.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (tmp_path / "published/config.json").write_text('{"architectures": ["ViT"]}')
    with pytest.raises(UserError, match="model.pth is a file that lies in no run.*init_from="):
        find_run(str(path))
    with pytest.raises(UserError, match=r"other.pth: no such file. In .* there is: model.pth\.$"):
        find_run(str(path.with_name("other.pth")))


def test_what_a_killed_process_left_half_written_is_removed_with_the_lock(tmp_path):
    run = RunDir(tmp_path)
    for folder in (run.checkpoints, run.logs, run.resumes / "1"):
        folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        with replacing(run.status, shared=True) as file, replacing(run.checkpoint("latest"), "wb"):
            file.write("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    left = [path.name for path in run.root.rglob(".*.tmp")]
    assert len(left) == 2 and any(name.startswith(".status.json.") for name in left) and ".checkpoint_latest.pth.tmp" in left
    for path in (run.root / ".config.json.0badf00d.tmp", run.resumes / "1/.result.json.12345678.tmp"):
        path.write_text("half")
    for kept in (run.root / "notes.tmp", run.root / ".hidden"):
        kept.write_text("theirs")
    with replacing(run.config, shared=True) as file:  # of a process that is at it
        with locked(run):
            assert [path.name for path in run.root.rglob(".*.tmp")] == [Path(file.name).name]
        file.write("whole")
    assert run.config.read_text() == "whole" and {"notes.tmp", ".hidden"} <= {path.name for path in run.root.iterdir()}


def test_a_full_disk_is_named_with_the_room_that_is_needed(tmp_path, monkeypatch):
    from snnexp import files
    from snnexp.errors import RunFailed

    monkeypatch.setattr(files, "flush_to_disk", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunFailed, match=r"^cannot write .*status.json: No space left on device. .* free in .*, 20 KiB are needed. What"):
        write_json(tmp_path / "status.json", {"a": "x" * 20_000})
    assert list(tmp_path.iterdir()) == []
