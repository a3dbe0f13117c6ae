"""The timing log: its file line by line, its rows, its step by step use, and a whole run by it."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import TINY, assert_same, load
from snnexp.errors import RunFailed, UserError
from snnexp.trackers.timing import spans
from snnexp.trackers.timing.duration_stats import ERROR
from snnexp.trackers.timing.spans import HostClock
from snnexp.trackers.timing.tracker import TimingLogger, TimingTracker, log_timing, set_global_timing_logger, timed


class Clock(HostClock):
    """A host clock that stands still until told."""

    def __init__(self) -> None:
        self.ns = 0
        super().__init__(lambda: self.ns)

    def go(self, ms: float) -> None:
        self.ns += round(ms * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    monkeypatch.setattr(spans, "running", None)


def logger(folder, clock: Clock, **options) -> TimingLogger:
    return TimingLogger(folder, clock=clock, device="cpu", **{"enable_console": False} | options)


def described(log: TimingLogger) -> None:
    """The step of the seed's example, without its double counting: 620 ms."""
    set_global_timing_logger(log)
    for name, ms in {"forward": 280, "vrt": 150, "vrt/Stage1": 25, "vrt/Stage2": 23, "attention": 80, "attention/FFN": 20}.items():
        log_timing(name, ms)
    log_timing("flow", 60)
    log_timing("encoder", 50)


STEP_1 = f"""\
{"=" * 80}
Step 1
{"=" * 80}
forward                                 :   280.00ms ( 45.2%) [avg:   280.00ms]
vrt                                     :   150.00ms ( 24.2%) [avg:   150.00ms]
  - Stage1                              :    25.00ms [avg:    25.00ms]
  - Stage2                              :    23.00ms [avg:    23.00ms]
attention                               :    80.00ms ( 12.9%) [avg:    80.00ms]
  - FFN                                 :    20.00ms [avg:    20.00ms]
flow                                    :    60.00ms (  9.7%) [avg:    60.00ms]
encoder                                 :    50.00ms (  8.1%) [avg:    50.00ms]
Total-----------------------------------:   620.00ms
"""


def test_the_file_is_that_of_the_description(tmp_path, clock):
    log = logger(tmp_path, clock, file_flush_interval=1)
    described(log)
    log.step()
    assert (tmp_path / "timing.log").read_text() == STEP_1


def test_what_no_part_covers_is_other_and_the_total_is_the_step(tmp_path, clock):
    log = logger(tmp_path, clock, file_flush_interval=2, warmup=1)
    for first, rest in ((90, 10), (30, 10), (10, 30)):
        with log.timed("forward"), log.timed("stage1/block"):
            clock.go(first)
        clock.go(rest)
        log.step()
    head = ["=" * 80, "Step 2", "=" * 80]
    assert (tmp_path / "timing.log").read_text().splitlines() == [
        *head,
        "forward                                 :    30.00ms ( 75.0%) [avg:    30.00ms]",
        "  - stage1                              :    30.00ms [avg:    30.00ms]",
        "    - block                             :    30.00ms [avg:    30.00ms]",
        "other                                   :    10.00ms ( 25.0%) [avg:    10.00ms]",
        "Total-----------------------------------:    40.00ms",
    ]
    log.print_summary()
    assert (tmp_path / "timing.log").read_text().splitlines()[8:] == [
        "=" * 80,
        "Summary: 2 steps after 1 of warm-up (100.00ms each), CPU, host clock",
        "=" * 80,
        "forward                                 :    20.00ms ( 50.0%) [min:    10.00ms] [p95:    30.00ms] [max:    30.00ms]",
        "  - stage1                              :    20.00ms [min:    10.00ms] [p95:    30.00ms] [max:    30.00ms]",
        "    - block                             :    20.00ms [min:    10.00ms] [p95:    30.00ms] [max:    30.00ms]",
        "other                                   :    20.00ms ( 50.0%) [min:    10.00ms] [p95:    30.00ms] [max:    30.00ms]",
        "Total-----------------------------------:    40.00ms",
    ]


