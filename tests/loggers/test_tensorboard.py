"""What TensorBoard's own reader sees: tags, one curve after a resume, one run with its hparams and final metrics."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import backend_context, plugin_data_pb2
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG

from snnexp.errors import UserError
from snnexp.loggers.tensorboard import TensorBoard, final_metrics, flatten

TAGS = ["Train/Loss", "Train/Acc1", "Train/Acc5", "Val/Loss", "Val/Acc1", "Val/Acc5", "LR"]
RESULT = {
    "best": {"epoch": 2, "metric": "Val/Acc1", "value": 91.5},
    "test": {"Loss": 0.5, "Acc1": 90.25, "Acc5": 99.0},
    "protocol": "9:1",
}


def read(run_dir):
    return EventAccumulator(str(run_dir / "logs")).Reload()


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tags_and_the_epoch_axis(tmp_path):
    logger = TensorBoard(run_dir=tmp_path, first_epoch=0)
    for epoch in range(3):
        logger.scalars({tag: epoch + number / 8 for number, tag in enumerate(TAGS)}, epoch)
    logger.close()
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == sorted(TAGS)
    assert points(events, "Val/Acc1") == [(0, 0.5), (1, 1.5), (2, 2.5)]


def test_points_are_on_disk_without_close(tmp_path):
    logger = TensorBoard(run_dir=tmp_path)
    logger.scalars({"Val/Acc1": 50.0}, 0)
    assert points(read(tmp_path), "Val/Acc1") == [(0, 50.0)]
    logger.close()


def test_a_killed_and_resumed_run_draws_one_curve(tmp_path):
    # SIGKILL while epoch 3 was under way: epochs 0, 1, 2 are drawn; the checkpoint knows of one epoch done.
    program = (
        "import os, signal, sys; from pathlib import Path; from snnexp.loggers.tensorboard import TensorBoard\n"
        "logger = TensorBoard(run_dir=Path(sys.argv[1]))\n"
        "logger.hparams({'lr': 0.1})\n"
        "for epoch in range(3): logger.scalars({'Val/Acc1': -1.0 if epoch else 10.0}, epoch)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    assert [step for step, _ in points(read(tmp_path), "Val/Acc1")] == [0, 1, 2]

    resumed = TensorBoard(run_dir=tmp_path, first_epoch=1)
    resumed.hparams({"lr": 0.1})
    for epoch in range(1, 5):
        resumed.scalars({"Val/Acc1": 10.0 * (epoch + 1)}, epoch)
    resumed.finish(RESULT)
    resumed.close()
    events = read(tmp_path)
    assert points(events, "Val/Acc1") == [(epoch, 10.0 * (epoch + 1)) for epoch in range(5)]
    assert points(events, "Test/Acc1") == [(5, 90.25)]


def test_a_resume_from_the_very_beginning_and_in_the_same_second(tmp_path):
    for value in (1.0, 2.0, 3.0):
        logger = TensorBoard(run_dir=tmp_path, first_epoch=0)
        logger.scalars({"Val/Acc1": value}, 0)
        logger.scalars({"Val/Acc1": value}, 1)
        logger.close()
    assert points(read(tmp_path), "Val/Acc1") == [(0, 3.0), (1, 3.0)]


def test_final_metrics_stand_once_after_a_longer_resume(tmp_path):
    first = TensorBoard(run_dir=tmp_path)
    first.scalars({"Val/Acc1": 1.0}, 0)
    first.finish(RESULT)
    first.close()
    longer = TensorBoard(run_dir=tmp_path, first_epoch=1)
    longer.scalars({"Val/Acc1": 2.0}, 1)
    longer.finish(RESULT | {"test": {"Acc1": 95.0}})
    longer.close()
    events = read(tmp_path)
    assert points(events, "Test/Acc1") == [(2, 95.0)]
    assert points(events, "Val/Acc1") == [(0, 1.0), (1, 2.0)]


def test_hparams_tab_over_two_runs(tmp_path):
    configs = {
        "a": {"lr": 1e-3, "model": {"lif": {"tau": 2}}, "compile": False, "classes": ["x", "y"], "ema": None},
        "b": {"lr": 1e-2, "model": {"neuron": "tet", "width": 8}, "compile": True},
    }
    for name, config in configs.items():
        logger = TensorBoard(run_dir=tmp_path / name)
        logger.hparams(config)
        logger.scalars({"Val/Acc1": 91.5}, 0)
        logger.finish(RESULT)
        logger.close()
        # One run, not two: no directory beside the event file.
        (event_file,) = (tmp_path / name / "logs").rglob("*")
        assert event_file.is_file()

    events = read(tmp_path / "a")
    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    ).session_start_info
    assert start.hparams["lr"].number_value == 1e-3
    assert start.hparams["model.lif.tau"].number_value == 2
    assert start.hparams["compile"].WhichOneof("kind") == "bool_value"
    assert start.hparams["classes"].string_value == "['x', 'y']"
    assert "ema" not in start.hparams
    assert events.SummaryMetadata(SESSION_END_INFO_TAG).plugin_data.plugin_name == "hparams"

    # What the tab itself would show: the union of the keys of both runs, and the final metrics.
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), context.hparams_from_data_provider(request, "", None)
    )
    assert {info.name for info in experiment.hparam_infos} == {
        "lr", "model.neuron", "model.lif.tau", "model.width", "compile", "classes",
    }  # fmt: skip
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"Val/Acc1", "Best/Val/Acc1", "Test/Loss", "Test/Acc1", "Test/Acc5"}


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": True, "g": None, "h": 0.5}) == {
        "a.b": 1, "d": "[1, {'e': 2}]", "f": True, "h": 0.5,
    }  # fmt: skip


def test_final_metrics_of_a_result_without_a_test():
    result = {"best": {"epoch": 1, "metric": "Val/MAE", "value": 0.5}, "test": None}
    assert final_metrics(result) == {"Best/Val/MAE": 0.5}
    assert final_metrics({}) == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match="logs"):
        TensorBoard(run_dir=tmp_path)


def test_the_module_imports_neither_torch_nor_tensorboard():
    program = (
        "import sys, snnexp.loggers.tensorboard, snnexp.loggers.wandb\nassert not {'torch', 'wandb', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_comes_by_step_has_an_axis_of_its_own_and_one_curve_after_a_resume(tmp_path):
    logger = TensorBoard(run_dir=tmp_path)
    for step in (200, 400, 600):
        logger.step_scalars({"Posterior/KL": float(step)}, step)
    logger.scalars({"Val/AUROC": 0.5}, 1)
    logger.close()
    resumed = TensorBoard(run_dir=tmp_path, first_epoch=2, first_step=301)  # the checkpoint was of step 300
    resumed.step_scalars({"Posterior/KL": -1.0}, 400)
    resumed.close()
    steps = EventAccumulator(str(tmp_path / "logs/steps")).Reload()
    assert points(steps, "Posterior/KL") == [(200, 200.0), (400, -1.0)]
    assert points(read(tmp_path), "Val/AUROC") == [(1, 0.5)]


def test_only_a_writer_whose_disk_refuses_is_silent_and_a_hook_that_was_there_stays(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: shown.append(failure.exc_type))
    for _ in range(2):  # of two runs in one process, the second adds nothing
        TensorBoard(run_dir=tmp_path).close()

    def fail(error: Exception) -> None:
        raise error

    for name in ("_AsyncWriterThread", "Thread"):
        for error in (OSError(28, "No space left on device"), ValueError("x")):
            thread = type(name, (threading.Thread,), {})(target=fail, args=(error,))
            thread.start()
            thread.join()
    assert shown == [ValueError, OSError, ValueError]
