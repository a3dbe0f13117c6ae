"""Whole commands on stays: pre-training, fine-tuning, judging elsewhere; exact resume with the posterior watched; two processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import STAYS
from snnexp.contracts import DataSet
from snnexp.engine.weights import transfer
from snnexp.errors import UserError
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.models.seqset_vae.set_vae import SetVAE
from whole.test_resume import assert_same_run, kill_in_mid_epoch

WATCHED = [*STAYS, "tracker=posterior", "tracker.posterior.update_every=3", "tracker.posterior.window=4", "tracker.posterior.plot_every=9"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_within_an_epoch_the_run_and_its_posterior_go_on_exactly(snnexp, start, tmp_path):
    settings = [*WATCHED, "val_every=0.5", "keep_best=2", "workers=1", "save_minutes=0.00001"]
    snnexp("train", *settings, "exp_name=whole", cwd=tmp_path)
    process = start("train", *settings, "exp_name=killed", cwd=tmp_path)
    whole, killed = tmp_path / "outputs/whole", tmp_path / "outputs/killed"
    kill_in_mid_epoch(process, killed, epoch=1)
    snnexp("resume", killed, cwd=tmp_path)
    assert_same_run(whole, killed)
    for name in ("metrics.jsonl", "report.txt"):
        assert (whole / "posterior_metrics" / name).read_bytes() == (killed / "posterior_metrics" / name).read_bytes()
    one, other = (np.load(run / "test_latents.npz") for run in (whole, killed))
    assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {path.name for path in (killed / "checkpoints").iterdir()}

    steps = [record["step"] for record in lines(whole / "posterior_metrics/metrics.jsonl")]
    assert steps == list(range(3, 22, 3))  # 7 steps an epoch
    assert [line["epoch"] for line in lines(whole / "logs/metrics.jsonl")] == [0.5714, 1, 1.5714, 2, 2.5714, 3]
    last, record = lines(whole / "logs/metrics.jsonl")[-1], lines(whole / "posterior_metrics/metrics.jsonl")[-1]
    assert last["Posterior/KL"] == record["held_out"]["kl"] and record["held_out"]["sets"] > 100


def test_pretrain_finetune_and_judge_elsewhere(snnexp, tmp_path):
    snnexp("train", *STAYS, "model=set_vae", "epochs=1", "exp_name=pretrained", cwd=tmp_path)
    pretrained, run = tmp_path / "outputs/pretrained", tmp_path / "outputs/run"
    result = json.loads((pretrained / "result.json").read_text())
    assert set(result["test"]) == {"Loss", "Recon", "KL"} and result["best"]["metric"] == "Val/Loss"
    assert result["activity"]["energy"]["macs"] > 0
    latents = np.load(pretrained / "test_latents.npz")
    assert "score" not in latents.files and latents["mu"].shape == (2, len(latents["stay"]), 16)

    output = snnexp("train", *STAYS, "epochs=1", f"init_from={pretrained}", "exp_name=run", cwd=tmp_path)
    own = json.loads((run / "result.json").read_text())
    assert "Weights from" in output and "left as initialised: of_place" in output
    assert 0 <= own["test"]["AUROC"] <= 1 and 0 <= own["test"]["AUPRC"] <= 1 and own["best"]["metric"] == "Val/AUROC"
    latents = np.load(run / "test_latents.npz")
    sizes = {name: latents[name].shape for name in latents.files}
    stays, sets = len(np.load(run / "test_y_true.npy")), len(latents["stay"])
    assert sizes["state"] == (stays, 16) and sizes["score"] == (stays,) and sizes["mu"] == sizes["logvar"] == (2, sets, 16)
    assert sizes["minute"] == sizes["size"] == sizes["error"] == (sets,) and set(latents["stay"]) == set(range(stays))
    np.testing.assert_array_equal(latents["score"], np.load(run / "test_y_score.npy"))

    snnexp("evaluate", run, "split=all", "dataset.root=elsewhere", "dataset.data_seed=5", cwd=tmp_path)
    judged = json.loads(next(run.glob("evaluations/*/all.json")).read_text())
    assert (
        judged["samples"] == 80
        and not judged["samples_of_the_run"]
        and judged["samples_it_had_seen"] == 0
        and set(judged["metrics"]) == set(own["test"])
    )
    said = snnexp("evaluate", run, "split=test", "dataset.split_seed=3", cwd=tmp_path, fresh=True)  # its own stays, divided otherwise
    assert "of these 12 samples are among those that the run was trained on" in said
    said = snnexp("analyze", run, "checkpoint=latest", "split=val", "max_batches=1", "save_dir=figures", cwd=tmp_path)
    assert "val_latents.npz" in said and {"loss_curves.png", "collapse_analysis.txt"} < {
        path.name for path in (tmp_path / "figures").iterdir()
    }


def test_a_run_of_before_goes_on_without_folds_and_statistics(snnexp, tmp_path):
    snnexp("train", *STAYS, "model.latest=false", "model.statistics=false", "epochs=1", "exp_name=new", cwd=tmp_path)
    new, old = tmp_path / "outputs/new", tmp_path / "outputs/old"
    shutil.copytree(new, old)
    settings, unresolved = json.loads((old / "config.json").read_text()), OmegaConf.load(old / ".hydra/config.yaml")
    for tree in (settings, unresolved):
        for node, keys in (("dataset", ("cv_fold", "cv_folds")), ("model", ("latest", "statistics", "statistics_dropout"))):
            for key in keys:
                del tree[node][key]
    (old / "config.json").write_text(json.dumps(settings))
    OmegaConf.save(unresolved, old / ".hydra/config.yaml")
    for run in (new, old):
        snnexp("resume", run, "epochs=2", cwd=tmp_path)
    assert_same_run(new, old)


def test_a_fold_is_tested_by_the_run_that_did_not_see_it(snnexp, tmp_path):
    snnexp("train", "-m", *STAYS, "epochs=1", "dataset.cv_fold=0,1", "dataset.cv_folds=2", "exp_name=cv", cwd=tmp_path)
    runs = sorted((tmp_path / "outputs/cv").glob("*/config.json"))
    assert [json.loads(path.read_text())["dataset"]["cv_fold"] for path in runs] == [0, 1]
    assert [len(np.load(path.parent / "test_y_true.npy")) for path in runs] == [40, 40]
    assert "test is fold 1 of 2" in json.loads((runs[1].parent / "result.json").read_text())["protocol"]
    output = snnexp("runs", "outputs/cv", "--over", "dataset.cv_fold", cwd=tmp_path)
    assert "runs over dataset.cv_fold" in output and "AUROC" in output


def test_two_processes_watch_one_posterior(snnexp, tmp_path):
    settings = [*WATCHED, "devices=2", "accumulate=2", "epochs=2"]
    snnexp("train", *settings, "exp_name=two", cwd=tmp_path)
    run = tmp_path / "outputs/two"
    records, result = lines(run / "posterior_metrics/metrics.jsonl"), json.loads((run / "result.json").read_text())
    assert result["processes"] == 2 and len(np.load(run / "test_latents.npz")["y"]) == len(np.load(run / "test_y_true.npy")) == 12
    assert [record["step"] for record in records] == [3, 6] and records[0]["window"]["sets"] > 200  # of both processes


def test_a_pretrained_set_vae_goes_where_most_of_it_fits(tmp_path):
    set_vae = SetVAE(num_variables=5, width=8, heads=2)
    torch.save({"state_dict": set_vae.state_dict()}, tmp_path / "weights.pth")
    whole = SeqSetVAE(num_variables=5, width=8, heads=2, context_decoder=True)  # whose own decoder has the same names
    before = whole.decoder.out.weight.clone()
    message, record = transfer.transfer(whole, str(tmp_path / "weights.pth"), data=DataSet(), partial=False, arguments={})
    assert ", into set_vae:" in message and record["into"] == "set_vae" and not record["not_placed"]
    for name, value in set_vae.state_dict().items():
        assert torch.equal(whole.set_vae.state_dict()[name], value)
    assert torch.equal(whole.decoder.out.weight, before)


def test_what_belongs_to_a_variable_follows_it_to_other_data():
    weights = {"names.weight": torch.arange(3.0)[:, None], "codes": torch.arange(3.0)[:, None] + 10, "head.weight": torch.ones(3, 3)}
    moved = transfer.by_variable(weights, ["a", "b", "c"], ("c", "a", "b"), "RUN")
    assert moved["names.weight"].flatten().tolist() == [2, 0, 1] and moved["codes"].flatten().tolist() == [12, 10, 11]
    assert moved["head.weight"] is weights["head.weight"]
    columns = {"statistics.enter.weight": torch.tensor([[0.0, 0.5, 1, 1.5, 2, 2.5]]), "latest.value.weight": torch.tensor([[0.0, 1, 2]])}
    head = {"statistics.mean": torch.arange(3.0)[:, None]} | columns
    moved = transfer.by_variable(head, ["a", "b", "c"], ("c", "a", "b"), "RUN")
    assert moved["statistics.mean"].flatten().tolist() == [2, 0, 1]
    assert moved["statistics.enter.weight"].tolist() == [[2, 2.5, 0, 0.5, 1, 1.5]]
    assert moved["latest.value.weight"].tolist() == [[2, 0, 1]]
    text = {"embeddings": torch.arange(3.0)[:, None], "names.weight": torch.ones(3, 1)}  # a layer, whose rows are no variables
    assert transfer.by_variable(text, ["a", "b", "c"], ("c", "a", "b"), "RUN")["names.weight"] is text["names.weight"]
    with pytest.raises(UserError, match="other variables.*only one of them has c, d"):
        transfer.by_variable(weights, ["a", "b", "c"], ("a", "b", "d"), "RUN")
