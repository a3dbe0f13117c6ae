"""`snnexp runs` as one types it: what is printed, on a terminal and in a pipe, and what a mistake is told."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from snnexp.commands import runs
from snnexp.errors import UserError


def make(path, *, state="finished", T=4, lr=1e-3, seed=0, model="vggsnn", value=90.0, error=None, protocol="3:1"):
    path.mkdir(parents=True)
    config = {
        "T": T, "lr": lr, "seed": seed, "batch_size": 32, "model": {"_target_": f"m.{model}", "T": T},
        "dataset": {"seed": seed}, "choices": {"model": model, "dataset": "digits_dvs"},
    }  # fmt: skip
    status = {"state": state, "epoch": 5, "epochs": 5, "started": f"2026-01-01T00:00:0{seed}+00:00", "error": error}
    (path / "config.json").write_text(json.dumps(config))
    (path / "status.json").write_text(json.dumps(status))
    if state == "finished":
        result = {
            "best": {"epoch": 4, "metric": "Val/Acc1", "value": value}, "test": {"Loss": 0.123456, "Acc1": value - 1},
            "protocol": protocol, "wall_time_s": 155.0, "samples_per_s": 123.45,
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(result))
    return path


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "outputs" / "lr=0.001", seed=0, value=90.0)
    make(tmp_path / "outputs" / "sweep" / "1", seed=1, value=92.0)
    make(tmp_path / "outputs" / "sweep" / "2", seed=2, lr=1e-2, state="failed", error="out of memory\nmore")
    return tmp_path / "outputs"


def printed(capsys, *argv):
    assert runs.run(list(argv)) == 0
    return capsys.readouterr().out


def test_the_table_in_a_pipe(outputs, capsys):
    # The cells of a column begin or, being figures, end where its title does; compared without the padding within.
    lines = printed(capsys).splitlines()
    assert [line.split() for line in lines[:4]] == [
        "run state best test epoch lr seed model dataset T batch_size time samples/s".split(),
        "lr=0.001 finished Val/Acc1 90.00 @4 Acc1 89.00 5/5 0.001 0 vggsnn digits_dvs 4 32 2m35s 123.5".split(),
        "sweep/1 finished Val/Acc1 92.00 @4 Acc1 91.00 5/5 0.001 1 vggsnn digits_dvs 4 32 2m35s 123.5".split(),
        "sweep/2 failed 5/5 0.01 2 vggsnn digits_dvs 4 32".split(),
    ]
    assert lines[4:] == ["sweep/2: failed: out of memory"]
    assert {line.index("vggsnn") for line in lines[1:4]} == {lines[0].index("model")}
    assert {line.index("5/5") + 3 for line in lines[1:4]} == {lines[0].index("epoch") + 5}


def test_filters_order_and_a_directory_whose_name_holds_an_equals_sign(outputs, capsys):
    text = printed(capsys, "outputs", "state=finished", "--sort", "best")
    assert [line.split()[0] for line in text.splitlines()] == ["run", "sweep/1", "lr=0.001", "2"]
    assert text.endswith("2 of 3 runs\n")
    text = printed(capsys, "--sort", "seed", "outputs/lr=0.001", "state=finished")
    assert [line.split()[0] for line in text.splitlines()] == ["run", "lr=0.001"]
    assert printed(capsys, "lr=7") == "None of the 3 runs below outputs meets lr=7.\n"


def test_json(outputs, capsys):
    (outputs / "sweep" / "1" / "result.json").write_text('{"best": null, "test": {"Loss": NaN}}')
    (outputs / "sweep" / "2" / "status.json").write_text("{")
    rows = {row["name"]: row for row in json.loads(printed(capsys, "--json"), parse_constant=pytest.fail)}
    assert rows["lr=0.001"]["best"] == {"epoch": 4, "metric": "Val/Acc1", "value": 90.0}
    assert rows["lr=0.001"]["settings"]["model"] == "vggsnn"
    assert rows["lr=0.001"]["path"] == "outputs/lr=0.001"
    assert rows["sweep/1"]["test"] == {"Loss": None}
    assert rows["sweep/2"]["state"] == "unreadable"


def test_an_unreadable_run_is_shown_with_its_reason(outputs, capsys):
    (outputs / "sweep" / "2" / "config.json").write_text("{")
    text = printed(capsys)
    assert re.search(r"^sweep/2 +unreadable", text, re.M)
    assert "sweep/2: unreadable: config.json: not JSON" in text
    assert "lr=0.001" in text


def test_over_seed(outputs, capsys):
    make(outputs / "T10", T=10, seed=1, value=97.0)
    text = printed(capsys, "--over", "seed")
    lines = text.splitlines()
    assert re.search(r"^0,1 +2 +Val/Acc1 91\.00 ± 1\.41 \(2\) +Acc1 90\.00 ± 1\.41 \(2\) ", lines[1])
    assert re.search(r"^1 +1 +Val/Acc1 97\.00 \(1\)", lines[2])
    assert "equal in everything but seed" in text
    assert "1 not finished: left out." in text
    groups = json.loads(printed(capsys, "--over", "seed", "--json"))
    assert groups[0]["best"] == {"metric": "Val/Acc1", "mean": 91.0, "std": pytest.approx(2**0.5), "n": 2}
    assert (groups[0]["settings"], groups[1]["settings"]) == ({"T": 4}, {"T": 10})
    assert groups[0]["runs"] == ["lr=0.001", "sweep/1"]


def test_over_folds_and_seeds(outputs, capsys):
    for fold in (0, 1):
        for seed in (3, 4):
            made = make(outputs / f"fold{fold}_{seed}", seed=seed, T=6, value=80.0 + 2 * fold + seed)
            config = json.loads((made / "config.json").read_text())
            config["dataset"]["cv_fold"] = fold
            (made / "config.json").write_text(json.dumps(config))
    text = printed(capsys, "T=6", "--over", "dataset.cv_fold,seed")
    assert text.splitlines()[0].startswith("runs over dataset.cv_fold,seed")
    assert re.search(r"^0,1 x 3,4 +4 +Val/Acc1 84\.50 ± 1\.29 \(4\) +Acc1 83\.50 ± 1\.29 \(4\) ", text.splitlines()[1])
    assert "equal in everything but dataset.cv_fold and seed" in text
    assert "test is Acc1; --json has Loss too." in text
    assert "combinations" not in text
    (group,) = json.loads(printed(capsys, "T=6", "--over", "dataset.cv_fold,seed", "--json"))
    assert (group["over"], group["n"], sorted(group["values"])) == ("dataset.cv_fold,seed", 4, [[0, 3], [0, 4], [1, 3], [1, 4]])
    assert group["test"]["Loss"]["mean"] == 0.123456
    text = printed(capsys, "T=6", "name=fold0_3,fold0_4,fold1_3", "--over", "dataset.cv_fold,seed")
    assert "3 of the 4 combinations are there of fold0_3 and its like." in text


def test_the_same_seed_twice_is_said(outputs, capsys):
    make(outputs / "again", seed=1)
    assert "seed=1 occurs more than once" in printed(capsys, "--over", "seed")


def test_over_without_a_finished_run(outputs, capsys):
    assert "No finished run" in printed(capsys, "state=failed", "--over", "seed")


def test_compare(outputs, capsys):
    make(outputs / "other", model="resnet19", seed=5, value=80.0, protocol="9:1")
    text = printed(capsys, "--compare", "outputs/lr=0.001", "outputs/other/")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["outputs/lr=0.001"] == ["outputs/other"]
    assert rows["model"] == ["vggsnn", "resnet19"]
    assert rows["seed"] == ["0", "5"]
    assert "model._target_" not in rows and "dataset.seed" not in rows and "lr" not in rows
    assert rows["best"] == ["Val/Acc1", "90.00", "@4", "Val/Acc1", "80.00", "@4"]
    assert rows["Test/Loss"] == ["0.1235", "0.1235"]
    assert "Not the same protocol" in text
    differ = json.loads(printed(capsys, "outputs/lr=0.001", "outputs/other", "--compare", "--json"))["differ"]
    assert differ == {"model": ["vggsnn", "resnet19"], "seed": [0, 5]}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--compare", "outputs/lr=0.001"], "two runs or more"),
        (["--compare", "outputs/sweep", "outputs/lr=0.001"], "not a run directory"),
        (["--compare", "outputs/sweep/1", "outputs/sweep/2", "--over", "seed"], "do not go with it"),
        (["nowhere"], "nowhere: no such directory"),
        (["modle=vggsnn"], "Did you mean model"),
        (["--sort", "bset"], "Did you mean best"),
        (["--over", "sed"], "Did you mean seed"),
        (["--over", "T,sed"], "Did you mean seed"),
        (["--sotr", "best"], "Did you mean --sort"),
        (["--sort"], "expected one argument"),
        (["outputs", "outputs/sweep"], "one directory, not 2"),
    ],
)
def test_mistakes(outputs, argv, words):
    with pytest.raises(UserError, match=re.escape(words)):
        runs.run(argv)


def test_no_runs_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no directory outputs/ in (.|\n)*snnexp train"):
        runs.run([])
    (tmp_path / "outputs").mkdir()
    text = printed(capsys)
    assert str(tmp_path / "outputs") in text and "snnexp train" in text
    assert printed(capsys, "--json") == "[]\n"


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        runs.run(["--help"])
    assert stop.value.code == 0
    assert "snnexp runs model=vggsnn --over seed" in capsys.readouterr().out


@pytest.mark.parametrize("width", [200, 70])
def test_a_terminal_gets_what_fits(outputs, width):
    # On its own pseudo-terminal, because the table asks the terminal for its width.
    program = f"import sys; from snnexp.commands.runs import run; sys.exit(run([{str(outputs)!r}]))"
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "TERM": "xterm"}
    done = subprocess.Popen([sys.executable, "-c", program], stdout=follower, env=environment)
    os.close(follower)
    text = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
        if not block:
            break
        text += block
    assert done.wait() == 0
    os.close(leader)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    assert all(len(line) <= width for line in lines)
    assert any(line.startswith("sweep/1") and "Acc1 91.00" in line for line in lines)
    assert any("too narrow for:" in line for line in lines) == (width == 70)


def test_the_whole_command_is_quick(outputs, capsys):
    for number in range(1000):
        make(outputs / "many" / str(number), seed=0, lr=number)
    start = time.perf_counter()
    text = printed(capsys)
    assert time.perf_counter() - start < 1.5
    assert len(text.splitlines()) > 1000
