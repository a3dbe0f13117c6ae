"""The commands as their user types them: what is left on disk, what is said, and the exit code."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import TINY, last_path, load, wait_for
from data.video import layouts
from snnexp import parts
from snnexp.commands import train
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.distributed import Ranks
from snnexp.engine.evaluation import evaluate

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ a whole training


def test_the_directory_of_a_run(trained):
    run, output = trained
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "events.out" not in path.name} - {".lock"}
    checkpoints = {f"checkpoints/checkpoint_{name}.pth" for name in ("latest", "best", "final", "epoch1", "epoch2")}
    logs = {"logs/metrics.jsonl", "logs/progress.jsonl", "logs/train.log"}
    tests = {"test_y_pred.npy", "test_y_true.npy", "test_metrics.npy", "test_spikes.npz"}
    hydra = {".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"}
    about = {"config.json", "provenance.json", "arithmetic.json", "diff.patch", "status.json", "result.json"}
    assert files == about | checkpoints | logs | tests | hydra

    config = json.loads((run / "config.json").read_text())
    assert (config["T"], config["model"]["T"], config["choices"]["model"], config["choices"]["dataset"]) == (2, 2, "vggsnn", "cifar10_dvs")
    unresolved = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    assert unresolved["model"]["T"] == "${T}"
    assert "epochs=2" in yaml.safe_load((run / ".hydra/overrides.yaml").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["seed"] == 0 and "epochs=2" in provenance["command"] and provenance["git"]["dirty"]
    assert "+two" in (run / "diff.patch").read_text()
    status = json.loads((run / "status.json").read_text())
    assert {"pid", "host", "started", "updated"} <= status.keys()
    assert (status["state"], status["epoch"], status["epochs"], status["exit_code"], status["error"]) == ("finished", 2, 2, 0, None)

    assert output.strip().splitlines()[-1] == "'outputs/odd, T=2 lr=1'"  # whole, last, and as a shell reads it
    assert "80 train / 10 val / 10 test" in output


def test_results_and_logs_say_the_same(trained):
    run, output = trained
    result = json.loads((run / "result.json").read_text())
    assert result["best"]["metric"] == "Val/Acc1" and result["best"]["epoch"] in (1, 2)
    assert {"Loss", "Acc1", "Acc5"} == result["test"].keys()
    assert result["parameters"] == sum(v.numel() for n, v in load(run / "checkpoints/checkpoint_final.pth")["state_dict"].items()
                                       if not n.endswith(("running_mean", "running_var", "num_batches_tracked")))  # fmt: skip
    assert "cifar10_dvs" in result["protocol"] and result["split"] == "test" and result["seed"] == 0
    assert result["samples_per_s"] > 0 and result["wall_time_s"] > 0 and result["precision"] == "fp32"

    predicted, true = (np.load(run / f"test_y_{name}.npy", allow_pickle=False) for name in ("pred", "true"))
    metrics = np.load(run / "test_metrics.npy", allow_pickle=False)
    assert predicted.shape == true.shape == (10,) and predicted.dtype == np.int64
    assert float(metrics["Acc1"]) == result["test"]["Acc1"] == pytest.approx(100 * (predicted == true).mean())
    lines = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    expected = {"epoch", "step", "LR", *(f"{split}/{name}" for split in ("Train", "Val") for name in ("Loss", "Acc1", "Acc5"))}
    assert [line["epoch"] for line in lines] == [1, 2] and all(line.keys() == expected for line in lines)
    assert lines[result["best"]["epoch"] - 1]["Val/Acc1"] == result["best"]["value"]
    progress = [json.loads(line) for line in (run / "logs/progress.jsonl").read_text().splitlines()]
    known = {"time", "epoch", "step", "done", "loss", "samples_per_s", "eta_s", "memory_mib"}
    assert all(known == line.keys() for line in progress)
    assert f"{result['test']['Acc1']:.4g}" in output and "epoch 2/2" in (run / "logs/train.log").read_text()


def test_tensorboard_draws_the_curves_and_the_hparams(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = trained
    accumulator = EventAccumulator(str(run / "logs"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    curves = {"LR", *(f"{split}/{name}" for split in ("Train", "Val") for name in ("Loss", "Acc1", "Acc5"))}
    assert curves <= set(tags) and {"Test/Acc1", "Best/Val/Acc1"} <= set(tags)
    lines = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in accumulator.Scalars("Train/Loss")] == [
        (line["epoch"], line["Train/Loss"]) for line in lines
    ]
    plugins = {plugin for tag in accumulator.summary_metadata.values() for plugin in [tag.plugin_data.plugin_name]}
    assert "hparams" in plugins


def test_evaluate_chooses_checkpoint_and_split(trained, said, events):
    run, _ = trained
    result = json.loads((run / "result.json").read_text())
    output = said("evaluate", run)
    where = last_path(output)
    report = json.loads((where / "test.json").read_text())
    assert where.parent == run / "evaluations" and report["metrics"] == result["test"] and report["samples"] == 10
    assert report["checkpoint"] == "checkpoint_best.pth" and report["protocol"] == result["protocol"] and report["seed"] == 0
    assert np.array_equal(np.load(where / "test_y_pred.npy"), np.load(run / "test_y_pred.npy"))

    last = json.loads((run / "logs/metrics.jsonl").read_text().splitlines()[-1])
    for words in (("checkpoint=latest",), ("checkpoint=epoch2",), (f"checkpoint='{run}/checkpoints/checkpoint_final.pth'",)):
        output = said("evaluate", run, *words, "split=val")
        report = json.loads((last_path(output) / "val.json").read_text())
        assert report["metrics"]["Loss"] == pytest.approx(last["Val/Loss"]) and report["epoch"] == 2
    output = said("evaluate", "split=all", run / "checkpoints/checkpoint_epoch1.pth")  # in any order; a checkpoint names its run
    report = json.loads((last_path(output) / "all.json").read_text())
    assert report["samples"] == 100 and report["epoch"] == 1
    assert len(list((run / "evaluations").iterdir())) == 5
    assert (run / "result.json").read_text() == json.dumps(result, indent=2) + "\n"

    assert "split=tset: not one of train, val, test, all. Did you mean 'test'" in said("evaluate", run, "split=tset", code=2)
    message = said("evaluate", run, "checkpoint=epoch7", code=2)
    assert "checkpoint_epoch7.pth" in message and "checkpoint_epoch1.pth" in message  # which there are
    for word in ("model=resnet19", "dataset=nmnist", "logger=none", "scheduler=none"):
        assert "a run is judged as it was made" in said("evaluate", run, word, code=2)


def test_other_data_of_the_same_kind_are_judged_by_the_runs_own_statistics(trained, said, tmp_path):
    run, _ = trained
    layouts.cifar10_dvs(tmp_path / "elsewhere/cifar10_dvs", per_class=10, number=1200)  # four times as many events: another scale
    output = said("evaluate", run, "data_dir=elsewhere", "checkpoint=latest")
    report = json.loads((last_path(output) / "test.json").read_text())
    assert report["data"].endswith("elsewhere/cifar10_dvs")

    saved = load(run / "checkpoints/checkpoint_latest.pth")
    settings = json.loads((run / "config.json").read_text())
    settings["dataset"]["root"] = str(tmp_path / "elsewhere/cifar10_dvs")
    losses = {}
    for statistics in ("the run's", "their own"):
        data = parts.make_data(settings)
        assert not torch.allclose(data.std, saved["data"]["std"], rtol=0.5)
        if statistics == "the run's":
            data.load_state_dict(saved["data"])
        task = parts.make_task(settings)
        model = parts.make_model(settings, data, task)
        model.load_state_dict(saved["state_dict"])
        judged = evaluate(model, task, data, "test", batch_size=16, ranks=Ranks(0, 1, CPU), precision=resolve("fp32", CPU))
        losses[statistics] = judged.metrics["Loss"]
    assert report["metrics"]["Loss"] == pytest.approx(losses["the run's"]) != pytest.approx(losses["their own"])


def test_weights_go_over_to_another_number_of_classes(trained, said, tmp_path):
    run, _ = trained
    for label, name in enumerate(("left", "middle", "right")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(10):
            data = layouts.aedat2(layouts.some_events(200, (128, 128), 100 * label + i))
            (tmp_path / "mine" / name / f"{i}.aedat").write_bytes(data)
    mine = [*TINY, "dataset=event_folder", "dataset.root=mine", "dataset.size=16", "epochs=1", "lr=1e-30", "scheduler=none"]
    output = said("train", *mine, f"init_from='{run}'", "exp_name=mine")
    assert "left as initialised: classifier.1.weight, classifier.1.bias" in output
    theirs = load(run / "checkpoints/checkpoint_best.pth")["state_dict"]
    ours = load(tmp_path / "outputs/mine/checkpoints/checkpoint_final.pth")["state_dict"]
    convolutions = [name for name, value in theirs.items() if value.ndim == 4]
    assert len(convolutions) == 8 and all(torch.equal(ours[name], theirs[name]) for name in convolutions)
    assert ours["classifier.1.weight"].shape[0] == 3

    torch.save({"another": torch.ones(2)}, tmp_path / "foreign.pth")
    assert "no weight there has a name and shape of this model" in said("train", *mine, "init_from=foreign.pth", code=2)
    assert "no checkpoint" in said("train", *mine, "init_from=nowhere", code=2)


def test_paths_that_hold_a_setting_are_taken_as_they_are(trained, said, tmp_path):
    run, _ = trained
    weights = tmp_path / "epoch=2, T=2.pth"
    shutil.copy(run / "checkpoints/checkpoint_best.pth", weights)
    output = said("train", *TINY, "dataset.size=48", "limit_train=16", "epochs=1", f"init_from={weights}", "exp_name=a")
    assert "numbers of the file" in output
    assert f"{weights} is a file that lies in no run" in said("resume", weights, code=2)


def test_a_checkpoint_of_another_network_is_not_judged_in_its_place(trained, said, tmp_path):
    run, _ = trained
    said("train", *TINY, "epochs=1", "model.lif.tau=4", "exp_name=leaky")
    theirs = tmp_path / "outputs/leaky/checkpoints/checkpoint_best.pth"
    assert f"{theirs} is of another network than this run's (model.lif.tau 4 -> " in said("evaluate", run, f"checkpoint={theirs}", code=2)


def test_the_table_of_runs_shows_it(trained, said):
    run, _ = trained
    table = said("runs", run.parent)
    result = json.loads((run / "result.json").read_text())
    assert "finished" in table and "2/2" in table and f"{result['test']['Acc1']:.2f}" in table
    (row,) = json.loads(said("runs", run.parent, "--json"))
    assert row["state"] == "finished" and row["best"]["value"] == result["best"]["value"]


# --------------------------------------------------------------------------------------------------- names of runs


def test_a_taken_name_is_refused_and_nothing_in_it_changes(trained, said):
    run, _ = trained
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    message = said("train", *TINY, f"output_dir='{run.parent}'", "exp_name='odd, T=2 lr=1'", code=2)
    assert "exists already" in message and "snnexp resume" in message
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_two_runs_of_one_second_do_not_meet(said, tmp_path, monkeypatch):
    monkeypatch.setattr(train.time, "strftime", lambda form: "20260101_000000")
    for _ in range(3):
        said("train", *TINY, "start=false")
    stem = "vggsnn_digits_dvs_T2_lr0.001_20260101_000000"
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [stem, f"{stem}_2", f"{stem}_3"]


def test_an_output_directory_that_cannot_be_made(said, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in said("train", *TINY, "output_dir=file/runs", code=2)


# ----------------------------------------------------------------------------------------------------- command line


def test_what_the_program_says_of_itself(said):
    for words in ([], ["--help"], ["-h"]):
        text = said(*words)
        assert all(f"snnexp {command}" in text for command in ("train", "resume", "evaluate", "runs", "data"))
    assert re.fullmatch(r"snnexp \d+\.\d+\S*\n", said("--version"))
    assert "'trian' is not a command" in (message := said("trian", code=2)) and "Did you mean 'train'" in message
    assert "resume which run" in said("resume", code=2)
    assert "no such run directory" in said("evaluate", "nowhere", code=2)
    assert "[KEY=VALUE ...]" in said("resume", "--help") and "data_dir=ELSEWHERE" in said("evaluate", "--help")


def test_flags_and_settings_come_in_any_order(said, tmp_path):
    for line in ("--cfg job T=3 model=resnet19", "T=3 --cfg job model=resnet19", "T=3 model=resnet19 -c job"):
        shown = yaml.safe_load(said("train", *line.split()))
        assert shown["T"] == 3 and shown["model"]["_target_"].endswith("ResNet19")
    assert yaml.safe_load(said("train", "--cfg", "job", "--resolve", "T=3"))["model"]["T"] == 3
    text = said("train", "--help")
    for words in ("model: resnet19, ", "dataset: ", "optimizer: ", "batch_size: 32", "experiment: "):
        assert words in text, words
    assert not list(tmp_path.iterdir())  # looking leaves nothing behind


def test_the_search_for_configs_is_explained(snnexp, tmp_path):
    (tmp_path / "mine").mkdir()
    shown = snnexp("train", "--info", "searchpath", "T=3", "--config-dir", "mine", cwd=tmp_path)
    assert shown.index(str(tmp_path / "mine")) < shown.index("| main")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_saved_run_is_a_config_too(trained, said):
    run, _ = trained
    shown = yaml.safe_load(said("resume", run, "--cfg", "job", "epochs=7"))
    assert (shown["epochs"], shown["T"], shown["save_freq"]) == (7, 2, 1)
    assert yaml.safe_load(said("evaluate", "--cfg", "job", run, "split=val"))["split"] == "val"
    assert "save_freq: 1" in said("resume", run, "--help")
    assert "-m has no meaning" in said("resume", run, "-m", "lr=1,2", code=2)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_config_directory_of_the_users_comes_first(said, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    packaged = (cli_conf() / "model/vggsnn.yaml").read_text()
    (tmp_path / "mine/model/vggsnn.yaml").write_text(packaged.replace("width: 1.0", "width: 0.25"))
    (tmp_path / "mine/model/small.yaml").write_text(packaged.replace("width: 1.0", "width: 0.125"))
    (tmp_path / "mine/mine.yaml").write_text("defaults: [train, _self_]\nepochs: 77\n")
    for flag in (["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]):
        assert yaml.safe_load(said("train", *flag, "--cfg", "job"))["model"]["width"] == 0.25
    assert yaml.safe_load(said("train", "--config-dir", "mine", "model=small", "--cfg", "job"))["model"]["width"] == 0.125
    shown = yaml.safe_load(said("train", "--config-dir", "mine", "--config-name", "mine", "--cfg", "job"))
    assert shown["epochs"] == 77 and shown["model"]["width"] == 0.25
    assert yaml.safe_load(said("train", "--cfg", "job"))["model"]["width"] == 1.0  # the next command knows nothing of it
    assert "--config-dir nowhere: no such directory" in said("train", "--config-dir", "nowhere", code=2)


def cli_conf() -> Path:
    from snnexp.composing.conf import conf_dir

    return conf_dir()


@pytest.mark.parametrize(
    ("line", "query", "expected"),
    [
        ("snnexp ev", "bash", ["evaluate "]),
        ("snnexp train mod", "bash", ["model"]),
        ("snnexp train model=", "bash", ["model=vggsnn", "model=resnet19"]),
        ("snnexp train batch", "bash", ["batch_size="]),
        ("snnexp runs out", "bash", ["outputs/"]),
    ],
)
def test_shell_completion(line, query, expected, said, tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    words = said("-sc", f"query={query}").split()
    assert all(any(word.startswith(start.strip()) for word in words) for start in expected), words


def test_shell_completion_of_a_runs_own_keys(trained, said, monkeypatch):
    run, _ = trained
    monkeypatch.chdir(run.parent)
    plain = run.parent / "plain"
    if not plain.exists():
        plain.symlink_to(run)
    monkeypatch.setenv("COMP_LINE", "snnexp resume plain save_f")
    assert "save_freq=" in said("-sc", "query=bash")
    plain.unlink()


def test_another_shell_is_told_which_there_are(said):
    assert "completion is there for bash, fish, zsh" in said("-sc", "install=dash", code=2)


def test_the_completion_script_is_one_of_the_shells(said):
    assert "complete" in said("-sc", "install=bash")


def test_the_list_of_data_sets(said):
    listed = said("data")
    for name in ("digits_dvs", "cifar10_dvs", "nmnist", "image_folder"):
        assert re.search(rf"^  {name} +\S", listed, re.M), name
    shown = said("data", "dataset=digits_dvs", "dataset.size=16", "T=2")
    assert "1,797" in shown and "splits train 1259, val 269, test 269" in shown and "2 x 2 x 16 x 16" in shown


# ----------------------------------------------------------------------------------------------------- while it runs


def test_a_second_ctrl_c_stops_at_once(start, tmp_path):
    words = [word for word in TINY if not word.startswith(("limit_", "batch_size", "model.width"))]
    big = [*words, "model.width=0.5", "batch_size=2", "accumulate=1000", "exp_name=run"]  # one step of 629 batches
    process = start("train", *big, cwd=tmp_path)
    run = tmp_path / "outputs/run"
    wait_for(lambda: (run / "logs/train.log").exists() and "parameters" in (run / "logs/train.log").read_text(), process)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert time.monotonic() - began < 5  # the step would take longer
    assert not (run / "checkpoints/checkpoint_interrupted.pth").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_early_stop_monitor_and_timed_checkpoints(said, tmp_path):
    words = ["epochs=9", "early_stop=1", "monitor=Val/Loss", "lr=1e-30", "save_minutes=0.00001"]  # nothing changes: epoch 2 is no better
    said("train", *TINY, *words, "exp_name=run")
    result = json.loads((tmp_path / "outputs/run/result.json").read_text())
    assert result["epochs"] < 9 and result["best"]["metric"] == "Val/Loss"
    assert "nothing is left to do" in said("resume", "outputs/run")


def test_debug_configs(said, tmp_path):
    said("train", *TINY, "debug=one_step", "exp_name=a", "epochs=1", "limit_train=4", "limit_val=8")
    assert json.loads((tmp_path / "outputs/debug/a/status.json").read_text())["step"] == 1
    table = said("train", "debug=shapes", "model.width=0.125", "dataset.size=16", "T=2", "device=cpu", "logger=none", "exp_name=b")
    assert re.search(r"features\.0\.conf|features\.0\.conv\s+SeqToANNContainer\s+2x1x2x16x16\s+2x1x8x16x16\s+168", table), table
    assert re.search(r"classifier\s+SeqToANNContainer\s+2x1x64x1x1\s+2x1x10\s+650", table)
    words = [w for w in TINY if w.split("=")[0] in ("model.width", "dataset.size", "T", "precision", "logger", "device")]
    said("train", *words, "debug=overfit", "exp_name=c", "dataset.roll=0", "lr=3e-3")
    losses = [json.loads(line)["Train/Loss"] for line in (tmp_path / "outputs/debug/c/logs/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 30 and losses[-1] < 0.5 < 2 < losses[0]


def test_a_path_of_any_key_is_found_from_another_directory(said, tmp_path, monkeypatch):
    (tmp_path / "own_place.py").write_text(
        "from pathlib import Path\nfrom snnexp.models.vggsnn import VGGSNN\nclass Net(VGGSNN):\n"
        "    def __init__(self, table: Path, in_channels: int, num_classes: int, size: int, **given):\n"
        "        assert Path(table).read_text() == 'a'\n"
        "        super().__init__(in_channels=in_channels, num_classes=num_classes, size=size, **given)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tables é").mkdir()
    (tmp_path / "tables é/a=b#.csv").write_text("a")
    words = [*TINY, "epochs=1", "limit_train=16", "limit_val=16", "model._target_=own_place.Net", "output_dir=~/out #1"]
    output = said("train", *words, "+model.table=tables é/a=b#.csv", "exp_name=2025_01_14")
    run = tmp_path / "out #1/2025_01_14"
    assert "'out #1/2025_01_14'" in output.splitlines() and json.loads((run / "config.json").read_text())["exp_name"] == "2025_01_14"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said("resume", run, "epochs=2", "trust=[own_place]")
    said("evaluate", run, "trust=[own_place]")
    assert json.loads((run / "config.json").read_text())["model"]["table"] == str(tmp_path / "tables é/a=b#.csv")
