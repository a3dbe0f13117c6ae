"""The LIF in Triton: by Triton's interpreter against the other forms, and compiled for GPUs that are not here; no GPU is needed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snnexp.models import lif_kernel

pytest.importorskip("triton", reason="torch was installed without Triton")
HERE = Path(__file__).parent


def told(program: str, *words: object, **environment: str) -> list[dict]:
    """Return what a program beside this file prints; the interpreter cannot be switched on in a process that has imported Triton."""
    command = [sys.executable, "-W", "ignore", str(HERE / program), *map(str, words)]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.skipif(lif_kernel.load() is None, reason=f"no compiled kernel here: {lif_kernel.reason()}")
def test_its_results_are_those_of_the_other_forms():
    rows = told("interpret_lif.py", 1, 4, 17, TRITON_INTERPRET="1")
    assert len(rows) == 168 and sum(row["of"] for row in rows) > 300_000
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "float16"}
    one_place = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-10}
    for row in rows:
        assert row["spikes"] == row["counts"] == row["v_last"] == 0, row["case"]
        assert row["g_x"] <= one_place[row["dtype"]] and row["g_v"] <= 1e-6, row["case"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="Triton compiles nothing without a C compiler")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled_it_keeps_all_in_registers_and_moves_16_bytes_at_a_time(arch, tmp_path):
    rows = told("compile_lif.py", arch, TRITON_CACHE_DIR=str(tmp_path))
    assert len(rows) == 8
    for row in rows:
        assert row["spills"] == 0 and row["registers"] <= 168, row
    plain = {row["kernel"]: row for row in rows if row["form"] == "plain"}
    assert plain["forward"]["loads"] == ["ld.global.v4.b32"] * 10  # x of 10 steps, 8 numbers of bf16 at a time
    assert plain["forward"]["stores"] == ["st.global.v4.b32"] * 12  # spikes of 10 steps, and twice 4 numbers of the membrane in fp32
    assert plain["backward"]["loads"] == ["ld.global.v4.b32"] * 20  # x and the gradient of the spikes
    assert plain["backward"]["stores"] == ["st.global.v4.b32"] * 10
