"""Stays in an intensive care unit as a few long arrays: how they are prepared, and which part of them is used.

The arrays of a prepared set of N stays, M sets and E events, in the order of time within a stay:
event_offsets, set_offsets int64 [N + 1]   where the events and the sets of each stay begin
variable unsigned [E], value float32 [E]   which variable, and its value as it was measured
set_ends uint32 [M], minute float32 [M]    the events of the stay up to the end of the set; when, since admission
describing uint32 [N]                      how many events, the first of a stay, describe the patient at admission
y int64 [N], ids bytes [N]                 0 or 1; the stay's name in the data
part int8 [N]                              where the set comes divided: the place in SPLITS
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Arrays, Notes, Source, prepared_arrays
from snnexp.data.graphs.graphs import gathered
from snnexp.data.progress import progress
from snnexp.errors import UserError

STAYS_AT_ONCE = 4096
FORM = 2  # of the arrays and of what is refused; another one is prepared again


@dataclass(frozen=True)
class Block:
    """Some stays, one after another, the events of each sorted by time and by set, those that describe it first.

    Shapes: counts, describing and y int64 [N]; variable, minute and group (the number of the set) [E]; value float32 [E]; ids [N] names;
    part int8 [N]; `more`: other arrays [N], which are kept as they are.
    """

    counts: np.ndarray
    describing: np.ndarray
    variable: np.ndarray
    value: np.ndarray
    minute: np.ndarray
    group: np.ndarray
    y: np.ndarray
    ids: list[str]
    part: np.ndarray | None = None
    more: dict[str, np.ndarray] = field(default_factory=dict)


def prepared_stays(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    produce: Callable[[Notes], Iterable[Block]],
    title: str,
    variables: int,
    count: int | None = None,
) -> Arrays:
    """The stays that `settings` and `sources` make, found in `root`/cache or made there by `produce` (`count` of them, if known).

    `variables`: the number of kinds of events, which decides in how many bytes one is kept.

    Raises: UserError if the disk is full or the directory cannot be written.
    """
    kind = np.min_scalar_type(max(variables - 1, 0))

    def arrays(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        zero = np.zeros(1, dtype=np.int64)
        empty = {"variable": zero[:0].astype(kind), "value": np.empty(0, dtype=np.float32), "set_ends": np.empty(0, dtype=np.uint32)}
        yield {"event_offsets": zero, "set_offsets": zero, **empty, "minute": np.empty(0, dtype=np.float32)}
        yield {"describing": np.empty(0, dtype=np.uint32), "y": zero[:0]}
        events = sets = 0
        ids: list[str] = []
        with progress(f"Preparing {title}", count, "stays") as advance:
            for block in produce(notes):
                owner = np.repeat(np.arange(len(block.counts)), block.counts)
                begins = np.cumsum(block.counts) - block.counts
                last = np.ones(len(owner), dtype=bool)  # the last event of a set
                last[:-1] = (np.diff(owner) != 0) | (np.diff(block.group) != 0)
                at = np.flatnonzero(last)
                event_ends = events + np.cumsum(block.counts)
                set_ends = sets + np.cumsum(np.bincount(owner[at], minlength=len(block.counts)))
                yield {
                    "event_offsets": event_ends.astype(np.int64),
                    "set_offsets": set_ends.astype(np.int64),
                    "variable": block.variable.astype(kind),
                    "value": block.value.astype(np.float32),
                    "set_ends": (at + 1 - begins[owner[at]]).astype(np.uint32),
                    "minute": block.minute[at].astype(np.float32),  # the last of the set's minutes: only then all of it is known
                    "describing": block.describing.astype(np.uint32),
                    "y": block.y.astype(np.int64),
                    **block.more,
                } | ({} if block.part is None else {"part": block.part.astype(np.int8)})
                if len(event_ends):
                    events, sets = int(event_ends[-1]), int(set_ends[-1])
                ids += block.ids
                advance(len(block.counts))
        yield {"ids": np.array([name.encode() for name in ids], dtype=np.bytes_)}

    return prepared_arrays(root, settings | {"form": FORM}, sources, arrays, title)


def folder_source(folder: Path, ending: str, name: str) -> Source:
    """All files of a folder that end in `ending` as one source: of thousands of files the names, sizes and times."""
    with os.scandir(folder) as entries:
        files = sorted((e.name, (s := e.stat()).st_size, s.st_mtime_ns) for e in entries if e.name.endswith(ending))
    return Source(name, sum(size for _, size, _ in files), zlib.crc32(repr(files).encode()))


class Skipped:
    """What is at fault in the data: refused with its place, or counted by its kind."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()

    def __call__(self, kind: str, message: str, count: int = 1) -> None:
        """Raises: UserError with the message, if `strict`."""
        if self.strict:
            raise UserError(f"{message} Correct it, or skip what is at fault with dataset.strict=false.")
        self.counts[kind] += count


