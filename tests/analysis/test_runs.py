"""Runs found, read, chosen and compared, from directories written here."""

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snnexp.analysis import runs as table
from snnexp.commands import analyze
from snnexp.errors import UserError
from snnexp.rundir import runs_below


def make(path, *, state="finished", acc=90.0, test=None, status=None, result=None, choices=None, **config):
    """A run directory as the runner leaves it; `config` goes to the top level of config.json."""
    path.mkdir(parents=True)
    T, seed = config.get("T", 4), config.get("seed", 0)
    full = {
        "T": T, "seed": seed, "lr": 1e-3, "batch_size": 32, "epochs": 5, "exp_name": path.name,
        "model": {"_target_": "snnexp.models.vggsnn.VGGSNN", "T": T, "lif": {"tau": "preset"}},
        "dataset": {"_target_": "snnexp.data.frames.digits_dvs.DigitsDVS", "seed": seed, "size": 24},
        "monitor": None, "command": "train",
        "choices": {"model": "vggsnn", "dataset": "digits_dvs"} | (choices or {}),
    }  # fmt: skip
    full |= config
    (path / "config.json").write_text(json.dumps(full))
    claims = {
        "state": state, "epoch": 5, "epochs": 5, "step": 200, "pid": os.getpid(), "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(), "updated": "2026-01-01T00:10:00+00:00", "error": None, "exit_code": 0,
    }  # fmt: skip
    (path / "status.json").write_text(json.dumps(claims | (status or {})))
    if state == "finished" or result:
        end = {
            "best": {"epoch": 4, "metric": "Val/Acc1", "value": acc},
            "test": {"Loss": 0.5, "Acc1": acc - 1 if test is None else test, "Acc5": 99.0},
            "protocol": "60/20/20", "wall_time_s": 155.2, "samples_per_s": 123.4,
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(end | (result or {})))
    return path


def names(runs):
    return [run.name for run in runs]


def test_a_run_is_read(tmp_path):
    make(tmp_path / "a", acc=91.5)
    (run,) = table.find(tmp_path)
    assert (run.name, run.state, run.epoch, run.epochs) == ("a", "finished", 5, 5)
    assert run.best == {"epoch": 4, "metric": "Val/Acc1", "value": 91.5}
    assert run.test == {"Loss": 0.5, "Acc1": 90.5, "Acc5": 99.0}
    assert (run.test_metric, run.fact("test"), run.fact("best")) == ("Acc1", 90.5, 91.5)
    assert (run.wall_time_s, run.samples_per_s) == (155.2, 123.4)
    assert run.settings["model"] == "vggsnn"
    assert run.settings["model.lif.tau"] == "preset"
    assert "exp_name" not in run.settings


def test_runs_of_a_sweep_are_found_and_what_lies_in_a_run_is_not(tmp_path):
    make(tmp_path / "single", status={"started": "2026-01-03T00:00:00+00:00"})
    make(tmp_path / "sweep" / "0_lr=0.1,T=4", status={"started": "2026-01-01T00:00:00+00:00"})
    make(tmp_path / "sweep" / "1_lr=0.2,T=4", status={"started": "2026-01-02T00:00:00+00:00"})
    make(tmp_path / "single" / "evaluations" / "x")
    make(tmp_path / ".trash" / "y")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "config.json").write_text("{}")
    os.symlink(tmp_path, tmp_path / "sweep" / "loop")
    assert names(table.find(tmp_path)) == ["sweep/0_lr=0.1,T=4", "sweep/1_lr=0.2,T=4", "single"]
    assert names(table.find(tmp_path / "single")) == ["single"]


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        table.find(tmp_path / "nowhere")


def stamp(seconds_ago):
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "running"),
        ({"pid": None}, "killed"),
        ({"pid": "12"}, "killed"),
        ({"pid": 2**40}, "killed"),
        ({"host": "another", "updated": stamp(60)}, "running"),
        ({"host": "another", "updated": stamp(7200)}, "stale?"),
        ({"host": "another", "updated": None}, "stale?"),
        ({"host": "another", "updated": "yesterday"}, "stale?"),
        ({"state": "interrupted"}, "interrupted"),
        ({"state": "failed"}, "failed"),
    ],
)
def test_what_a_state_is_worth(tmp_path, status, state):
    make(tmp_path / "a", state="running", status=status)
    assert table.find(tmp_path)[0].state == state


def test_running_with_a_dead_process_is_killed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    make(tmp_path / "a", state="running", status={"pid": gone.pid})
    assert table.find(tmp_path)[0].state == "killed"


def test_a_remote_run_that_still_logs_progress_is_not_stale(tmp_path):
    run = make(tmp_path / "a", state="running", status={"host": "another", "updated": stamp(7200)})
    (run / "logs").mkdir()
    (run / "logs" / "progress.jsonl").write_text('{"samples_per_s": 50.0}\n{"samples_per_s": 60.5}\n{"samp')
    found = table.find(tmp_path)[0]
    assert (found.state, found.samples_per_s) == ("running", 60.5)


