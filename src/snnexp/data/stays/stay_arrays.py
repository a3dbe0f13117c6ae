"""Stays in an intensive care unit as a few long arrays: how they are prepared, and which of their events are used.

The arrays of a prepared set of N stays, M sets and E events, in the order of time within a stay:
event_offsets, set_offsets int64 [N + 1]   where the events and the sets of each stay begin
variable unsigned [E], value float32 [E]   number of the variable, and its value as it was measured
set_ends uint32 [M], minute float32 [M]    number of events of the stay up to the end of the set; its time since admission
describing uint32 [N]                      number of events, the first of a stay, that describe the patient at admission
y int64 [N], ids bytes [N]                 outcome, 0 or 1; the stay's name in the data
part int8 [N]                              if the set comes with a split: the place in SPLITS
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

from snnexp.data.cache import Arrays, Notes, Source, load_or_build_arrays
from snnexp.data.listing import list_folder
from snnexp.data.progress import progress
from snnexp.data.ragged import ragged_entries
from snnexp.errors import UserError

STAYS_AT_ONCE = 4096
FORM = 2  # of the arrays and of the checks; data prepared with another form are prepared again


@dataclass(frozen=True)
class StayChunk:
    """Some stays, one after another; the events of each are sorted by time and set, and begin with those that describe the patient.

    Shapes: counts, describing and y int64 [N]; variable, minute and group (the number of the set) [E]; value float32 [E]; ids [N] names;
    part int8 [N]; `more`: other arrays [N], which are stored as they are.
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


