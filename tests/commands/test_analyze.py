"""`snnexp analyze` as one types it: what is drawn, what is printed, and what a mistake is told."""

import os
import re
import subprocess
import sys

import pytest

from analysis.pruning_files import change, pruned, swept
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
    assert "metrics.jsonl cannot be read: Is a directory" in said(run)


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
    (tmp_path / "sweep/9_damaged/config.json").write_text("{")
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
