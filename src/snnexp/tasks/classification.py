"""Classification of events and images: TET loss or cross entropy, top-1 and top-5 accuracy."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import DataSet, Task
from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32


class Classification(Task):
    """Classify from the outputs of all T steps; the prediction is the class with the largest time mean.

    loss "tet": (1 - lamb) * mean_t CE(o_t, y) + lamb * mean((o - means)^2), o [T, N, K] (Deng et al., ICLR 2022).
    loss "ce": CE(mean_t o_t, y). Everything is computed in fp32 whatever the model's precision. With `label_smoothing` e, every class gets
    e / K of the target. A batch may be (x, y, other, share): each sample is a mix of class y, with weight `share`, and class `other`, with
    1 - share. Its loss is that of the soft target share * y + (1 - share) * other; accuracy counts by y, the class of the larger share.
    Raises: UserError for an unknown loss, and for numbers out of range.
    """

    monitor = "Acc1"
    modes = {"Acc1": "max", "Acc5": "max", "Loss": "min"}

    def __init__(self, loss: str = "tet", means: float = 1.0, lamb: float = 1e-4, label_smoothing: float = 0.0) -> None:
        if loss not in ("tet", "ce"):
            raise UserError(f"task.loss: {loss!r} is not known; allowed: tet, ce.")
        if not 0.0 <= lamb <= 1.0:
            raise UserError(f"task.lamb: {lamb} is not allowed; the weight of the regularisation lies between 0 and 1.")
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing: {label_smoothing} is not allowed; it lies in [0, 1).")
        self.kind, self.means, self.lamb, self.label_smoothing = loss, float(means), float(lamb), float(label_smoothing)

    def outputs(self, data: DataSet) -> int:
        """Return the number of outputs that the classes of the data need."""
        if not data.classes:
            raise UserError(f"task=classification: {data.name} has no classes; use the task that its data set file names.")
        return len(data.classes)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...], step: int) -> tuple[Tensor, Tensor]:
        """Return the loss, a fp32 scalar (mean over the batch), and the outputs [T, N, K]."""
        x, y, *mixed = batch
        output = model(x)
        losses = self._per_sample(output, y)
        if mixed:  # cross entropy is linear in its target
            other, share = mixed
            losses = share * losses + (1 - share) * self._per_sample(output, other)
        return losses.mean(), output

    def _per_sample(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample, [N] fp32."""
        with torch.autocast(output.device.type, enabled=False):
            o = at_least_fp32(output)
            if self.kind == "ce":
                return F.cross_entropy(o.mean(0), y, reduction="none", label_smoothing=self.label_smoothing)
            T, N = o.shape[:2]
            losses = F.cross_entropy(o.flatten(0, 1), y.repeat(T), reduction="none", label_smoothing=self.label_smoothing).view(T, N)
            return (1 - self.lamb) * losses.mean(0) + self.lamb * (o - self.means).square().mean((0, 2))

    @torch.no_grad()
    def counts(self, loss: Tensor, output: Tensor, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return float64 sums over the batch on its device: the samples "n", "Loss", and correct answers among the first 1 and 5."""
        y = batch[1]
        top = output.float().mean(0).topk(min(5, output.shape[-1]), dim=-1).indices
        correct = top == y[:, None]
        n = torch.full((), len(y), dtype=torch.float64, device=y.device)
        return {
            "n": n,
            "Loss": loss.detach().double() * n,
            "Acc1": correct[:, 0].sum(dtype=torch.float64),
            "Acc5": correct.sum(dtype=torch.float64),
        }

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return mean loss and accuracies in percent from summed `counts`."""
        n = counts["n"]
        return {"Loss": counts["Loss"] / n, "Acc1": 100 * counts["Acc1"] / n, "Acc5": 100 * counts["Acc5"] / n}

    @torch.no_grad()
    def predict(self, output: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return predicted and true classes, int64 [N] each."""
        return output.float().mean(0).argmax(-1), batch[1]

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Return the outputs of several batches as one, [T, N, K]."""
        return torch.cat(outputs, dim=1)
