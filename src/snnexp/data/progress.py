"""Progress of a long preparation: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SILENT_SECONDS = 2.0  # work that ends sooner writes nothing to a log
LINE_SECONDS = 15.0


class Advance(Protocol):
    def __call__(self, by: int) -> None: ...


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show on standard error how much of `total` (None: unknown) is done; call the function it yields with the size of each step."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda by: bar.advance(task, by)
        return

    of_total = f"/{total}" if total else ""
    start = time.monotonic()
    done, last_line = 0, start - LINE_SECONDS + SILENT_SECONDS

    def advance(by: int) -> None:
        nonlocal done, last_line
        done += by
        now = time.monotonic()
        if now - last_line >= LINE_SECONDS:
            last_line = now
            print(f"{title}: {done}{of_total} {unit}, {now - start:.0f} s", file=sys.stderr, flush=True)

    yield advance
    if time.monotonic() - start >= SILENT_SECONDS:
        print(f"{title}: {done}{of_total} {unit}, done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