def test_rows_by_hand(tmp_path, clock):
    log = logger(tmp_path, clock, warmup=1, enable_file=False)
    for number in range(1, 22):  # the first is of warm-up; of the 20 others, every second has the part, twice
        for _ in range(2 * (number % 2)):
            with log.timed("forward"):
                clock.go(number)
        clock.go(2)
        log.step()
    values = [2.0 * number if number % 2 else 0.0 for number in range(2, 22)]
    step, forward, other = log.rows()
    mean = sum(values) / 20
    assert (step["name"], forward["name"], other["name"]) == ("step", "forward", "other")
    assert (log.steps, step["calls_per_step"], step["depth"], step["share"]) == (20, 1, 0, 1)
    assert step["inclusive_ms"] == pytest.approx(mean + 2) and step["exclusive_ms"] == pytest.approx(2)
    assert forward["inclusive_ms"] == pytest.approx(mean) == pytest.approx(forward["exclusive_ms"])
    assert (forward["min_ms"], forward["max_ms"], forward["calls_per_step"]) == (0.0, 42.0, 1.0)
    assert forward["p95_ms"] == pytest.approx(sorted(values)[18], rel=ERROR) and forward["share"] == pytest.approx(mean / (mean + 2))
    assert other["inclusive_ms"] == other["min_ms"] == other["max_ms"] == pytest.approx(2)
    assert not (tmp_path / "timing.log").exists()
    assert "overlapped_ms" not in forward


def test_exposed_and_overlapped_sync_in_file_and_rows(tmp_path, clock):
    log = logger(tmp_path, clock, warmup=0, file_flush_interval=1)
    with log.timed("backward"):
        clock.go(10)
        arrived = log.spans.begin_sync()
        clock.go(30)
        last = log.spans.begin_sync()
        arrived()
        clock.go(20)
        last()
    log.step()
    assert (tmp_path / "timing.log").read_text().splitlines()[3:] == [
        "backward                                :    40.00ms ( 66.7%) [avg:    40.00ms]",
        "gradient sync (exposed)                 :    20.00ms ( 33.3%) [avg:    20.00ms]",
        "  + behind backward, not in the total   :    30.00ms",
        "Total-----------------------------------:    60.00ms",
    ]
    rows = {row["name"]: row for row in log.rows()}
    assert rows["gradient sync"]["overlapped_ms"] == pytest.approx(30) and rows["step"]["inclusive_ms"] == pytest.approx(60)
    assert "  + behind backward, not in the total   :    30.00ms" in log.summary().splitlines()


def test_close_writes_for_machines_and_ends_the_recording(tmp_path, clock):
    log = logger(tmp_path, clock, warmup=1)
    set_global_timing_logger(log)
    for ms in (50, 10, 20):
        with timed("forward"):
            clock.go(ms)
        log.step()
    log.close()
    assert spans.running is None
    written = json.loads((tmp_path / "timing.json").read_text())
    assert written["rows"] == log.rows() and [row["name"] for row in written["rows"]] == ["step", "forward"]
    assert (written["steps"], written["warmup_steps"], written["warmup_mean_ms"]) == (2, 1, pytest.approx(50))
    assert (written["device"], written["clock"], written["p95_relative_error"]) == ("CPU", "host clock", 0.01)


def test_a_run_of_warm_up_alone_has_no_rows(tmp_path, clock):
    log = logger(tmp_path, clock, file_flush_interval=2)
    for ms in (30, 10):
        with log.timed("forward"):
            clock.go(ms)
        log.step()
    assert log.rows() == []
    assert "forward                                 :    10.00ms (100.0%) [avg:    20.00ms]" in (tmp_path / "timing.log").read_text()
    log.print_summary()
    log.close()
    assert json.loads((tmp_path / "timing.json").read_text())["rows"] == []


def test_the_log_s_own_work_in_a_step_that_is_held_is_logging(tmp_path, clock):
    class SlowLogger(TimingLogger):
        def collect(self, wait: bool = False) -> None:
            clock.go(4)
            super().collect(wait)

    log = SlowLogger(tmp_path, False, False, clock=clock, device="cpu", warmup=0)
    for _ in range(3):
        with log.timed("step"), log.timed("forward"):
            clock.go(10)
        clock.go(100)  # a validation
    rows = {row["name"]: row["inclusive_ms"] for row in log.rows()}
    assert rows == pytest.approx({"step": 38 / 3, "forward": 10, "logging": 8 / 3})


