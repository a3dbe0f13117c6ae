"""Inference with a checkpoint in a user's program, whose random generators and torch settings stay unchanged."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp import config, parts, targets
from snnexp.contracts import DataSet, optional_member
from snnexp.engine import trained
from snnexp.engine.distributed import Ranks, choose_device
from snnexp.engine.evaluation import evaluate, forward
from snnexp.engine.experiment import restore_kernels, set_determinism
from snnexp.engine.fitting.structure import build_fitting
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir


@dataclass(frozen=True)
class Prediction:
    """The output of a model for some samples and the task's decision about each, all on the CPU.

    `output` is the output as the task defines it: [T, N, K] for a classification, [G, K] for graphs, the restored frames [N, D, C, H, W]
    for clips, an object with the results of each set and stay for stays. For a split it covers all samples, as one object or, if the task
    cannot join batches, as a list by batch. `predicted` and `score` (probabilities, if the task has any) are what evaluate writes as
    <split>_y_pred.npy and <split>_y_score.npy; a split also has `true` and `metrics`.
    """

    output: Any
    predicted: np.ndarray
    score: np.ndarray | None = None
    true: np.ndarray | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Loaded:
    """A model with the weights and the structure of a run's checkpoint, on a device, and its task.

    A CPU has neither fp16 nor tf32: there such a run is evaluated in fp32, the precision of its weights. `data_dir` is a directory with
    other data of the same kind, as in `snnexp evaluate RUN data_dir=OTHER`.
    Raises: UserError.
    """

    def __init__(self, run: RunDir, name: str | Path, device: str, trust: list[str], data_dir: str | Path | None = None) -> None:
        before = config.read_saved(run.config)
        if data_dir is None:
            self.settings = before | {"trust": trust, "device": device}
            config.check_ranges(self.settings)
            targets.check_nodes(self.settings, trust)
        else:
            from snnexp.composing import other_data  # Hydra, which is not needed otherwise

            self.settings = other_data.settings_with_data_dir(run, before, data_dir, {"trust": trust, "device": device})
        self.path = trained.checkpoint_path(run, str(name))
        self.saved = trained.load(self.path, before)
        self.ranks = Ranks(0, 1, choose_device(device))
        if self.settings["precision"] in ("fp16", "tf32") and self.ranks.device.type == "cpu":
            self.settings["precision"] = "fp32"
        self.task = parts.make_task(self.settings)
        self._data: tuple[Any, bool] | None = None
        shape = self.saved.get("shape")  # earlier checkpoints do not have it
        with torch.random.fork_rng(devices=[self.ranks.device] if self.ranks.device.type == "cuda" else []):
            model = build_fitting(lambda: self._new_model(shape), self.saved, self.path)
        self.model = model.to(self.ranks.device).eval()
        self.precision = trained.take_over(self.model, self.settings, self.saved, self.path, self.ranks.device)

    def _new_model(self, shape: dict[str, Any] | None) -> nn.Module:
        if shape is None:
            return parts.make_model(self.settings, self.read_data()[0], self.task)
        return trained.model_of(self.settings, shape)

    def read_data(self) -> tuple[Any, bool]:
        """Return the data of the run, which are read once, and whether they are the run's own samples and split.

        Raises: MissingData, UserError.
        """
        if self._data is None:
            data, own_samples = trained.data_of(self.settings, self.saved, self.path)
            parts.model_arguments(data, self.task)  # which also gives the task the frequencies of the classes that it may weigh by
            self._data = data, own_samples
        return self._data

    def evaluate(self, data: Any, split: str, outputs: bool) -> Prediction:
        """Return the prediction for a split as `snnexp evaluate` does, but not compiled, without the model's outputs unless `outputs`."""
        collected: list[Any] = []
        trained.samples_in(data, split)
        with restore_kernels():
            set_determinism(self.settings["deterministic"])
            self.precision.set_kernels()
            evaluation = evaluate(
                self.model,
                self.task,
                data,
                split,
                batch_size=self.settings["batch_size"],
                ranks=self.ranks,
                precision=self.precision,
                workers=self.settings["workers"],
                limit=self.settings["limit_val"],
                collect=(lambda batch, output: collected.append(on_cpu(output))) if outputs else None,
            )
        output = self.task.joined(collected) if outputs else None
        return Prediction(output, evaluation.predicted, evaluation.score, evaluation.true, evaluation.metrics)

    def predict(self, inputs: Any, data: Callable[[], Any], outputs: bool) -> Prediction:
        """Return the prediction for a batch, prepared as in the run; `data` is called only if the data set needs its samples for that."""
        dataset = targets.locate(self.settings["dataset"]["_target_"], self.settings["trust"])
        preparation = optional_member(dataset, "preparation", DataSet)
        prepare = data().prepare if preparation is None else preparation(self.saved["data"])
        was_training = self.model.training
        self.model.eval()
        try:
            with restore_kernels():
                set_determinism(self.settings["deterministic"])
                self.precision.set_kernels()
                batch = prepare(on_device(inputs, self.ranks.device))
                refuse_not_finite(batch)
                _, output = forward(self.model, self.task, batch, self.precision)
                predicted, _, *score = self.task.predict(output, batch)
        except (UserError, RunFailed, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a layer, or PyG, may raise anything if the input does not fit
            raise UserError(
                f"predict: the model cannot take {describe(inputs)}: {type(error).__name__}: {error}\n"
                "It takes a batch as the data set's view gives it, before normalisation, with the truth or without: "
                "run.data.view('test').__getitems__([(0, 0), (0, 1)])."
            ) from error
        finally:
            functional.reset_net(self.model)
            self.model.train(was_training)
        return Prediction(on_cpu(output) if outputs else None, predicted.cpu().numpy(), *(values.cpu().numpy() for values in score[:1]))


def on_device(inputs: Any, device: torch.device) -> Any:
    """Return a batch on a device: tensors, arrays, graphs, stays, or a tuple of them."""
    if isinstance(inputs, list | tuple):
        return tuple(on_device(part, device) for part in inputs)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    return inputs.to(device)


def refuse_not_finite(batch: Any) -> None:
    """Refuse a batch with NaN or infinity, to which a spiking neuron would respond as to no input.

    Raises: UserError.
    """
    for place, part in enumerate(batch if isinstance(batch, tuple) else (batch,)):
        if isinstance(part, Tensor) and part.is_floating_point() and not part.isfinite().all():
            count = int((~part.isfinite()).sum())
            raise UserError(f"predict: input {place} has NaN or infinity in {count} of {part.numel()} places; give finite numbers.")


def on_cpu(output: Any) -> Any:
    """Return a task's output for a batch with its tensors on the CPU."""
    if isinstance(output, Tensor):
        return output.cpu()
    if is_dataclass(output):
        return replace(output, **{part.name: on_cpu(getattr(output, part.name)) for part in fields(output)})
    if isinstance(output, dict):
        return {name: on_cpu(value) for name, value in output.items()}
    return type(output)(map(on_cpu, output)) if type(output) in (list, tuple) else output


def describe(inputs: Any) -> str:
    """Return the types and shapes of a batch for a message."""
    if isinstance(inputs, list | tuple):
        more = f", ... {len(inputs) - 4} more" if len(inputs) > 4 else ""
        return f"({', '.join(map(describe, inputs[:4]))}{more})"
    if isinstance(inputs, Tensor | np.ndarray):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    return type(inputs).__name__
