"""On Windows the first import says where snnexp runs, in one line; elsewhere it takes nothing but the standard library."""

import subprocess
import sys

import pytest

MESSAGE = "snnexp runs on Linux and macOS; on Windows, use WSL: https://learn.microsoft.com/windows/wsl/install"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["snnexp", "snnexp.trackers.lif"])
def test_a_program_on_windows_gets_an_import_error_that_says_so(name):
    finished = python(f"import sys; sys.platform = 'win32'; import {name}")
    assert finished.returncode == 1 and finished.stderr.splitlines()[-1] == f"ImportError: {MESSAGE}"


@pytest.mark.parametrize("program", ["snnexp", "C:/venv/Scripts/snnexp.exe", "-m"])
def test_the_command_on_windows_says_so_in_one_line(program):
    finished = python(f"import sys; sys.platform, sys.argv = 'win32', [{program!r}, 'train']; from snnexp.cli import main; main()")
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", f"snnexp: {MESSAGE}\n")


def test_the_import_takes_the_standard_library_alone():
    before = "import sys, warnings; before = set(sys.modules); import snnexp"
    finished = python(before + "; print(sorted({name.partition('.')[0] for name in sys.modules.keys() - before} - {'snnexp'}))")
    assert finished.returncode == 0
    assert not [name for name in eval(finished.stdout) if name not in sys.stdlib_module_names], finished.stdout
