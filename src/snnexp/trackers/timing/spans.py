"""Spans of a training step: when each part began and ended, and inside which other part; and the tree of parts that they make.

A span costs one mark at each end. On the CPU a mark is the time; on CUDA it is an event on the current stream, which is read when the
device has passed it, so that nothing waits. The times are computed from the marks when the step is over (`Spans.settle`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch

from snnexp.trackers.timing.duration_stats import DurationStats

STEP = "step"
PARTS = ("data", "to device", "prepare", "forward", "loss", "backward", "gradient sync", "optimizer", "logging")
"""Parts of a training step, in the order in which they are listed."""
NO_SPAN = nullcontext()
MAX_UNREAD_STEPS = 64
"""The most steps whose events are unread; beyond it, the oldest step is waited for."""

running: "Spans | None" = None
"""The spans that `timed`, `log_timing` and the hooks of named parts record into; None: no logger is set."""


class Node:
    """A part of the tree: the time it took in the step that is being settled, and its statistics over all steps."""

    __slots__ = (
        "all_nodes", "calls", "children", "children_ms", "depth", "descendants", "exclusive", "inclusive", "name", "overlapped", "parent",
        "path", "span_ms", "stats", "warmup_stats",
    )  # fmt: skip

    def __init__(self, name: str, parent: "Node | None" = None) -> None:
        self.name, self.parent = name, parent
        self.all_nodes: list[Node] = [] if parent is None else parent.all_nodes  # of the whole tree, each after its parent
        self.all_nodes.append(self)
        self.path = name if parent is None or parent.parent is None else f"{parent.path}/{name}"
        self.depth = self.path.count("/")
        self.children: dict[str, Node] = {}
        self.descendants: dict[tuple[str, ...], Node] = {}  # by their names from this node on
        self.span_ms = self.children_ms = self.overlapped = self.inclusive = self.exclusive = 0.0  # ms
        self.calls = 0
        self.stats, self.warmup_stats = DurationStats(), DurationStats()

    def child(self, name: str) -> "Node":
        """Return the node below this one with a name or a path ("stage1/blocks"); create it if it does not exist."""
        node = self.children.get(name)
        if node is None:
            first, _, rest = name.partition("/")
            node = self.children.get(first)
            if node is None:
                node = self.children[first] = Node(first, self)
            if rest:
                node = node.child(rest)
        return node

    def descendant(self, names: tuple[str, ...]) -> "Node":
        """Return the node below this one that a sequence of names leads to; create it if it does not exist."""
        node = self.descendants.get(names)
        if node is None:
            node = self
            for name in names:
                node = node.child(name)
            self.descendants[names] = node
        return node

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all below it, depth first."""
        yield self
        for child in self.children.values():
            yield from child.walk()


class Frame:
    """One span: its node, its marks, and the enclosing span; with `beside`, its node is a sibling of that span's node, not its child."""

    __slots__ = ("beside", "end", "ms", "node", "parent", "path", "start", "syncs")

    def __init__(self, node: Node, parent: "Frame | None", start: Any, beside: bool = False, path: tuple[str, ...] | None = None) -> None:
        self.node, self.parent, self.start, self.end, self.beside, self.path = node, parent, start, None, beside, path
        self.ms = 0.0
        self.syncs: list[list[Any]] | None = None  # [sent, arrived] of each bucket of gradients sent inside this span


class HostClock:
    """A clock whose marks are the host's time in ns."""

    name = "host clock"

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self.mark = now

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two marks."""
        return (end - start) * 1e-6

    def is_reached(self, mark: int) -> bool:
        """Return whether the mark can be read without waiting."""
        return True

    def wait(self, mark: int) -> None:
        """Wait until the mark can be read."""

    def release(self, frames: list[Frame]) -> None:
        """Make the marks of spans available again."""


class DeviceClock:
    """A clock whose marks are CUDA events on the current stream; released events are used again."""

    name = "CUDA events"

    def __init__(self, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        self._make, self._pool = event, []

    def mark(self) -> Any:
        """Record an event now."""
        event = self._pool.pop() if self._pool else self._make()
        event.record()
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two marks, by the device's clock."""
        return start.elapsed_time(end)

    def is_reached(self, mark: Any) -> bool:
        """Return whether the device has passed the mark."""
        return mark.query()

    def wait(self, mark: Any) -> None:
        """Wait until the device has passed the mark."""
        mark.synchronize()

    def release(self, frames: list[Frame]) -> None:
        """Make the marks of spans available again."""
        marks = {id(mark): mark for frame in frames for mark in (frame.start, frame.end)}  # spans that closed together share one
        self._pool += marks.values()