@pytest.mark.parametrize(
    ("monitor", "best"),
    [
        (None, {"epoch": 2, "metric": "Val/Acc1", "value": 80.0}),
        ("Loss", {"epoch": 3, "metric": "Val/Loss", "value": 0.5}),
        ("Val/Acc1", {"epoch": 2, "metric": "Val/Acc1", "value": 80.0}),
    ],
)
def test_best_so_far_of_a_run_without_a_result(tmp_path, monitor, best):
    run = make(tmp_path / "a", state="interrupted", monitor=monitor)
    (run / "logs").mkdir()
    (run / "logs" / "metrics.jsonl").write_text(
        '{"epoch": 1, "Val/Acc1": 70.0, "Val/Loss": 0.9}\n'
        '{"epoch": 2, "Val/Acc1": 80.0, "Val/Loss": 0.7}\n'
        '{"epoch": 3, "Val/Acc1": 75.0, "Val/Loss": 0.5}\n'
        '{"epoch": 4, "Val/Acc1": null, "nonfinite": {"Val/Acc1": "nan"}}\n'
        '{"epo'
    )
    assert table.find(tmp_path)[0].best == best


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", b'{"T": ', "config.json: not JSON"),
        ("config.json", b"[1]", "config.json: holds a list"),
        ("status.json", b"", "status.json: not JSON"),
        ("status.json", b"\xff\xfe\x00{", "status.json: not JSON"),
        ("status.json", b'{"status": "ok"}', "status.json: names no state"),
        ("result.json", b'{"test": [1, 2]}', "unexpected content"),
        ("result.json", b'{"best"', "result.json: not JSON"),
        ("config.json", b'{"choices": "many"}', "unexpected content"),
        ("config.json", b'{"a":' * 100_000, "json"),
    ],
)
def test_one_unreadable_run_does_not_hide_the_others(tmp_path, file, content, problem):
    make(tmp_path / "good")
    (make(tmp_path / "bad") / file).write_bytes(content)
    runs = {run.name: run for run in table.find(tmp_path)}
    assert (runs["good"].state, runs["bad"].state) == ("finished", "unreadable")
    assert problem in runs["bad"].problem or "RecursionError" in runs["bad"].problem


@pytest.mark.parametrize("name", ["status.json", "config.json", "result.json", "arithmetic.json"])
def test_a_directory_in_the_place_of_a_file_is_told(tmp_path, name):
    run = make(tmp_path / "bad")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    assert table.load(run).problem == f"{name}: not a regular file"


