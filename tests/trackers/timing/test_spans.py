"""Spans and the tree they come to, by a clock that the test moves; marks of a device that lags behind."""

import threading

import pytest

from snnexp.trackers.timing import spans as timing_spans
from snnexp.trackers.timing.spans import NO_SPAN, DeviceClock, HostClock, Span, Spans, log_timing, timed


class Clock(HostClock):
    """A host clock that stands still until told."""

    def __init__(self) -> None:
        self.ns = 1_000
        super().__init__(lambda: self.ns)

    def go(self, ms: float) -> None:
        self.ns += round(ms * 1e6)


class Event:
    """A CUDA event of a device that has got as far as `Event.passed`; `made` counts them, `waited` the synchronisations."""

    now, passed, made, waited = 0.0, 0.0, 0, 0

    def __init__(self) -> None:
        Event.made += 1

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.passed

    def synchronize(self) -> None:
        Event.waited += 1
        Event.passed = max(Event.passed, self.at)

    def elapsed_time(self, other: "Event") -> float:
        assert max(self.at, other.at) <= Event.passed, "read before the device was there"
        return other.at - self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spans(clock, monkeypatch) -> Spans:
    spans = Spans(clock)
    monkeypatch.setattr(timing_spans, "running", spans)
    return spans


def tree(spans: Spans) -> dict[str, tuple[float, float, int]]:
    """Inclusive and exclusive time and calls of each part of the one step that is over."""
    (_,) = spans.settle()
    nodes = [node for node in spans.root.walk() if node.calls or node.inclusive]
    return {node.path: (round(node.inclusive, 6), round(node.exclusive, 6), node.calls) for node in nodes}


def test_a_tree_by_hand(spans, clock):
    with timed("step"):
        clock.go(1)
        with timed("forward"):
            clock.go(2)
            with timed("stage1"):
                clock.go(4)
                with timed("attention"):
                    clock.go(8)
            with timed("stage2"):
                clock.go(16)
        with timed("backward"):
            clock.go(32)
        clock.go(64)
    assert tree(spans) == {
        "step": (127, 65, 1),
        "forward": (30, 2, 1),
        "forward/stage1": (12, 4, 1),
        "forward/stage1/attention": (8, 8, 1),
        "forward/stage2": (16, 16, 1),
        "backward": (32, 32, 1),
    }
    assert [node.depth for node in spans.root.walk() if node.calls] == [0, 0, 1, 2, 1, 0]


def test_a_name_that_comes_again_adds_up_and_a_new_step_begins_at_nothing(spans, clock):
    for times in (3, 1):
        with timed("step"):
            for _ in range(times):
                with timed("forward"), timed("block"):
                    clock.go(5)
        assert tree(spans) == {"step": (5 * times, 0, 1), "forward": (5 * times, 0, times), "forward/block": (5 * times, 5 * times, times)}


def test_the_network_inside_the_loss_is_told_beside_it(spans, clock):
    with timed("step"), timed("loss"):
        clock.go(1)
        forward = spans.open_forward()
        part = spans.open_part(("stage1",))
        clock.go(10)
        spans.close(part)
        clock.go(2)
        spans.close(forward)
        clock.go(3)
    assert tree(spans) == {"step": (16, 0, 1), "forward": (12, 2, 1), "forward/stage1": (10, 10, 1), "loss": (4, 4, 1)}


def test_the_network_inside_a_span_forward_is_that_span(spans, clock):
    with timed("step"), timed("forward"):
        clock.go(1)
        forward = spans.open_forward()
        part = spans.open_part(("stage1", "block"))
        clock.go(10)
        spans.close(part)
        clock.go(2)
        spans.close(forward)
        clock.go(4)
    assert tree(spans) == {
        "step": (17, 0, 1),
        "forward": (17, 7, 1),
        "forward/stage1": (10, 0, 0),
        "forward/stage1/block": (10, 10, 1),
    }


