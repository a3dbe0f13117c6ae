"""A checkpoint made ready in a program of somebody else's, whose random generators and settings of torch stay as they were."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from snnexp import config, parts, targets
from snnexp.contracts import DataSet, offered
from snnexp.engine import trained
from snnexp.engine.distributed import Ranks, choose_device
from snnexp.engine.evaluation import evaluate, forward
from snnexp.engine.experiment import determinism_kept, set_determinism
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir


@dataclass(frozen=True)
class Prediction:
    """What a model made of some samples, and what its task decides; everything on the CPU.

    `output`: what the task calls its output: of a classification [T, N, K], of graphs [G, K], of clips the restored frames
    [N, D, C, H, W], of stays what each came to; of a split that of all its samples, or a list by batches where the task cannot join them.
    `predicted` and `score` (probabilities, where there are any) are what evaluate writes as <split>_y_pred.npy and <split>_y_score.npy;
    of a split also `true` and `metrics`.
    """

    output: Any
    predicted: np.ndarray
    score: np.ndarray | None = None
    true: np.ndarray | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Loaded:
    """A model with the weights and the structure of a checkpoint of a run, on a device, and its task.

    fp16 has no form on a CPU: there such a run is judged in fp32, which its weights are in.
    Raises: UserError.
    """

    def __init__(self, run: RunDir, name: str | Path, device: str, trust: list[str]) -> None:
        before = config.read_saved(run.config)
        self.settings = before | {"trust": trust, "device": device}
        config.check_ranges(self.settings)
        targets.check_nodes(self.settings, trust)
        self.path = trained.checkpoint_path(run, str(name))
        self.saved = trained.load(self.path, before)
        self.ranks = Ranks(0, 1, choose_device(device))
        if self.settings["precision"] == "fp16" and self.ranks.device.type == "cpu":
            self.settings["precision"] = "fp32"
        self.task = parts.make_task(self.settings)
        self._data: tuple[Any, bool] | None = None
        shape = self.saved.get("shape")  # checkpoints of before do not hold it
        with torch.random.fork_rng(devices=[self.ranks.device] if self.ranks.device.type == "cuda" else []):
            made = trained.model_of(self.settings, shape) if shape else parts.make_model(self.settings, self.read_data()[0], self.task)
        self.model = made.to(self.ranks.device).eval()
        self.precision = trained.take_over(self.model, self.settings, self.saved, self.path, self.ranks.device)

    def read_data(self) -> tuple[Any, bool]:
        """The data of the run, read once, and whether they are its samples and its split.

        Raises: MissingData, UserError.
        """
        if self._data is None:
            data, own_samples = trained.data_of(self.settings, self.saved)
            parts.provided(data, self.task)  # by which a task learns what it weighs classes by
            self._data = data, own_samples
        return self._data

    def judge(self, data: Any, split: str, outputs: bool) -> Prediction:
        """The split as evaluate judges it."""
        kept: list[Any] = []
        trained.samples_in(data, split)
        with determinism_kept():
            set_determinism(self.settings["deterministic"])
            judged = evaluate(
                self.model,
                self.task,
                data,
                split,
                batch_size=self.settings["batch_size"],
                ranks=self.ranks,
                precision=self.precision,
                workers=self.settings["workers"],
                limit=self.settings["limit_val"],
                collect=(lambda batch, output: kept.append(on_cpu(output))) if outputs else None,
            )
        return Prediction(self.task.joined(kept) if outputs else None, judged.predicted, judged.score, judged.true, judged.metrics)

    def predict(self, inputs: Any, data: Callable[[], Any], outputs: bool) -> Prediction:
        """A batch, prepared as the run's own were; a data set that cannot do so without its samples is asked for by `data`."""
        dataset = targets.locate(self.settings["dataset"]["_target_"], self.settings["trust"])
        preparation = offered(dataset, "preparation", DataSet)
        prepare = data().prepare if preparation is None else preparation(self.saved["data"])
        was_training = self.model.training
        self.model.eval()
        try:
            with determinism_kept():
                set_determinism(self.settings["deterministic"])
                batch = prepare(on_device(inputs, self.ranks.device))
                _, output = forward(self.model, self.task, batch, self.precision)
                predicted, _, *score = self.task.predict(output, batch)
        except (UserError, RunFailed, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a layer, or PyG, may refuse what it cannot take in any way
            raise UserError(
                f"predict: the model cannot take {in_words(inputs)}: {type(error).__name__}: {error}\n"
                "It takes a batch as the data set's view gives it, before normalisation, with the truth or without: "
                "run.data.view('test').__getitems__([(0, 0), (0, 1)])."
            ) from error
        finally:
            functional.reset_net(self.model)
            self.model.train(was_training)
        return Prediction(on_cpu(output) if outputs else None, predicted.cpu().numpy(), *(one.cpu().numpy() for one in score[:1]))


def on_device(inputs: Any, device: torch.device) -> Any:
    """A batch on a device: tensors, arrays, graphs, stays, and tuples of them."""
    if isinstance(inputs, list | tuple):
        return tuple(on_device(part, device) for part in inputs)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    return inputs.to(device)


def on_cpu(output: Any) -> Any:
    """What a task made of a batch, with its tensors on the CPU."""
    if isinstance(output, Tensor):
        return output.cpu()
    if is_dataclass(output):
        return replace(output, **{part.name: on_cpu(getattr(output, part.name)) for part in fields(output)})
    if isinstance(output, dict):
        return {name: on_cpu(value) for name, value in output.items()}
    return type(output)(map(on_cpu, output)) if type(output) in (list, tuple) else output


def in_words(inputs: Any) -> str:
    """What a batch is, for a message."""
    if isinstance(inputs, list | tuple):
        return f"({', '.join(map(in_words, inputs))})"
    if isinstance(inputs, Tensor | np.ndarray):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    return type(inputs).__name__
