"""A run killed at any moment and resumed ends as one that was not, bit for bit."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from conftest import GRAPHS, TINY, assert_same, load, wait_for
from snnexp.engine import checkpoint
from snnexp.engine.schedule import Cosine
from snnexp.rundir import RunDir


def assert_same_run(a: Path, b: Path) -> None:
    one, other = load(a / "checkpoints/checkpoint_final.pth"), load(b / "checkpoints/checkpoint_final.pth")
    for part in (
        "epoch",
        "step",
        "state_dict",
        "optimizer",
        "scheduler",
        "scaler",
        "ema",
        "best_acc1",
        "ranks",
        "sampler",
        "data",
        "pruned",
    ):
        assert_same(one[part], other[part], part)
    assert_same(load(a / "checkpoints/checkpoint_best.pth")["state_dict"], load(b / "checkpoints/checkpoint_best.pth")["state_dict"])
    assert (a / "logs/metrics.jsonl").read_bytes() == (b / "logs/metrics.jsonl").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in (a, b)]
    assert results[0]["test"] == results[1]["test"] and results[0]["best"] == results[1]["best"]


def kill_in_mid_epoch(process, run: Path, epoch: int) -> None:
    """SIGKILL when the newest checkpoint lies inside `epoch` (counted from 0)."""
    latest = run / "checkpoints/checkpoint_latest.pth"

    def inside() -> bool:
        if not latest.exists():
            return False
        position = load(latest)["sampler"]
        return position["epoch"] >= epoch and 0 < position["batch"]

    wait_for(inside, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


SETTINGS = {
    "plain": [],
    "everything": ["workers=2", "accumulate=3", "ema=0.9", "clip_grad=1.0", "optimizer=sgd", "scheduler.warmup_epochs=1", "precision=bf16"],
    "pruned": [
        "pruner=spike_map",
        "pruner.ratio=0.5",
        "pruner.calibration_samples=32",
        "ema=0.9",
        "precision=bf16",
        "optimizer=adamw8bit",
        "optimizer.decay=weights",
    ],
    "plateau": ["optimizer=adamw8bit", "scheduler=plateau", "scheduler.patience=1", "task.loss=ce", "model=vggsnn_woap"],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "plain" else ()) for name in SETTINGS])
def test_sigkill_in_mid_epoch_after_a_timed_checkpoint(name, snnexp, start, tmp_path):
    settings = [*TINY, *SETTINGS[name], "save_minutes=0.00001", "batch_size=8"]
    snnexp("train", *settings, "exp_name=whole", cwd=tmp_path)
    process = start("train", *settings, "exp_name=killed", cwd=tmp_path)
    kill_in_mid_epoch(process, tmp_path / "outputs/killed", epoch=1)
    assert json.loads((tmp_path / "outputs/killed/status.json").read_text())["state"] == "running"
    snnexp("resume", "outputs/killed", cwd=tmp_path)
    assert_same_run(tmp_path / "outputs/whole", tmp_path / "outputs/killed")


def test_the_record_of_spikes_has_no_gap_and_no_repeat(snnexp, start, tmp_path):
    trackers = ["tracker=[lif,lif_full]", "tracker.lif_full.flush_every=3", "tracker.lif_full.splits=[train,val,test]"]
    settings = [*GRAPHS, *trackers, "dataset.node_budget=300", "save_minutes=0.00001", "batch_size=8"]
    snnexp("train", *settings, "exp_name=whole", cwd=tmp_path)
    process = start("train", *settings, "exp_name=killed", cwd=tmp_path)
    whole, killed = tmp_path / "outputs/whole", tmp_path / "outputs/killed"
    kill_in_mid_epoch(process, killed, epoch=1)
    snnexp("resume", killed, cwd=tmp_path)
    assert_same_run(whole, killed)
    names = ["lif_activation_stats", "lif_activation_stats_full", "lif_activation_stats_full_val", "lif_activation_stats_full_test"]
    for name in names:
        assert (whole / f"{name}.json").read_bytes() == (killed / f"{name}.json").read_bytes(), name
    full = json.loads((killed / "lif_activation_stats_full.json").read_text())
    steps = load(killed / "checkpoints/checkpoint_final.pth")["step"]
    assert full["total_forward_count"] == steps > 20
    assert [entry["forward_idx"] for entry in full["all_forward_steps"]["gnn_model.lif1"]] == list(range(steps))
    assert json.loads((killed / "lif_activation_stats.json").read_text())["latest_forward"].keys() == full["all_forward_steps"].keys()


LONG = [*TINY, "batch_size=4", "epochs=2"]
"""Epochs of some tenths of a second, without a checkpoint inside."""


@pytest.fixture(scope="module")
def whole(snnexp, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    snnexp("train", *LONG, "exp_name=whole", cwd=cwd)
    return cwd / "outputs/whole"


def test_sigkill_between_checkpoints_cuts_what_was_logged_past_them(whole, snnexp, start, tmp_path):
    process = start("train", *LONG, "exp_name=killed", cwd=tmp_path)
    run = tmp_path / "outputs/killed"
    wait_for(lambda: (run / "checkpoints/checkpoint_best.pth").exists(), process)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(run / "logs/metrics.jsonl", "a") as log:
        log.write('{"epoch": 99, "of": "a step that no checkpoint remembers"}\n{"half a li')
    snnexp("resume", run, cwd=tmp_path)
    assert_same_run(whole, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_a_stop_signal_saves_and_the_rest_is_exact(number, whole, snnexp, start, tmp_path):
    process = start("train", *LONG, "exp_name=stopped", cwd=tmp_path)
    run = tmp_path / "outputs/stopped"
    wait_for(lambda: (run / "checkpoints/checkpoint_latest.pth").exists(), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output and "snnexp resume" in output
    assert (run / "checkpoints/checkpoint_interrupted.pth").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    snnexp("resume", run, cwd=tmp_path)
    assert_same_run(whole, run)


def test_more_epochs_are_a_longer_curve(snnexp, tmp_path):
    snnexp("train", *TINY, "epochs=2", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    output = snnexp("resume", run, "epochs=4", cwd=tmp_path)
    assert "epochs 2 -> 4" in output
    rates = [json.loads(line)["LR"] for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    assert len(rates) == 4 and rates[2] > rates[3] > 0  # epochs 3 and 4 lie on the curve of 4 epochs, and fall
    steps = 64 // 16
    assert rates[2:] == [1e-3 * Cosine().factor(2 + (steps - 1) / steps, 4), 1e-3 * Cosine().factor(3 + (steps - 1) / steps, 4)]
    assert (run / "resumes/1/config.yaml").exists() and json.loads((run / "config.json").read_text())["epochs"] == 4


def test_a_finished_run_has_nothing_left(snnexp, tmp_path):
    snnexp("train", *TINY, "epochs=1", "exp_name=run", cwd=tmp_path)
    before = (tmp_path / "outputs/run/checkpoints/checkpoint_final.pth").read_bytes()
    assert "nothing is left to do" in snnexp("resume", "outputs/run", cwd=tmp_path)
    assert (tmp_path / "outputs/run/checkpoints/checkpoint_final.pth").read_bytes() == before


def test_another_model_is_refused_and_another_rate_ends_exactness(snnexp, tmp_path):
    snnexp("train", *TINY, "epochs=1", "exp_name=run", cwd=tmp_path)
    for override in ("model=resnet19", "dataset=nmnist", "task=classification"):
        assert "goes on with what it began with" in snnexp("resume", "outputs/run", override, cwd=tmp_path, code=2)
    output = snnexp("resume", "outputs/run", "epochs=2", "lr=0.01", "batch_size=8", cwd=tmp_path)
    assert "From here the run is not the one it would have been" in output and "lr 0.001 -> 0.01" in output
    last = json.loads((tmp_path / "outputs/run/logs/metrics.jsonl").read_text().splitlines()[-1])
    assert last["LR"] == 0.01 * Cosine().factor(1 + 7 / 8, 2)


def test_resume_from_an_older_checkpoint(snnexp, tmp_path):
    snnexp("train", *TINY, "save_freq=1", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    final = load(run / "checkpoints/checkpoint_final.pth")
    metrics = (run / "logs/metrics.jsonl").read_bytes()
    snnexp("resume", run / "checkpoints/checkpoint_epoch1.pth", cwd=tmp_path)
    assert_same(load(run / "checkpoints/checkpoint_final.pth")["state_dict"], final["state_dict"])
    assert (run / "logs/metrics.jsonl").read_bytes() == metrics


PARTS = [*TINY, "val_every=0.25", "keep_best=9", "save_freq=1", "tracker=lif", "tracker.lif.save_every=1"]
"""Validations after each of the four steps of an epoch, all kept."""


def test_going_back_puts_parts_of_epochs_aside_too_and_keep_last_takes_the_fresh_ones(snnexp, tmp_path):
    snnexp("train", *PARTS, "epochs=2", "exp_name=run", cwd=tmp_path)
    run = RunDir(tmp_path / "outputs/run")
    assert sorted(run.epoch_checkpoints()) == [number / 4 for number in range(1, 9)]
    (run.root / "lif_stats_epoch_1.json").write_text("of the epoch that stays")
    words = [run.checkpoint("epoch1.5"), "epochs=4", "val_every=1", "keep_best=1", "keep_last=2"]
    snnexp("resume", *words, cwd=tmp_path)
    aside = [path.name for path in (run.resumes / "1/checkpoints").iterdir()]
    assert set(aside) == {f"checkpoint_{name}.pth" for name in ("latest", "epoch1.75", "epoch2")}
    assert sorted(run.epoch_checkpoints()) == [3, 4]
    assert [load(run.epoch_checkpoints()[epoch])["epoch"] for epoch in (3, 4)] == [3, 4]
    assert (run.root / "lif_stats_epoch_1.json").read_text() == "of the epoch that stays"
    assert (run.resumes / "1/lif_stats_epoch_2.json").exists()


def test_a_lost_latest_cuts_nothing_and_another_checkpoint_goes_on(whole, snnexp, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    latest, log = run / "checkpoints/checkpoint_latest.pth", (run / "logs/metrics.jsonl").read_bytes()
    latest.unlink()
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    said = snnexp("resume", run, "epochs=3", cwd=tmp_path, code=2)
    assert f"{latest} is lost" in said and f"snnexp resume {run}/checkpoints/checkpoint_" in said
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before
    snnexp("resume", run / "checkpoints/checkpoint_final.pth", "epochs=3", cwd=tmp_path)
    assert (run / "logs/metrics.jsonl").read_bytes().startswith(log) and load(latest)["epoch"] == 3


def test_a_run_at_work_is_not_resumed_twice(snnexp, start, tmp_path):
    process = start("train", *TINY, "epochs=200", "exp_name=run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "outputs/run/checkpoints/checkpoint_latest.pth").exists(), process)
    assert f"process {process.pid}" in snnexp("resume", "outputs/run", cwd=tmp_path, code=2)
    process.kill()
    process.wait()


def strip(tree: dict, keys: tuple[str, ...]) -> None:
    """Take settings out of nested ones, by their dotted keys."""
    for key in keys:
        *nodes, name = key.split(".")
        node = tree
        for each in nodes:
            node = node.get(each) or {}
        node.pop(name, None)


LATER = ("optimizer.decay", "scheduler.from_start", "scheduler.per_epoch", "scheduler.threshold", "dataset.normalise")
"""Keys of nodes that runs once had not."""


def make_older(run: Path) -> None:
    """Let a run look as if it had been made before there were these keys."""
    settings = json.loads((run / "config.json").read_text())
    strip(settings, LATER)
    (run / "config.json").write_text(json.dumps(settings))
    unresolved = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    strip(unresolved, LATER)
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(unresolved))
    for path in (run / "checkpoints").glob("*.pth"):
        saved = load(path)
        strip(saved["args"], LATER)
        strip(saved["data"], ("normalise",))
        path.unlink()  # one file has several names
        checkpoint.save(path, saved)


SCHEDULES = {
    "cosine": ["scheduler.warmup_epochs=1"],
    "plateau": ["scheduler=plateau", "scheduler.threshold=0", "scheduler.patience=0"],
}


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_a_run_made_before_there_were_later_keys_goes_on_as_it_would_have(scheduler, snnexp, tmp_path):
    settings = [*TINY, "optimizer=adamw", "optimizer.weight_decay=0.5", *SCHEDULES[scheduler]]
    snnexp("train", *settings, "epochs=4", "exp_name=whole", cwd=tmp_path)
    snnexp("train", *settings, "epochs=4", "save_freq=1", "exp_name=older", cwd=tmp_path)
    older = tmp_path / "outputs/older"
    make_older(older)
    output = snnexp("resume", older / "checkpoints/checkpoint_epoch2.pth", cwd=tmp_path)
    assert "From here the run is not" not in output
    assert_same_run(tmp_path / "outputs/whole", older)
    assert "decay" not in json.loads((older / "config.json").read_text())["optimizer"]
    make_older(older)
    said = snnexp("resume", older, "+optimizer.decay=weights", "epochs=5", cwd=tmp_path, code=2)
    assert "optimizer.decay all -> weights: a run goes on with what it began with" in said


def test_what_decays_stays_for_the_life_of_a_run(snnexp, tmp_path):
    snnexp("train", *TINY, "optimizer.decay=weights", "epochs=1", "exp_name=run", cwd=tmp_path)
    output = snnexp("resume", "outputs/run", "optimizer.decay=all", "epochs=2", cwd=tmp_path, code=2)
    assert "optimizer.decay weights -> all: a run goes on with what it began with" in output


def test_frames_are_judged_as_the_run_had_them(snnexp, tmp_path):
    snnexp("train", *TINY, "dataset.normalise=frame_max", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    snnexp("evaluate", run, "limit_val=32", cwd=tmp_path)
    [folder] = (run / "evaluations").iterdir()
    judged, tested = json.loads((folder / "test.json").read_text()), json.loads((run / "result.json").read_text())["test"]
    assert {name: judged["metrics"][name] for name in ("Acc1", "Loss")} == {name: tested[name] for name in ("Acc1", "Loss")}
    for command in (["resume", run, "epochs=5"], ["evaluate", run]):
        output = snnexp(*command, "dataset.normalise=rms", cwd=tmp_path, code=2)
        assert "trained with dataset.normalise=frame_max" in output and "Give dataset.normalise=frame_max" in output
