"""Prediction of a property of a whole graph: a class or numbers."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from snnexp.contracts import DataSet, Task
from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32


class GraphClassification(Task):
    """Classify graphs from the time mean o [G, K] of the outputs [T, G, K].

    loss "bce": one output for two classes, -y log s(o) - (1 - y) log(1 - s(o)); "ce": cross entropy of K outputs; "auto": bce for two
    classes, ce for more. Everything is computed in fp32 whatever the model's precision.
    Raises: UserError for an unknown loss, for data without classes, and for data with too many classes for bce.
    """

    monitor = "Acc1"
    modes = {"Acc1": "max", "AUROC": "max", "Loss": "min"}

    def __init__(self, *, loss: str = "auto") -> None:
        if loss not in ("auto", "bce", "ce"):
            raise UserError(f"task.loss: {loss!r} is not known; allowed: auto, bce, ce.")
        self.kind = loss

    def outputs(self, data: DataSet) -> int:
        """Return the number of outputs that the classes of the data need."""
        count = len(data.classes)
        if count < 2:
            raise UserError(f"task=graph_classification: {data.name} has no classes to tell apart; use task=graph_regression.")
        if self.kind == "bce" and count > 2:
            raise UserError(f"task.loss=bce is for two classes, and {data.name} has {count}; use ce or auto.")
        return 1 if count == 2 and self.kind != "ce" else count

    def loss(self, model: nn.Module, batch: tuple[Data, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Return the loss, a fp32 scalar (mean over the graphs), and the time mean of the outputs [G, K]."""
        graphs, y = batch
        output = model(graphs)
        with torch.autocast(output.device.type, enabled=False):
            o = at_least_fp32(output).mean(0)
            if o.shape[1] == 1:
                return F.binary_cross_entropy_with_logits(o[:, 0], y.to(o.dtype)), o
            return F.cross_entropy(o, y), o

    @torch.no_grad()
    def counts(self, loss: Tensor, output: Tensor, batch: tuple[Data, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums over the batch on its device: the graphs "n", "Loss", and correct answers."""
        y = batch[1]
        n = torch.full((), len(y), dtype=torch.float64, device=y.device)
        correct = (self._classes(output) == y).sum(dtype=torch.float64)
        return {"n": n, "Loss": loss.detach().double() * n, "Acc1": correct}

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return mean loss and accuracy in percent from summed `counts`."""
        return {"Loss": counts["Loss"] / counts["n"], "Acc1": 100 * counts["Acc1"] / counts["n"]}

    @torch.no_grad()
    def predict(self, output: Tensor, batch: tuple[Data, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and true classes, int64 [G] each, and probabilities: of the second class [G], or of all classes [G, K]."""
        score = output[:, 0].sigmoid() if output.shape[1] == 1 else output.softmax(1)
        return self._classes(output), batch[1], score

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Return the outputs of several batches as one, [G, K]."""
        return torch.cat(outputs)

    def ranking(self, true: np.ndarray, score: np.ndarray) -> dict[str, float]:
        """Return the area under the ROC curve, 0 to 1; with more than two classes, the mean over each class against the rest.

        It is NaN if a class has no graph, has all graphs, or if a probability is NaN.
        """
        from sklearn.metrics import roc_auc_score

        if score.ndim == 1:
            score = np.stack([1 - score, score], 1)
        pairs = [(true == k, score[:, k]) for k in range(1 if score.shape[1] == 2 else 0, score.shape[1])]
        if not np.isfinite(score).all() or any(is_k.all() or not is_k.any() for is_k, _ in pairs):
            return {"AUROC": float("nan")}
        return {"AUROC": float(np.mean([roc_auc_score(is_k, score_k) for is_k, score_k in pairs]))}

    def _classes(self, output: Tensor) -> Tensor:
        return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)


class GraphRegression(Task):
    """Predict K numbers for each graph from the time mean o of the outputs [T, G, K].

    loss "l1" or "mse": mean |o - z| or (o - z)^2 with z = (y - mean) / std, standardised by the training targets. The metrics are in the
    targets' own units; with several targets, each metric is the mean over them. Everything is computed in fp32 whatever the model's
    precision.
    Raises: UserError for an unknown loss, and for data without targets.
    """

    monitor = "MAE"
    modes = {"MAE": "min", "RMSE": "min", "R2": "max", "Loss": "min"}

    def __init__(self, *, loss: str = "l1") -> None:
        if loss not in ("l1", "mse"):
            raise UserError(f"task.loss: {loss!r} is not known; allowed: l1, mse.")
        self.kind = loss

    def outputs(self, data: DataSet) -> int:
        """Return the number of targets of the data."""
        count = len(data.targets)
        if count == 0:
            raise UserError(
                f"task=graph_regression: {data.name} has classes and no targets; use task=graph_classification, or another dataset.target "
                "if it has one."
            )
        return count

    def loss(self, model: nn.Module, batch: tuple[Data, Tensor, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Return the loss, a fp32 scalar (mean over graphs and targets), and the prediction [G, K] in the targets' units."""
        graphs, y, (mean, std) = batch
        output = model(graphs)
        with torch.autocast(output.device.type, enabled=False):
            o, z = at_least_fp32(output).mean(0), (y - mean) / std
            return (F.l1_loss if self.kind == "l1" else F.mse_loss)(o, z), o * std + mean

    @torch.no_grad()
    def counts(self, loss: Tensor, output: Tensor, batch: tuple[Data, Tensor, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums over the batch on its device: the graphs "n", "Loss", and the sums for the metrics of each target k."""
        y, mean = batch[1].double(), batch[2][0].double()
        n = torch.full((), len(y), dtype=torch.float64, device=y.device)
        error = output.double() - y
        centred = y - mean  # for a target far from 0, the sum of squares would lose the variance
        sums = {"AE": error.abs(), "SE": error.square(), "y": centred, "yy": centred.square()}
        of_targets = {f"{name}{k}": value for name, values in sums.items() for k, value in enumerate(values.sum(0))}
        return {"n": n, "Loss": loss.detach().double() * n, **of_targets}

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return mean loss, MAE, RMSE and R2 = 1 - SE / sum (y - mean y)^2 from summed `counts`; R2 is NaN where all targets are equal."""
        n, targets = counts["n"], range(sum(name.startswith("SE") for name in counts))
        spread = [counts[f"yy{k}"] - counts[f"y{k}"] ** 2 / n for k in targets]
        values = {
            "MAE": [counts[f"AE{k}"] / n for k in targets],
            "RMSE": [(counts[f"SE{k}"] / n) ** 0.5 for k in targets],
            "R2": [1 - counts[f"SE{k}"] / spread[k] if spread[k] > 0 else float("nan") for k in targets],
        }
        return {"Loss": counts["Loss"] / n} | {name: sum(of_targets) / len(of_targets) for name, of_targets in values.items()}

    @torch.no_grad()
    def predict(self, output: Tensor, batch: tuple[Data, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return predicted and true targets in their units, fp32 [G], or [G, K] where there are several."""
        return (output[:, 0], batch[1][:, 0]) if output.shape[1] == 1 else (output, batch[1])

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Return the outputs of several batches as one, [G, K]."""
        return torch.cat(outputs)
