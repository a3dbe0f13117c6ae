"""`snnexp analyze` as one types it: what is drawn, what is printed, and what a mistake is told."""

import errno
import os
import re
import subprocess
import sys

import pytest

from analysis import event_files
from analysis.posterior import vae_files
from analysis.pruning.pruning_files import change, pruned, swept
from analysis.run_files import VGG, activity, add_units, make
from snnexp import cli
from snnexp.errors import UserError

PLOTS = {"curves.png", "spikes.png", "spikes_heatmap.png", "units.png", "report.txt"}


@pytest.fixture
def said(capsys):
    """Run `snnexp analyze ARGS` in this process; what it said."""

    def said(*argv, code=0):
        assert cli.run(["analyze", *map(str, argv)]) == code
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output.err if code else output.out

    return said


def test_a_whole_run(tmp_path, said):
    run = make(tmp_path / "run", layers=VGG, T=10, task="classification", activity=activity(VGG))
    add_units(run, VGG, 10)
    text = said(run)
    assert {path.name for path in (run / "plots").iterdir()} == PLOTS
    assert (run / "plots/report.txt").read_text() == text
    assert "best      Val/Acc1" in text and "features.10.lif" in text and "Energy per sample" in text
    assert all(f"  {name}\n" in text for name in PLOTS)
    assert said(run) == text  # again, over the old ones


def test_several_runs_and_a_checkpoint(tmp_path, said):
    a, b = make(tmp_path / "a"), make(tmp_path / "b,x=1", spikes=False, state="running")
    (b / "checkpoints").mkdir()
    (b / "checkpoints/checkpoint_latest.pth").touch()
    text = said(a, b / "checkpoints/checkpoint_latest.pth", a)
    assert [line for line in text.splitlines() if line.startswith("run ")] == [f"run       {a}", f"run       {b}"]
    assert {path.name for path in (a / "plots").iterdir()} == {"curves.png", "spikes.png", "spikes_heatmap.png", "report.txt"}
    assert {path.name for path in (b / "plots").iterdir()} == {"curves.png", "report.txt"}


def test_a_run_that_has_only_begun(tmp_path, said):
    run = make(tmp_path / "a", epochs=0, state="running")
    assert "neither a metrics log nor a record of spikes" in said(run)
    (run / "logs/metrics.jsonl").unlink()
    (run / "status.json").unlink()
    assert "problem   status.json" in said(run)


@pytest.mark.parametrize(
    "file", ["config.json", "status.json", "result.json", "logs/metrics.jsonl", "lif_activation_stats.json", "test_spikes.npz"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"a": [1, {"b": null}]}', b"[[[]]]"])
def test_a_damaged_file_is_no_disaster(tmp_path, said, file, content):
    run = make(tmp_path / "a", activity=activity())
    add_units(run)
    (run / file).write_bytes(content)
    text = said(run)
    assert "Findings" in text
    if file in ("lif_activation_stats.json", "test_spikes.npz") and b"{" not in content:
        assert f"Left out\n  {file}" in text


def test_a_log_that_is_a_directory(tmp_path, said):
    run = make(tmp_path / "a")
    (run / "logs/metrics.jsonl").unlink()
    (run / "logs/metrics.jsonl").mkdir()
    assert "metrics.jsonl cannot be read: not a regular file" in said(run)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "analyze which run?"),
        (["nowhere"], "nowhere: no such run directory"),
        (["--hepl"], "no option --hepl. Did you mean '--help'?"),
        (["empty"], "empty is not a run directory: it has no config.json."),
        (["sweep", "nowhere"], "nowhere: no such run directory"),
        (["sweep/a", "epochs=3"], "epochs=3: no such run directory"),
        (["notes.txt"], "neither a run directory nor a checkpoint"),
        (
            ["sweep/a", "max_batch=3"],
            "analyze has no such setting. It has save_dir, checkpoint, split, max_batches. Did you mean 'max_batches'?",
        ),
        (["sweep/a", "max_batches=0"], "max_batches=0: must be a whole number of at least 1."),
        (["sweep/a", "split=tset"], "split=tset: allowed are train, val, test, all. Did you mean 'test'?"),
        (["sweep/a", "save_dir="], "save_dir= wants a value"),
        (["sweep", "save_dir=x"], "save_dir= goes with one run, and a sweep is named here"),
        (["sweep/a", "checkpoint=best"], "is no variational run (its log has no KL)"),
        (["--tensorboard"], "--tensorboard wants a directory"),
        (["--tensorboard", "nowhere"], "--tensorboard nowhere: no such directory"),
        (["--tensorboard=empty"], "there is no event file (events.out.tfevents...)"),
        (["--tensorboard", "empty", "sweep/a"], "sweep/a has no place here"),
        (["--tensorbord", "empty"], "no option --tensorbord. Did you mean '--tensorboard'?"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, said, argv, words):
    monkeypatch.chdir(tmp_path)
    run = make(tmp_path / "sweep/a")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert words in said(*argv, code=2)
    assert not (run / "plots").exists()


