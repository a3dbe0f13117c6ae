"""Spans of a training step: which part ran from when to when, inside of which; and the tree of parts that comes of it.

A span costs a mark at either end. On the CPU a mark is the time; on CUDA it is an event on the current stream, which is read when the
device has passed it, so that nothing waits. What the marks come to is worked out when the step is over (`Spans.settled`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch

from snnexp.trackers.timing.figures import Figures

STEP = "step"
PARTS = ("data", "to device", "prepare", "forward", "loss", "backward", "gradient sync", "optimizer", "logging")
"""Parts of a training step, in the order in which they are told."""
NOTHING = nullcontext()
MOST_WAITING = 64
"""Steps whose events have not been read, at most; then the oldest is waited for."""

running: "Spans | None" = None
"""The spans that `timed`, `log_timing` and the hooks of named parts record into, if anybody wants to know."""


class Node:
    """A part of the tree: what it took in the step that is being settled, and its figures over all steps."""

    __slots__ = (
        "all", "below", "calls", "children", "depth", "exclusive", "figures", "inclusive", "name", "overlapped", "own", "parent", "parts",
        "path", "warm",
    )  # fmt: skip

    def __init__(self, name: str, parent: "Node | None" = None) -> None:
        self.name, self.parent = name, parent
        self.all: list[Node] = [] if parent is None else parent.all  # parts of the tree, each after the one above it
        self.all.append(self)
        self.path = name if parent is None or parent.parent is None else f"{parent.path}/{name}"
        self.depth = self.path.count("/")
        self.children: dict[str, Node] = {}
        self.parts: dict[tuple[str, ...], Node] = {}  # below this one, by their names from here
        self.own = self.below = self.overlapped = self.inclusive = self.exclusive = 0.0  # ms
        self.calls = 0
        self.figures, self.warm = Figures(), Figures()

    def child(self, name: str) -> "Node":
        """The part of that name, or that path ("stage1/blocks"), below this one."""
        found = self.children.get(name)
        if found is None:
            first, _, rest = name.partition("/")
            found = self.children.get(first)
            if found is None:
                found = self.children[first] = Node(first, self)
            if rest:
                found = found.child(rest)
        return found

    def part(self, names: tuple[str, ...]) -> "Node":
        """The same by several names."""
        found = self.parts.get(names)
        if found is None:
            found = self
            for name in names:
                found = found.child(name)
            self.parts[names] = found
        return found

    def walk(self) -> Iterator["Node"]:
        """This part and all below it, depth first."""
        yield self
        for child in self.children.values():
            yield from child.walk()


class Frame:
    """One span: a part, its marks, and the span around it; `apart` if it is told beside that one instead of below it."""

    __slots__ = ("apart", "end", "ms", "node", "parent", "path", "start", "syncs")

    def __init__(self, node: Node, parent: "Frame | None", start: Any, apart: bool = False, path: tuple[str, ...] | None = None) -> None:
        self.node, self.parent, self.start, self.end, self.apart, self.path = node, parent, start, None, apart, path
        self.ms = 0.0
        self.syncs: list[list[Any]] | None = None  # [ready, done] of each bucket of gradients sent from inside this span


class HostClock:
    """Marks are the host's time, ns."""

    name = "host clock"

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self.mark = now

    def between(self, start: int, end: int) -> float:
        """Milliseconds from mark to mark."""
        return (end - start) * 1e-6

    def reached(self, mark: int) -> bool:
        """Whether the mark can be read without waiting."""
        return True

    def wait(self, mark: int) -> None:
        """Wait until it can."""

    def free(self, frames: list[Frame]) -> None:
        """Give the marks of spans back."""


