"""The posterior and the representation of a split by a variational model: reading, measuring and projecting them."""

import math
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from snnexp.analysis.reading import read_arrays

ACTIVE = 0.01
"""Variance over the data of a unit's posterior mean above which the unit is active (Burda et al. 2015)."""
EPSILON, DELTA = 0.01, 0.05
"""A unit is collapsed if its KL is below EPSILON nats for at least 1 - DELTA of the sets (Lucas et al. 2019)."""
SAMPLES = 2000
"""The most sets for the estimate of the mutual information, which cannot exceed the logarithm of their number."""
POINTS = 2500
"""The most points of a projection; of more, this many are chosen at random with a fixed seed."""
UMAP_MIN_POINTS = 20
"""The fewest points for UMAP; with fewer, which have no useful neighbourhoods, principal components are drawn."""


@dataclass
class Latents:
    """The content of a file of latents of M sets of N stays, without `dropped` sets, whose values are not finite.

    mu, logvar float32 [L, M, D] (levels, latent dimensions); stay int [M]: the row of `y`; minute [M] since admission; size [M] in events;
    error float [M] of reconstruction; y [N]: 0 survived, 1 died; state float [N, W]: of the stays before the head, None without a head;
    epoch: of the weights that made them, None if unknown.
    """

    path: Path
    mu: np.ndarray
    logvar: np.ndarray
    stay: np.ndarray
    minute: np.ndarray
    size: np.ndarray
    error: np.ndarray
    y: np.ndarray
    state: np.ndarray | None = None
    dropped: int = 0
    epoch: float | None = None

    @property
    def weights(self) -> str:
        """The epoch of the weights as text to follow a name; empty if unknown."""
        return "" if self.epoch is None else f", weights of epoch {self.epoch:.4g}"


@dataclass
class Level:
    """The posterior of one level, by dimension [D]: `kl` in nats, `spread`: variance over the data of the mean, `variance`: mean variance.

    `variance` is None if only its mean over dimensions, `mean_variance`, is known. `collapsed`: the fraction of collapsed units (Lucas et
    al.).
    """

    kl: np.ndarray
    spread: np.ndarray
    variance: np.ndarray | None
    mean_variance: float
    collapsed: float
    mutual_information: float | None
    limit: float | None = None  # upper limit of the estimate of the mutual information

    @property
    def active(self) -> np.ndarray:
        """Whether each unit is active, bool [D]."""
        return self.spread > ACTIVE


def read(path: Path) -> Latents:
    """Read a file of latents.

    Raises: OSError; ValueError if it is damaged or not of the documented form.
    """
    arrays = read_arrays(path)
    missing = [name for name in ("mu", "logvar", "stay", "minute", "size", "error", "y") if name not in arrays]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    mu, logvar, y, state = arrays["mu"], arrays["logvar"], arrays["y"], arrays.get("state")
    if mu.ndim != 3 or mu.shape != logvar.shape or not mu.size:
        raise ValueError(f"mu {list(mu.shape)} and logvar {list(logvar.shape)} are not [levels, sets, dimensions]")
    of_sets = {name: arrays[name] for name in ("stay", "minute", "size", "error")}
    if any(array.shape != mu.shape[1:2] or array.dtype.kind not in "fiu" for array in of_sets.values()):
        raise ValueError(f"stay, minute, size and error are not numbers of {mu.shape[1]} sets each")
    if of_sets["stay"].dtype.kind not in "iu" or of_sets["stay"].min() < 0 or of_sets["stay"].max() >= len(y) or y.ndim != 1:
        raise ValueError(f"stay names others than the {len(y)} stays of y")
    if state is not None and (state.ndim != 2 or len(state) != len(y)):
        raise ValueError(f"state {list(state.shape)} is not [stays, width]")
    epoch = arrays.get("epoch")
    if epoch is not None and (epoch.shape != () or epoch.dtype.kind not in "fiu"):
        raise ValueError(f"epoch {list(epoch.shape)} is not one number")
    is_finite = np.isfinite(mu).all((0, 2)) & np.isfinite(logvar).all((0, 2))
    if not is_finite.any():
        raise ValueError("none of its posteriors is finite")
    dropped = int((~is_finite).sum())
    if dropped:
        mu, logvar, of_sets = mu[:, is_finite], logvar[:, is_finite], {name: array[is_finite] for name, array in of_sets.items()}
    finite_epoch = float(epoch) if epoch is not None and np.isfinite(epoch) else None
    return Latents(path, mu, logvar, **of_sets, y=y, state=state, dropped=dropped, epoch=finite_epoch)


def measure_levels(latents: Latents) -> list[Level]:
    """Measure the posterior of each level on the sets of a file."""
    return [measure_level(mu, logvar) for mu, logvar in zip(latents.mu, latents.logvar, strict=True)]


def joint_information(latents: Latents) -> float | None:
    """Estimate the mutual information in nats of a set and its code of all levels together."""
    flat = [np.concatenate(list(array), axis=1) for array in (latents.mu, latents.logvar)]
    return mutual_information(*flat)[0]


