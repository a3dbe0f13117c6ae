"""snnexp profile as its user types it: what is said, what is left on disk, and that a training takes what was found."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from conftest import TINY
from snnexp import cli
from snnexp.analysis.runs import find
from snnexp.errors import UserError
from snnexp.profile import child_process, steps
from snnexp.profile.tuning import Ladder

WORDS = [word for word in TINY if not word.startswith(("epochs", "logger", "model.width"))] + ["model.width=0.0625", "warmup=1", "steps=3"]


@pytest.fixture
def said(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `snnexp ARGS` in this process, in `tmp_path`; what it said, after checking its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNEXP_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(steps, "PEAK_SECONDS", 0.05)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def said(*args: object, code: int = 0) -> str:
        capfd.readouterr()
        found = cli.run([str(word) for word in args])
        output = "".join(capfd.readouterr())
        assert found == code, f"exit code {found}, not {code}:\n{output}"
        assert "Traceback" not in output
        return output

    yield said
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let settings run as a function of theirs says: samples/s, or an outcome."""

    def machine(rate: Callable[[dict], float | child_process.Outcome]) -> None:
        def attempt(settings: dict, *, memory_limit: int | None, seconds: float, log: Path) -> child_process.Outcome:
            found = rate(settings)
            if isinstance(found, child_process.Outcome):
                return found
            facts = {
                "model": "vggsnn", "dataset": "digits_dvs", "precision": "fp32", "precisions": ["fp32", "bf16"],
                "channels_last": True, "device": "cpu", "compiles": [False, True],
                "cores": 2, "torch": "2", "training_samples": 64, "device_bytes": None, "peak_bytes": 2**30, "steps": 3,
                "step_ms": {"median": 1e3 * settings["batch_size"] / found}, "samples_per_s": {"median": found},
            }  # fmt: skip
            return child_process.Outcome("ok", report=facts, memory=2**30, seconds=0.1)

        monkeypatch.setattr(child_process, "attempt", attempt)

    return machine


def folder(tmp_path: Path) -> Path:
    """The one profile."""
    (found,) = (tmp_path / "outputs").iterdir()
    return found


def test_a_profile_is_said_and_kept_and_is_no_run(said, tmp_path):
    output = said("profile", *WORDS, "tracker=[lif,timing]")
    where = folder(tmp_path)
    assert where.name.startswith("profile_vggsnn_digits_dvs_")
    assert {path.name for path in where.iterdir()} == {"profile.json", "profile.txt"}
    found = json.loads((where / "profile.json").read_text())
    assert found["steps"] == 3 and found["warmup"] == 1 and found["command"].startswith("snnexp profile dataset.size=16")
    assert found["tree"][0]["name"] == "step" and {"data", "forward", "backward"} <= {row["name"] for row in found["tree"]}
    for part in ("where the time goes", "activations", "share of the hardware", "layers, GFLOP/s", f"outputs/{where.name}"):
        assert part in output
    assert output.strip().splitlines()[5] in (where / "profile.txt").read_text()
    assert find(tmp_path / "outputs") == []
    assert "not a run directory" in said("evaluate", where, code=2)


