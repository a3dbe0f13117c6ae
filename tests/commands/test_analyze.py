"""`snnexp analyze` as one types it: what is drawn, what is printed, and what a mistake is told."""

import os
import re
import subprocess
import sys

import pytest

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
        (["sweep"], "It holds the runs a: name one of them."),
        (["sweep/a", "epochs=3"], "epochs=3: no such run directory"),
        (["notes.txt"], "neither a run directory nor a checkpoint"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, said, argv, words):
    monkeypatch.chdir(tmp_path)
    run = make(tmp_path / "sweep/a")
    (tmp_path / "notes.txt").touch()
    assert words in said(*argv, code=2)
    assert not (run / "plots").exists()


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
    assert all(name in text for name in PLOTS) and "tracker=lif" in text
    assert cli.run(["--help"]) == 0
    assert re.search(r"^  snnexp analyze +\S", capsys.readouterr().out, re.M)


def test_neither_torch_nor_hydra_nor_a_window_system_is_loaded(tmp_path):
    run = make(tmp_path / "a")
    add_units(run)
    program = (
        f"import sys; from snnexp.commands import analyze; assert not {{'numpy', 'matplotlib'}} & set(sys.modules)\n"
        f"analyze.run([{str(run)!r}])\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'matplotlib.pyplot', 'tkinter'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"DISPLAY": ""}, stdout=subprocess.DEVNULL)


def test_it_raises_what_the_command_line_turns_into_words():
    from snnexp.commands import analyze

    with pytest.raises(UserError):
        analyze.run(["nowhere"])