def test_parts_of_parts_that_have_no_span_count_for_what_lies_between(spans, clock):
    with timed("step"):
        forward = spans.open_forward()
        for name in ("0", "1"):  # of a list of blocks, which is never called itself
            part = spans.open_part(("blocks", name))
            clock.go(5)
            spans.close(part)
        spans.close(forward)
    seen = tree(spans)
    assert seen["forward/blocks"] == (10, 0, 0) and seen["forward/blocks/1"] == (5, 5, 1) and seen["forward"] == (10, 0, 1)


def test_a_module_of_another_part_is_told_where_it_is_used(spans, clock):
    with timed("step"):
        forward = spans.open_forward()
        decoder = spans.open_part(("decoder",))
        shared = spans.open_part(("encoder", "embedding"))
        clock.go(5)
        spans.close(shared)
        spans.close(decoder)
        spans.close(forward)
    assert tree(spans) == {"step": (5, 0, 1), "forward": (5, 0, 1), "forward/decoder": (5, 0, 1), "forward/decoder/embedding": (5, 5, 1)}


def test_what_runs_again_in_the_backward_pass_is_never_added_to_forward(spans, clock):
    with timed("step"):
        forward = spans.open_forward()
        part = spans.open_part(("stage1", "block"))
        clock.go(5)
        spans.close(part)
        spans.close(forward)
        with timed("backward"):
            clock.go(7)

            def again() -> None:  # autograd has a thread of its own
                part = spans.open_part(("stage1", "block"))
                clock.go(6)
                spans.close(part)

            thread = threading.Thread(target=again)
            thread.start()
            thread.join()
    assert tree(spans) == {
        "step": (18, 0, 1),
        "forward": (5, 0, 1),
        "forward/stage1": (5, 0, 0),
        "forward/stage1/block": (5, 5, 1),
        "backward": (13, 7, 1),
        "backward/recompute": (6, 0, 0),
        "backward/recompute/stage1": (6, 0, 0),
        "backward/recompute/stage1/block": (6, 6, 1),
    }