def test_a_state_goes_on_after_a_warm_up_of_its_own(tmp_path, clock):
    def steps(log: TimingLogger, *times: float) -> TimingLogger:
        for ms in times:
            with log.timed("forward"):
                clock.go(ms)
            clock.go(1)
            log.step()
        return log

    first = steps(logger(tmp_path, clock, warmup=1, file_flush_interval=1), 100, 10, 20)
    state = first.state_dict()
    then = logger(tmp_path, clock, warmup=1, file_flush_interval=1)
    then.load_state_dict(state)
    steps(then, 300, 30)
    rows = {row["name"]: row for row in then.rows()}
    assert then.steps == 3 and rows["forward"]["inclusive_ms"] == pytest.approx(20) and rows["forward"]["max_ms"] == 30
    assert rows["other"]["inclusive_ms"] == pytest.approx(1) and rows["step"]["inclusive_ms"] == pytest.approx(21)
    assert "3 steps after 2 of warm-up (201.00ms each)" in then.summary()
    assert (tmp_path / "timing.log").read_text().count("Step") == 5  # it goes on where the first left off
    steps(logger(tmp_path, clock, file_flush_interval=1), 1)
    assert (tmp_path / "timing.log").read_text().count("Step") == 1  # another run begins anew

    elsewhere = logger(tmp_path, clock, warmup=0, enable_file=False)
    elsewhere.load_state_dict(state | {"device": "a GPU"})
    assert steps(elsewhere, 7).rows()[0]["inclusive_ms"] == pytest.approx(8) and elsewhere.steps == 1
    torch.save(state, tmp_path / "state")
    assert_same(torch.load(tmp_path / "state", weights_only=True), first.state_dict())


def test_a_state_cuts_the_file_back_to_its_own_blocks(tmp_path, clock):
    def steps(log: TimingLogger, *times: float) -> None:
        for ms in times:
            log_timing("forward", ms)
            log.step()

    def started(**options) -> TimingLogger:
        log = logger(tmp_path, clock, file_flush_interval=1, **options)
        set_global_timing_logger(log)
        return log

    first, path = started(), tmp_path / "timing.log"
    steps(first, 10, 20)
    known, state = path.read_text(), first.state_dict()
    assert state["offset"] == path.stat().st_size > 0
    steps(first, 30)  # past the checkpoint, and then a kill
    first.print_summary()
    assert started(enable_file=False).load_state_dict(state) is None and path.read_text() != known  # it is the main process's alone
    then = started()
    then.load_state_dict(state | {"device": "a GPU"})
    assert path.read_text() == known
    then.spans.number = 3
    steps(then, 40)
    then.print_summary()
    output = path.read_text()
    assert output.startswith(known) and [output.count(f"Step {number}\n") for number in (1, 2, 3)] == [1, 1, 1]
    assert output.count("Summary") == 1 and "    40.00ms" in output and "    30.00ms" not in output
    path.write_text(known[:-100])
    with pytest.raises(UserError, match=r"timing\.log has \d+ bytes, but the checkpoint says that \d+ of them are its own"):
        started().load_state_dict(state)


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[3] / "docs/timing.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = nn.Sequential()
    model.stage1, model.stage2 = nn.Linear(2, 2), nn.Linear(2, 2)
    exec(example, {"model": model, "loader": [torch.ones(1, 2)] * 5, "ms": 2.5})
    written = json.loads(Path("logs/timing.json").read_text())
    assert (written["steps"], written["warmup_steps"]) == (2, 3)
    rows = {row["name"]: row for row in written["rows"]}
    parts = {"step", "forward", "forward/stage1", "forward/stage2", "backward", "decoder", "decoder/attention"}
    assert parts <= rows.keys() <= parts | {"other"}  # where the step is shorter than the times given, nothing is left over
    assert rows["forward"]["calls_per_step"] == rows["forward/stage1"]["calls_per_step"] == 1
    assert rows["decoder"]["calls_per_step"] == 0 and rows["decoder"]["inclusive_ms"] == 2.5
    assert spans.running is None and "Summary: 2 steps" in Path("logs/timing.log").read_text()


def test_memory_does_not_grow_with_steps(tmp_path, clock):
    log = logger(tmp_path, clock, enable_file=False)
    sizes = []
    for number in range(2000):
        with log.timed("forward"):
            clock.go(1 + number % 50)
        log.step()
        if number in (999, 1999):
            sizes.append(len(str(log.state_dict()).split(",")))
    assert sizes[0] == sizes[1]


def test_nothing_is_shown_where_there_is_no_terminal(tmp_path, clock, capfd):
    log = logger(tmp_path, clock, enable_console=True, console_update_interval=1)
    described(log)
    log.step()
    log.print_summary()
    log.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("option", "value"), [("console_update_interval", 0), ("file_flush_interval", 0), ("warmup", -1)])
def test_options_that_are_not_allowed(tmp_path, option, value):
    with pytest.raises(UserError, match=f"{option}={value}"):
        TimingLogger(tmp_path, **{option: value})


@pytest.mark.parametrize(("option", "value"), [("depth", -1), ("warmup", -1), ("console_interval", 0), ("file_interval", 0)])
def test_options_of_the_tracker_that_are_not_allowed(option, value):
    with pytest.raises(UserError, match=f"tracker.timing.{option}: {value} is not allowed"):
        TimingTracker(model=nn.Linear(1, 1), **{option: value})


