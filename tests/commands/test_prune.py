"""snnexp prune, as its user runs it: of a run, the whole flow, stage by stage, in sweeps, killed between stages, and with mistakes."""

import hashlib
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY, assert_same, load, wait_for
from snnexp import cli

PRUNE = ["pruner.ratio=0.5", "pruner.finetune.epochs=2", "pruner.calibration_samples=32"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file of a run but its lock."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def parameters(checkpoint: Path) -> int:
    """Weights in a checkpoint, without running statistics."""
    return sum(v.numel() for name, v in load(checkpoint)["state_dict"].items() if "running" not in name and "num_batches" not in name)


@pytest.fixture(scope="module")
def dense(snnexp, tmp_path_factory) -> Path:
    """A trained run, in outputs/dense of its own directory."""
    cwd = tmp_path_factory.mktemp("dense")
    snnexp("train", *TINY, "early_stop=9", "exp_name=dense", cwd=cwd)
    return cwd / "outputs/dense"


@pytest.fixture(scope="module")
def pruned(snnexp, dense) -> tuple[Path, str, dict[str, str]]:
    """The run pruned by half and fine-tuned, what was said, and what the source's files were before."""
    before = contents(dense)
    said = snnexp("prune", "outputs/dense", *PRUNE, "exp_name=pruned", cwd=dense.parents[1])
    return dense.parent / "pruned", said, before


def test_a_pruned_run_is_smaller_and_names_its_source(pruned, dense):
    run, said, before = pruned
    assert contents(dense) == before  # the source is untouched
    config, record, result = read(run / "config.json"), read(run / "pruning.json"), read(run / "result.json")
    assert config["prune_from"] == record["source"] == str(dense / "checkpoints/checkpoint_best.pth")
    assert config["stages"] == ["prune", "finetune"] and config["epochs"] == 2 and config["early_stop"] is None
    assert read(run / "status.json")["state"] == "finished"
    sizes = [parameters(path) for path in (dense / "checkpoints/checkpoint_best.pth", run / "checkpoints/checkpoint_pruned.pth")]
    assert sizes == [record["stages"][name]["parameters"] for name in ("dense", "pruned")] and sizes[1] < 0.3 * sizes[0]
    assert result["parameters"] == sizes[1] == parameters(run / "checkpoints/checkpoint_best.pth")
    assert f"{sizes[0]:,} -> {sizes[1]:,} parameters" in said
    stages = record["stages"]
    assert stages.keys() == {"dense", "pruned", "final"}
    assert stages["dense"]["test"]["Acc1"] == read(dense / "result.json")["test"]["Acc1"]
    assert stages["final"]["test"] == result["test"] and stages["pruned"]["step_ms"] == stages["final"]["step_ms"] > 0
    assert stages["dense"]["macs"] > 2 * stages["final"]["macs"] > 0
    step = record["steps"][0]
    assert len(record["steps"]) == 1 and step["ratio"] == 0.5 and step["parameters"] == sizes[1]
    assert all(len(layer["kept"]) == layer["size"] // 2 for layer in step["layers"].values())
    saved = load(run / "checkpoints/checkpoint_pruned.pth")
    assert saved["epoch"] == 0 and saved["pruned"]["kept"] == {name: layer["kept"] for name, layer in step["layers"].items()}


def test_its_weights_are_the_survivors(pruned, dense):
    run, _, _ = pruned
    source, saved = (load(path) for path in (dense / "checkpoints/checkpoint_best.pth", run / "checkpoints/checkpoint_pruned.pth"))
    kept = saved["pruned"]["kept"]
    name, rows = "features.1.conv.0.weight", kept["features.1.lif"]
    expected = source["state_dict"][name][rows][:, kept["features.0.lif"]]
    assert torch.equal(saved["state_dict"][name], expected)


def test_each_stage_can_be_evaluated(pruned, dense, snnexp):
    run, _, _ = pruned
    record, cwd = read(run / "pruning.json"), dense.parents[1]
    for source, checkpoint, stage in ((dense, "best", "dense"), (run, "pruned", "pruned"), (run, "best", "final")):
        snnexp("evaluate", source, f"checkpoint={checkpoint}", "limit_val=32", cwd=cwd)
        newest = max((source / "evaluations").glob("*/test.json"), key=lambda path: path.stat().st_mtime_ns)
        assert read(newest)["metrics"] == record["stages"][stage]["test"]


def test_it_is_resumed_and_pruned_again(pruned, snnexp):
    run, _, _ = pruned
    cwd = run.parents[1]
    snnexp("prune", run, "pruner=random", "pruner.ratio=0.25", "stages=[prune]", "exp_name=twice", cwd=cwd)
    twice, first = run.parent / "twice", load(run / "checkpoints/checkpoint_best.pth")["pruned"]["kept"]
    saved = load(twice / "checkpoints/checkpoint_pruned.pth")
    for name, units in saved["pruned"]["kept"].items():  # in the numbers of the dense network
        assert set(units) < set(first[name]) and len(units) == len(first[name]) - len(first[name]) // 4
    record = read(twice / "pruning.json")
    assert record["stages"].keys() == {"dense", "pruned"} and record["criterion"] == "random" and read(twice / "config.json")["epochs"] == 0
    assert record["stages"]["dense"]["parameters"] == read(run / "result.json")["parameters"]

    said = snnexp("prune", run, "stages=[finetune]", "pruner.finetune.epochs=1", "exp_name=tuned", cwd=cwd)
    tuned = read(run.parent / "tuned/pruning.json")
    assert tuned["stages"].keys() == {"dense", "pruned", "final"} and len(tuned["steps"]) == 1
    assert tuned["stages"]["pruned"]["test"] == read(run / "result.json")["test"]  # what it began with
    assert "Pruned" not in said and load(run.parent / "tuned/checkpoints/checkpoint_best.pth")["pruned"]["kept"] == first
    assert "pruned already" in snnexp("resume", twice, "pruner.ratio=0.9", code=2, cwd=cwd)
    assert "a pruned network" in snnexp("train", *TINY, f"init_from={twice}", "exp_name=wrong", code=2, cwd=cwd)

    snnexp("resume", twice, "epochs=1", cwd=cwd)
    assert read(twice / "result.json")["epochs"] == 1
    assert read(twice / "pruning.json")["stages"].keys() == {"dense", "pruned", "final"}


def test_a_kill_in_any_stage_is_made_good(snnexp, start, dense):
    cwd = dense.parents[1]
    words = ["prune", "outputs/dense", *PRUNE, "save_minutes=0.00001", "batch_size=8", "pruner.finetune.optimizer=sgd", "ema=0.9"]
    snnexp(*words, "exp_name=whole", cwd=cwd)
    whole, killed = dense.parent / "whole", dense.parent / "killed"
    process = start(*words, "exp_name=killed", cwd=cwd)
    wait_for(lambda: (killed / "status.json").exists() and read(killed / "status.json")["state"] == "running", process)
    process.send_signal(signal.SIGKILL)  # it is judging the dense network
    process.wait()
    assert not (killed / "checkpoints/checkpoint_pruned.pth").exists()
    latest = killed / "checkpoints/checkpoint_latest.pth"
    for inside in (lambda: latest.exists(), lambda: load(latest)["sampler"]["batch"] > 1 and load(latest)["sampler"]["epoch"] == 1):
        process = start("resume", killed, cwd=cwd)
        wait_for(inside, process)  # just pruned; then in the second epoch of fine-tuning
        process.send_signal(signal.SIGKILL)
        process.wait()
    snnexp("resume", killed, cwd=cwd)
    for name in ("pruned", "final"):
        one, other = (load(run / f"checkpoints/checkpoint_{name}.pth") for run in (whole, killed))
        for part in ("epoch", "step", "state_dict", "optimizer", "ema", "pruned", "sampler", "best_acc1"):
            assert_same(one[part], other[part], f"{name}.{part}")
    assert (whole / "logs/metrics.jsonl").read_bytes() == (killed / "logs/metrics.jsonl").read_bytes()
    steps = [read(run / "pruning.json")["steps"] for run in (whole, killed)]
    assert steps[0] == steps[1]


def test_the_whole_flow_and_a_kill_while_it_trains(snnexp, start, tmp_path):
    words = ["prune", *TINY, "exp_name=flow", *PRUNE, "save_minutes=0.00001", "batch_size=8"]
    process = start(*words, cwd=tmp_path)
    first, second = tmp_path / "outputs/flow_dense", tmp_path / "outputs/flow"
    latest = first / "checkpoints/checkpoint_latest.pth"
    wait_for(lambda: latest.exists() and load(latest)["sampler"]["epoch"] >= 1, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert [read(run / "status.json")["state"] for run in (first, second)] == ["interrupted", "created"]
    assert read(first / "config.json")["pruner"] == {} and "stages" not in read(first / "config.json")
    snnexp("resume", second, cwd=tmp_path)  # trains on, prunes, fine-tunes
    assert [read(run / "status.json")["state"] for run in (first, second)] == ["finished", "finished"]
    assert read(second / "pruning.json")["source"] == str(first / "checkpoints/checkpoint_best.pth")
    assert read(second / "result.json")["parameters"] < read(first / "result.json")["parameters"]


def test_a_flow_of_a_stranger_is_trusted_in_no_part(snnexp, tmp_path):
    words = ["prune", *TINY, "epochs=1", "pruner.finetune.epochs=1", "start=false", "exp_name=flow"]
    said = snnexp(*words, cwd=tmp_path)
    first, second = tmp_path / "outputs/flow_dense", tmp_path / "outputs/flow"
    assert said.count("torchrun") == 2 - 1 and "the dense one first" in said
    (tmp_path / "evil.py").write_text("raise SystemExit('evil code ran')\n")
    config = read(first / "config.json")
    config["model"] = {"_target_": "evil.Net"}
    config["trust"] = ["evil"]
    (first / "config.json").write_text(json.dumps(config))
    refused = snnexp("resume", second, "start=true", code=2, cwd=tmp_path)
    assert "evil code ran" not in refused and "trust=[evil]" in refused


def test_a_flow_that_is_pruned_needs_its_source_no_more(snnexp, dense, tmp_path):
    words = ["prune", *TINY, "epochs=1", *PRUNE, "pruner.finetune.epochs=1", "pruner.finetune.optimizer=sgd", "exp_name=flow"]
    snnexp(*words, cwd=tmp_path)
    first, second = tmp_path / "outputs/flow_dense", tmp_path / "outputs/flow"
    assert read(second / "config.json")["choices"]["optimizer"] == "sgd" and read(first / "config.json")["choices"]["optimizer"] == "adam"
    assert read(second / "config.json")["choices"]["pruner"] == "spike_map" and read(first / "config.json")["choices"]["pruner"] == "none"
    first.rename(tmp_path / "elsewhere")
    snnexp("resume", second, "epochs=2", cwd=tmp_path)
    assert read(second / "result.json")["epochs"] == 2
    assert "a run has taken these for its own" in snnexp("resume", second, "pruner.finetune.epochs=5", code=2, cwd=tmp_path)


def test_a_sweep_over_ratios_is_restarted_and_analysed(dense, snnexp):
    cwd = dense.parents[1]
    words = ["prune", "outputs/dense", "-m", "pruner.ratio=0.25,1.5", "pruner.finetune.epochs=1", "pruner.calibration_samples=16"]
    said = snnexp(*words, "exp_name=sweep", code=1, cwd=cwd)
    assert "pruner.ratio=1.5: must be at least 0 and below 1" in said and "1 failed" in said
    good = dense.parent / "sweep/0_pruner.ratio=0.25"
    assert read(good / "status.json")["state"] == "finished"
    assert "done already" in snnexp(*words, "exp_name=sweep", code=1, cwd=cwd)
    assert "0.25" in snnexp("analyze", dense.parent / "sweep", cwd=cwd)
    assert (dense.parent / "sweep/plots/pruning_sweep.png").stat().st_size > 5000
    assert (good / "plots/pruning.png").stat().st_size > 5000


def test_weights_of_a_file_are_pruned_without_a_run(dense, snnexp, tmp_path):
    torch.save(load(dense / "checkpoints/checkpoint_best.pth")["state_dict"], tmp_path / "weights.pth")
    snnexp("prune", *TINY, "init_from=weights.pth", "stages=[prune]", *PRUNE, "exp_name=run", cwd=tmp_path)
    record = read(tmp_path / "outputs/run/pruning.json")
    assert record["source"] == str(tmp_path / "weights.pth")
    assert record["stages"]["dense"]["test"]["Acc1"] == read(dense / "result.json")["test"]["Acc1"]


@pytest.fixture
def said(dense: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `snnexp prune ARGS` in this process; what it said, after checking that it was refused."""
    monkeypatch.chdir(dense.parents[1])
    monkeypatch.setenv("SNNEXP_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", sys.argv)

    def said(*args: object) -> str:
        capfd.readouterr()
        assert cli.run(["prune", *map(str, args)]) == 2
        output = "".join(capfd.readouterr())
        assert "Traceback" not in output
        return output

    return said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["outputs/dense", "pruner.ratio=1.0"], "pruner.ratio=1.0: must be at least 0 and below 1"),
        (["outputs/dense", "pruner.ratio=-0.1"], "pruner.ratio=-0.1"),
        (["outputs/dense", "pruner.ignore=[features.0.lf]"], "no layer 'features.0.lf'.*Did you mean 'features.0.lif'"),
        (["outputs/dense", "pruner.ranking=globl"], "Did you mean 'global'"),
        (["outputs/dense", "pruner.round_to=0"], "pruner.round_to=0: must be at least 1"),
        (["outputs/dense", "pruner=spikemap"], "Did you mean 'spike_map'"),
        (["outputs/dense", "pruner=none"], "pruner=none: there is nothing to prune"),
        (["outputs/dense", "pruner.finetune.optimizer=sdg"], "pruner.finetune.optimizer=sdg.*Did you mean 'sgd'"),
        (["outputs/dense", "pruner.finetune.epochs=0"], "Without fine-tuning: stages=\\[prune\\]"),
        (["outputs/dense", "+pruner.finetune.epoch=3"], "pruner.finetune.epoch: there is no such setting.*Did you mean 'epochs'"),
        (["outputs/dense", "pruner.finetune.lr=abc"], "pruner.finetune.lr=abc: must be a number"),
        (["outputs/dense", "pruner.finetune=null"], "pruner.finetune=None: needs at least epochs"),
        (["outputs/dense", "pruner.layers=[1]"], "pruner.layers: there is no layer '1'"),
        (["outputs/dense", "pruner.layers=features"], "Write pruner.layers=\\[features\\]"),
        (["outputs/dense", "pruner.criterion=random"], "pruner.criterion='random' names no class"),
        (["outputs/dense", "pruner.ration=0.3"], "Did you mean 'pruner.ratio'"),
        (["stages=prune"], "write stages=\\[prune\\]"),
        (["outputs/dense", "pruner.finetune.epochs=two"], "pruner.finetune.epochs=two: must be a whole number"),
        (["outputs/dense", "epochs=5"], "pruner.finetune.epochs=5"),
        (["outputs/dense", "optimizer=sgd"], "pruner.finetune.optimizer"),
        (["outputs/dense", "model=resnet19"], "goes on with what its source had"),
        (["outputs/dense", "T=3"], "keeps the T of its source"),
        (["outputs/dense", "stages=[finetune]"], "is not pruned; add the stage prune"),
        (["outputs/dense", "stages=[train,prune]"], "is trained already"),
        (["outputs/dense", "stages=[finetune,prune]"], "in the order train, prune, finetune"),
        (["outputs/dense", "seed=5", "dataset.split_seed=5"], "the samples or their split are not those"),
        (["outputs/dens"], "no such run directory"),
        (["stages=[prune]"], "without the stage train give the network to prune"),
        (["stages=[train,finetune]"], "there is nothing to prune"),
        (["stages=[train,pruen]"], "Did you mean 'prune'"),
    ],
)
def test_mistakes(words, expected, said, dense):
    before, runs = contents(dense), sorted(path.name for path in dense.parent.iterdir())
    assert re.search(expected, said(*words), re.DOTALL)
    assert contents(dense) == before and sorted(path.name for path in dense.parent.iterdir()) == runs


def test_a_model_that_declares_no_groups_is_refused(snnexp, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nclass Mine(nn.Module):\n"
        "    def __init__(self, *, num_classes: int, size: int):\n"
        "        super().__init__()\n        self.fc = nn.Linear(2 * size * size, num_classes)\n"
        "    def forward(self, x):\n        return self.fc(x.flatten(2))\n"
    )
    arguments = {"_target_": "mine.Mine", "num_classes": "null", "size": "null"}
    model = ["~model", *(f"+model.{name}={value}" for name, value in arguments.items())]
    bare = [word for word in TINY if not word.startswith("model.")]
    said = snnexp("train", *bare, *model, "pruner=spike_map", code=2, cwd=tmp_path)
    assert "Mine cannot be pruned" in said and "channel_groups()" in said and not (tmp_path / "outputs").exists()


def test_help_names_the_settings(said, capfd, dense, monkeypatch):
    monkeypatch.chdir(dense.parents[1])
    assert cli.run(["prune", "--help"]) == 0
    shown = capfd.readouterr().out
    assert "pruner.ratio" in shown and "stages=[finetune]" in shown