def measure_level(mu: np.ndarray, logvar: np.ndarray) -> Level:
    """Measure the posterior of one level from means and log variances [M, D] of M sets; the KL is raw: not floored, not weighted."""
    variance = np.exp(logvar.astype(np.float32))
    kl = 0.5 * (variance + mu**2 - 1 - logvar)
    near = (kl < EPSILON).mean(0)
    mutual, limit = mutual_information(mu, logvar)
    return Level(
        kl=kl.mean(0, dtype=np.float64),
        spread=mu.var(0, dtype=np.float64),
        variance=variance.mean(0, dtype=np.float64),
        mean_variance=float(variance.mean(dtype=np.float64)),
        collapsed=float((near >= 1 - DELTA - 1e-9).mean()),
        mutual_information=mutual,
        limit=limit,
    )


def mutual_information(mu: np.ndarray, logvar: np.ndarray) -> tuple[float | None, float | None]:
    """Estimate I(set; z) = E log q(z|x) - log q(z) in nats, with q(z) the mean of the posteriors of a sample; also return its upper limit.

    Hoffman and Johnson 2016; one draw of z for each set, with a fixed seed. None for fewer than two sets.
    """
    if len(mu) < 2:
        return None, None
    generator = np.random.default_rng(0)
    chosen = sample_indices(len(mu), SAMPLES)
    mu, logvar = mu[chosen].astype(np.float64), np.clip(logvar[chosen].astype(np.float64), -30, 30)
    precision = np.exp(-logvar)
    z = mu + np.exp(0.5 * logvar) * generator.standard_normal(mu.shape)
    # log q(z_i | x_j) without the constant, which cancels; the square is expanded into matrix products
    square = (z**2) @ precision.T - 2 * z @ (mu * precision).T + (mu**2 * precision).sum(1)
    densities = -0.5 * (square + logvar.sum(1))
    most = densities.max(1, keepdims=True)
    aggregate = most[:, 0] + np.log(np.exp(densities - most).mean(1))
    return max(0.0, float((np.diag(densities) - aggregate).mean())), math.log(len(mu))


def sample_indices(count: int, most: int) -> np.ndarray:
    """Return the indices of all of `count` items, or of `most` of them at random with a fixed seed, in order."""
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).choice(count, most, replace=False))


# ---- for the figures


@dataclass
class Projection:
    """Points [P, 2] of the rows `chosen` [P] by `method`; `shares`: of the variance, explained by the two principal components."""

    points: np.ndarray
    chosen: np.ndarray
    method: str
    shares: list[float] = field(default_factory=list)

    def labels(self) -> tuple[str, str]:
        """Return the labels of the two axes."""
        if self.method == "UMAP":
            return "UMAP 1 (no unit)", "UMAP 2 (no unit)"
        first, second = (f"principal component {n} ({100 * share:.1f} % of variance)" for n, share in enumerate(self.shares, 1))
        return first, second


def umap_is_installed() -> bool:
    """Return whether the optional package UMAP is installed."""
    return find_spec("umap") is not None


def project(rows: np.ndarray, with_umap: bool) -> Projection:
    """Project rows [n, W] to the plane, by UMAP or on their first two principal components; rows that are not finite are left out."""
    chosen = np.flatnonzero(np.isfinite(rows).all(1))
    chosen = chosen[sample_indices(len(chosen), POINTS)]
    selected = rows[chosen].astype(np.float64)
    if with_umap:
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about one thread because of the seed, and a spectral start that did not converge
            points = UMAP(n_neighbors=min(15, len(selected) - 1), min_dist=0.1, random_state=0).fit_transform(selected)
        return Projection(np.asarray(points), chosen, "UMAP")
    centred = selected - selected.mean(0) if len(selected) else selected
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    points = np.zeros((len(selected), 2))
    width = min(2, len(sizes))
    points[:, :width] = left[:, :width] * sizes[:width]
    shares = [float(size**2) / total if total > 0 else 0.0 for size in sizes[:2]]
    return Projection(points, chosen, "PCA", [*shares, 0.0, 0.0][:2])


def correlation(mu: np.ndarray) -> np.ndarray:
    """Return |correlation| [D, D] of posterior means [M, D] over the sets; NaN for a dimension whose mean never varies."""
    centred = mu - mu.mean(0, dtype=np.float64).astype(np.float32)
    size = np.sqrt((centred.astype(np.float64) ** 2).sum(0))
    flat = size <= 1e-6 * np.sqrt(len(mu)) * np.maximum(1e-6, np.abs(mu).max(0))
    scaled = centred / np.where(flat, 1.0, size)
    matrix = np.minimum(1.0, np.abs(scaled.T @ scaled))
    matrix[flat] = matrix[:, flat] = np.nan
    return matrix


def order_dimensions(matrix: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, int]:
    """Return dimensions [D] in an order that shows blocks, the active ones first, and the number of active ones.

    Starting with the most correlated dimension, each is followed by the remaining one with which it correlates most.
    """
    strength = np.nan_to_num(matrix, nan=-1.0)
    np.fill_diagonal(strength, -1.0)
    ordered: list[int] = []
    for group in (np.flatnonzero(active), np.flatnonzero(~active)):
        remaining = list(group)
        current = remaining[int(strength[np.ix_(group, group)].max(1).argmax())] if remaining else None
        while remaining:
            remaining.remove(current)
            ordered.append(int(current))
            if remaining:
                current = remaining[int(strength[current, remaining].argmax())]
    return np.array(ordered, dtype=int), int(active.sum())
