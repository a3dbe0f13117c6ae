"""How much information a Gaussian posterior N(mu, exp(logvar)) has about the data: KL of units, active units, collapse, mutual information.

Everywhere mu and logvar are [L, M, D] (levels, sets or other samples, latent units), the prior is N(0, 1), and information is in nats.
"""

import math
from typing import Any

import torch
from torch import Tensor

STATISTICS = ("kl", "mean", "square", "variance", "near", "wide")
"""What `sums` adds up: KL, mu, mu^2, exp(logvar), samples with KL < epsilon, samples with exp(logvar) > LEGACY_ACTIVE."""

LEGACY_ACTIVE, LEGACY_COLLAPSE = 0.01, 0.1
"""Thresholds of the posterior variance in the two inverted statistics that `legacy_statistics` gives for comparison."""

MI_SAMPLES = 512
"""Samples in the estimate of the mutual information, which is therefore at most log 512 = 6.2 nats."""


def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp(logvar)) || N(0, 1)) of each unit and sample, raw: no floor, no weight."""
    return mu.square().add_(logvar.exp()).sub_(logvar).sub_(1).mul_(0.5)


def sums(mu: Tensor, logvar: Tensor, epsilon: float) -> Tensor:
    """Return sums over the samples, fp64 [6, L, D] in the order of STATISTICS, without waiting for the device.

    The sums have the precision of mu: fp32 for a running window (relative error about 1e-7 per forward pass), fp64 for held-out data.
    """
    wide = torch.empty_like(logvar)
    torch.gt(logvar, math.log(LEGACY_ACTIVE), out=wide)  # a float 0 or 1: sums of floats are ten times as fast as sums of truth values
    square, variance = mu.square(), logvar.exp()
    added = [mu.sum(1), square.sum(1), variance.sum(1)]
    kl = square.add_(variance).sub_(logvar).sub_(1).mul_(0.5)
    added.insert(0, kl.sum(1))
    return torch.stack([*added, kl.lt_(epsilon).sum(1), wide.sum(1)]).double()


def sum_within_forwards(total: Tensor, sets: Tensor) -> Tensor:
    """Add up the sums [F, 6, L, D] of F forward passes of `sets` [F] samples, as if mu had mean 0 in each forward: [6, L, D].

    The weights change between the forwards of a training, and a mean that moves with them but is the same for all data carries no
    information. So the variance of mu is that within forwards, divided by the remaining degrees of freedom (samples minus forwards); if
    each forward has only one sample there are none left, and the sums stay as they are.
    """
    added, free = total.sum(0), sets.sum() - (sets > 0).sum()
    if free <= 0:
        return added
    _, mean, square, *_ = total.unbind(1)
    spread = (square - mean.square() / sets.clamp(min=1).view(-1, 1, 1)).clamp(min=0).sum(0)
    added[1], added[2] = 0, spread * (sets.sum() / free)
    return added


def summary(
    total: Tensor,
    sets: int,
    *,
    active_threshold: float,
    delta: float,
    reconstruction: float | None = None,
    information: tuple[float, list[float]] | None = None,
) -> dict[str, Any]:
    """Return the statistics of the sums of `sets` samples as plain numbers: over all levels, and for each.

    A unit is active if the variance over the data of its posterior mean exceeds `active_threshold` (Burda, Grosse, Salakhutdinov 2015; the
    variance of these samples, divided by their number). It is (epsilon, delta)-collapsed if its KL is below epsilon for at least 1 - delta
    of the samples (Lucas et al. 2019). `information` is the result of `mutual_information`.
    """
    kl, mean, square, variance, near, _ = (total.cpu() / sets).unbind(0)
    kl = kl.clamp(min=0)  # rounding can leave -1e-8
    spread = (square - mean.square()).clamp(min=0)
    active = (spread > active_threshold).double()
    collapsed = (near >= 1 - delta - 1e-9).double()  # 0.95 of 100 samples is 95 of them, however 1 - 0.05 is rounded
    joint, each = information or (None, [None] * len(kl))
    levels = [
        {
            "kl": kl[level].sum().item(),
            "active_units": active[level].mean().item(),
            "collapsed_units": collapsed[level].mean().item(),
            "mutual_information": each[level],
            "variance": variance[level].mean().item(),
            "kl_per_dim": kl[level].tolist(),
            "mean_variance_per_dim": spread[level].tolist(),
        }
        for level in range(len(kl))
    ]
    return {
        "sets": sets,
        "kl": kl.sum().item(),
        "reconstruction": reconstruction,
        "active_units": active.mean().item(),
        "collapsed_units": collapsed.mean().item(),
        "mutual_information": joint,
        "variance": variance.mean().item(),
        "levels": levels,
    }


def legacy_statistics(total: Tensor, sets: int) -> dict[str, Any]:
    """Return the two statistics of an earlier monitor, which point the wrong way: a collapsed posterior is the prior, whose variance is 1.

    So a collapsed posterior has all of its units "active" (variance > 0.01) and raises no alarm (mean variance < 0.1), while an informative
    posterior, which has a small variance, raises it.
    """
    _, _, _, variance, _, wide = (total.cpu() / sets).unbind(0)
    mean = variance.mean().item()
    return {
        "legacy_active_units": wide.mean().item(),
        "legacy_variance_below": mean < LEGACY_COLLAPSE,
        "legacy_mean_variance": mean,
    }


def mutual_information(mu: Tensor, logvar: Tensor, seed: int = 0) -> tuple[float, list[float]]:
    """Estimate I(x; z) in nats from these samples: return that of all levels together, and that of each level.

    I = E_x KL(q(z|x) || p) - KL(q(z) || p) (Hoffman & Johnson 2016), both terms by one draw z_i ~ q(z|x_i) for each sample, with
    q(z) ~ mean_j q(z|x_j) over the M samples (as Dieng et al. 2019): mean_i [log q(z_i|x_i) - log mean_j q(z_i|x_j)]; log p cancels.
    Its expectation is a lower bound of I, and it is at most log M (Poole et al. 2019): near 0 its bias is negligible, and a value near
    log M means "at least this". The draws come from a generator with a fixed seed, so that two estimates differ only by the posterior.
    The cost is 2 M^2 L D multiplications in fp64.
    """
    mu, logvar = mu.double(), logvar.double()
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(mu.device)
    z = mu + noise * (0.5 * logvar).exp()
    precision = (-logvar).exp()
    # log q(z_i|x_j) without the constant log(2 pi), which is the same for all i and j; the square is expanded to avoid an array [M, M, D].
    constant = (mu.square() * precision + logvar).sum(2)
    density = torch.baddbmm(constant.unsqueeze(1), z.square(), precision.transpose(1, 2))
    density = -0.5 * density.baddbmm_(z, (mu * precision).transpose(1, 2), alpha=-2)  # [L, i, j]
    joint_and_each = torch.cat([density.sum(0, keepdim=True), density])
    matching = joint_and_each.diagonal(dim1=1, dim2=2)  # log q(z_i|x_i)
    values = (matching - joint_and_each.logsumexp(2)).mean(1) + math.log(mu.shape[1])
    joint, *each = values.tolist()
    return joint, each


class Sample:
    """A random choice of at most `size` samples of a stream, the same for the same stream; it needs memory for `size` samples.

    Each sample draws a number from a generator with a fixed seed, and the samples with the lowest numbers are chosen.
    """

    def __init__(self, size: int = MI_SAMPLES, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._numbers = torch.empty(0, dtype=torch.float64)
        self._chosen: tuple[Tensor, ...] | None = None

    def add(self, *tensors: Tensor) -> None:
        """Add M samples: tensors [L, M, D] whose samples belong together."""
        drawn = torch.rand(tensors[0].shape[1], generator=self._generator, dtype=torch.float64)
        numbers = torch.cat([self._numbers, drawn])
        chosen = numbers.argsort()[: self.size]
        self._numbers = numbers[chosen]
        if self._chosen is not None:
            tensors = tuple(torch.cat(pair, dim=1) for pair in zip(self._chosen, tensors, strict=True))
        index = chosen.to(tensors[0].device)
        self._chosen = tuple(tensor.index_select(1, index) for tensor in tensors)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the chosen samples, [L, min(M, size), D] each.

        Raises: ValueError if no sample was added.
        """
        if self._chosen is None:
            raise ValueError("no sample has passed")
        return self._chosen
