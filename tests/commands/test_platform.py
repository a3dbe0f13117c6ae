"""On Windows the first import says where snnexp runs, in one line; elsewhere it takes nothing but the standard library."""

import subprocess
import sys

import pytest

SAID = "snnexp runs on Linux and macOS; on Windows, use WSL: https://learn.microsoft.com/windows/wsl/install"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["snnexp", "snnexp.trackers.lif"])
def test_a_program_on_windows_gets_an_import_error_that_says_so(name):
    done = python(f"import sys; sys.platform = 'win32'; import {name}")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"ImportError: {SAID}"


@pytest.mark.parametrize("program", ["snnexp", "C:/venv/Scripts/snnexp.exe", "-m"])
def test_the_command_on_windows_says_so_in_one_line(program):
    done = python(f"import sys; sys.platform, sys.argv = 'win32', [{program!r}, 'train']; from snnexp.cli import main; main()")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"snnexp: {SAID}\n")


def test_the_import_takes_the_standard_library_alone():
    before = "import sys, warnings; before = set(sys.modules); import snnexp"
    done = python(before + "; print(sorted({name.partition('.')[0] for name in sys.modules.keys() - before} - {'snnexp'}))")
    assert done.returncode == 0
    assert not [name for name in eval(done.stdout) if name not in sys.stdlib_module_names], done.stdout
