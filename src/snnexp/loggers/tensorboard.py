"""Curves and hparams for TensorBoard: one event directory per run and one curve per tag, however often the run was resumed."""

import threading
import time
from pathlib import Path
from typing import Any

from snnexp.contracts import Logger
from snnexp.errors import UserError
from snnexp.files import explaining


class TensorBoard(Logger):
    """Writes `<run_dir>/logs/events.out.tfevents.*`, whose axis is the epoch, and for values that come more often
    `<run_dir>/logs/steps/events.out.tfevents.*`, whose axis is the optimizer step: TensorBoard shows these as a separate run.

    `first_epoch` and `first_step` are the first that this process will write: points of an interrupted run at or after them are hidden
    from the reader, so that a resumed run has one curve. `flush_secs`: seconds that a point may wait before it is on the disk.

    Raises: UserError if the event file cannot be opened; RunFailed if the disk refuses later.
    """

    def __init__(self, *, run_dir: Path, first_epoch: int = 0, first_step: int = 0, flush_secs: int = 30) -> None:
        self._log_dir, self._flush_secs = Path(run_dir) / "logs", flush_secs
        self._writer = self._open(self._log_dir, first_epoch)
        self._next, self._first_step = first_epoch, first_step
        steps = self._log_dir / "steps"
        self._steps = self._open(steps, first_step) if _event_files(steps) else None  # opened now to hide the points after `first_step`

    def _open(self, log_dir: Path, first: int) -> Any:
        # Imported here because it takes a second, which a run without this logger need not pay.
        from torch.utils.tensorboard import SummaryWriter

        _silence_writers()
        _wait_for_unused_second(log_dir)
        has_events = bool(_event_files(log_dir))
        try:
            return SummaryWriter(log_dir=str(log_dir), purge_step=first if has_events else None, flush_secs=self._flush_secs)
        except OSError as error:
            raise UserError(f"cannot write TensorBoard events into {log_dir}: {error.strerror}. logger=none goes without.") from error

    def scalars(self, values: dict[str, float], epoch: int) -> None:
        """Write one point per tag at `epoch`: `Train/Loss`, `Val/Acc1`, `LR`, ..."""
        with explaining(self._log_dir / "events.out.tfevents.*"):
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, epoch)
            self._writer.flush()
        self._next = max(self._next, epoch + 1)

    def step_scalars(self, values: dict[str, float], step: int) -> None:
        """Write one point per tag at an optimizer step, to the run `steps`: `Posterior/KL`, `Val/...` of a validation within an epoch."""
        if self._steps is None:
            self._steps = self._open(self._log_dir / "steps", self._first_step)
        with explaining(self._log_dir / "steps" / "events.out.tfevents.*"):
            for tag, value in values.items():
                self._steps.add_scalar(tag, value, step)
            self._steps.flush()

    def hparams(self, config: dict[str, Any]) -> None:
        """Write the config to the hparams tab, under dotted names.

        Only the session summary is written, not one that defines an experiment: TensorBoard follows the first definition that it finds in
        a folder of runs and hides every other key; without a definition it shows the union over all runs.
        """
        from tensorboard.plugins.hparams import plugin_data_pb2

        session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for key, value in flatten(config).items():
            if isinstance(value, bool):
                session.hparams[key].bool_value = value
            elif isinstance(value, int | float):
                session.hparams[key].number_value = value
            else:
                session.hparams[key].string_value = value
        data = plugin_data_pb2.HParamsPluginData(session_start_info=session)
        self._write_session("_hparams_/session_start_info", data)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final metrics, `Best/<monitored metric>` and `Test/<metric>`, and close the hparams session.

        They are written at the step after the last epoch, so that a later resume replaces them.
        """
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        with explaining(self._log_dir / "events.out.tfevents.*"):
            for tag, value in final_metrics(result).items():
                self._writer.add_scalar(tag, value, self._next)
        session = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=session)
        self._write_session("_hparams_/session_end_info", data)

    def close(self) -> None:
        """Flush and close the event file."""
        with explaining(self._log_dir / "events.out.tfevents.*"):
            self._writer.close()
            if self._steps is not None:
                self._steps.close()

    def _write_session(self, tag: str, data: Any) -> None:
        # Into the event file of the run: SummaryWriter.add_hparams would create a second directory, and so a second "run".
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.hparams import metadata

        summary = summary_pb2.Summary()
        summary.value.add(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        with explaining(self._log_dir / "events.out.tfevents.*"):
            self._writer.file_writer.add_summary(summary)
            self._writer.flush()


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return a nested config by dotted keys, with values that the hparams tab accepts: lists become text, null is left out."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else str(value)
    return flat


def final_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Return the final metrics in the content of a result.json: `Best/Val/Acc1`, `Test/Acc1`, ..."""
    best, test = result.get("best") or {}, result.get("test") or {}
    metrics = {f"Best/{best['metric']}": best["value"]} if best else {}
    metrics |= {f"Test/{name}": value for name, value in test.items()}
    return {tag: float(value) for tag, value in metrics.items() if isinstance(value, int | float)}


def _silence_writers() -> None:
    """Show no traceback of a writer's thread for a disk that refuses an event: the next call of the writer reports it."""
    show = threading.excepthook
    if getattr(show, "silences_writers", False):
        return

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError) or type(failure.thread).__name__ != "_AsyncWriterThread":
            show(failure)

    hook.silences_writers = True
    threading.excepthook = hook


def _event_files(log_dir: Path) -> list[Path]:
    return sorted(log_dir.glob("events.out.tfevents.*"))


def _wait_for_unused_second(log_dir: Path) -> None:
    # TensorBoard reads the files of a run in the order of their names, which begin with the second of their creation:
    # the file of a resume within the second of the last start might be read first, and its purge would have no effect.
    for _ in range(20):
        seconds = [path.name.split(".")[3] for path in _event_files(log_dir) if path.name.count(".") > 3]
        if int(time.time()) not in {int(second) for second in seconds if second.isdigit()}:
            return
        time.sleep(0.1)