def test_a_disk_that_refuses_is_said(tmp_path, clock):
    (tmp_path / "logs").write_text("a file")
    log = logger(tmp_path / "logs", clock, file_flush_interval=1)
    with pytest.raises(RunFailed, match=r"timing\.log"):
        log.step()


def test_only_the_main_process_writes(tmp_path):
    net = nn.Linear(2, 2)
    tracker = TimingTracker(model=net, folder=tmp_path, main=False, file_interval=1, warmup=0)
    with tracker.listening(net), timed("step"):
        net(torch.ones(1, 2))
        assert tracker.stepped(7) == {}
    assert tracker.close_epoch(1) == {} and tracker.finish() == [] and list(tmp_path.iterdir()) == []
    assert tracker.logger.rows()[1]["name"] == "forward"


# ---- a whole run

RUN = [*TINY, "limit_train=512", "epochs=1", "accumulate=2"]


@pytest.fixture(scope="module")
def runs(snnexp, tmp_path_factory):
    """A run that is timed, and the same without."""
    folder = tmp_path_factory.mktemp("timed")
    options = ["tracker=timing", "tracker.timing.warmup=0", "tracker.timing.file_interval=8"]
    output = snnexp("train", *RUN, *options, "exp_name=timed", cwd=folder)
    snnexp("train", *RUN, "tracker=none", "exp_name=plain", cwd=folder)
    return folder / "outputs/timed", folder / "outputs/plain", output


def test_the_tree_of_a_run_is_its_step(runs):
    run, _, output = runs
    rows = {row["name"]: row for row in json.loads((run / "logs/timing.json").read_text())["rows"]}
    roots = [row for name, row in rows.items() if row["depth"] == 0 and name != "step"]
    step = rows["step"]["inclusive_ms"]
    assert [row["name"] for row in roots] == [
        "data", "to device", "prepare", "forward", "loss", "backward", "optimizer", "logging", "other",
    ]  # fmt: skip
    assert sum(row["inclusive_ms"] for row in roots) == pytest.approx(step, rel=1e-6)
    assert rows["other"]["share"] < 0.2
    for name in ("data", "forward", "loss", "backward", "forward/features", "forward/features/0", "forward/classifier/1"):
        assert rows[name]["calls_per_step"] == 2, "once for each batch of the step"
    assert rows["optimizer"]["calls_per_step"] == 1  # clipping and the update
    below = [row["inclusive_ms"] for name, row in rows.items() if name.startswith("forward/features/")]
    assert len(below) > 5 and sum(below) + rows["forward/features"]["exclusive_ms"] == pytest.approx(
        rows["forward/features"]["inclusive_ms"]
    )
    trained = load(run / "checkpoints/checkpoint_final.pth")["state"]["train_seconds"]
    assert 16 * step / 1000 == pytest.approx(trained, rel=0.02), "the run's own stopwatch"
    assert f"step        {step:.1f} ms" in output and "of which" in output and "Timing Profile" not in output


def test_the_log_of_a_run(runs):
    lines = (runs[0] / "logs/timing.log").read_text().splitlines()
    titles = [lines[number + 1] for number, line in enumerate(lines[:-2]) if line == lines[number + 2] == "=" * 80]
    assert titles == ["Step 8", "Step 16", "Summary: 16 steps after 0 of warm-up, CPU, host clock"]
    assert sum(line.startswith("Total---") for line in lines) == 3 and "  - features" in "\n".join(lines)


def test_a_run_that_is_timed_trains_as_one_that_is_not(runs):
    timed_run, plain, _ = runs
    a, b = (load(run / "checkpoints/checkpoint_final.pth") for run in (timed_run, plain))
    assert_same(a["state_dict"], b["state_dict"])
    assert (timed_run / "logs/metrics.jsonl").read_text() == (plain / "logs/metrics.jsonl").read_text()
    assert not (plain / "logs/timing.json").exists()


def test_a_resumed_run_counts_on(runs, snnexp):
    run = runs[0]
    snnexp("resume", run, "epochs=2", cwd=run.parents[1])
    written = json.loads((run / "logs/timing.json").read_text())
    assert (written["steps"], written["warmup_steps"]) == (32, 0)
    output = (run / "logs/timing.log").read_text()
    assert re.findall(r"Step \d+(?=\n)", output) == [f"Step {number}" for number in (8, 16, 24, 32)]
    assert output.count("Summary") == output.count("Summary: 32 steps") == 1, "the one before is gone"