PRUNING = {"pruning.png", "pruning_layers.png", "spike_maps.png"}


def test_a_pruned_run(tmp_path, said):
    run = pruned(tmp_path / "run", ratio=0.5)
    text = said(run)
    assert {path.name for path in (run / "plots").iterdir()} == PRUNING | PLOTS - {"units.png"}
    assert all(f"  {name}\n" in text for name in PRUNING)
    assert "Pruning (criterion spike_map)\n  source    /runs/dense/checkpoints/checkpoint_best.pth\n" in text
    assert "removed   14 of 28 channels (−50.0 %), 2 of 4 heads (−50.0 %), parameters −50.0 %" in text and "Left out" not in text


def test_a_pruned_run_that_is_not_done(tmp_path, said):
    run = pruned(tmp_path / "run", state="running", with_maps=False)
    text = said(run)
    assert "missing   the stage final (not yet there, or not written)" in text
    assert "Left out\n  spike_maps.npz: there is none" in text and (run / "plots/pruning.png").exists()
    (run / "pruning.json").unlink()
    change(run, "config.json", choices={"pruner": "spike_map"})
    assert "Pruning (pruner=spike_map): nothing was pruned here, or not yet" in said(run)
    change(run, "config.json", choices={"pruner": "none"})
    assert "Pruning" not in said(run)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"steps": 3}', b'{"steps": [{"epoch": 1, "layers": {"a": 7}}]}', b'{"stages": [1], "a": {}}']
)
def test_a_damaged_record_of_pruning(tmp_path, said, content):
    run = pruned(tmp_path / "run")
    (run / "pruning.json").write_bytes(content)
    text = said(run)
    assert "Left out\n  pruning.json" in text and not (run / "plots/pruning.png").exists()


def test_damaged_maps(tmp_path, said):
    run = pruned(tmp_path / "run")
    (run / "spike_maps.npz").write_bytes(b"PK half")
    assert "Left out\n  spike_maps.npz is damaged" in said(run)
    assert (run / "plots/pruning.png").exists() and not (run / "plots/spike_maps.png").exists()


def test_a_sweep(tmp_path, said):
    for ratio in (0.1, 0.5):
        for seed in (0, 1):
            swept(tmp_path / "sweep", ratio, seed, accuracy=90.0 + seed)
    pruned(tmp_path / "sweep/below/10_unfinished", state="interrupted", with_maps=False)
    (tmp_path / "sweep/9_damaged").mkdir()
    for name in ("config.json", "status.json"):
        (tmp_path / "sweep/9_damaged" / name).write_text("{")
    text = said(tmp_path / "sweep")
    plots = tmp_path / "sweep/plots"
    assert {path.name for path in plots.iterdir()} == {"pruning_sweep.png", "report.txt"}
    assert text.endswith("\n" + (plots / "report.txt").read_text())
    assert all((run.parent / "plots/report.txt").exists() for run in (tmp_path / "sweep").rglob("config.json"))
    lines = text.splitlines()
    assert [line.partition("_")[0] for line in lines[:6]] == ["0", "1", "2", "3", "9", "below/10"]
    assert f"Pruning sweep {tmp_path / 'sweep'}: 4 runs, test Acc1" in lines
    row = next(line.split("  ") for line in lines if line.startswith("  spike_map") and " 0.5 " in line)
    assert [cell.strip() for cell in row if cell][1:8] == ["0.5", "2", "500,000", "50.0 %", "150 M", "200 µJ", "45.25 ± 0.35"]
    assert "89.50 ± 0.71" in " ".join(row) and "−1.00 ± 0.00" in " ".join(row)
    assert lines[lines.index("Left out") + 1].startswith("  9_damaged: unreadable, ") and "  below/10_unfinished: interrupted" in lines
    assert said(tmp_path / "sweep") == text  # again: its own plots are no run


