"""Sweeps: names of jobs, a job that fails, a sweep that is started again, other launchers and sweepers."""

import json
import signal
import time
from pathlib import Path

import pytest

from conftest import TINY, load, wait_for
from snnexp import check, config
from whole.test_resume import assert_same_run

SWEPT = [word for word in TINY if not word.startswith("model.width")]


def state(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


def test_a_failed_job_does_not_stop_a_sweep_and_is_named_at_its_end(snnexp, tmp_path):
    words = ["-m", *SWEPT, "epochs=1", "model.width=0.125,-1", "seed=0,1", "exp_name=sweep"]
    output = snnexp("train", *words, cwd=tmp_path, code=1)
    sweep = tmp_path / "outputs/sweep"
    names = [f"{job}_model.width={width},seed={seed}" for job, (width, seed) in enumerate((w, s) for w in ("0.125", "-1") for s in (0, 1))]
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == names  # what is swept, and nothing else
    assert [state(sweep / name) for name in names] == ["finished", "finished", "failed", "failed"]
    end = output[output.rindex("\nsweep ") :]
    assert "model.width: -1" in end and end.count("failed:") == 2 and "2 failed" in end and "exp_name=sweep" in end
    assert all(name in end for name in names) and end.count("test Acc1") == 2
    assert json.loads((sweep / names[1] / "config.json").read_text())["seed"] == 1

    files = {path: path.stat().st_mtime_ns for name in names[:2] for path in (sweep / name).rglob("*")}
    output = snnexp("train", *words, cwd=tmp_path, code=1)
    assert output.count("done already") == 2 and "2 failed" in output
    assert files == {path: path.stat().st_mtime_ns for name in names[:2] for path in (sweep / name).rglob("*")}
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == names


@pytest.mark.parametrize("words", [["lr=0.1", "lr=0.01,0.02"], ["data_dir=a,b"], ["+extra.a=x,x_"], ["dataset.root=a/b,a-b"]])
def test_every_job_of_a_sweep_runs_in_a_directory_of_its_own(words, said, tmp_path):
    output = said("train", "-m", *TINY, "epochs=1", "limit_train=16", "limit_val=16", *words, "exp_name=sweep")
    runs = sorted((tmp_path / "outputs/sweep").glob("*/result.json"))
    assert [path.parent.name[:2] for path in runs] == ["0_", "1_"] and "done already" not in output
    settings = [json.loads((path.parent / "config.json").read_text()) for path in runs]
    assert settings[0] != settings[1] and [each["lr"] for each in settings] in ([0.01, 0.02], [0.001, 0.001])


def test_a_cause_that_all_jobs_share_stops_the_sweep_at_the_first(said, tmp_path, monkeypatch):
    monkeypatch.setenv("SNNEXP_DATA", str(tmp_path / "nothing"))
    message = said("train", "-m", "dataset=cifar10_dvs", "lr=1,2,3", "exp_name=sweep", code=2)
    assert message.count("snnexp data dataset=cifar10_dvs") == 1 and "none of the others was begun" in message
    assert not list((tmp_path / "outputs").iterdir())


def test_a_sweep_without_slurm_is_told_once(said, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    message = said("train", "-m", *TINY, "hydra=slurm", "lr=1,2", code=2)
    assert 'the jobs cannot be given to SLURM: Could not detect "srun"' in message and "leave out hydra=slurm" in message


def test_a_job_that_is_refused_is_named_at_the_end(said, tmp_path):
    words = ["-m", *TINY, "epochs=1", "limit_train=16", "limit_val=16", "exp_name=sweep"]
    said("train", *words, "seed=0,1")
    output = said("train", *words, "seed=0,1,2", "batch_size=8", code=1)  # other settings under the same names
    end = output[output.rindex("\nsweep ") :]
    assert end.count("refused now: ") == 2 and "was made with other settings (batch_size 16 -> 8)" in end and "2 failed" in end
    assert state(tmp_path / "outputs/sweep/2_seed=2") == "finished"
    message = said("train", *TINY, "exp_name=sweep", code=2)
    assert "is a sweep of 3 jobs" in message and "snnexp train -m ... exp_name=sweep" in message
    assert "exists, and is no sweep" in said("train", *words[:-1], "exp_name=sweep/2_seed=2", "seed=0,1", code=2)


def test_a_sweep_that_was_killed_goes_on_where_it_was(snnexp, start, tmp_path):
    words = ["-m", *TINY, "seed=0,1", "batch_size=8", "save_minutes=0.00001", "exp_name=sweep"]
    process = start("train", *words, cwd=tmp_path)
    runs = [tmp_path / "outputs/sweep" / name for name in ("0_seed=0", "1_seed=1")]
    latest = runs[1] / "checkpoints/checkpoint_latest.pth"
    wait_for(lambda: latest.exists() and load(latest)["sampler"]["epoch"] >= 1, process)
    process.kill()
    process.communicate()
    assert [state(run) for run in runs] == ["finished", "running"]
    output = snnexp("train", *words, cwd=tmp_path)
    assert output.count("done already") == 1 and "Goes on after epoch" in output
    snnexp("train", *TINY, "seed=1", "batch_size=8", "save_minutes=0.00001", "exp_name=alone", cwd=tmp_path)
    assert_same_run(tmp_path / "outputs/alone", runs[1])


def test_ctrl_c_ends_the_whole_sweep(start, tmp_path):
    process = start("train", "-m", *TINY, "epochs=500", "seed=0,1", "exp_name=sweep", cwd=tmp_path)
    first = tmp_path / "outputs/sweep/0_seed=0"
    wait_for(lambda: (first / "checkpoints/checkpoint_latest.pth").exists(), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert state(first) == "interrupted" and not (tmp_path / "outputs/sweep/1_seed=1").exists()


def test_submitit_runs_the_jobs_in_processes_of_their_own(snnexp, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    began = time.time()
    words = ["-m", *TINY, "epochs=1", "seed=0,1", "exp_name=sweep", "hydra/launcher=submitit_local"]
    output = snnexp("train", *words, cwd=tmp_path)
    runs = [tmp_path / "outputs/sweep" / name for name in ("0_seed=0", "1_seed=1")]
    assert [state(run) for run in runs] == ["finished", "finished"] and time.time() - began < 120
    assert len({json.loads((run / "status.json").read_text())["pid"] for run in runs}) == 2
    assert all(run.name in output for run in runs)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset=event_folder", "dataset.root=nowhere"], "nowhere does not exist"),
        (["clip_grad=inf"], "clip_grad=inf: must be greater than 0, and finite"),
        (["monitor=nothing"], "monitor=nothing: not a metric of this task"),
    ],
)
def test_a_fault_that_all_jobs_share_is_told_before_any_is_submitted(words, expected, said, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    message = said("train", "-m", "model.width=0.125", "seed=0,1", "hydra/launcher=submitit_local", *words, code=2)
    assert expected in message and message.count("All jobs of the sweep share this: none was begun") == 1
    assert not (tmp_path / "outputs").exists()


def test_data_that_this_machine_lacks_may_be_on_those_of_a_cluster(said, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    message = said("train", "-m", "seed=0,1", "hydra=slurm", "dataset=event_folder", "dataset.root=nowhere", code=2)
    assert "The data are not on this machine" in message and 'Could not detect "srun"' in message
    assert not list((tmp_path / "outputs").iterdir())


def test_what_is_not_prepared_is_left_to_the_jobs(said, tmp_path):
    said("train", *TINY, "start=false", "exp_name=run")
    settings = config.read_saved(tmp_path / "outputs/run/config.json")
    settings["dataset"] |= {"root": str(tmp_path / "elsewhere")}
    check.check_elsewhere(settings)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("word", ["lr=glob(*)", "seed=range(5,1)"])
def test_a_sweep_without_any_job_is_refused(word, said, tmp_path):
    assert f"{word}: there is no such value, and so no job" in said("train", "-m", *TINY, word, code=2)
    assert not (tmp_path / "outputs").exists()


def test_optuna_searches_for_the_best_validation(snnexp, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["-m", *TINY, "epochs=1", "hydra=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1", "exp_name=search"]
    output = snnexp("train", *words, "lr=tag(log,interval(1e-4,1e-1))", cwd=tmp_path)
    results = [json.loads(path.read_text())["best"]["value"] for path in (tmp_path / "outputs/search").glob("*/result.json")]
    rates = {json.loads(path.read_text())["lr"] for path in (tmp_path / "outputs/search").glob("*/config.json")}
    assert len(results) == 3 and len(rates) == 3 and all(1e-4 <= rate <= 1e-1 for rate in rates)
    found = (tmp_path / "outputs/search/optimization_results.yaml").read_text()
    assert f"best_value: {max(results)}" in found and "name: optuna" in found
    assert output.count("test Acc1") >= 3
