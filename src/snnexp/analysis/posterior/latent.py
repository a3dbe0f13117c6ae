"""The posterior and the representation that a variational model has given of a split: read, measured, projected."""

import math
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ACTIVE = 0.01
"""Variance over the data of a unit's posterior mean above which the unit is active (Burda et al. 2015)."""
EPSILON, DELTA = 0.01, 0.05
"""A unit is collapsed if its KL is below EPSILON nats for at least 1 - DELTA of the sets (Lucas et al. 2019)."""
SAMPLES = 2000
"""Sets from which the mutual information is estimated; the estimate cannot exceed the logarithm of their number."""
POINTS = 2500
"""Points of a projection; of more, so many chosen at random with a fixed seed."""
FEW = 20
"""Points below which UMAP has no neighbourhoods to speak of, and principal components are drawn."""


@dataclass
class Latents:
    """What a file of latents holds of M sets of N stays; `dropped` sets had numbers that are not finite.

    mu, logvar float32 [L, M, D] (levels, latent dimensions); stay int [M] the row of `y`; minute [M] since admission; size [M] events;
    error float [M] of reconstruction; y [N] 0 survived, 1 died; state float [N, W] of the stays before the head, None without one;
    `epoch` whose weights made them, None where the file does not say.
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
        """Words for whose weights made them, to follow a name; empty where that is not known."""
        return "" if self.epoch is None else f", weights of epoch {self.epoch:.4g}"


@dataclass
class Level:
    """The posterior of one level: of each dimension [D] the KL in nats, the variance over the data of its mean, its mean variance.

    `variance` is None where only the mean over dimensions, `mean_variance`, is known. `collapsed`: fraction of units after Lucas et al.
    """

    kl: np.ndarray
    spread: np.ndarray
    variance: np.ndarray | None
    mean_variance: float
    collapsed: float
    mutual_information: float | None
    limit: float | None = None  # what the estimate of the mutual information cannot exceed

    @property
    def active(self) -> np.ndarray:
        """True [D] for the active units."""
        return self.spread > ACTIVE


def read(path: Path) -> Latents:
    """The latents of a file.

    Raises: OSError; ValueError if it is damaged or not of the documented form.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile's errors have no common kind
        raise error if isinstance(error, OSError) else ValueError(str(error)) from error
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
    whole = np.isfinite(mu).all((0, 2)) & np.isfinite(logvar).all((0, 2))
    if not whole.any():
        raise ValueError("none of its posteriors is finite")
    dropped = int((~whole).sum())
    if dropped:
        mu, logvar, of_sets = mu[:, whole], logvar[:, whole], {name: array[whole] for name, array in of_sets.items()}
    known = float(epoch) if epoch is not None and np.isfinite(epoch) else None
    return Latents(path, mu, logvar, **of_sets, y=y, state=state, dropped=dropped, epoch=known)


def levels(latents: Latents) -> list[Level]:
    """The posterior of each level, measured on the sets of the file."""
    return [measure(mu, logvar) for mu, logvar in zip(latents.mu, latents.logvar, strict=True)]


def joint_information(latents: Latents) -> float | None:
    """The mutual information in nats of a set and its code of all levels together."""
    flat = [np.concatenate(list(array), axis=1) for array in (latents.mu, latents.logvar)]
    return mutual_information(*flat)[0]


def measure(mu: np.ndarray, logvar: np.ndarray) -> Level:
    """One level's posterior from the means and log variances [M, D] of M sets; the KL is raw: not floored, not weighted."""
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
    """Estimate in nats of I(set; z) = E log q(z|x) - log q(z), with q(z) the mean of the posteriors of a sample; and what bounds it.

    Hoffman and Johnson 2016; one draw of z for each set, fixed seed. None for fewer than two sets.
    """
    if len(mu) < 2:
        return None, None
    generator = np.random.default_rng(0)
    chosen = sample(len(mu), SAMPLES)
    mu, logvar = mu[chosen].astype(np.float64), np.clip(logvar[chosen].astype(np.float64), -30, 30)
    precision = np.exp(-logvar)
    z = mu + np.exp(0.5 * logvar) * generator.standard_normal(mu.shape)
    # log q(z_i | x_j) without the constant, which cancels: the square is written out so that it is products of matrices
    square = (z**2) @ precision.T - 2 * z @ (mu * precision).T + (mu**2 * precision).sum(1)
    densities = -0.5 * (square + logvar.sum(1))
    most = densities.max(1, keepdims=True)
    aggregate = most[:, 0] + np.log(np.exp(densities - most).mean(1))
    return max(0.0, float((np.diag(densities) - aggregate).mean())), math.log(len(mu))


