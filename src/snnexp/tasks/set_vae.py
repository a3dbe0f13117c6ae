"""Losses of a variational autoencoder of sets, alone (pre-training) or with a head that predicts the outcome of a stay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import DataSet, Task
from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32
from snnexp.tasks.chamfer import chamfer

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays

BETA_SCHEDULES = ("linear", "cyclic", "capacity")


@dataclass
class BatchResult:
    """The results of a batch, without gradient.

    They are the reconstruction error, the raw KL and the stay [M] of each set, in training β, and for a model with a head the cross entropy
    (a mean over stays), the logits [N, 2] and the representations [N, W] of the stays.
    """

    error: Tensor
    kl: Tensor
    stay: Tensor
    beta: float | None
    cross_entropy: Tensor | None = None
    logits: Tensor | None = None
    state: Tensor | None = None

    def detach(self) -> "BatchResult":
        """Return the object itself, which holds no gradient."""
        return self


class SetVAELoss(Task):
    """Reconstruction + beta KL of sets: the negative evidence lower bound of Kingma & Welling (2014) with a weight on the KL.

    Reconstruction: half the symmetric Chamfer distance, with squared distances, between the events of a set and their reconstruction
    (`chamfer`), summed over the events and averaged over sets. Up to constants, this is a normal likelihood of variance beta.
    KL: from N(0, 1), for each latent dimension of each level, averaged over the sets of the batch; then the larger of it and `free_bits`
    nats (Kingma et al. 2016), so that a dimension below this floor feels no gradient; then the sum. The reported KL has no floor.

    Training minimises the mean over the sets of a batch; with accumulation or several devices, the mean of these means. In evaluation the
    loss is the bound itself, Recon + beta KL, without floor or capacity, so that it does not depend on how the samples are batched.

    `beta_schedule` over `beta_steps` optimizer steps: "linear": beta rises from 0 to `beta`; "cyclic": beta rises in the first half of each
    cycle of that length and stays in the second (Fu et al. 2019); "capacity": beta |KL - C|, where C rises from 0 to `capacity` nats per
    dimension (Burgess et al. 2018). In evaluation beta (and C) has its final value. Everything is computed in fp32 whatever the model's
    precision.

    `terms` holds the parts of the latest loss: Recon, KL, Beta (and CE, Weight).
    Raises: UserError for options that are not allowed.
    """

    kinds = ("stays",)
    monitor = "Loss"
    modes = {"Loss": "min", "Recon": "min", "KL": "min"}

    def __init__(
        self,
        *,
        beta: float = 0.01,
        beta_schedule: str = "linear",
        beta_steps: int = 500,
        free_bits: float = 0.0,
        capacity: float = 0.5,
    ) -> None:
        if beta_schedule not in BETA_SCHEDULES:
            raise UserError(f"task.beta_schedule: {beta_schedule!r} is not known; allowed: {', '.join(BETA_SCHEDULES)}.")
        for option, value in (("beta", beta), ("beta_steps", beta_steps), ("free_bits", free_bits), ("capacity", capacity)):
            if not value >= 0:
                raise UserError(f"task.{option}={value}: must be at least 0.")
        self.beta, self.beta_schedule, self.beta_steps = beta, beta_schedule, beta_steps
        self.free_bits, self.capacity = free_bits, capacity
        self.terms: dict[str, Any] = {}

    def outputs(self, data: DataSet) -> int | None:
        """Return None, because a set autoencoder has no outputs besides the sets.

        Raises: UserError for data that are not stays.
        """
        raise_if_not_stays(data, "set_vae")
        return None

    def loss(self, model: nn.Module, batch: tuple["Stays", Tensor], step: int) -> tuple[Tensor, BatchResult]:
        """Return the loss, a fp32 scalar, and the results of the batch; `step` is the number of optimizer steps done before."""
        stays, _ = batch
        output = model(stays)
        return self.bound(output, stays, step if torch.is_grad_enabled() else None)

    def bound(self, output: Any, stays: "Stays", step: int | None) -> tuple[Tensor, BatchResult]:
        """Return the negative evidence lower bound at a step (None: at the end of the schedule), and the results of the batch."""
        with torch.autocast(output.mu.device.type, enabled=False):
            decoded, sets = map(at_least_fp32, output.decoded), getattr(output, "sets", None) or stays  # a user's output may lack it
            errors = torch.stack([chamfer(events, output.target, sets) for events in decoded]).mean(0)
            mu, logvar = output.mu, output.logvar
            kl = 0.5 * (logvar.exp() + mu.square() - 1 - logvar)  # [L, M, D]
            rise = self.rise(step)
            beta = self.beta if self.beta_schedule == "capacity" else self.beta * rise
            reconstruction, floored = errors.mean(), kl.mean(1).clamp(min=self.free_bits).sum()
            if self.beta_schedule == "capacity":
                floored = (floored - self.capacity * rise * kl.shape[0] * kl.shape[2]).abs()
            result = BatchResult(errors.detach(), kl.detach().sum((0, 2)), stays.stay, None if step is None else beta)
            self.terms = {"Recon": reconstruction.detach(), "KL": result.kl.mean(), "Beta": beta}
            return reconstruction + beta * floored, result

    def rise(self, step: int | None) -> float:
        """Return how far the schedule has risen at a step, 0 to 1 (None: 1)."""
        if step is None or self.beta_steps == 0:
            return 1.0
        done = step / self.beta_steps
        return min(1.0, 2 * (done % 1)) if self.beta_schedule == "cyclic" else min(1.0, done)

    @torch.no_grad()
    def counts(self, loss: Tensor, output: BatchResult, batch: tuple["Stays", Tensor]) -> dict[str, Tensor]:
        """Return float64 sums over the batch on its device: stays "n", "sets", their "Recon" and "KL", in training "Loss" and "Beta"."""
        device = output.error.device

        def scalar(value: float) -> Tensor:
            return torch.full((), value, dtype=torch.float64, device=device)

        n = scalar(len(batch[1]))
        return {
            "n": n,
            **({} if output.beta is None else {"Loss": loss.double() * n, "Beta": output.beta * n}),
            "sets": scalar(len(output.error)),
            "Recon": output.error.sum(dtype=torch.float64),
            "KL": output.kl.sum(dtype=torch.float64),
        }

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return the loss, β if training, and the means of reconstruction error and raw KL over sets, from summed `counts`."""
        by_stays = {name: counts[name] / counts["n"] for name in ("Loss", "Beta") if name in counts}
        by_sets = {name: counts[name] / counts["sets"] for name in ("Recon", "KL")}
        return {"Loss": by_sets["Recon"] + self.beta * by_sets["KL"]} | by_stays | by_sets

    @torch.no_grad()
    def predict(self, output: BatchResult, batch: tuple["Stays", Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean reconstruction error of the sets of each stay, fp32 [N], and the stays' outcomes, int64 [N]."""
        stays, y = batch
        total = output.error.new_zeros(len(y)).index_add(0, stays.stay, output.error)
        return total / stays.lengths, y

    def joined(self, outputs: list[BatchResult]) -> BatchResult:
        """Return the results of several batches as one; stays are numbered on, and the cross entropy is the mean over all stays."""
        counts = [int(output.stay.max()) + 1 for output in outputs]  # every stay has a set
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        stay = torch.cat([output.stay + first for output, first in zip(outputs, firsts, strict=True)])
        of_sets = torch.cat([output.error for output in outputs]), torch.cat([output.kl for output in outputs]), stay
        if outputs[0].logits is None:
            return BatchResult(*of_sets, outputs[0].beta)
        mean = sum(output.cross_entropy * count for output, count in zip(outputs, counts, strict=True)) / sum(counts)
        logits, states = torch.cat([output.logits for output in outputs]), torch.cat([output.state for output in outputs])
        return BatchResult(*of_sets, outputs[0].beta, mean, logits, states)


class StayOutcome(SetVAELoss):
    """The loss of a set VAE + `weight` times the cross entropy of the outcome of the stays.

    If a model has several heads, each learns by itself: the training loss has the sum of their cross entropies. The reported CE is that of
    the prediction that the model makes from all heads.
    `positive_weight` is the weight of stays with the outcome: a number, "balanced" (survivors / deaths in the training split) or None (1).
    """

    monitor = "AUROC"
    modes = {"AUROC": "max", "AUPRC": "max", "Acc1": "max", "Loss": "min", "CE": "min", "Recon": "min", "KL": "min"}

    def __init__(
        self,
        *,
        weight: float = 3.0,
        positive_weight: float | str | None = None,
        beta: float = 0.01,
        beta_schedule: str = "linear",
        beta_steps: int = 500,
        free_bits: float = 0.0,
        capacity: float = 0.5,
    ) -> None:
        super().__init__(beta=beta, beta_schedule=beta_schedule, beta_steps=beta_steps, free_bits=free_bits, capacity=capacity)
        if not weight >= 0:
            raise UserError(f"task.weight={weight}: must be at least 0.")
        if isinstance(positive_weight, str) and positive_weight != "balanced":
            raise UserError(f'task.positive_weight={positive_weight!r}: allowed are a number above 0, "balanced" and null.')
        if isinstance(positive_weight, float | int) and not positive_weight > 0:
            raise UserError(f"task.positive_weight={positive_weight}: must be greater than 0.")
        self.weight, self.positive_weight = weight, positive_weight
        self.class_weights = [1.0, 1.0 if positive_weight is None or isinstance(positive_weight, str) else float(positive_weight)]

    def outputs(self, data: DataSet) -> int:
        """Return 2 (without and with the outcome), and take the weight of "balanced" from the data.

        Raises: UserError for data that are not stays.
        """
        raise_if_not_stays(data, "stay_outcome")
        if self.positive_weight == "balanced" and 0 < data.positive < 1:
            self.class_weights[1] = (1 - data.positive) / data.positive
        return 2

    def loss(self, model: nn.Module, batch: tuple["Stays", Tensor], step: int) -> tuple[Tensor, BatchResult]:
        """Return the loss, a fp32 scalar, and the results of the batch; `step` is the number of optimizer steps done before."""
        stays, y = batch
        output = model(stays)
        bound, result = self.bound(output, stays, step if torch.is_grad_enabled() else None)
        prediction = at_least_fp32(output.logits)
        without, with_outcome = self.class_weights
        weights = torch.full(y.shape, without, device=y.device).masked_fill(y == 1, with_outcome)  # made there, not copied

        def cross_entropy(logits: Tensor) -> Tensor:
            return (F.cross_entropy(at_least_fp32(logits), y, reduction="none") * weights).mean()

        total = sum(map(cross_entropy, output.heads if torch.is_grad_enabled() and output.heads else [prediction]))
        result.cross_entropy, result.logits, result.state = cross_entropy(prediction).detach(), prediction.detach(), output.state.detach()
        self.terms |= {"CE": total.detach(), "Weight": self.weight}
        return bound + self.weight * total, result

    @torch.no_grad()
    def counts(self, loss: Tensor, output: BatchResult, batch: tuple["Stays", Tensor]) -> dict[str, Tensor]:
        """Return the sums of the bound, and over stays those of the cross entropy and of correct answers at a probability of 1/2."""
        sums = super().counts(loss, output, batch)
        correct = (output.logits.argmax(1) == batch[1]).sum(dtype=torch.float64)
        return sums | {"CE": output.cross_entropy.double() * sums["n"], "Acc1": correct}

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return the means of the bound, the mean cross entropy, and accuracy in percent, from summed `counts`."""
        values, cross_entropy = super().metrics(counts), counts["CE"] / counts["n"]
        if "Loss" not in counts:
            values["Loss"] += self.weight * cross_entropy
        return values | {"CE": cross_entropy, "Acc1": 100 * counts["Acc1"] / counts["n"]}

    @torch.no_grad()
    def predict(self, output: BatchResult, batch: tuple["Stays", Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and true outcomes, int64 [N] each, and the probability of the outcome, fp32 [N]."""
        return output.logits.argmax(1), batch[1], output.logits.softmax(1)[:, 1]

    def ranking(self, true: np.ndarray, score: np.ndarray) -> dict[str, float]:
        """Return the areas under the ROC and the precision-recall curve (average precision), 0 to 1; NaN if all stays have one outcome."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        if not np.isfinite(score).all() or true.all() or not true.any():
            return {"AUROC": float("nan"), "AUPRC": float("nan")}
        return {"AUROC": float(roc_auc_score(true, score)), "AUPRC": float(average_precision_score(true, score))}


def raise_if_not_stays(data: DataSet, task: str) -> None:
    """Raise a UserError for data that are not stays of medical events."""
    if data.kind != "stays":
        raise UserError(
            f"task={task}: {data.name} are no stays of medical events; choose dataset=physionet2012, ehr_folder or synthetic_icu."
        )
