"""Measure how long a person waits: for `snnexp --help`, and from Enter to the end of the first training step.

python scripts/bench_cli.py                 # medians of 5
python scripts/bench_cli.py --runs 1
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time


def seconds(*command: str, cwd: str | None = None, until: str | None = None) -> float:
    """Return the wall time of a command, or the time until it prints a line that matches `until`.

    Raises: SystemExit if the command fails, or ends without such a line.
    """
    start, output = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        output.append(line)
        if until and re.search(until, line):
            elapsed = time.perf_counter() - start
            process.kill()
            process.wait()
            return elapsed
    if process.wait() or until:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{''.join(output)}")
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    snnexp = (sys.executable, "-m", "snnexp.cli")
    with tempfile.TemporaryDirectory() as folder:
        seconds(*snnexp, "data", "dataset=digits_dvs", cwd=folder)
        one_step = ("train", "debug=one_step", "device=cpu")
        print(f"snnexp --help: {statistics.median(seconds(*snnexp, '--help') for _ in range(runs)):.3f} s")
        torch = statistics.median(seconds(sys.executable, "-c", "import torch") for _ in range(runs))
        step = statistics.median(seconds(*snnexp, *one_step, cwd=folder, until=r"^epoch 1/1") for _ in range(runs))
        print(f"Enter to the end of the first step and its validation: {step:.2f} s, of which import torch {torch:.2f} s")


if __name__ == "__main__":
    main()