def sample(count: int, most: int) -> np.ndarray:
    """Which of `count` are taken: all, or `most` of them at random with a fixed seed, in order."""
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).choice(count, most, replace=False))


# ---- what figures need


@dataclass
class Projection:
    """Points [P, 2] of the rows `chosen` [P], by `method`; `shares` of the variance that the two principal components explain."""

    points: np.ndarray
    chosen: np.ndarray
    method: str
    shares: list[float] = field(default_factory=list)

    def labels(self) -> tuple[str, str]:
        """Words for the two axes."""
        if self.method == "UMAP":
            return "UMAP 1 (no unit)", "UMAP 2 (no unit)"
        first, second = (f"principal component {n} ({100 * share:.1f} % of variance)" for n, share in enumerate(self.shares, 1))
        return first, second


def umap_is_there() -> bool:
    """True if the UMAP extra is installed."""
    return find_spec("umap") is not None


def project(rows: np.ndarray, with_umap: bool) -> Projection:
    """Rows [n, W] in the plane, by UMAP or on their first two principal components; rows that are not finite are left out."""
    chosen = np.flatnonzero(np.isfinite(rows).all(1))
    chosen = chosen[sample(len(chosen), POINTS)]
    taken = rows[chosen].astype(np.float64)
    if with_umap:
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one thread for the sake of the seed, and of a spectral start that did not converge
            points = UMAP(n_neighbors=min(15, len(taken) - 1), min_dist=0.1, random_state=0).fit_transform(taken)
        return Projection(np.asarray(points), chosen, "UMAP")
    centred = taken - taken.mean(0) if len(taken) else taken
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    points = np.zeros((len(taken), 2))
    width = min(2, len(sizes))
    points[:, :width] = left[:, :width] * sizes[:width]
    shares = [float(size**2) / total if total > 0 else 0.0 for size in sizes[:2]]
    return Projection(points, chosen, "PCA", [*shares, 0.0, 0.0][:2])


def correlation(mu: np.ndarray) -> np.ndarray:
    """|correlation| [D, D] of the posterior means [M, D] over the sets; NaN for a dimension whose mean never varies."""
    centred = mu - mu.mean(0, dtype=np.float64).astype(np.float32)
    size = np.sqrt((centred.astype(np.float64) ** 2).sum(0))
    flat = size <= 1e-6 * np.sqrt(len(mu)) * np.maximum(1e-6, np.abs(mu).max(0))
    scaled = centred / np.where(flat, 1.0, size)
    matrix = np.minimum(1.0, np.abs(scaled.T @ scaled))
    matrix[flat] = matrix[:, flat] = np.nan
    return matrix


def order(matrix: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, int]:
    """Dimensions [D] in an order that shows blocks, and how many of them, the first, are active.

    From the most correlated on, each is followed by the one left that it correlates with most; the active come before the others.
    """
    strength = np.nan_to_num(matrix, nan=-1.0)
    np.fill_diagonal(strength, -1.0)
    places: list[int] = []
    for group in (np.flatnonzero(active), np.flatnonzero(~active)):
        left = list(group)
        at = left[int(strength[np.ix_(group, group)].max(1).argmax())] if left else None
        while left:
            left.remove(at)
            places.append(int(at))
            if left:
                at = left[int(strength[at, left].argmax())]
    return np.array(places, dtype=int), int(active.sum())
