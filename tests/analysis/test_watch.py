"""What is read of a run that is going on, cut back, over or damaged, and how it is drawn."""

import json
import math

import pytest

from analysis.watch_files import ago, append, epoch, make, update, write
from snnexp.analysis.watch import LiveRun, Tail
from snnexp.analysis.watch_panel import duration, panel, sparkline, wrap
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir


def texts(live, width=80, height=None, unicode=True):
    return [line.plain for line in panel(live, width, height, unicode)]


def event_texts(events):
    return [event.text for event in events]


# ---- a log that grows


def test_each_line_is_read_once_and_half_a_line_waits(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = Tail(path, lambda row: row.get("a"))
    assert tail.read() == (False, [])  # not there yet
    append(path, {"a": 1}, {"b": 2}, {"a": 3})
    append(path, {"a": 4}, end="")
    assert tail.read() == (False, [1, 3])
    assert tail.read() == (False, [])
    with open(path, "a") as file:
        file.write("\n[5]\nno json\n")
    assert tail.read() == (False, [4])


def test_a_log_that_was_cut_is_read_anew_even_if_it_has_grown_since(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = Tail(path, lambda row: row["a"])
    append(path, {"a": 1}, {"a": 2}, {"a": 3})
    assert tail.read() == (False, [1, 2, 3])
    path.write_text('{"a": 1}\n')
    assert tail.read() == (True, [1])
    path.write_text('{"a": 1}\n{"a": 7}\n{"a": 8}\n')
    assert tail.read() == (False, [7, 8])
    path.write_text('{"a": 1}\n{"a": 9}\n{"a": 9}\n{"a": 9}\n{"a": 9}\n')
    assert tail.read() == (True, [1, 9, 9, 9, 9])
    path.unlink()
    assert tail.read() == (False, [])


# ---- a run


def test_a_running_run_between_two_looks(tmp_path):
    run = make(tmp_path / "run")
    live = LiveRun(RunDir(run))
    assert event_texts(live.refresh()) == ["running"] and live.fraction == 0 and live.best is None and live.events() == []
    append(run / "logs/metrics.jsonl", epoch(1, 2.0, 50.0), epoch(2, 1.0, 40.0))
    append(run / "logs/progress.jsonl", {"time": ago(10), "epoch": 2, "step": 50, "samples_per_s": 80.5, "eta_s": 100, "memory_mib": 512})
    write(run / "status.json", epoch=2, step=40, updated=ago(20))
    assert event_texts(live.refresh()) == [
        "epoch 1/10  Train/Loss 2  Train/Acc1 49  Val/Loss 2.1  Val/Acc1 50  LR 0.001 *",
        "epoch 2/10  Train/Loss 1  Train/Acc1 39  Val/Loss 1.1  Val/Acc1 40  LR 0.001",
    ]
    assert live.best == (1, 50.0) and live.monitored == "Val/Acc1"
    assert (live.epoch, live.step) == (2, 50) and live.fraction == pytest.approx(0.25)  # 10 of the next 20 steps
    assert live.samples_per_s == 80.5 and live.eta_s() == pytest.approx(90, abs=3) and live.elapsed_s() == pytest.approx(60, abs=3)
    append(run / "logs/progress.jsonl", {"time": ago(0), "epoch": 2, "step": 54, "eta_s": 80, "loss": 0.5, "done": 2.75})
    assert live.refresh() == []
    assert live.fraction == pytest.approx(0.275) and live.step == 54 and list(live.losses) == [0.5]
    append(run / "logs/metrics.jsonl", epoch(2.5, 0.9, 60.0))
    assert event_texts(live.refresh()) == ["epoch 2.5/10  Train/Loss 0.9  Train/Acc1 59  Val/Loss 1  Val/Acc1 60  LR 0.001 *"]
    assert event_texts(live.events()) == ["best so far at epoch 1: Val/Acc1 50", "best so far at epoch 2.5: Val/Acc1 60"]
    lines = texts(live)
    assert lines[0] == "run  running" and lines[1].startswith("epoch 3/10   step 54   for 1 min 0")
    assert "      train  val" in lines and "Acc1     59   60  ▅▁█" in lines and "loss now 0.5   LR 0.001" in lines


def test_a_smaller_loss_is_better_and_the_config_names_the_metric(tmp_path):
    run = make(tmp_path / "run")
    append(run / "logs/metrics.jsonl", epoch(1, 2.0, 90.0), epoch(2, 1.0, 80.0), epoch(3, math.nan, 70.0) | {"Val/Loss": None})
    write(run / "config.json", monitor="Loss")
    live = LiveRun(RunDir(run))
    live.refresh()
    assert live.best == (2, 1.1)


def test_numbers_that_are_not_finite_are_named(tmp_path):
    run = make(tmp_path / "run")
    row = epoch(1, 2.0, 90.0) | {"Val/Loss": None, "nonfinite": {"Val/Loss": "inf"}}
    append(run / "logs/metrics.jsonl", row, row | {"epoch": 2, "nonfinite": {"Val/Loss": "nan"}})
    live = LiveRun(RunDir(run))
    assert "Val/Loss inf " in live.refresh()[0].text and math.isnan(live.rows[2]["Val/Loss"])
    assert any(line.startswith("Loss") and "nan" in line for line in texts(live))


def test_a_resumed_run_whose_log_was_cut(tmp_path):
    run = make(tmp_path / "run", started=ago(600), epoch=3, step=60)
    log = run / "logs/metrics.jsonl"
    append(log, epoch(1, 2.0, 50.0), epoch(2, 1.0, 60.0), epoch(3, 0.5, 70.0))
    append(run / "logs/progress.jsonl", {"time": ago(100), "epoch": 2, "step": 60, "samples_per_s": 9, "eta_s": 500})
    live = LiveRun(RunDir(run))
    live.refresh()
    assert live.best == (3, 70.0) and live.samples_per_s == 9
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    write(run / "status.json", started=ago(2), updated=ago(2), epoch=2, step=40)
    assert event_texts(live.refresh()) == ["resumed: goes on after epoch 2"]  # epochs 1 and 2 are known
    assert live.best == (2, 60.0) and list(live.rows) == [1, 2]
    assert live.samples_per_s is None and live.eta_s() is None  # what was measured before tells nothing now
    append(log, epoch(3, 0.6, 65.0))
    assert event_texts(live.refresh())[0].startswith("epoch 3/10  Train/Loss 0.6")
    assert event_texts(live.events())[-1] == "best so far at epoch 3: Val/Acc1 65"


def test_states_that_end_a_run(tmp_path):
    for state, words in {
        "failed": "failed: the loss is nan at step 7.\nLower the rate.",
        "interrupted": f"interrupted, saved; go on with: snnexp resume {tmp_path / 'interrupted'}",
        "killed": f"killed: process 4194305 is gone and left no word; go on with: snnexp resume {tmp_path / 'killed'}",
        "finished": "finished: test Loss 0.4, Acc1 88.25",
    }.items():
        run = make(tmp_path / state)
        live = LiveRun(RunDir(run))
        live.refresh()
        write(run / "result.json", test={"Loss": 0.4, "Acc1": 88.25}, wall_time_s=75.0, best={"epoch": 4, "metric": "Val/MAE", "value": 1})
        (run / "checkpoints").mkdir()
        (run / "checkpoints/checkpoint_interrupted.pth").touch()
        error = "the loss is nan at step 7.\nLower the rate." if state == "failed" else None
        write(run / "status.json", error=error, **{"pid": 4194305} if state == "killed" else {"state": state})
        assert event_texts(live.refresh()) == [words] and live.state == state and live.refresh() == []
        lines = texts(live)
        assert lines[0] == f"{state}  {state}" and live.eta_s() is None
        assert ("Lower the rate." in lines) == (state == "failed")
        assert ("test   Loss 0.4   Acc1 88.25" in lines) == (state == "finished") == (live.elapsed_s() == 75.0)
        # without spaces, for a long path wraps
        assert (words.replace(" ", "") in "".join(lines).replace(" ", "")) == (state in ("interrupted", "killed"))


def test_a_result_of_before_a_resume_is_not_the_runs(tmp_path):
    run = make(tmp_path / "run")
    write(run / "result.json", test={"Acc1": 88.0}, wall_time_s=75.0, samples_per_s=3.0)
    live = LiveRun(RunDir(run))
    live.refresh()
    assert live.test_metrics == {} and live.samples_per_s is None and live.elapsed_s() < 70


def test_a_silent_run_of_another_machine(tmp_path):
    run = make(tmp_path / "run", host="node7", pid=1, started=ago(9000), updated=ago(900))
    live = LiveRun(RunDir(run))
    live.refresh()
    assert live.state == "running" and live.silent_s() == pytest.approx(900, abs=3)
    assert "No sign of life for 15 min 0" in " ".join(texts(live)) and "node7" in " ".join(texts(live))
    append(run / "logs/progress.jsonl", {"time": ago(250), "epoch": 1, "step": 5})
    live.refresh()
    assert live.silent_s() is None


def test_a_run_that_has_not_begun(tmp_path):
    run = make(tmp_path / "run", state="created", started=None, pid=None)
    live = LiveRun(RunDir(run))
    assert event_texts(live.refresh()) == ["has not begun yet"]
    assert texts(live)[:2] == ["run  has not begun yet", "0 of 10 epochs"]
    (run / "status.json").unlink()
    assert LiveRun(RunDir(run)).refresh()[0].text == "has not begun yet"


# ---- the posterior


def test_the_posterior_and_its_alarms(tmp_path):
    run = make(tmp_path / "run")
    log = run / "posterior_metrics/metrics.jsonl"
    append(log, update(100, 12.5, 0.9), update(200, 6.0, 0.05, "collapsed", [("few active units", 150)]))
    live = LiveRun(RunDir(run))
    news = event_texts(live.refresh())
    assert news[:2] == ["step 200: alarm, few active units: 0.05 (threshold 0.1)", "step 200: posterior healthy -> collapsed"]
    assert live.posterior[-1].judged_block["kl"] == 6.0 and live.posterior[-1].window["kl"] == 7.0
    lines = texts(live)
    assert lines[lines.index("posterior  collapsed") + 1] == "at step 200   beta 0.05"
    assert "ALARM since step 150: few active units: 0.05 (threshold 0.1)" in lines
    assert "KL, nats a set          6       7  █▁" in lines and "active units          5 %     5 %  █▁" in lines
    assert not any(line.startswith("mutual") for line in lines)  # was not estimated
    append(log, update(300, 11.0, 0.8, "healthy", held_out=False))
    assert event_texts(live.refresh()) == ["step 300: alarm over: few active units", "step 300: posterior collapsed -> healthy"]
    assert live.posterior[-1].judged_block["kl"] == 12.0 and not any("ALARM" in line for line in texts(live))
    log.write_text(json.dumps(update(100, 12.5, 0.9)) + "\n")  # a resume
    assert live.refresh() == [] and len(live.posterior) == 1 and event_texts(live.events()) == []


# ---- strangers' files


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"a": [1, {"b": null}]}', b"[[[]]]", b'{"state": 3}'])
def test_damaged_files(tmp_path, content):
    for name in ("config.json", "result.json", "logs/metrics.jsonl", "logs/progress.jsonl", "posterior_metrics/metrics.jsonl"):
        run = make(tmp_path / name.replace("/", "_"), state="finished")
        (run / "posterior_metrics").mkdir()
        (run / name).write_bytes(content + b"\n")
        live = LiveRun(RunDir(run))
        live.refresh()
        assert texts(live)[0].endswith("finished")
    (run / "status.json").write_bytes(content)
    with pytest.raises(UserError, match=r"status\.json"):
        LiveRun(RunDir(run)).refresh()


def test_a_status_that_cannot_be_read_for_a_moment_and_a_directory_that_goes_away(tmp_path):
    run = make(tmp_path / "run", epoch=3)
    live = LiveRun(RunDir(run))
    live.refresh()
    whole = (run / "status.json").read_text()
    (run / "status.json").write_text(whole[:20])
    assert live.refresh() == [] and live.epoch == 3 and live.state == "running"
    run.rename(tmp_path / "elsewhere")
    with pytest.raises(RunFailed, match="is gone"):
        live.refresh()


def test_nothing_commands_the_terminal(tmp_path):
    run = make(tmp_path / "run", state="failed", error="a\x1b[2Jb\rc")
    append(run / "posterior_metrics/metrics.jsonl", update(1, 1.0, 0.5, "x\x1b]0;y\x07", [("\x9bz", 1)]))
    append(run / "logs/metrics.jsonl", epoch(1, 1.0, 2.0) | {"Val/\x1bc": 3.0})
    live = LiveRun(RunDir(run))
    shown = "".join(event_texts(live.refresh()) + texts(live))
    assert all(letter.isprintable() for letter in shown) and r"a\x1b[2Jb" in shown


# ---- the panel


@pytest.mark.parametrize("width", [120, 80, 40, 24])
@pytest.mark.parametrize("height", [None, 40, 23, 10, 4])
def test_the_panel_fits(tmp_path, width, height):
    run = make(tmp_path / ("a_run_with_a_long_name_" * 5), epoch=4, step=100)
    append(run / "logs/metrics.jsonl", *(epoch(n, 1 / n, 10 + n) | {f"Val/M{k}": k * n for k in range(9)} for n in range(1, 200)))
    append(run / "logs/progress.jsonl", *({"time": ago(1), "samples_per_s": 5.5, "eta_s": 99999, "loss": n, "done": 4.5} for n in range(9)))
    alarms = [(f"condition {n}", n) for n in range(6)]
    append(run / "posterior_metrics/metrics.jsonl", *(update(n, n, 0.2, "partly collapsed", alarms) for n in range(100)))
    live = LiveRun(RunDir(run))
    live.refresh()
    lines = texts(live, width, height)
    assert max(map(len, lines)) <= width and len(lines) <= (height or 99)
    assert "running" in lines[0]
    if height is None:
        assert any("partly collapsed"[: width - 11] in line for line in lines)
        assert any(set("▁▂▃▄▅▆▇█") & set(line[width // 2 :]) for line in lines) and any("%" in line for line in lines[:5])
        assert "".join(texts(live, width, height, unicode=False)).isascii()


def test_a_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, math.nan, 3], 20) == "▁ █" and sparkline([3.2] * 50, 7) == "▅" * 7 and sparkline([], 5) == ""
    assert sparkline([0, 0, 10, 10, 20, 20], 3) == "▁▅█" and sparkline(range(1000), 8, unicode=False) == "_.-=+*%#"


def test_words_break_between_words_and_times_are_readable():
    assert [line.plain for line in wrap("one two three\n/a/very/long/path x", 8, "")] == ["one two", "three", "/a/very/", "long/pat", "h x"]
    assert [duration(s) for s in (5, 65, 7260, 90000)] == ["5 s", "1 min 05 s", "2 h 01 min", "1 d 1 h"]
