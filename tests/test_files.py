"""Files replaced as a whole, files that grow and are cut back, directories that one process makes."""

import errno
import os
import signal
import stat
from pathlib import Path

import pytest

from snnexp import files
from snnexp.errors import RunFailed, UserError
from snnexp.files import GrowingFile, claim_directory, explaining, replacing


def killed_before_the_rename(path: Path, content: str, shared: bool = False) -> None:
    """Write `path` in a process that is killed when all is written but the name."""
    pid = os.fork()
    if pid == 0:
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        with replacing(path, shared=shared) as file:
            file.write(content)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("größer\n", "other\n"):
        with replacing(path) as file:
            file.write(content)
        assert path.read_text(encoding="utf-8") == content
    mask = os.umask(0o027)
    try:
        with replacing(path, "wb", shared=True) as file:
            file.write(b"\xff")
    finally:
        os.umask(mask)
    assert path.read_bytes() == b"\xff" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_what_fails_or_is_killed_leaves_the_old_file(tmp_path, shared):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for failure in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), replacing(path, shared=shared) as file:
            file.write("half")
            raise failure
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    killed_before_the_rename(path, "whole", shared)
    assert path.read_text() == "old"
    with replacing(path, shared=shared) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == (2 if shared else 1)  # of several writers each has a name of its own; of one the same


def test_what_lies_under_the_temporary_name_is_not_written_through(tmp_path):
    # A stranger's link, or the second name that a kill between os.link and os.replace has left of another checkpoint.
    other, temporary = tmp_path / "other", files.temporary_name(tmp_path / "a.txt")
    other.write_text("another's")
    for lay in (temporary.symlink_to, temporary.hardlink_to):
        lay(other)
        with replacing(tmp_path / "a.txt") as file:
            file.write("mine")
        assert other.read_text() == "another's" and (tmp_path / "a.txt").read_text() == "mine"


def test_several_processes_may_write_one_shared_file(tmp_path):
    path = tmp_path / "status.json"
    with replacing(path, shared=True) as one, replacing(path, shared=True) as two:
        one.write("one")
        two.write("two")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]  # the last to end


def test_what_the_disk_refuses_is_named():
    with pytest.raises(RunFailed, match=r"^cannot write /x/a: No such file or directory\. What was written before is unharmed\.$"):
        with explaining(Path("/x/a")), replacing(Path("/x/a")):
            pass
    with pytest.raises(RunFailed, match=r"^cannot write /x/a: No such file or directory\.$"):
        files.write_text(Path("/x/a"), "text")


def test_a_directory_is_claimed_once(tmp_path):
    assert [claim_directory(tmp_path / "a", "x").name for _ in range(3)] == ["x", "x_2", "x_3"]
    with pytest.raises(FileExistsError):
        claim_directory(tmp_path / "a", "x", exclusive=True)
    assert claim_directory(tmp_path / "a", "y", exclusive=True) == tmp_path / "a" / "y"
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        claim_directory(tmp_path / "file", "x")


def filled(path: Path, count: int, lines: bool = True) -> GrowingFile:
    grown = GrowingFile(path, lines=lines)
    for number in range(count):
        grown.write(f"line {number % 10}\n".encode())
    grown.sync()
    return grown


def test_cut_drops_what_came_after_and_goes_on(tmp_path):
    path = tmp_path / "a" / "x.log"
    assert filled(path, 12).size == path.stat().st_size == 12 * 7
    again = GrowingFile(path)
    again.cut(14)
    assert path.stat().st_size == 14
    again.write(b"more\n")
    assert path.read_text() == "line 0\nline 1\nmore\n" and again.size == 19


def test_a_new_run_starts_over(tmp_path):
    path = tmp_path / "x.log"
    filled(path, 5)
    filled(path, 2)
    assert path.read_text() == "line 0\nline 1\n"
    again = GrowingFile(path)
    again.cut(0)
    assert path.read_bytes() == b"" and again.size == 0
    empty = GrowingFile(tmp_path / "none.log")
    empty.sync()
    empty.cut(0)
    assert not empty.path.exists()


@pytest.mark.parametrize("size, said", [(100, "has 14 bytes.* 100 of them"), (-1, "has 14 bytes"), (8, "has no end of a line at byte 8")])
def test_a_file_that_is_not_the_one_the_checkpoint_knew_is_refused(tmp_path, size, said):
    path = tmp_path / "x.log"
    filled(path, 2)
    with pytest.raises(UserError, match=rf"x\.log {said}[\s\S]*\n.*resume from an earlier checkpoint"):
        GrowingFile(path).cut(size)
    assert path.read_text() == "line 0\nline 1\n"
    if size == 8:  # numbers have no lines
        GrowingFile(path, lines=False).cut(size)
        assert path.stat().st_size == 8


def test_a_link_is_not_followed(tmp_path):
    filled(tmp_path / "elsewhere", 2)
    (tmp_path / "x.log").symlink_to(tmp_path / "elsewhere")
    for act in (lambda grown: grown.write(b"\n"), lambda grown: grown.cut(7), lambda grown: grown.cut(0)):
        with pytest.raises(RunFailed, match=r"cannot write .*x\.log"):
            act(GrowingFile(tmp_path / "x.log"))
    assert (tmp_path / "elsewhere").stat().st_size == 14


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*x\.log"):
        filled(tmp_path / "logs" / "x.log", 1)


def test_only_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert files.read_small(tmp_path / "file") == b"content"
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="not a regular file") as refused:
            files.read_small(tmp_path / name)
        assert refused.value.filename == str(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before