class Spans:
    """The open spans of the running step, innermost last, and the finished steps that are not yet settled.

    Spans are recorded from the thread that began the step and, while a span called "backward" is open, from autograd's threads, which run a
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
        self._added: list[tuple[Node, float]] = []
        self._finished: deque[tuple[int, list[Frame], list[tuple[Node, float]]]] = deque()
        self._owner = 0

    def begin(self) -> Frame:
        """Begin a step, and drop one that was running."""
        self.forget()
        self._owner = threading.get_ident()
        frame = Frame(self.root, None, self.clock.mark())
        self._stack, self._frames, self._added = [frame], [frame], []
        return frame

    def end(self) -> None:
        """End the running step and all spans open in it; the next step gets the next number."""
        if not self._stack:
            return
        mark = self.clock.mark()
        for frame in self._stack:
            frame.end = mark
        self._finished.append((self.number, self._frames, self._added))
        self.number += 1
        self._stack, self._frames, self._added = [], [], []

    def forget(self) -> None:
        """Drop the running step."""
        for frame in self._frames:
            frame.end = frame.start  # a context that is left later has nothing to close
        self._stack, self._frames, self._added = [], [], []

    def open(self, name: str) -> Frame | None:
        """Open a span inside the innermost one; a span "step" outside of any other begins a step."""
        stack = self._stack
        if len(stack) < 2 and name == STEP:
            frame = self.begin()
            if self._finished and self._on_begin is not None:  # the time of the log itself is part of the step
                logging = self.open("logging")
                self._on_begin()
                self.close(logging)
            return frame
        if not stack or not self._is_recorded_thread():
            return None
        return self._push(stack[-1].node.child(name))

    def open_forward(self) -> Frame | None:
        """Open the span of the whole network: beside a span "loss" that it is called in, as "recompute" inside "backward".

        Inside a span that is itself "forward", return None: that span is the network already, and its parts go below it.
        """
        stack = self._stack
        if not stack or not self._is_recorded_thread():
            return None
        top = stack[-1]
        if top.node.name == "forward":
            return None
        if top.node.name == "backward":
            return self._push(top.node.child("recompute"))
        if top.node.name == "loss" and top.node.parent is not None:
            return self._push(top.node.parent.child("forward"), beside=True)
        return self._push(top.node.child("forward"))

    def open_part(self, path: tuple[str, ...]) -> Frame | None:
        """Open the span of a named part of the network; `path` leads to it from the network."""
        stack = self._stack
        if not stack or not self._is_recorded_thread():
            return None
        top = stack[-1]
        above = top.path
        if above is None:  # not inside another part
            node = top.node.child("recompute") if top.node.name == "backward" else top.node
            return self._push(node.descendant(path), path=path)
        # A module of another part that is used in this one goes below this one, by its last name.
        below = path[len(above) :] if len(path) > len(above) and path[: len(above)] == above else path[-1:]
        return self._push(top.node.descendant(below), path=above + below)

    def close(self, frame: Frame | None) -> None:
        """Close a span, and all spans inside it that an exception left open."""
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
        """Add a time that was measured elsewhere to the running step."""
        if self._stack and self._is_recorded_thread():
            self._added.append((self.root.child(name), ms))

    def begin_sync(self) -> Callable[[], None]:
        """Note that a bucket of gradients is ready and being sent; return the function to call when it has arrived."""
        frame = next((frame for frame in reversed(self._stack) if frame.node.name == "backward"), None)
        if frame is None:
            return lambda: None
        sync = [self.clock.mark(), None]
        frame.syncs = [*(frame.syncs or []), sync]

        def mark_arrived() -> None:
            sync[1] = self.clock.mark()

        return mark_arrived

    def settle(self, wait: bool = False) -> Iterator[int]:
        """Yield the numbers of the finished steps in order; until the next is asked for, the tree's nodes hold the times of that step.

        Without `wait`, only the steps that the device has passed.
        """
        while self._finished:
            number, frames, added = self._finished[0]
            last = frames[0].end
            if wait or len(self._finished) > MAX_UNREAD_STEPS:
                self.clock.wait(last)
            elif not self.clock.is_reached(last):
                return
            self._finished.popleft()
            self._settle_step(frames, added)
            yield number

    def _is_recorded_thread(self) -> bool:
        return threading.get_ident() == self._owner or any(frame.node.name == "backward" for frame in self._stack)

    def _push(self, node: Node, beside: bool = False, path: tuple[str, ...] | None = None) -> Frame:
        frame = Frame(node, self._stack[-1], self.clock.mark(), beside, path)
        self._stack.append(frame)
        self._frames.append(frame)
        return frame

    def _settle_step(self, frames: list[Frame], added: list[tuple[Node, float]]) -> None:
        elapsed_ms, nodes = self.clock.elapsed_ms, self.root.all_nodes
        for node in nodes:
            node.span_ms = node.children_ms = node.overlapped = 0.0
            node.calls = 0
        for frame in frames:
            frame.ms = elapsed_ms(frame.start, frame.end)
        for frame in frames:
            if frame.beside:
                frame.parent.ms -= frame.ms
            if frame.syncs:
                self._settle_syncs(frame)
        for frame in frames:
            node, outer = frame.node, frame.parent
            node.span_ms += frame.ms
            node.calls += 1
            if outer is None:
                continue
            stop = (outer.parent if frame.beside else outer).node
            above = node.parent
            while above is not stop:  # nodes between the two without a span: a list of modules, a block that is run again alone
                above.span_ms += frame.ms
                above = above.parent
        for node, ms in added:
            node.span_ms += ms
            node.calls += 1
        for node in reversed(nodes):  # a node takes as long as its spans or, if that is more, as its children together
            span_ms, children_ms = node.span_ms, node.children_ms
            node.inclusive = whole = span_ms if span_ms > children_ms else children_ms
            node.exclusive = whole - children_ms
            if node.parent is not None:
                node.parent.children_ms += whole
        self.clock.release(frames)

    def _settle_syncs(self, frame: Frame) -> None:
        """Take the final wait for gradients out of a backward pass, and note the exchange that it overlapped with."""
        times = [[self.clock.elapsed_ms(frame.start, mark) for mark in sync] for sync in frame.syncs if sync[1] is not None]
        if not times:
            return
        computed = max(sent for sent, _ in times)  # the last bucket is sent when the last gradient is ready
        exposed = max(0.0, min(max(arrived for _, arrived in times), frame.ms) - computed)
        overlapped, covered = 0.0, 0.0  # covered: up to when the overlap is counted
        for sent, arrived in sorted(times):
            begin, end = max(sent, covered), min(arrived, computed)
            if end > begin:
                overlapped, covered = overlapped + end - begin, end
        frame.ms -= exposed
        node = frame.node.parent.child("gradient sync")
        node.span_ms += exposed
        node.overlapped += overlapped
        node.calls += 1


class Span:
    """A context that is a span of the running step."""

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
    """Return a context that is a span inside the open one, as in `with timed("loss"):`; it does nothing if no logger is set.

    `name` may be a path ("decoder/attention"); spans of one name within a step add up. A span "step" outside of other spans is a step.
    """
    if torch.compiler.is_compiling() or running is None:  # a compiled region is one part
        return NO_SPAN
    return Span(running, name)


def log_timing(name: str, ms: float) -> None:
    """Add a time in ms, measured by other means, to the part `name` ("part/sub") of the running step; do nothing if no logger is set."""
    if running is not None:
        running.add(name, ms)