def load_or_build_stays(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    produce: Callable[[Notes], Iterable[StayChunk]],
    title: str,
    variables: int,
    count: int | None = None,
) -> Arrays:
    """Load the stays of `settings` and `sources` from `root`/cache, after building them there with `produce` if they are missing.

    `variables`: the number of variables, which decides how many bytes the number of one takes. `count`: the number of stays, if it is
    known, for the display of progress.

    Raises: UserError if the disk is full or the directory cannot be written.
    """
    dtype = np.min_scalar_type(max(variables - 1, 0))

    def arrays(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        zero = np.zeros(1, dtype=np.int64)
        empty = {"variable": zero[:0].astype(dtype), "value": np.empty(0, dtype=np.float32), "set_ends": np.empty(0, dtype=np.uint32)}
        yield {"event_offsets": zero, "set_offsets": zero, **empty, "minute": np.empty(0, dtype=np.float32)}
        yield {"describing": np.empty(0, dtype=np.uint32), "y": zero[:0]}
        events = sets = 0
        ids: list[str] = []
        with progress(f"Preparing {title}", count, "stays") as advance:
            for chunk in produce(notes):
                owner = np.repeat(np.arange(len(chunk.counts)), chunk.counts)
                starts = np.cumsum(chunk.counts) - chunk.counts
                is_last = np.ones(len(owner), dtype=bool)  # the last event of a set
                is_last[:-1] = (np.diff(owner) != 0) | (np.diff(chunk.group) != 0)
                last_places = np.flatnonzero(is_last)
                event_ends = events + np.cumsum(chunk.counts)
                set_ends = sets + np.cumsum(np.bincount(owner[last_places], minlength=len(chunk.counts)))
                yield {
                    "event_offsets": event_ends.astype(np.int64),
                    "set_offsets": set_ends.astype(np.int64),
                    "variable": chunk.variable.astype(dtype),
                    "value": chunk.value.astype(np.float32),
                    "set_ends": (last_places + 1 - starts[owner[last_places]]).astype(np.uint32),
                    "minute": chunk.minute[last_places].astype(np.float32),  # the last minute: only then is the set complete
                    "describing": chunk.describing.astype(np.uint32),
                    "y": chunk.y.astype(np.int64),
                    **chunk.more,
                } | ({} if chunk.part is None else {"part": chunk.part.astype(np.int8)})
                if len(event_ends):
                    events, sets = int(event_ends[-1]), int(set_ends[-1])
                ids += chunk.ids
                advance(len(chunk.counts))
        yield {"ids": np.array([os.fsencode(name) for name in ids], dtype=np.bytes_)}

    return load_or_build_arrays(root, settings | {"form": FORM}, sources, arrays, title)


def folder_source(folder: Path, ending: str, name: str) -> Source:
    """Return all files of a folder that end in `ending` as one source, stamped by their names, sizes and times."""
    files = sorted((name, (s := (folder / name).stat()).st_size, s.st_mtime_ns) for name in list_folder(folder, [ending]).files)
    return Source(name, sum(size for _, size, _ in files), zlib.crc32(repr(files).encode()))


class FaultCounter:
    """Refuses faults in the data with a message if `strict`, otherwise counts them by kind."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()

    def __call__(self, kind: str, message: str, count: int = 1) -> None:
        """Count `count` faults of a kind.

        Raises: UserError with the message, if `strict`.
        """
        if self.strict:
            raise UserError(f"{message} Correct it, or skip what is at fault with dataset.strict=false.")
        self.counts[kind] += count


def omissions_in_words(notes: Notes) -> str:
    """Return what the protocol says of values and stays left out of prepared data: "missing", "impossible" and "skipped" of the notes."""
    text = f"; {notes['missing']:,} missing and {notes['impossible']:,} impossible values dropped"
    return text + "".join(f"; skipped {count:,} {kind}" for kind, count in sorted(notes["skipped"].items()))


def fingerprints(stored: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return a number that identifies each stay by its events, int64 [N]: the CRC-32 of the events in the lower 32 bits, their count above.

    An event enters with the CRC-32 of its variable's name, the value as it was measured, and the minute, so that a stay has the same
    number in other data, where variables are numbered differently. `names`: those of the variables, by number.
    """
    name_checksums = np.array([zlib.crc32(name.encode()) for name in names], dtype="<u4")
    offsets, set_offsets = stored["event_offsets"], stored["set_offsets"]
    prints = np.diff(offsets) << 32
    for first in range(0, len(prints), STAYS_AT_ONCE):
        bounds = offsets[first : first + STAYS_AT_ONCE + 1]
        set_bounds = set_offsets[first : first + STAYS_AT_ONCE + 1]
        events, sets = slice(bounds[0], bounds[-1]), slice(set_bounds[0], set_bounds[-1])
        ends = stored["set_ends"][sets].astype(np.int64) + np.repeat(bounds[:-1], np.diff(set_bounds))
        minute = np.repeat(stored["minute"][sets], np.diff(ends, prepend=bounds[0]))
        content = np.empty((len(minute), 3), dtype="<u4")
        content[:, 0] = name_checksums[stored["variable"][events]]
        content[:, 1] = stored["value"][events].astype("<f4", copy=False).view("<u4")
        content[:, 2] = minute.astype("<f4", copy=False).view("<u4")
        event_bounds = (bounds - bounds[0]).tolist()
        for k, (begin, end) in enumerate(pairwise(event_bounds), first):
            prints[k] += zlib.crc32(content[begin:end])
    return prints


def remove_variables(stored: dict[str, np.ndarray], unwanted: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the same stays without the events of `unwanted` variables, bool [variables]."""
    keep = ~unwanted[stored["variable"]]
    kept_before = np.append(0, np.cumsum(keep))  # kept events before each place
    offsets = stored["event_offsets"]
    sets_of_stay = np.diff(stored["set_offsets"])
    begin = np.repeat(offsets[:-1], sets_of_stay)
    ends = kept_before[begin + stored["set_ends"]] - kept_before[begin]  # kept events of the stay up to the end of each set
    owner = np.repeat(np.arange(len(sets_of_stay)), sets_of_stay)
    filled = np.diff(ends, prepend=0) > 0
    is_first = np.append(True, np.diff(owner) != 0)[: len(owner)]
    filled[is_first] = ends[is_first] > 0
    return stored | {
        "event_offsets": kept_before[offsets],
        "set_offsets": np.append(0, np.cumsum(np.bincount(owner[filled], minlength=len(sets_of_stay)))),
        "variable": stored["variable"][keep],
        "value": stored["value"][keep],
        "set_ends": ends[filled].astype(np.uint32),
        "minute": stored["minute"][filled],
        "describing": kept_before[offsets[:-1] + stored["describing"]] - kept_before[offsets[:-1]],
    }


@dataclass(frozen=True)
class Window:
    """The events of each stay that are used: those that describe the patient, and the last ones before the horizon.

    Shapes: int64 [N] each. Used are the events [0, head[i]) and [tail[i], end[i]) of stay i; they lie in its first sets[i] sets.
    `beyond`: the number of events after the horizon in all stays; `cut` bool [N]: stays that lost events to `max_sequence_length`.
    """

    sets: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    end: np.ndarray
    beyond: int
    cut: np.ndarray

    @property
    def events(self) -> np.ndarray:
        """The number of used events of each stay, int64 [N]."""
        return self.head + self.end - self.tail


def select_window(stored: dict[str, np.ndarray], horizon_hours: float | None, max_sequence_length: int | None) -> Window:
    """Select the last `max_sequence_length` events of each stay up to and including the horizon; None: no limit.

    Events that describe the patient at admission always remain, and count.
    """
    offsets, events = stored["set_offsets"], np.diff(stored["event_offsets"])
    sets = np.diff(offsets)
    if horizon_hours is not None:
        within = np.append(0, np.cumsum(stored["minute"] <= 60 * horizon_hours))
        sets = within[offsets[1:]] - within[offsets[:-1]]  # sets are sorted by time: those within the horizon come first
    last_set = np.maximum(offsets[:-1] + sets - 1, 0)
    end = np.where(sets > 0, stored["set_ends"][last_set] if len(stored["set_ends"]) else 0, 0).astype(np.int64)
    head = np.minimum(stored["describing"], end)
    limit = end if max_sequence_length is None else np.minimum(end, np.maximum(head, max_sequence_length))
    tail = end - (limit - head)
    return Window(sets=sets, head=head, tail=tail, end=end, beyond=int((events - end).sum()), cut=limit < end)


def used_sets(stored: dict[str, np.ndarray], window: Window, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the used sets of stays `rows`, by stay and time: owner 0..len(rows)-1, minute, first event and number of events.

    Shapes: [M] each; the first event is counted among the used events of its stay. The rest of a cut set is a set, too.
    """
    first_set = stored["set_offsets"][rows]
    owner = np.repeat(np.arange(len(rows)), window.sets[rows])
    bounds = np.cumsum(window.sets[rows]) - window.sets[rows]
    place = np.arange(len(owner)) - bounds[owner]
    places = first_set[owner] + place
    ends = stored["set_ends"][places].astype(np.int64)
    starts = np.where(place > 0, np.append(0, ends[:-1])[: len(ends)], 0)
    head, tail = window.head[rows][owner], window.tail[rows][owner]
    # The places of begin and end once the events from head to tail are taken out.
    starts = np.minimum(starts, head) + np.maximum(starts - tail, 0)
    sizes = np.minimum(ends, head) + np.maximum(ends - tail, 0) - starts
    filled = sizes > 0
    if filled.all():
        return owner, stored["minute"][places], starts, sizes
    return owner[filled], stored["minute"][places[filled]], starts[filled], sizes[filled]


def set_counts(stored: dict[str, np.ndarray], window: Window) -> np.ndarray:
    """Return the number of used sets of each stay, int64 [N]."""
    counts = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(window.sets), STAYS_AT_ONCE):
        rows = np.arange(first, min(first + STAYS_AT_ONCE, len(window.sets)))
        counts.append(np.bincount(used_sets(stored, window, rows)[0], minlength=len(rows)))
    return np.concatenate(counts)


def events_up_to_horizon(stored: dict[str, np.ndarray], window: Window, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield variable and value of all events of stays `rows` up to the horizon, for some stays at a time."""
    for first in range(0, len(rows), STAYS_AT_ONCE):
        chosen = rows[first : first + STAYS_AT_ONCE]
        event, owner, bounds = ragged_entries(stored["event_offsets"], chosen)
        event = event[np.arange(len(event)) - bounds[owner] < window.end[chosen][owner]]
        yield stored["variable"][event], stored["value"][event]