def test_files_and_directories_one_may_not_read(tmp_path, monkeypatch):
    make(tmp_path / "file")
    make(tmp_path / "locked")
    # The superuser, who may run this test, is refused nothing by file modes: the system calls refuse instead.
    scan, read = os.scandir, table.read_small

    def no_scan(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def no_read(path):
        if path.name == "config.json" and path.parent.name == "file" or path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(table.os, "scandir", no_scan)
    monkeypatch.setattr(table, "read_small", no_read)
    runs = {run.name: run for run in table.find(tmp_path)}
    assert runs["file"].problem == "config.json: Permission denied"
    assert runs["locked"].problem.endswith("Permission denied")


@pytest.mark.parametrize(
    ("row", "metric", "epoch"),
    [
        ('"Val/Loss": [0.3, 0.2, 0.1], "Val/MAE": [0.5, 0.4, 0.6], "Val/RMSE": [1, 2, 3], "Val/R2": [0.1, 0.2, 0.3]', "Val/MAE", 2),
        ('"Val/Loss": [0.1, 0.2, 0.3], "Val/AUROC": [70, 80, 75], "Val/AUPRC": [1, 2, 3]', "Val/AUROC", 2),
        ('"Val/Loss": [0.3, 0.2, 0.1], "Val/Acc1": [70, 60, 50], "Val/AUROC": [1, 2, 3]', "Val/Acc1", 1),
        ('"Val/Loss": [0.3, 0.2, 0.1], "Val/PSNR": [30, 31, 32]', "Val/PSNR", 3),
        ('"Val/Loss": [0.3, 0.1, 0.2], "Val/Cost": [1, 2, 3]', "Val/Loss", 2),
    ],
)
def test_best_so_far_by_the_metric_of_the_task(tmp_path, row, metric, epoch):
    run = make(tmp_path / "a", state="running")
    (run / "logs").mkdir()
    columns = json.loads(f"{{{row}}}")
    lines = [{"epoch": n + 1, **{name: values[n] for name, values in columns.items()}} for n in range(3)]
    (run / "logs" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    best = table.find(tmp_path)[0].best
    assert best == {"epoch": epoch, "metric": metric, "value": columns[metric][epoch - 1]}


def test_a_log_without_validation_has_no_best(tmp_path):
    run = make(tmp_path / "a", state="running")
    (run / "logs").mkdir()
    (run / "logs" / "metrics.jsonl").write_text('{"epoch": 1, "Train/Loss": 0.5, "Spikes/lif1": [0.1, 0.2]}\n')
    assert table.find(tmp_path)[0].best is None


@pytest.mark.parametrize(
    ("best", "test", "shown"),
    [
        ({"epoch": 1, "metric": "Val/R2", "value": 0.5}, {"Loss": 1.0, "MAE": 2.0, "R2": 0.4}, "R2"),
        (None, {"Loss": 1.0, "MAE": 2.0, "R2": 0.4}, "MAE"),  # no validation, so nothing was monitored
        (None, {"Loss": 1.0, "Acc1": 90.0}, "Acc1"),
        (None, {"Cost": 1.0}, "Cost"),
        (None, {}, None),
    ],
)
def test_the_test_metric_that_stands_for_a_run(tmp_path, best, test, shown):
    make(tmp_path / "a", result={"best": best, "test": test})
    assert table.find(tmp_path)[0].test_metric == shown


def test_order_by_a_metric_of_regression(tmp_path):
    for name, mae, r2 in (("a", 0.5, 0.2), ("b", 0.3, 0.9), ("c", 0.4, 0.1)):
        make(tmp_path / name, result={"best": {"epoch": 1, "metric": "Val/MAE", "value": mae}, "test": {"MAE": mae, "R2": r2}})
    runs = table.find(tmp_path)
    assert names(table.order(runs, "best")) == names(table.order(runs, "test")) == ["b", "c", "a"]
    for run in runs:
        run.best["metric"] = "Val/R2"
    assert names(table.order(runs, "test")) == ["b", "a", "c"]
    assert all(table.smaller_is_better(f"Val/{name}") for name in ("MAE", "RMSE", "MSE", "Loss"))
    assert not any(table.smaller_is_better(f"Val/{name}") for name in ("R2", "AUROC", "Acc1"))


@pytest.fixture
def three(tmp_path):
    make(tmp_path / "a", lr=1e-3, T=4, acc=90.0)
    make(tmp_path / "b", lr=1e-2, T=4, acc=95.0, choices={"model": "resnet19"}, ema=0.99, sizes=[1, 2])
    make(tmp_path / "c", lr=1e-2, T=10, state="failed", compile=True)
    return table.find(tmp_path)


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["model=resnet19"], "b"),
        (["model=resnet19,vggsnn"], "abc"),
        (["lr=0.01"], "bc"),
        (["lr=1e-2", "T=4"], "b"),
        (["lr=1e-2,1e-3", "T=4"], "ab"),
        (["lr=ten"], ""),
        (["state=finished"], "ab"),
        (["compile=true"], "c"),
        (["monitor=null"], "abc"),
        (["model.lif.tau=pre*"], "abc"),
        (["sizes=[1,2]"], "b"),
        (["name=a"], "a"),
        (["best=95"], "b"),
        (["ema=0.99,0.5"], "b"),
    ],
)
def test_filters(three, conditions, left):
    assert "".join(names(table.select(three, conditions))) == left


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("modle=vggsnn", "Did you mean model"),
        ("tau=2", "Did you mean model.lif.tau?"),
        ("stat=x", "state"),
        ("=3", "KEY="),
    ],
)
def test_an_unknown_key_names_the_nearest(three, condition, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        table.select(three, [condition])


def test_order(three):
    assert names(table.order(three, "best")) == ["b", "a", "c"]
    assert names(table.order(three, "T")) == ["a", "b", "c"]
    assert names(table.order(three, "model")) == ["b", "a", "c"]
    three[0].best, three[1].best = [{"metric": "Val/Loss", "value": value, "epoch": 1} for value in (0.5, 0.2)]
    assert names(table.order(three, "best")) == ["b", "a", "c"]
    three[1].best["value"] = math.nan
    assert names(table.order(three, "best"))[0] == "a"


def test_differing_settings_and_their_copies(tmp_path):
    make(tmp_path / "a", T=4, seed=0, optimizer={"weight_decay": 0}, clip=1)
    make(tmp_path / "b", T=10, seed=1, optimizer={"weight_decay": 1e-4}, clip=1.0)
    runs = table.find(tmp_path)
    # model.T follows T, dataset.seed follows seed; 1 and 1.0 are one value; exp_name is a name.
    assert table.differing(runs) == ["T", "seed", "optimizer.weight_decay"]
    assert table.differing(runs[:1]) == []


def test_an_override_of_a_copy_is_shown(tmp_path):
    make(tmp_path / "a", T=4)
    make(tmp_path / "b", T=10, model={"T": 6})
    assert table.differing(table.find(tmp_path)) == ["T", "model.T"]


def test_over_seed(tmp_path):
    values = {0: 90.0, 1: 92.0, 2: 97.0}
    for seed, value in values.items():
        make(tmp_path / f"T4_{seed}", seed=seed, acc=value)
    make(tmp_path / "T10_0", T=10, seed=0, acc=99.0)
    make(tmp_path / "late", T=4, seed=3, state="running")
    groups = {group.runs[0].settings["T"]: group for group in table.group_except(table.find(tmp_path), ["seed"])}
    assert set(groups) == {4, 10}
    spread = groups[4].best
    assert (spread.metric, spread.n, spread.mean) == ("Val/Acc1", 3, 93.0)
    assert spread.std == pytest.approx(statistics.stdev(values.values()))
    assert groups[4].test["Acc1"].mean == pytest.approx(92.0)
    assert sorted(groups[4].values) == [0, 1, 2]
    assert (groups[10].best.n, groups[10].best.std) == (1, None)


def test_what_auto_came_to_tells_runs_apart(tmp_path):
    for seed, precision in enumerate(("bf16", "bf16", "fp32")):
        run = make(tmp_path / f"run{seed}", seed=seed, precision="auto", channels_last=False)
        (run / "arithmetic.json").write_text(json.dumps({"precision": precision, "channels_last": True, "how": "", "measured": {}}))
    runs = table.find(tmp_path)
    assert [run.settings["precision"] for run in runs] == ["bf16", "bf16", "fp32"]
    assert {run.settings["channels_last"] for run in runs} == {False}  # which was not left open
    assert sorted(len(group.runs) for group in table.group_except(runs, ["seed"])) == [1, 2]


def test_over_folds_and_seeds_together(tmp_path):
    values = {(0, 0): 0.50, (1, 0): 0.54, (0, 1): 0.47, (1, 1): 0.61, (2, 0): 0.40}
    for (fold, seed), value in values.items():
        result = {"best": {"epoch": 1, "metric": "Val/MAE", "value": value}, "test": {"Loss": 1.0, "MAE": value + 1}}
        make(tmp_path / f"{fold}_{seed}", seed=seed, dataset={"cv_fold": fold, "seed": seed, "cv_folds": 3}, result=result)
    (group,) = table.group_except(table.find(tmp_path), ["dataset.cv_fold", "seed"])
    assert group.best == table.Spread("Val/MAE", pytest.approx(0.504), pytest.approx(statistics.stdev(values.values())), 5)
    assert group.test["MAE"].mean == pytest.approx(1.504) and group.test_metric == "MAE"
    assert sorted(map(tuple, group.values)) == sorted(values)
    by_seed = table.group_except(table.find(tmp_path), ["seed"])  # dataset.seed follows it, a fold does not
    assert sorted(group.best.n for group in by_seed) == [1, 2, 2]


def test_over_an_unknown_key(three):
    with pytest.raises(UserError, match="Did you mean"):
        table.group_except(three, ["sead"])


def test_a_thousand_runs_are_quick(tmp_path):
    for number in range(1000):
        make(tmp_path / f"sweep{number % 10}" / f"run{number}", seed=number, filler={f"k{i}": i for i in range(60)})
    took = []
    for _ in range(2):
        start = time.process_time()
        runs = table.find(tmp_path)
        assert table.differing(runs) == ["seed"]
        assert len(table.select(runs, ["model=vggsnn"])) == 1000
        assert len(table.group_except(runs, ["seed"])) == 1
        took.append(time.process_time() - start)
    assert len(runs) == 1000
    assert min(took) < 1.5


def test_neither_torch_nor_hydra_is_imported():
    program = (
        "import sys, snnexp.analysis.runs, snnexp.commands.runs\nassert not {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def put_run(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text(json.dumps({"state": "running"}))
    return path


def test_runs_are_found_by_one_rule(tmp_path):
    made = [put_run(tmp_path / name, "config.json", "status.json") for name in ("sweep/2_a", "sweep/10_b", "z")]
    put_run(made[0] / "evaluations/inside", "config.json", "status.json")  # belongs to the run
    put_run(tmp_path / "model", "config.json")  # of another program
    put_run(tmp_path / ".hidden", "config.json", "status.json")
    (tmp_path / "linked").symlink_to(made[2])
    assert list(runs_below(tmp_path)) == made  # 2_ before 10_
    assert list(runs_below(made[0])) == [made[0]]
    assert {run.path for run in table.find(tmp_path)} == set(made)
    assert analyze.is_sweep(str(tmp_path)) and not analyze.is_sweep(str(made[0])) and not analyze.is_sweep(str(tmp_path / "model"))