def test_a_search_writes_what_a_training_takes(said, machine, tmp_path, data_dir):
    machine(lambda s: 100.0 * (2 if s["precision"] == "bf16" else 1) * min(s["batch_size"], 32) / (2 if s["compile"] else 1))
    words = ["model=vggsnn", *WORDS, "scheduler=none", "T=2", "optimizer=adamw", "optimizer.weight_decay=0.05", "+extra.note=mine"]
    output = said("profile", *words, "tune=true")
    where = folder(tmp_path)
    assert {path.name for path in where.iterdir()} == {"profile.json", "profile.txt", "experiment"}
    found = json.loads((where / "profile.json").read_text())
    assert found["tuned"] == {"precision": "bf16", "batch_size": 32} and found["final"]["ratio"] == 4 and found["stopped"] == ""
    assert [row["changed"] for row in found["rows"]][:4] == [{}, {"precision": "bf16"}, {"channels_last": False}, {"compile": True}]
    assert [row["changed"] for row in found["rows"]][-3:] == [{"optimizer": "adamw8bit"}, {"workers": 1}, {"workers": 2}]
    assert "x4.00" in output and "now sees 32 samples instead of 16" in output and "precision=bf16*" in output

    written = (where / "experiment/tuned.yaml").read_text()
    assert written.startswith("# @package _global_\n# Found by snnexp profile") and max(map(len, written.splitlines())) <= 140
    assert "x4.00" in written and "precision: fp32 -> bf16, which changes" in written
    content = yaml.safe_load(written)
    groups = {name.removeprefix("override /"): value for entry in content.pop("defaults") for name, value in entry.items()}
    assert groups["model"] == "vggsnn" and groups["scheduler"] == "none" and groups["optimizer"] == "adamw" and groups["pruner"] == "none"
    assert content == {
        "T": 2, "precision": "bf16", "device": "cpu", "limit_train": 64, "limit_val": 32, "optimizer": {"weight_decay": 0.05},
        "dataset": {"size": 16}, "model": {"width": 0.0625}, "extra": {"note": "mine"},
    }  # only what differs: a batch of 32 is the default  # fmt: skip

    taken = output.strip().splitlines()[-1]
    assert taken == f"snnexp train --config-dir outputs/{where.name} experiment=tuned"
    said(*taken.split()[1:], "epochs=1", "limit_train=32", "limit_val=8", "logger=none", "exp_name=run", f"data_dir={data_dir}")
    settings = json.loads((tmp_path / "outputs/run/config.json").read_text())
    assert (settings["batch_size"], settings["precision"], settings["T"], settings["model"]["T"]) == (32, "bf16", 2, 2)
    assert settings["optimizer"]["weight_decay"] == 0.05 and settings["extra"] == {"note": "mine"}
    assert json.loads((tmp_path / "outputs/run/status.json").read_text())["step"] == 1
    assert "steps" not in settings and "tune" not in settings


def test_eight_bit_moments_keep_the_options_and_are_marked(said, machine, tmp_path):
    def rate(settings):
        if not settings["optimizer"]["_target_"].endswith("AdamW8bit"):
            return 100.0
        assert settings["optimizer"]["weight_decay"] == 0.05 and "fused" not in settings["optimizer"] and settings["optimizer"]["lr"] == 0.5
        return 200.0

    machine(rate)
    output = said("profile", *WORDS, "optimizer=adamw", "optimizer.weight_decay=0.05", "lr=0.5", "tune=true")
    assert "optimizer=adamw8bit*  kept" in output and "another recipe" in output
    content = yaml.safe_load((folder(tmp_path) / "experiment/tuned.yaml").read_text())
    assert {"override /optimizer": "adamw8bit"} in content["defaults"] and content["optimizer"] == {"weight_decay": 0.05}
    assert content["lr"] == 0.5


def test_out_of_memory_and_a_mistake_are_rows(said, machine, tmp_path):
    def rate(settings):
        if settings["batch_size"] > 16:
            return child_process.Outcome("out of memory", "more than the limit of 1 GiB")
        if settings["precision"] == "bf16":
            return child_process.Outcome("failed", "RuntimeError: no")
        return 100.0

    machine(rate)
    output = said("profile", *WORDS, "tune=true", "memory_limit=1")
    assert "out of memory: more than the limit of 1 GiB" in output and "failed: RuntimeError: no" in output
    assert "Nothing was faster" in output
    assert json.loads((folder(tmp_path) / "profile.json").read_text())["memory_limit"] == 2**30


def test_a_baseline_that_cannot_run_is_a_failure_with_its_reason(said, machine):
    machine(lambda s: child_process.Outcome("failed", "RuntimeError: no kernel"))
    assert "the baseline does not run: failed: RuntimeError: no kernel" in said("profile", *WORDS, "tune=true", code=1)
    machine(lambda s: child_process.Outcome("out of memory", "too much"))
    assert "does not run: out of memory" in said("profile", *WORDS, "tune=true", code=1)


def tuned(tmp_path: Path) -> tuple[str, dict]:
    """The comment of tuned.yaml in one line, and its content without the groups."""
    written = (folder(tmp_path) / "experiment/tuned.yaml").read_text()
    comment = " ".join(line.removeprefix("#").strip() for line in written.splitlines() if line.startswith("#"))
    content = yaml.safe_load(written)
    del content["defaults"]
    return comment, content


