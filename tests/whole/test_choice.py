"""precision=auto and channels_last=auto from command to command; by the tests' made speeds they are fp32 and true here."""

import json
from pathlib import Path

import torch
from omegaconf import OmegaConf

from conftest import TINY, load

AUTO = [*(word for word in TINY if not word.startswith(("precision", "epochs"))), "precision=auto", "epochs=1"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def of_another_machine(run: Path) -> None:
    """Let a run have been made where bf16 was the fastest."""
    (run / "arithmetic.json").write_text(json.dumps(read(run / "arithmetic.json") | {"precision": "bf16"}))
    for path in (run / "checkpoints").glob("*.pth"):
        saved = load(path)
        saved["circumstances"]["precision"] = "bf16"
        torch.save(saved, path)


def from_before(run: Path) -> None:
    """Let a run be one of before there were records, when layouts were given and auto was bf16."""
    of_another_machine(run)
    (run / "arithmetic.json").unlink()
    settings = read(run / "config.json") | {"channels_last": True}
    (run / "config.json").write_text(json.dumps(settings))
    config = OmegaConf.load(run / ".hydra/config.yaml")
    config.channels_last = True
    OmegaConf.save(config, run / ".hydra/config.yaml")
    for path in (run / "checkpoints").glob("*.pth"):
        saved = load(path)
        saved["circumstances"].pop("channels_last", None)  # several names may be one file
        saved["args"]["channels_last"] = True
        torch.save(saved, path)


def test_what_was_measured_is_said_and_recorded_and_later_commands_keep_it(snnexp, tmp_path):
    output = snnexp("train", *AUTO, "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    speeds = "convolution fp32 100, fp32 channels_last 150, bf16 100, bf16 channels_last 150 (measured 20"
    assert "fp32, channels_last on 1 x CPU" in output and output.index(speeds) < output.index("epoch 1/1")
    assert f"precision=auto and channels_last=auto: forward and backward on one thread in GFLOP/s: {speeds}" in output
    record, config, result = (read(run / f"{name}.json") for name in ("arithmetic", "config", "result"))
    assert (record["precision"], record["channels_last"]) == ("fp32", True) == (result["precision"], result["channels_last"])
    assert (config["precision"], config["channels_last"]) == ("auto", "auto")

    of_another_machine(run)
    snnexp("evaluate", run, cwd=tmp_path)
    assert read(next(run.glob("evaluations/*/test.json")))["precision"] == "bf16"
    snnexp("prune", run, "pruner.ratio=0.3", "pruner.finetune.epochs=1", "pruner.calibration_samples=32", "exp_name=pruned", cwd=tmp_path)
    pruned = tmp_path / "outputs/pruned"
    assert (read(pruned / "result.json")["precision"], read(pruned / "arithmetic.json")["precision"]) == ("bf16", "bf16")
    output = snnexp("resume", run, "epochs=2", cwd=tmp_path)
    assert "bf16, channels_last on 1 x CPU" in output and "as chosen before" in output and "not the one it would have been" not in output
    assert read(run / "result.json")["precision"] == "bf16" and read(run / "arithmetic.json")["precision"] == "bf16"
    output = snnexp("resume", run, "epochs=3", "precision=fp32", cwd=tmp_path)
    assert "not the one it would have been: precision bf16 -> fp32." in output


def test_a_run_from_before_goes_on_as_it_was(snnexp, tmp_path):
    snnexp("train", *AUTO, "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    from_before(run)
    snnexp("evaluate", run, cwd=tmp_path)
    assert read(next(run.glob("evaluations/*/test.json")))["precision"] == "bf16"
    output = snnexp("resume", run, "epochs=2", cwd=tmp_path)
    assert "bf16, channels_last on 1 x CPU" in output and "not the one it would have been" not in output
    record = read(run / "arithmetic.json")
    assert record["precision"] == "bf16" and "channels_last" not in record
