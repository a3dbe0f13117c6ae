"""Whole commands on video: streams of a spike camera judged elsewhere by an independent computation, exact resume, two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from conftest import CLIPS, assert_same, load
from data.video.made_clips import put_clip
from snnexp.data.video.spike_camera import open_dat, write_dat
from whole.test_resume import assert_same_run, kill_in_mid_epoch

REAL = Path(__file__).parents[3] / "shared/data"
NAME = "200_part1_key_id151"
LEFT = 96 - 16 - 16
"""Columns of a part that train: without the strip that chooses the epoch, and the gap."""


def psnr(seen: np.ndarray, truth: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((seen - truth) ** 2))


@pytest.fixture(scope="module")
def streams(tmp_path_factory) -> Path:
    """A part of 96 x 64 pixels of each real stream, in the original layout."""
    import subprocess

    if not (REAL / "unpack").exists():
        pytest.skip(f"the real streams ({REAL}) are not on this machine")
    whole, part = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("part") / "spike_reds"
    subprocess.run(["bash", REAL / "unpack", whole, "deblur"], check=True, capture_output=True)
    for dat in sorted((whole / "deblur/spike_reds").rglob("*.dat")):
        folder = part / dat.parents[1].name
        for kind in ("spike", "gt"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        picture = np.asarray(Image.open(dat.parents[1] / "gt" / f"{dat.stem}.png"))
        write_dat(folder / "spike" / dat.name, open_dat(dat, *picture.shape).read(0, 301)[:, 100:164, 120:216])
        Image.fromarray(picture[100:164, 120:216]).save(folder / "gt" / f"{dat.stem}.png")
    return part


def test_streams_that_it_never_saw_are_judged_beside_what_they_give_without_learning(snnexp, streams, tmp_path):
    small = [word for word in CLIPS if not word.startswith("dataset.")]
    own = ["dataset=spike_reds", "dataset.crop=16", "dataset.crops=4", f"data_dir={streams.parent}", "epochs=1", "exp_name=run"]
    snnexp("train", *small, *own, cwd=tmp_path)
    run = tmp_path / "outputs/run"
    result = json.loads((run / "result.json").read_text())
    assert result["best"]["metric"] == "Val/PSNR" and "NOT the published protocol" in result["protocol"]
    assert np.load(run / "test_y_true.npy").shape == (1, 1, 64, 64)

    elsewhere = tmp_path / "elsewhere/spike_reds"
    for kind, ending in (("spike", "dat"), ("gt", "png")):
        (elsewhere / kind).mkdir(parents=True)
        (elsewhere / kind / f"{NAME}.{ending}").write_bytes((streams / "test" / kind / f"{NAME}.{ending}").read_bytes())
    output = snnexp("evaluate", run, "split=all", "data_dir=elsewhere", cwd=tmp_path)
    [folder] = (run / "evaluations").iterdir()
    report = json.loads((folder / "all.json").read_text())
    found = report["metrics"]
    assert report["samples"] == 1 and not report["samples_of_the_run"] and f"PSNR {found['PSNR']:.4g}" in output

    truth = np.asarray(Image.open(elsewhere / "gt" / f"{NAME}.png")).astype(float)
    restored = np.asarray(Image.open(folder / f"frames/{NAME}/01.png")).astype(float)
    assert found["PSNR"] == pytest.approx(psnr(restored, truth), abs=1e-6)
    spikes = open_dat(elsewhere / "spike" / f"{NAME}.dat", 64, 96).read(0, 301).astype(float)
    rate = spikes[150 - 16 : 150 + 16].mean(0)
    fitted = np.clip(rate * (rate * truth).sum() / (rate**2).sum(), 0, 255).round()
    assert found["PSNR_TFP"] == pytest.approx(psnr(fitted, truth), abs=1e-3)
    saved = load(run / "checkpoints/checkpoint_best.pth")["data"]
    # The gain is that of least squares over the training streams, left of the strip that chooses the epoch.
    rates, truths = [], []
    for dat in sorted((streams / "train/spike").iterdir()):
        rates.append(open_dat(dat, 64, 96).read(150 - 16, 32).mean(0)[:, :LEFT])
        truths.append(np.asarray(Image.open(streams / "train/gt" / f"{dat.stem}.png"))[:, :LEFT] / 255)
    gain = sum((r * t).sum() for r, t in zip(rates, truths, strict=True)) / sum((r**2).sum() for r in rates)
    assert saved["unit"] * 97 == pytest.approx(gain, rel=1e-5)
    blurry = np.clip(spikes[150 - 48 : 150 + 49].mean(0) * saved["unit"] * 97 * 255, 0, 255).round()
    assert found["PSNR_blur"] == pytest.approx(psnr(blurry, truth), abs=0.05) and found["PSNR_TFI"] > 15
    strip = Image.open(folder / f"strips/{NAME}.png")
    assert strip.size == (4 * 2 * 96, 2 * 64 + 14)


@pytest.mark.slow
def test_killed_within_an_epoch_a_run_with_random_depth_goes_on_exactly(snnexp, start, tmp_path):
    settings = [*CLIPS, "model.drop_path=0.3", "model.encoder=lif", "model.checkpoint_attn=true", "tracker=[lif,timing]", "workers=1"]
    settings += ["save_minutes=0.00001", "tracker.timing.depth=5"]
    snnexp("train", *settings, "exp_name=whole", cwd=tmp_path)
    process = start("train", *settings, "exp_name=killed", cwd=tmp_path)
    whole, killed = tmp_path / "outputs/whole", tmp_path / "outputs/killed"
    kill_in_mid_epoch(process, killed, epoch=1)
    snnexp("resume", killed, cwd=tmp_path)
    assert_same_run(whole, killed)
    statistics = json.loads((whole / "lif_activation_stats.json").read_text())
    assert statistics == json.loads((killed / "lif_activation_stats.json").read_text())
    timing = json.loads((whole / "logs/timing.json").read_text())
    assert timing["steps"] + timing["warmup_steps"] == 3 * 4
    names = [row["name"] for row in timing["rows"]]
    assert {"step", "data", "forward/spikes", "forward/stage1", "backward", "backward/recompute", "other"} <= set(names)


@pytest.mark.slow
def test_two_processes_train_on_video(snnexp, tmp_path):
    snnexp("train", *CLIPS, "epochs=1", "devices=2", "batch_size=4", "exp_name=run", cwd=tmp_path)
    result = json.loads((tmp_path / "outputs/run/result.json").read_text())
    assert result["test"]["PSNR"] > 5


NEW = ("encoder_relu", "drop_path_restarts", "linear_init")
"""Arguments of VRT that runs made earlier do not have."""


def age(run: Path) -> None:
    """Make a run look as if it had been made before there were `prefetch` and NEW."""

    def aged(settings):
        for key in NEW:
            settings["model"].pop(key, None)  # two checkpoints may be one file
        settings.pop("prefetch", None)
        return settings

    (run / "config.json").write_text(json.dumps(aged(json.loads((run / "config.json").read_text()))))
    OmegaConf.save(aged(OmegaConf.load(run / ".hydra/config.yaml")), run / ".hydra/config.yaml")
    for path in (run / "checkpoints").iterdir():
        saved = load(path)
        aged(saved["args"])
        torch.save(saved, path)


def test_a_run_from_before_the_published_form_keeps_its_own(snnexp, tmp_path):
    old = ["model.encoder_relu=false", "model.drop_path_restarts=false", "model.linear_init=small", "model.drop_path=0.5"]
    snnexp("train", *CLIPS, *old, "epochs=2", "save_freq=1", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    whole, result = load(run / "checkpoints/checkpoint_final.pth"), json.loads((run / "result.json").read_text())
    age(run)
    snnexp("evaluate", run, cwd=tmp_path)
    [judged] = (run / "evaluations").glob("*/test.json")
    assert json.loads(judged.read_text())["metrics"]["PSNR"] == pytest.approx(result["test"]["PSNR"], abs=1e-9)
    snnexp("resume", run / "checkpoints/checkpoint_epoch1.pth", cwd=tmp_path)
    again = load(run / "checkpoints/checkpoint_final.pth")
    assert_same(again["state_dict"], whole["state_dict"])
    assert [again["args"]["model"][key] for key in NEW] == [False, False, "small"] and again["args"]["prefetch"] == 2
    assert "not the one it would have been" not in (run / "logs/train.log").read_text()


GOPRO = {
    "_target_": "snnexp.data.video.gopro.GoPro", "root": None, "seed": 0, "gamma": True, "frames": 3, "stride": None,
    "spike_source": "simulated", "spike_size": None, "theta": 1.0, "sub_frames": 8, "sensor_seed": 0, "spikes": "voxel", "window": 9,
    "bins": 3, "crop": 16, "crops": 2, "flip": True, "reverse": True, "tfp_window": 9, "val_fraction": 0.1,
}  # fmt: skip
"""The node of such a run when GoPro was a class."""


def test_a_run_on_what_was_a_class_goes_on_and_is_judged(snnexp, tmp_path):
    for seed, name in enumerate(("train/a", "train/b", "train/c", "test/d")):
        clip = tmp_path / "data/gopro/GOPRO_Large" / name
        put_clip(clip / "blur_gamma", clip / "sharp", 4, size=(32, 32), seed=seed)
    own = [word for word in CLIPS if not word.startswith(("dataset.clips", "dataset.size"))]
    chosen = ["dataset=gopro", "data_dir=data", "batch_size=2", *(f"dataset.{key}={GOPRO[key]}" for key in ("frames", "bins", "crops"))]
    snnexp("train", *own, *chosen, "dataset.gamma=true", "epochs=2", "save_freq=1", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    whole, result = load(run / "checkpoints/checkpoint_final.pth"), json.loads((run / "result.json").read_text())
    assert result["protocol"].startswith("GoPro, blur_gamma: 2 train clips (8 frames)")
    settings = json.loads((run / "config.json").read_text())
    earlier = {"dataset": GOPRO | {"root": settings["dataset"]["root"]}}
    (run / "config.json").write_text(json.dumps(settings | earlier))
    unresolved = OmegaConf.to_container(OmegaConf.load(run / ".hydra/config.yaml"), resolve=False)
    OmegaConf.save(unresolved | {"dataset": GOPRO | {"root": "${data_dir}/gopro", "seed": "${seed}"}}, run / ".hydra/config.yaml")
    for path in {path.resolve() for path in (run / "checkpoints").iterdir()}:
        saved = load(path)
        torch.save(saved | {"args": saved["args"] | earlier}, path)
    snnexp("evaluate", run, cwd=tmp_path)
    [judged] = (run / "evaluations").glob("*/test.json")
    report = json.loads(judged.read_text())
    assert report["samples_of_the_run"] and report["changes"] == [] and report["metrics"]["PSNR"] == result["test"]["PSNR"]
    snnexp("resume", run / "checkpoints/checkpoint_epoch1.pth", cwd=tmp_path)
    assert_same(load(run / "checkpoints/checkpoint_final.pth")["state_dict"], whole["state_dict"])
    assert "not the one it would have been" not in (run / "logs/train.log").read_text()


def test_a_model_file_that_leaves_the_form_out_gets_the_published_one(snnexp, tmp_path):
    without = [f"~model.{key}" for key in NEW]
    snnexp("train", *CLIPS, *without, "start=false", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    for settings in (json.loads((run / "config.json").read_text()), OmegaConf.load(run / ".hydra/config.yaml")):
        assert [settings["model"][key] for key in NEW] == [True, True, "torch"]


def test_a_video_model_is_not_pruned(snnexp, tmp_path):
    output = snnexp("train", *CLIPS, "pruner=spike_map", "exp_name=run", cwd=tmp_path, code=2)
    assert "snnexp: " in output and not (tmp_path / "outputs/run").exists()