def test_of_a_baseline_that_does_not_fit_the_smaller_one_is_written_and_nothing_compared(said, machine, tmp_path):
    asked = []

    def rate(settings):
        asked.append(settings["batch_size"])
        return child_process.Outcome("out of memory", "too much") if settings["batch_size"] > 8 else 100.0

    machine(rate)
    output = said("profile", *WORDS, "tune=true")
    assert asked[:2] == [16, 8] and asked[-1] != 16, "the baseline is not measured at the end"
    comment, content = tuned(tmp_path)
    outcome = "tuned 100 samples/s; the baseline does not run here (out of memory: too much), so there is nothing to compare it with."
    assert outcome in comment and outcome in output and "othing was faster" not in comment + output
    assert "batch_size: 16 -> 8, which changes" in comment and (content["batch_size"], content["accumulate"]) == (8, 2)


def test_a_tuned_setting_that_fails_in_the_end_is_not_written(said, machine, tmp_path, monkeypatch):
    ending, compare = [], Ladder.compare

    def last(ladder):
        ending.append(True)
        return compare(ladder)

    def rate(settings):
        if settings["precision"] == "fp32":
            return 100.0
        return child_process.Outcome("failed", "RuntimeError: no") if ending else 200.0

    monkeypatch.setattr(Ladder, "compare", last)
    machine(rate)
    output = said("profile", *WORDS, "tune=true")
    comment, content = tuned(tmp_path)
    outcome = "precision=bf16 was faster, but did not run in the last comparison (failed: RuntimeError: no): given up"
    assert outcome in comment and outcome in output and content["precision"] == "fp32" and "precision: fp32 ->" not in comment
    found = json.loads((folder(tmp_path) / "profile.json").read_text())
    assert found["tuned"] == {} and found["final"] is None and found["broken"]["which"] == "tuned"


def test_a_name_that_is_taken_is_said_before_anything_is_measured(said, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "profile", lambda *_: pytest.fail("measured"))
    (tmp_path / "outputs/mine").mkdir(parents=True)
    assert "exists already" in said("profile", *WORDS, "exp_name=mine", code=2)
    assert folder(tmp_path).name == "mine"


def test_a_ctrl_c_keeps_the_rows(said, machine, tmp_path):
    def rate(settings):
        if settings["compile"]:
            raise KeyboardInterrupt
        return 100.0

    machine(rate)
    output = said("profile", *WORDS, "tune=true", code=130)
    found = json.loads((folder(tmp_path) / "profile.json").read_text())
    assert found["stopped"] == "interrupted" and len(found["rows"]) == 3 and "channels_last=false" in output
    assert not (folder(tmp_path) / "experiment").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["steps=0"], "steps=0: must be at least 1"),
        (["warmup=0"], "warmup=0: must be at least 1"),
        (["memory_limit=-1"], "memory_limit=-1.0: must be greater than 0"),
        (["tune_budget_minutes=0"], "tune_budget_minutes=0.0: must be greater than 0"),
        (["stepz=4"], "Did you mean 'steps'"),
        (["tune=true", "devices=2"], "one process on one device; devices=1"),
        (["-m", "lr=1e-3,1e-2"], "snnexp profile tune=true"),
        (["tune=maybe"], "not a valid bool"),
        (["model=vgsnn"], "Did you mean 'vggsnn'"),
        (["model=spiking_gnn", "dataset=digits"], "which digits does not have"),
    ],
)
def test_mistakes(words, expected, said, tmp_path):
    assert expected in said("profile", *words, code=2)
    assert not (tmp_path / "outputs").exists()


def test_too_large_a_setting_is_told_in_words(said, monkeypatch, tmp_path):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(steps, "profile", full)
    assert "out of memory" in (output := said("profile", *WORDS, code=1)) and "tune=true" in output
    assert list((tmp_path / "outputs").iterdir()) == [], "nothing was measured"


def test_a_users_mistake_in_a_candidate_is_a_row_and_not_the_end(said, machine, monkeypatch):
    from snnexp.commands import profile

    machine(lambda s: 100.0)
    finish = profile.config.finish

    def refuse(cfg, *rest):
        if cfg.precision == "bf16":
            raise UserError("precision=bf16: not here.")
        return finish(cfg, *rest)

    monkeypatch.setattr(profile.config, "finish", refuse)
    assert "failed: precision=bf16: not here." in said("profile", *WORDS, "tune=true")


def test_help_and_the_configuration(said):
    shown = said("profile", "--help")
    assert "snnexp profile tune=true" in shown and "memory_limit: null" in shown and "Groups" in shown
    assert "tune_budget_minutes: 15" in said("profile", "--cfg", "job")
    assert "snnexp profile" in said("--help")
