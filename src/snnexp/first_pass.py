"""A first pass of a few samples through a user's own model and task, before a run begins: do they return what the contracts say?"""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnexp import conformance, targets
from snnexp.contracts import DataSet, Task
from snnexp.data.first_batch import at, described, is_frames
from snnexp.data.sampler import pool, smallest_share
from snnexp.engine.state import random_state, restore_random_state
from snnexp.errors import RunFailed, UserError
from snnexp.parts import make_model, make_task


def check_first_pass(settings: dict[str, Any], data: DataSet, batch: Any, device: torch.device) -> None:
    """Pass a few samples through the model and the task on the CPU, without gradients, if one of the two is not of this package.

    The random generators are as before afterwards. An error on the CPU says nothing about a run on another `device`; a wrong result does.
    Raises: UserError that names what was expected, what came, and the place of the code that gave it.
    """
    if all(is_ours(settings[group]) for group in ("model", "task")):
        return
    cpu = torch.device("cpu")
    before = random_state(cpu)
    try:
        task = make_task(settings)
        model = make_model(settings, data, task).eval()
        with torch.no_grad():
            check_pass(settings, model, task, data, batch)
    except PassFailed:
        if device.type == "cpu":
            raise
    finally:
        restore_random_state(before, cpu)


def check_smallest_batch(settings: dict[str, Any], data: DataSet, batch: Any) -> None:
    """Check that no batch of frames is too small for the model's batch norm, by training with the smallest on the CPU.

    A batch of one sample leaves one value per channel where T is 1 and the layers before have pooled the picture to one pixel.
    Raises: UserError that names batch sizes that fit.
    """
    count, size, devices = len(pool(data.splits["train"], settings["limit_train"])), settings["batch_size"], settings["devices"]
    if not is_frames(data) or settings["sync_bn"] or smallest_share(count, size, devices) != 1:
        return
    x, *others = batch
    single = (x.narrow(-4, 0, 1), *(each[:1] if isinstance(each, Tensor) else each for each in others))
    if (error := norm_failure(settings, data, single)) is None:
        return
    candidates = range(max(2, size - 32), size + 33)
    fitting = [each for each in candidates if smallest_share(count, each, devices) > 1]
    near = sorted(sorted(fitting, key=lambda each: abs(each - size))[:2])
    raise UserError(
        f"batch_size={size}: {count} training samples{f' on {devices} devices' if devices > 1 else ''} leave a batch of one sample, which "
        f"this model's batch norm cannot normalise ({error}). "
        + (f"Take batch_size={' or '.join(map(str, near))}" if near else "Take more training samples")
        + ", a larger T, or larger samples."
    )


def norm_failure(settings: dict[str, Any], data: DataSet, batch: Any) -> str | None:
    """Return why batch norm cannot train with a batch, or None; any other error is not looked at, and the random state stays."""
    cpu = torch.device("cpu")
    before = random_state(cpu)
    try:
        task = make_task(settings)
        model = make_model(settings, data, task).train()
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            with torch.no_grad():
                task.loss(model, batch, step=0)
    except Exception as error:  # of the user's own code, or of a kernel that only another device has
        return str(error) if "Expected more than 1 value per channel" in str(error) else None
    finally:
        restore_random_state(before, cpu)
    return None


class PassFailed(UserError):
    """An error in the code of a model or a task; it may work on another device."""


def is_ours(node: dict[str, Any]) -> bool:
    """Return True if the class of a node is one of this package."""
    return targets.current_name(node["_target_"]).startswith("snnexp.")


def check_pass(settings: dict[str, Any], model: nn.Module, task: Task, data: DataSet, batch: Any) -> None:
    """Check all that the model and the task return for a batch.

    Raises: UserError.
    """
    name, count = settings["task"]["_target_"], sample_count(data, batch)
    loss, output = forward(settings, model, task, data, batch)
    counts = call(task, name, "counts(loss, output, batch)", lambda: task.counts(loss.detach(), output.detach(), batch))
    if not isinstance(counts, Mapping) or not counts:
        raise_wrong(task, name, "counts", counts, 'a dict of sums over the batch, {"n": ..., "Loss": ...}')
    for key, value in counts.items():
        if not isinstance(value, Tensor) or value.dim():
            raise_wrong(task, name, "counts", value, "a tensor without axes, as torch.tensor(3.0) or x.sum(),", key)
    columns = call(task, name, "predict(output, batch)", lambda: task.predict(output, batch))
    if not isinstance(columns, tuple | list) or len(columns) not in (2, 3) or not all(isinstance(each, Tensor) for each in columns):
        raise_wrong(task, name, "predict", columns, "a tuple of tensors (predicted, true) or (predicted, true, score)")
    if any(not each.dim() or len(each) != (count or len(columns[0])) for each in columns):
        raise_wrong(task, name, "predict", columns, f"tensors of {count or 'equally many'} rows each, one for each sample,")
    try:
        metrics = task.metrics({key: float(value) for key, value in counts.items()})
    except ArithmeticError:  # what so few samples leave undefined, such as the precision of a class that was never predicted
        return
    except Exception as error:  # a user's own code may fail in any way
        refuse(task, name, "metrics(counts)", error)
    if not isinstance(metrics, Mapping) or not all(isinstance(value, Real) for value in metrics.values()):
        raise_wrong(task, name, "metrics", metrics, 'a dict of numbers, {"Loss": ..., "Acc1": ...},')
    monitor = (settings["monitor"] or task.monitor).removeprefix("Val/")
    if monitor not in metrics and len(columns) == 2:  # with a score, `ranking` may give it
        raise_wrong(task, name, "metrics", metrics, f"{monitor!r}, which chooses the best epoch, among its names")