def test_another_thread_has_no_spans_of_the_step(spans, clock):
    def elsewhere() -> None:
        with timed("loader"):
            clock.go(3)
        log_timing("loader", 7.0)

    with timed("step"), timed("forward"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert tree(spans) == {"step": (3, 0, 1), "forward": (3, 3, 1)}


def test_an_exception_closes_what_it_leaves_open(spans, clock):
    with timed("step"):
        with pytest.raises(KeyError), timed("forward"):
            spans.open("lost")
            spans.open("deeper")
            clock.go(5)
            raise KeyError
        with timed("backward"):
            clock.go(2)
    seen = tree(spans)
    assert seen["forward"] == (5, 0, 1) and seen["forward/lost/deeper"] == (5, 5, 1) and seen["backward"] == (2, 2, 1)


def test_half_a_step_is_forgotten(spans, clock):
    inner = timed("forward")
    with pytest.raises(KeyError), timed("step"):
        inner.__enter__()
        clock.go(5)
        raise KeyError
    inner.__exit__(None, None, None)  # left late: there is nothing to close
    assert list(spans.settle()) == [] and spans.number == 1
    with timed("step"), timed("data"):
        clock.go(1)
    assert tree(spans) == {"step": (1, 0, 1), "data": (1, 1, 1)}


def test_between_steps_nothing_is_recorded(spans, clock):
    with timed("step"):
        clock.go(1)
    assert spans.open_forward() is None and spans.open_part(("stage1",)) is None
    with timed("validation"):
        clock.go(50)
    log_timing("validation", 50.0)
    assert tree(spans) == {"step": (1, 1, 1)}


def test_times_given_are_never_counted_with_their_parents(spans, clock):
    with timed("step"):
        log_timing("forward", 20.0)
        log_timing("forward/stage1", 12.0)
        log_timing("vrt/stage1", 3.0)
        log_timing("vrt/stage2", 4.0)
        log_timing("forward/stage1", 2.0)
        clock.go(50)
    assert tree(spans) == {
        "step": (50, 23, 1),
        "forward": (20, 6, 1),
        "forward/stage1": (14, 14, 2),
        "vrt": (7, 0, 0),
        "vrt/stage1": (3, 3, 1),
        "vrt/stage2": (4, 4, 1),
    }


def test_times_that_exceed_the_measured_step_make_it_longer(spans, clock):
    with timed("step"):
        log_timing("a", 280.0)
        log_timing("b/c", 340.0)
        clock.go(0.5)
    assert tree(spans)["step"] == (620, 0, 1)


def test_without_anybody_listening_nothing_is_made(monkeypatch):
    monkeypatch.setattr(timing_spans, "running", None)
    assert timed("step") is NO_SPAN is timed("forward")
    with timed("forward"), timed("forward"):
        log_timing("anything", 1.0)


# ---- gradients between processes


def sent(spans: Spans, clock: Clock, events: list[tuple[float, str, int]]) -> dict[str, tuple[float, float, int]]:
    """A backward pass of 100 ms, with buckets that are ready and arrive at those ms."""
    arrived, now = {}, 0.0
    with timed("step"):
        with timed("backward"):
            for at, what, bucket in events:
                clock.go(at - now)
                now = at
                if what == "ready":
                    arrived[bucket] = spans.begin_sync()
                else:
                    arrived[bucket]()
            clock.go(100 - now)
    return tree(spans)


def test_sync_behind_the_backward_pass_is_beside_the_total(spans, clock):
    # 10-30 and 20-50 overlap: 40 hidden. The last is ready at 70: nothing of 70-95 is hidden, the step waits 25.
    events = [(10, "ready", 0), (20, "ready", 1), (30, "done", 0), (50, "done", 1), (70, "ready", 2), (95, "done", 2)]
    seen = sent(spans, clock, events)
    assert seen["gradient sync"] == (25, 25, 1) and seen["backward"] == (75, 75, 1) and seen["step"] == (100, 0, 1)
    assert spans.root.child("gradient sync").overlapped == pytest.approx(40)


def test_a_bucket_that_arrives_after_the_last_is_ready_is_split_there(spans, clock):
    seen = sent(spans, clock, [(10, "ready", 0), (60, "ready", 1), (80, "done", 0), (90, "done", 1)])
    assert seen["gradient sync"] == (30, 30, 1) and seen["backward"] == (70, 70, 1)
    assert spans.root.child("gradient sync").overlapped == pytest.approx(50)


def test_a_bucket_that_never_arrives_is_left_out(spans, clock):
    assert sent(spans, clock, [(10, "ready", 0)]) == {"step": (100, 0, 1), "backward": (100, 100, 1)}
    spans.begin_sync()()  # outside of any backward pass


# ---- a device that lags behind


def test_events_are_read_when_the_device_has_passed_them_and_used_again(monkeypatch):
    for name in ("now", "passed", "made", "waited"):
        monkeypatch.setattr(Event, name, 0)
    spans = Spans(DeviceClock(Event))
    seen = []
    for _ in range(20):
        with Span(spans, "step"):
            with Span(spans, "forward"):
                Event.now += 3
            with Span(spans, "backward"):
                Event.now += 5
                spans.open("left open")
        Event.passed = Event.now - 1  # this step's end is still to come: it is read one step later
        seen += [(number, spans.root.inclusive, spans.root.child("backward").inclusive) for number in spans.settle()]
    assert seen == [(number, 8.0, 5.0) for number in range(1, 20)] and Event.waited == 0
    assert Event.made <= 2 * 8  # those of two steps, whatever their number
    assert [number for number in spans.settle(wait=True)] == [20] and Event.waited == 1


def test_no_more_steps_wait_than_allowed(monkeypatch):
    for name in ("now", "passed", "made", "waited"):
        monkeypatch.setattr(Event, name, 0)
    spans = Spans(DeviceClock(Event))
    read = []
    for _ in range(timing_spans.MAX_UNREAD_STEPS + 3):
        with Span(spans, "step"):
            Event.now += 1
        read += spans.settle()
    assert read == [1, 2, 3] and Event.waited == 3