def dropped(notes: Notes) -> str:
    """The words for what was left out when the data were prepared: "missing", "impossible" and "skipped" of the notes."""
    words = f"; {notes['missing']:,} missing and {notes['impossible']:,} impossible values dropped"
    return words + "".join(f"; skipped {count:,} {kind}" for kind, count in sorted(notes["skipped"].items()))


def fingerprints(stored: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """A number of each stay that follows from its own events in their order, int64 [N]: their CRC-32 and, above it, their number.

    Of an event: the CRC-32 of its variable's name, the value as it was measured, the minute; so it is the same among other stays and with
    other numbers of variables. `names` of the variables, by number.
    """
    named = np.array([zlib.crc32(name.encode()) for name in names], dtype="<u4")
    offsets, set_offsets = stored["event_offsets"], stored["set_offsets"]
    prints = np.diff(offsets) << 32
    for start in range(0, len(prints), STAYS_AT_ONCE):
        bounds = offsets[start : start + STAYS_AT_ONCE + 1]
        set_bounds = set_offsets[start : start + STAYS_AT_ONCE + 1]
        events, sets = slice(bounds[0], bounds[-1]), slice(set_bounds[0], set_bounds[-1])
        ends = stored["set_ends"][sets].astype(np.int64) + np.repeat(bounds[:-1], np.diff(set_bounds))
        minute = np.repeat(stored["minute"][sets], np.diff(ends, prepend=bounds[0]))
        content = np.empty((len(minute), 3), dtype="<u4")
        content[:, 0] = named[stored["variable"][events]]
        content[:, 1] = stored["value"][events].astype("<f4", copy=False).view("<u4")
        content[:, 2] = minute.astype("<f4", copy=False).view("<u4")
        each = (bounds - bounds[0]).tolist()
        for k, (begin, end) in enumerate(pairwise(each), start):
            prints[k] += zlib.crc32(content[begin:end])
    return prints


def without(stored: dict[str, np.ndarray], unwanted: np.ndarray) -> dict[str, np.ndarray]:
    """The same stays without the events of some variables; `unwanted` bool [variables]."""
    keep = ~unwanted[stored["variable"]]
    before = np.append(0, np.cumsum(keep))  # kept events before each place
    offsets = stored["event_offsets"]
    own_sets = np.diff(stored["set_offsets"])
    begin = np.repeat(offsets[:-1], own_sets)
    ends = before[begin + stored["set_ends"]] - before[begin]  # kept events of the stay up to the end of each set
    owner = np.repeat(np.arange(len(own_sets)), own_sets)
    filled = np.diff(ends, prepend=0) > 0
    first = np.append(True, np.diff(owner) != 0)[: len(owner)]
    filled[first] = ends[first] > 0
    return stored | {
        "event_offsets": before[offsets],
        "set_offsets": np.append(0, np.cumsum(np.bincount(owner[filled], minlength=len(own_sets)))),
        "variable": stored["variable"][keep],
        "value": stored["value"][keep],
        "set_ends": ends[filled].astype(np.uint32),
        "minute": stored["minute"][filled],
        "describing": before[offsets[:-1] + stored["describing"]] - before[offsets[:-1]],
    }


@dataclass(frozen=True)
class Window:
    """What of each stay is used: the events that describe it, and the last ones before the horizon.

    Shapes: int64 [N] each. Of stay i these are its events [0, head[i]) and [tail[i], end[i]); they lie in its first sets[i] sets.
    `beyond`: events after the horizon in all stays; `cut`: stays that lost events to `max_sequence_length`.
    """

    sets: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    end: np.ndarray
    beyond: int
    cut: np.ndarray

    @property
    def events(self) -> np.ndarray:
        """The number of events that each stay is used with, int64 [N]."""
        return self.head + self.end - self.tail


def window(stored: dict[str, np.ndarray], horizon_hours: float | None, max_sequence_length: int | None) -> Window:
    """The events of each stay up to and including the horizon, of these the last `max_sequence_length`; null: no limit.

    Events that describe the stay at admission remain in any case and count.
    """
    offsets, events = stored["set_offsets"], np.diff(stored["event_offsets"])
    sets = np.diff(offsets)
    if horizon_hours is not None:
        within = np.append(0, np.cumsum(stored["minute"] <= 60 * horizon_hours))
        sets = within[offsets[1:]] - within[offsets[:-1]]  # sets are sorted by time: those within the horizon come first
    last = np.maximum(offsets[:-1] + sets - 1, 0)
    end = np.where(sets > 0, stored["set_ends"][last] if len(stored["set_ends"]) else 0, 0).astype(np.int64)
    head = np.minimum(stored["describing"], end)
    limit = end if max_sequence_length is None else np.minimum(end, np.maximum(head, max_sequence_length))
    tail = end - (limit - head)
    return Window(sets=sets, head=head, tail=tail, end=end, beyond=int((events - end).sum()), cut=limit < end)


def used_sets(stored: dict[str, np.ndarray], use: Window, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The sets that stays `rows` are used with, by stay and time: owner 0..len(rows)-1, minute, first event and number of events.

    Shapes: [M] each; the first event counts among those of the stay that are used. What is left of a set that is cut is a set.
    """
    first = stored["set_offsets"][rows]
    owner = np.repeat(np.arange(len(rows)), use.sets[rows])
    bounds = np.cumsum(use.sets[rows]) - use.sets[rows]
    place = np.arange(len(owner)) - bounds[owner]
    at = first[owner] + place
    ends = stored["set_ends"][at].astype(np.int64)
    begins = np.where(place > 0, np.append(0, ends[:-1])[: len(ends)], 0)
    head, tail = use.head[rows][owner], use.tail[rows][owner]
    # What an end becomes once the events from head to tail are taken out.
    begins = np.minimum(begins, head) + np.maximum(begins - tail, 0)
    sizes = np.minimum(ends, head) + np.maximum(ends - tail, 0) - begins
    filled = sizes > 0
    if filled.all():
        return owner, stored["minute"][at], begins, sizes
    return owner[filled], stored["minute"][at[filled]], begins[filled], sizes[filled]


def set_counts(stored: dict[str, np.ndarray], use: Window) -> np.ndarray:
    """The number of sets that each stay is used with, int64 [N]."""
    counts = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(use.sets), STAYS_AT_ONCE):
        rows = np.arange(start, min(start + STAYS_AT_ONCE, len(use.sets)))
        counts.append(np.bincount(used_sets(stored, use, rows)[0], minlength=len(rows)))
    return np.concatenate(counts)


def events_before(stored: dict[str, np.ndarray], use: Window, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Variable and value of all events of stays `rows` up to the horizon, some stays at a time."""
    for start in range(0, len(rows), STAYS_AT_ONCE):
        some = rows[start : start + STAYS_AT_ONCE]
        event, owner, bounds = gathered(stored["event_offsets"], some)
        event = event[np.arange(len(event)) - bounds[owner] < use.end[some][owner]]
        yield stored["variable"][event], stored["value"][event]