class DeviceClock:
    """Marks are CUDA events on the current stream; those given back are used again."""

    name = "CUDA events"

    def __init__(self, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        self._make, self._pool = event, []

    def mark(self) -> Any:
        """An event, recorded now."""
        event = self._pool.pop() if self._pool else self._make()
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from mark to mark, on the device's own time."""
        return start.elapsed_time(end)

    def reached(self, mark: Any) -> bool:
        """Whether the device has passed the mark."""
        return mark.query()

    def wait(self, mark: Any) -> None:
        """Wait for the device to pass it."""
        mark.synchronize()

    def free(self, frames: list[Frame]) -> None:
        """Give the marks of spans back."""
        marks = {id(mark): mark for frame in frames for mark in (frame.start, frame.end)}  # spans that closed together share one
        self._pool += marks.values()


class Spans:
    """The open spans of the running step, innermost last, and the steps that are over and not yet settled.

    Spans are taken from the thread that began the step and, while a span called "backward" is open, from autograd's, which runs a
    checkpointed forward pass again. Outside a step nothing is recorded.
    """

    def __init__(self, clock: HostClock | DeviceClock, on_begin: Callable[[], None] | None = None) -> None:
        self.clock, self.root = clock, Node(STEP)
        for name in PARTS:
            self.root.child(name)
        self.number = 1  # of the running step
        self._on_begin = on_begin
        self._stack: list[Frame] = []
        self._frames: list[Frame] = []
        self._given: list[tuple[Node, float]] = []
        self._over: deque[tuple[int, list[Frame], list[tuple[Node, float]]]] = deque()
        self._owner = 0

    def begin(self) -> Frame:
        """A step begins; one that was running is forgotten."""
        self.forget()
        self._owner = threading.get_ident()
        frame = Frame(self.root, None, self.clock.mark())
        self._stack, self._frames, self._given = [frame], [frame], []
        return frame

    def end(self) -> None:
        """The running step is over, with all that is open in it; the next has the next number."""
        if not self._stack:
            return
        mark = self.clock.mark()
        for frame in self._stack:
            frame.end = mark
        self._over.append((self.number, self._frames, self._given))
        self.number += 1
        self._stack, self._frames, self._given = [], [], []

    def forget(self) -> None:
        """Drop the running step."""
        for frame in self._frames:
            frame.end = frame.start  # a context that is left later has nothing to close
        self._stack, self._frames, self._given = [], [], []

    def open(self, name: str) -> Frame | None:
        """A span begins, inside the innermost one. "step" outside of any other is a step of its own."""
        stack = self._stack
        if len(stack) < 2 and name == STEP:
            frame = self.begin()
            if self._over and self._on_begin is not None:  # what the log itself takes is a part of the step
                own = self.open("logging")
                self._on_begin()
                self.close(own)
            return frame
        if not stack or not self._is_ours():
            return None
        return self._push(stack[-1].node.child(name))

    def open_forward(self) -> Frame | None:
        """The network as a whole begins; inside a span "loss" it is told beside it, and run again inside "backward" as "recompute".

        A span that is itself "forward" is the network already: None, and the parts hang there.
        """
        stack = self._stack
        if not stack or not self._is_ours():
            return None
        top = stack[-1]
        if top.node.name == "forward":
            return None
        if top.node.name == "backward":
            return self._push(top.node.child("recompute"))
        if top.node.name == "loss" and top.node.parent is not None:
            return self._push(top.node.parent.child("forward"), apart=True)
        return self._push(top.node.child("forward"))

    def open_part(self, path: tuple[str, ...]) -> Frame | None:
        """A named part of the network begins; `path` leads to it from the network."""
        stack = self._stack
        if not stack or not self._is_ours():
            return None
        top = stack[-1]
        above = top.path
        if above is None:  # not inside another part
            node = top.node.child("recompute") if top.node.name == "backward" else top.node
            return self._push(node.part(path), path=path)
        # A module that belongs to another part, and is used in this one, is told here by its last name.
        inside = path[len(above) :] if len(path) > len(above) and path[: len(above)] == above else path[-1:]
        return self._push(top.node.part(inside), path=above + inside)

    def close(self, frame: Frame | None) -> None:
        """The span is over, with all that was opened in it and left open by an exception."""
        if frame is None or frame.end is not None:
            return
        if frame.parent is None:
            self.end()
            return
        mark, stack = self.clock.mark(), self._stack
        while stack:
            top = stack.pop()
            top.end = mark
            if top is frame:
                break

    def add(self, name: str, ms: float) -> None:
        """A time that somebody else has measured, to the step that is running."""
        if self._stack and self._is_ours():
            self._given.append((self.root.child(name), ms))

    def sync_begins(self) -> Callable[[], None]:
        """A bucket of gradients is ready and on its way; what is returned is to be called when it has arrived."""
        frame = next((frame for frame in reversed(self._stack) if frame.node.name == "backward"), None)
        if frame is None:
            return lambda: None
        sync = [self.clock.mark(), None]
        frame.syncs = [*(frame.syncs or []), sync]

        def arrived() -> None:
            sync[1] = self.clock.mark()

        return arrived

    def settled(self, wait: bool = False) -> Iterator[int]:
        """The numbers of the steps that are over, in order; the tree's nodes hold what a step took until the next is asked for.

        Without `wait`, only those that the device has passed.
        """
        while self._over:
            number, frames, given = self._over[0]
            last = frames[0].end
            if wait or len(self._over) > MOST_WAITING:
                self.clock.wait(last)
            elif not self.clock.reached(last):
                return
            self._over.popleft()
            self._settle(frames, given)
            yield number

    def _is_ours(self) -> bool:
        return threading.get_ident() == self._owner or any(frame.node.name == "backward" for frame in self._stack)

    def _push(self, node: Node, apart: bool = False, path: tuple[str, ...] | None = None) -> Frame:
        frame = Frame(node, self._stack[-1], self.clock.mark(), apart, path)
        self._stack.append(frame)
        self._frames.append(frame)
        return frame

    def _settle(self, frames: list[Frame], given: list[tuple[Node, float]]) -> None:
        between, tree = self.clock.between, self.root.all
        for node in tree:
            node.own = node.below = node.overlapped = 0.0
            node.calls = 0
        for frame in frames:
            frame.ms = between(frame.start, frame.end)
        for frame in frames:
            if frame.apart:
                frame.parent.ms -= frame.ms
            if frame.syncs:
                self._settle_syncs(frame)
        for frame in frames:
            node, around = frame.node, frame.parent
            node.own += frame.ms
            node.calls += 1
            if around is None:
                continue
            stop = (around.parent if frame.apart else around).node
            up = node.parent
            while up is not stop:  # parts between the two that have no span here: a list of modules, a block that is run again alone
                up.own += frame.ms
                up = up.parent
        for node, ms in given:
            node.own += ms
            node.calls += 1
        for node in reversed(tree):  # a part takes what its spans took, or its children together where those are more
            below, own = node.below, node.own
            node.inclusive = whole = own if own > below else below
            node.exclusive = whole - below
            if node.parent is not None:
                node.parent.below += whole
        self.clock.free(frames)

    def _settle_syncs(self, frame: Frame) -> None:
        """Take out of a backward pass what it waited for gradients in the end; what went on behind it is noted beside that."""
        since = [[self.clock.between(frame.start, mark) for mark in sync] for sync in frame.syncs if sync[1] is not None]
        if not since:
            return
        computed = max(ready for ready, _ in since)  # the last bucket is ready when the last gradient is
        exposed = max(0.0, min(max(done for _, done in since), frame.ms) - computed)
        hidden, upto = 0.0, 0.0
        for ready, done in sorted(since):
            begin, end = max(ready, upto), min(done, computed)
            if end > begin:
                hidden, upto = hidden + end - begin, end
        frame.ms -= exposed
        node = frame.node.parent.child("gradient sync")
        node.own += exposed
        node.overlapped += hidden
        node.calls += 1


class Span:
    """A span as a context."""

    __slots__ = ("_frame", "_name", "_spans")

    def __init__(self, spans: Spans, name: str) -> None:
        self._spans, self._name = spans, name

    def __enter__(self) -> None:
        self._frame = self._spans.open(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._frame is not None and self._frame.parent is None and self._frame.end is None:
            self._spans.forget()  # half a step says nothing
        else:
            self._spans.close(self._frame)


def timed(name: str) -> AbstractContextManager[None]:
    """A span of the running step, inside the span that is open: `with timed("loss"):`; nothing if nobody wants to know.

    `name` may be a path ("decoder/attention"); a name that comes again within a step adds up. "step" outside of other spans is a step.
    """
    if torch.compiler.is_compiling() or running is None:  # a compiled region is one part
        return NOTHING
    return Span(running, name)


def log_timing(name: str, ms: float) -> None:
    """Add a time in ms, measured by other means, to the part `name` ("part/sub") of the running step; nothing if nobody wants to know."""
    if running is not None:
        running.add(name, ms)
