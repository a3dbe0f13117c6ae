"""Making, caching and sharing the compiled LIF."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from snnexp.models import lif_kernel
from snnexp.models.multi_step_lif import Dynamics, multi_step_lif

TET = Dynamics(2.0, False, 1.0, 0.0, False, "PiecewiseQuadratic", 1.0)
needs_compiler = pytest.mark.skipif(lif_kernel.load() is None, reason=f"no compiled kernel here: {lif_kernel.reason()}")
build = lif_kernel.load_with_reason.__wrapped__


@needs_compiler
def test_compiled_once_then_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, how = build()
    assert library is not None and how
    (made,) = (tmp_path / "snnexp").iterdir()
    before = made.stat().st_mtime_ns
    build()
    assert [p for p in (tmp_path / "snnexp").iterdir()] == [made] and made.stat().st_mtime_ns == before


@needs_compiler
def test_several_at_once_make_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        assert all(library is not None for library, _ in pool.map(lambda _: build(), range(3)))
    assert len(list((tmp_path / "snnexp").iterdir())) == 1


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library, how = build()
    assert library is not None and "not kept" in how


@needs_compiler
@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_cache_that_others_can_write_is_not_used(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "snnexp").mkdir()
    (tmp_path / "snnexp").chmod(mode)
    library, how = build()
    assert library is not None and "another user" in how and not list((tmp_path / "snnexp").iterdir())


@needs_compiler
def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    someone = os.geteuid() + 1
    monkeypatch.setattr(lif_kernel.os, "geteuid", lambda: someone)
    library, how = build()
    assert library is not None and "another user" in how and not list((tmp_path / "snnexp").iterdir())


@needs_compiler
def test_a_damaged_or_open_library_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build()
    (made,) = (tmp_path / "snnexp").iterdir()
    whole = made.read_bytes()
    assert made.stat().st_mode & 0o777 == 0o700
    damaged = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content, mode in ((damaged, 0o700), (whole[:-1], 0o700), (b"", 0o700), (whole, 0o770)):
        made.unlink()  # not written in place: this process has it mapped
        made.write_bytes(content)
        made.chmod(mode)
        library, how = build()
        assert library is not None and "not kept" not in how
        assert made.read_bytes() == whole and made.stat().st_mode & 0o777 == 0o700
        assert list((tmp_path / "snnexp").iterdir()) == [made]


@needs_compiler
def test_the_compiler_may_come_with_options(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "cc -O2 -DNAME='a b'")
    library, how = build()
    assert library is not None and how
    monkeypatch.setenv("CC", "cc -O2 -DNAME='c d'")
    build()
    assert len(list((tmp_path / "snnexp").iterdir())) == 2


def test_no_compiler_and_a_failing_one_are_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build() == (None, "no C compiler (no-such-compiler)")
    monkeypatch.setenv("CC", "cc 'unclosed")
    library, why = build()
    assert library is None and "unclosed" in why
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\necho no space >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    library, why = build()
    assert library is None and "no space" in why
    assert [p.name for p in (tmp_path / "snnexp").iterdir()] == []


def run(x):
    spikes, _, _ = multi_step_lif(x, None, TET)
    return spikes, torch.autograd.grad(spikes, x, torch.ones_like(spikes))[0]


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit():
    x = torch.randn(5, 3, 5000, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(x))
    finally:
        torch.set_num_threads(threads)
    for spikes, g_x in results[1:]:
        assert torch.equal(spikes, results[0][0]) and torch.equal(g_x, results[0][1])


@needs_compiler
def test_called_from_several_threads():
    inputs = [torch.randn(4, 20_000, requires_grad=True) for _ in range(4)]
    want = [run(x) for x in inputs]
    barrier = threading.Barrier(4)

    def work(x):
        barrier.wait()
        return [run(x) for _ in range(5)][-1]

    with ThreadPoolExecutor(4) as pool:
        for (spikes, g_x), (s, g) in zip(pool.map(work, inputs), want, strict=True):
            assert torch.equal(spikes, s) and torch.equal(g_x, g)


FORKED = """
import os, torch
from snnexp.models import lif_kernel
from snnexp.models.multi_step_lif import Dynamics, multi_step_lif
torch.set_num_threads(2)
x = torch.randn(4, 50_000)
dynamics = Dynamics(2.0, False, 1.0, 0.0, False, "PiecewiseQuadratic", 1.0)
want = multi_step_lif(x, None, dynamics)[0].numpy().tobytes()
child = os.fork()
if child == 0:
    assert lif_kernel.threads() == 1
    os._exit(0 if multi_step_lif(x, None, dynamics)[0].numpy().tobytes() == want else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert lif_kernel.threads() == 2
"""


@needs_compiler
def test_works_in_a_forked_child():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


OPENMP = """
from snnexp.models import lif_kernel
assert lif_kernel.load()
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "libgomp" in line}))
"""


@needs_compiler
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads /proc")
def test_shares_torchs_openmp():
    # In a process of its own: other packages, once imported, bring an OpenMP of theirs.
    assert subprocess.run([sys.executable, "-c", OPENMP], check=True, capture_output=True, text=True, timeout=120).stdout == "1\n"