def test_a_sweep_without_pruning(tmp_path, said):
    for name in "ab":
        make(tmp_path / "sweep" / name, spikes=False)
    text = said(tmp_path / "sweep")
    assert f"There is no pruning to compare at or below {tmp_path / 'sweep'}: none of its 2 runs has a pruning.json." in text
    assert f"`snnexp runs {tmp_path / 'sweep'}` shows how they compare." in text
    assert (tmp_path / "sweep/a/plots/curves.png").exists() and not (tmp_path / "sweep/plots").exists()


def test_a_directory_that_cannot_be_read_is_no_run_of_a_sweep(tmp_path, said, monkeypatch):
    make(tmp_path / "sweep/a", spikes=False)
    (tmp_path / "sweep/closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "none of its 1 runs has a pruning.json" in said(tmp_path / "sweep")
    assert not (tmp_path / "sweep/closed/plots").exists()
    assert "closed is not a run directory" in said(tmp_path / "sweep/closed", code=2)


def test_a_sweep_of_which_nothing_is_done(tmp_path, said):
    pruned(tmp_path / "sweep/a", state="running", with_maps=False)
    text = said(tmp_path / "sweep", tmp_path / "sweep/a")
    assert "There is no finished run with pruning to compare" in text and "Left out\n  a: " in text
    assert text.count("\nrun       ") == 1 and not (tmp_path / "sweep/plots").exists()


def test_where_nothing_can_be_written(tmp_path, said, monkeypatch):
    run = make(tmp_path / "a")
    (run / "plots").write_text("a file in the way")
    assert "cannot make" in said(run, code=1)
    (run / "plots").unlink()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    message = said(run, code=1)
    assert re.search(r"cannot write .*curves.png: No space left on device", message)
    assert not list((run / "plots").iterdir())


def test_help_says_what_is_drawn_from_what(said, capsys):
    text = said("--help")
    assert all(name in text for name in (*PLOTS, *PRUNING, "pruning_sweep.png")) and "tracker=lif" in text
    assert cli.run(["--help"]) == 0
    assert re.search(r"^  snnexp analyze +\S", capsys.readouterr().out, re.M)


def test_neither_torch_nor_hydra_nor_a_window_system_is_loaded(tmp_path):
    run = pruned(tmp_path / "sweep/a")
    add_units(run)
    program = (
        f"import sys; from snnexp.commands import analyze; assert not {{'numpy', 'matplotlib'}} & set(sys.modules)\n"
        f"analyze.run([{str(run)!r}, {str(run.parent)!r}])\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'matplotlib.pyplot', 'tkinter'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"DISPLAY": ""}, stdout=subprocess.DEVNULL)


def test_it_raises_what_the_command_line_turns_into_words():
    from snnexp.commands import analyze

    with pytest.raises(UserError):
        analyze.run(["nowhere"])


VARIATIONAL = {
    "curves.png", "loss_curves.png", "performance_metrics.png", "training_dynamics.png", "posterior_collapse_analysis.png",
    "latent_space_pca.png", "reconstruction_errors.png", "latent_correlation.png", "collapse_analysis.txt", "report.txt",
}  # fmt: skip
OF_LATENTS = {"latent_space_pca.png", "reconstruction_errors.png", "latent_correlation.png"}


@pytest.fixture
def without_umap(monkeypatch):
    monkeypatch.setattr("snnexp.analysis.posterior.latent_plots.umap_is_installed", lambda: False)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_variational_run(tmp_path, said, without_umap):
    run = vae_files.make(tmp_path / "run")
    vae_files.latents(run / "test_latents.npz")
    vae_files.history(run)
    text = said(run)
    assert names(run / "plots") == VARIATIONAL and all(f"  {name}\n" in text for name in VARIATIONAL)
    assert "Posterior\n  verdict   partly collapsed (300 sets of test_latents.npz)\n  units     10 of 16 active (62.5 %); KL " in text
    assert "No record of spikes" not in text and "Left out" not in text
    said_of_it = (run / "plots/collapse_analysis.txt").read_text()
    assert "Measured on 300 sets of test_latents.npz" in said_of_it and "5 updates" in said_of_it and "Val/KL: " in said_of_it


def test_a_variational_run_of_which_little_is_there(tmp_path, said):
    run = vae_files.make(tmp_path / "run", state="running", rows=[{"epoch": 1, "step": 3, "Train/KL": 1.0, "Val/KL": None}])
    (run / "test_latents.npz").write_bytes(b"PK half")
    (run / "posterior_metrics").mkdir()
    (run / "posterior_metrics/metrics.jsonl").write_text("[3]\n")
    text = said(run)
    assert names(run / "plots") == {"curves.png", "loss_curves.png", "collapse_analysis.txt", "report.txt"}
    assert "verdict   not known" in text and "\n  test_latents.npz is damaged" in text and "holds no update" in text
    vae_files.history(tmp_path / "other")
    (tmp_path / "other/posterior_metrics/metrics.jsonl").replace(run / "posterior_metrics/metrics.jsonl")
    (run / "test_latents.npz").unlink()
    assert "verdict   partly collapsed (the fixed held-out subset at step 1,000)" in said(run)
    assert "posterior_collapse_analysis.png" in names(run / "plots")


def test_latents_are_made_anew_of_a_checkpoint(tmp_path, said, without_umap, monkeypatch):
    from snnexp.commands import evaluate

    run, asked = vae_files.make(tmp_path / "run"), []
    vae_files.latents(run / "test_latents.npz", dims=4)

    def latents(run, checkpoint, split, max_batches):
        asked.append((run.root.name, checkpoint, split, max_batches))
        vae_files.latents(run.root / "evaluations" / "20260101_000000" / f"{split}_latents.npz", sets=60)
        return run.root / "evaluations" / "20260101_000000" / f"{split}_latents.npz"

    monkeypatch.setattr(evaluate, "latents", latents, raising=False)
    text = said(run, "checkpoint=latest", "max_batches=3", "split=val", f"save_dir={tmp_path / 'far/away'}")
    assert asked == [("run", "latest", "val", 3)] and "verdict   partly collapsed (60 sets of evaluations/20260101_000000/val_la" in text
    assert OF_LATENTS < names(tmp_path / "far/away") and not (run / "plots").exists() and f"Written to {tmp_path / 'far/away'}\n" in text
    said(run, "max_batches=2")
    assert asked[1] == ("run", "best", "test", 2) and OF_LATENTS < names(run / "plots")


def test_event_files_of_another_program(tmp_path, said):
    logs = event_files.write(tmp_path / "logs", event_files.lightning())
    text = said("--tensorboard", logs)
    assert f"{logs}: 18 tags read (epoch, train_beta, train_kl_step, " in text and "not known, left out: lr-AdamW" in text
    assert names(logs / "analysis") == {"loss_curves.png", "performance_metrics.png", "training_dynamics.png", "collapse_analysis.txt"}
    told = (logs / "analysis/collapse_analysis.txt").read_text()
    assert "It rests at 25.6" in told and "A floored KL (free bits on the sum) never falls under its floor" in " ".join(told.split())
    assert said("--tensorboard", logs) == text  # again: what it wrote is no event file


def test_several_directories_of_events(tmp_path, said):
    for version in (2, 10):
        event_files.write(tmp_path / f"logs/version_{version}", {"train_loss": [(1, 2.0), (2, 1.0)]})
    event_files.write(tmp_path / "logs/hp", {"hp_metric": [(1, 2.0)]})
    text = said("--tensorboard", tmp_path / "logs", f"save_dir={tmp_path / 'out'}")
    assert names(tmp_path / "out") == {"version_2", "version_10"} and names(tmp_path / "out/version_10") == {
        "loss_curves.png",
        "collapse_analysis.txt",
    }
    assert "3 directories at or below" in text and f"{tmp_path / 'logs/hp'}: no tag that is known (hp_metric); left out." in text


def test_event_files_that_tell_nothing(tmp_path, said):
    event_files.write(tmp_path / "logs", {"hp_metric": [(1, 2.0)]})
    text = said("--tensorboard", tmp_path / "logs", code=2)
    assert "no tag that is known. Their scalars are: hp_metric." in text and not (tmp_path / "logs/analysis").exists()


def test_neither_torch_nor_hydra_for_a_variational_run_or_event_files(tmp_path):
    run = vae_files.make(tmp_path / "run")
    vae_files.latents(run / "test_latents.npz", stays=10)  # too few for UMAP
    event_files.write(tmp_path / "logs", {"val_kl": [(1, 2.0)]})
    program = (
        f"import sys; from snnexp.commands import analyze; analyze.run([{str(run)!r}])\n"
        f"analyze.run(['--tensorboard', {str(tmp_path / 'logs')!r}])\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'matplotlib.pyplot', 'tkinter'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"DISPLAY": ""}, stdout=subprocess.DEVNULL)