def forward(settings: dict[str, Any], model: nn.Module, task: Task, data: DataSet, batch: Any) -> tuple[Tensor, Any]:
    """Return loss and output of a batch.

    Raises: UserError if the model or the task does not return what its contract says.
    """
    entered, returned = [], []
    model.register_forward_pre_hook(lambda *_: entered.append(True))
    model.register_forward_hook(lambda module, inputs, output: returned.append(output))
    name = settings["task"]["_target_"]
    try:
        result = task.loss(model, batch, step=0)
    except Exception as error:  # a user's own code may fail in any way
        if len(entered) > len(returned):
            refuse(model, settings["model"]["_target_"], f"forward() of {inputs_in_words(batch)}", error)
        check_output(settings, model, task, data, batch, returned)
        refuse(task, name, "loss(model, batch, step)", error)
    check_output(settings, model, task, data, batch, returned)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise_wrong(task, name, "loss", result, "a pair (loss, output)")
    loss, output = result
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        raise_wrong(task, name, "loss", loss, "a scalar, the mean over the batch as a floating-point tensor without axes,", "the first")
    if not callable(getattr(output, "detach", None)):
        raise_wrong(task, name, "loss", output, "the model's output, a tensor or an object with detach(),", "the second")
    return loss, output


def check_output(settings: dict[str, Any], model: nn.Module, task: Task, data: DataSet, batch: Any, returned: list[Any]) -> None:
    """Check the model's output for a task of this package that reads [T, N, K]; other tasks may read anything.

    Raises: UserError.
    """
    if not returned or not is_ours(settings["task"]) or not (is_frames(data) or data.kind == "graphs"):
        return
    output, count, least = returned[0], sample_count(data, batch), task.outputs(data)
    right = isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] == count and output.shape[2] >= (least or 1)
    if not right or (data.kind == "graphs" and output.shape[2] != least):
        legend, what = ("[T, G, K]", "graphs") if data.kind == "graphs" else ("[T, N, K]", "samples")
        expected = f"[{settings['T']}, {count}, {least}] was expected: {legend}, time first, then {count} {what}, then {least} outputs"
        raise UserError(
            f"{settings['model']['_target_']}: forward() of {inputs_in_words(batch)} gave {described(output)}, where {expected}"
            f"{at(model, 'forward')}."
        )


def sample_count(data: DataSet, batch: Any) -> int | None:
    """Return the number of samples of a batch of frames or graphs; None: not known."""
    if is_frames(data):
        return batch[0].shape[-4]
    return len(batch[1]) if data.kind == "graphs" else None


def inputs_in_words(batch: Any) -> str:
    """Return the dtype and shape of a batch's first part, or its type."""
    return f"x {described(batch[0] if isinstance(batch, tuple | list) else batch)}"


def call(owner: Any, name: str, verb: str, work: Any) -> Any:
    """Return what `work` returns.

    Raises: PassFailed that names the place where it failed.
    """
    try:
        return work()
    except Exception as error:  # a user's own code may fail in any way
        refuse(owner, name, verb, error)


def refuse(owner: Any, name: str, verb: str, error: Exception) -> NoReturn:
    """Raises: PassFailed that names the place of an error, or the error itself if it is a message already."""
    if isinstance(error, UserError | RunFailed):
        raise error
    place = conformance.location_of(type(owner), error)
    raise PassFailed(f"{name}: {verb} failed: {type(error).__name__}: {error} ({place})") from error


def raise_wrong(owner: Any, name: str, verb: str, value: Any, expected: str, part: str | None = None) -> NoReturn:
    """Raises: UserError for what a verb returned, or for a part of it."""
    of = "" if part is None else f" as {part}" if part.startswith("the ") else f" as {part!r}"
    what = f"({', '.join(map(described, value))})" if isinstance(value, tuple | list) else described(value)
    what = f"{{{', '.join(map(repr, value))}}}" if isinstance(value, Mapping) else what
    raise UserError(f"{name}: {verb}() gave {what}{of}, where {expected} was expected{at(owner, verb)}.")
