"""A memory-mapped file that can no longer be read ends the process with one message."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import os, sys
    from pathlib import Path
    import numpy as np
    import torch
    from snnexp.data import mapped_files
    from snnexp.data.sampler import EvaluationBatches
    from snnexp.engine.loader import loader

    path = Path(sys.argv[1])
    np.save(path, np.ones((64, 4096), dtype=np.uint8))
    mapped = np.load(path, mmap_mode="r")
    mapped_files.remember(path)
    mapped_files.call_on_failure(lambda message: print("REPORTED", message, flush=True))

    class View:
        def __len__(self):
            return 64

        def __getitems__(self, keys):
            return (torch.from_numpy(np.stack([mapped[index] for _, index in keys])),)

    os.truncate(path, 100 if "cut" in sys.argv else path.stat().st_size)
    if "cut" not in sys.argv:  # a disk that fails says so to whoever reads
        os.kill(os.getpid(), __import__("signal").SIGBUS)
    try:
        for batch in loader(View(), EvaluationBatches(range(64), 8), int(sys.argv[3]), False):
            batch[0].sum()
    except RuntimeError:
        print("FAILED", mapped_files.failed_in_loader(), mapped_files.failure_message(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know other signals")
@pytest.mark.parametrize(("how", "workers"), [("cut", 0), ("cut", 1), ("failing", 0)])
def test_one_message_and_no_traceback(how, workers, tmp_path):
    path = tmp_path / "samples.npy"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), how, str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    size = 64 * 4096 + 128
    message = f"{path} was cut off while it was read: it has 100 bytes of {size}. The run ended there"
    if workers:
        assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith(f"FAILED True {message}"), done
    elif how == "cut":
        assert done.returncode == 1 and done.stdout.startswith(f"REPORTED {message}") and done.stderr.startswith(f"snnexp: {message}"), done
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.returncode == 1 and f"it is one of {path}: its disk has failed" in done.stderr, done


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know other signals")
def test_the_failure_of_one_run_is_not_that_of_the_next_in_the_same_process():
    code = "import os; from snnexp.data import mapped_files as m\nfor run in range(2):\n    forget = m.call_on_failure(print)\n"
    code += "    before = m.failed_in_loader()\n    if os.fork() == 0:\n        m.leave_it_to_parent()\n        m._end(7)\n"
    code += "    os.wait()\n    print(before, m.failed_in_loader())\n    forget()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False True\nFalse True\n", done
