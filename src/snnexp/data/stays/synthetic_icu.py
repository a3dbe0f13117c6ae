"""synthetic_icu: generated stays in an intensive care unit, whose hidden severity decides what is measured and who dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source
from snnexp.data.splits import apportion, fold
from snnexp.data.stays.medical import MedicalStays
from snnexp.data.stays.stay_arrays import StayChunk, load_or_build_stays
from snnexp.errors import UserError

VERSION = 1  # of the generator; another version makes another data set
HOURS, STEPS = 48, 96
DESCRIBING = ("Age", "Gender")
#            mean   std  shift by one unit of severity (in std), chance to be measured at a time
MEASURED = {
    "HR": (85.0, 15.0, 0.8, 0.75),
    "SysABP": (120.0, 18.0, -0.7, 0.7),
    "RespRate": (19.0, 4.0, 0.7, 0.6),
    "Temp": (37.0, 0.6, 0.3, 0.35),
    "SaO2": (97.0, 1.8, -0.6, 0.45),
    "GCS": (13.0, 1.8, -0.9, 0.4),
    "Urine": (80.0, 35.0, -0.5, 0.35),
    "Lactate": (2.0, 0.7, 1.0, 0.12),
    "Creatinine": (1.1, 0.4, 0.5, 0.1),
    "WBC": (11.0, 3.5, 0.2, 0.1),
    "pH": (7.38, 0.05, -0.6, 0.12),
    "Glucose": (130.0, 35.0, 0.0, 0.2),
}
VARIABLES = (*DESCRIBING, *MEASURED)
INTERCEPT, LAST, MEAN, AGE = -2.0, 1.1, 0.9, 0.5
"""Terms of the log odds of death: a constant, then the factors of severity at the end, mean severity, age in standard deviations."""


class SyntheticICU(MedicalStays):
    """Generated stays (`stays` of them) of 48 hours with 14 variables; about a quarter of the patients die, by a known law.

    A hidden severity starts at random and walks at random in steps of half an hour. It shifts the measured values and how often they are
    measured, and with age it decides the odds of death: log odds = -2 + 1.1 * severity at the end + 0.9 * its mean + 0.5 * age
    (standardised). The protocol states the AUROC of these odds, which no model that sees only measurements can be expected to exceed.
    The stays depend on `data_seed` only. Split: `val_fraction` and `test_fraction` of all stays, stratified by outcome (`split_seed`),
    or with `cv_fold` = 0..`cv_folds` - 1 that fold of all as the test and `val_fraction` of the rest.
    The other options are those of MedicalStays.

    Raises: UserError for fewer than 10 stays.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        stays: int = 600,
        data_seed: int = 0,
        cv_folds: int = 5,
        cv_fold: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 42,
        horizon_hours: float | None = 48,
        max_sequence_length: int | None = 1000,
        clip: float = 5.0,
        embeddings: str | Path | None = None,
        strict: bool = True,
    ) -> None:
        if stays < 10:
            raise UserError(f"dataset.stays is {stays}; allowed are 10 and more.")
        root = Path(root)

        def produce(notes: Notes) -> Iterator[StayChunk]:
            yield make_stays(stays, data_seed)

        settings = {"data": "synthetic_icu", "stays": stays, "seed": data_seed}
        sources = [Source("made", stays, VERSION)]
        entry = load_or_build_stays(root, settings, sources, produce, "synthetic_icu", len(VARIABLES), stays)
        y, odds = entry.arrays["y"], entry.arrays["log_odds"]
        if cv_fold is not None:
            rows, words = fold(y, cv_fold, cv_folds, val_fraction, split_seed)
        else:
            rows, words = apportion(y, val_fraction, test_fraction, split_seed)
        auroc_by_split = {split: auroc(odds[rows[split]], y[rows[split]]) for split in ("val", "test")}
        measured_auroc = ", ".join(f"{value:.3f} on {split}" for split, value in auroc_by_split.items())
        super().__init__(
            name="synthetic_icu",
            title="synthetic_icu",
            words=f"made from data_seed {data_seed}; {words}; "
            f"Bayes AUROC (of the true odds) {measured_auroc}, {expected_auroc(odds):.3f} expected",
            directory=root,
            entry=entry,
            rows=rows,
            variables=VARIABLES,
            horizon_hours=horizon_hours,
            max_sequence_length=max_sequence_length,
            clip=clip,
            embeddings=embeddings,
            strict=strict,
        )
        self.log_odds = {split: np.array(odds[chosen]) for split, chosen in self.rows.items()}


def make_stays(stays: int, seed: int) -> StayChunk:
    """Return the stays of a seed, with their true log odds of death, float64 [N]."""
    draw = np.random.Generator(np.random.Philox(key=[seed, VERSION]))
    severity = 0.9 * draw.standard_normal((stays, 1)) + np.cumsum(0.1 * draw.standard_normal((stays, STEPS)), axis=1)  # [N, STEPS]
    age = draw.standard_normal(stays)
    log_odds = INTERCEPT + LAST * severity[:, -1] + MEAN * severity.mean(axis=1) + AGE * age
    y = (draw.random(stays) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)

    # The more severe, the more often values are measured: 15 to 30 times in 48 hours, at random minutes.
    times = np.clip(np.round(21 + 3 * severity.mean(axis=1) + draw.standard_normal(stays)), 15, 30).astype(np.int64)
    half_hours = np.argsort(draw.random((stays, STEPS)), axis=1)[:, : times.max()]
    half_hours = np.sort(np.where(np.arange(times.max()) < times[:, None], half_hours, STEPS), axis=1)  # [N, 30], STEPS where there is none
    minutes = 30 * half_hours + 1 + draw.integers(0, 29, half_hours.shape)
    current = np.take_along_axis(severity, np.minimum(half_hours, STEPS - 1), axis=1)

    mean, std, shift, chance = np.array(list(MEASURED.values())).T
    values = mean + std * (shift * current[..., None] + draw.standard_normal((*current.shape, len(mean))))  # [N, 30, V]
    lowest = np.zeros(len(mean))
    lowest[list(MEASURED).index("GCS")] = 3
    values = np.maximum(values, lowest)
    for name, highest in (("SaO2", 100), ("GCS", 15)):
        values[..., list(MEASURED).index(name)] = np.minimum(values[..., list(MEASURED).index(name)], highest)
    is_measured = draw.random(values.shape) < chance * np.clip(1 + 0.15 * current, 0.5, 1.3)[..., None]
    is_measured &= (half_hours < STEPS)[..., None]
    stay, place, variable = np.nonzero(is_measured)

    describing = np.column_stack([np.clip(np.round(63 + 16 * age), 15, 90), draw.integers(0, 2, stays)])
    owner = np.append(np.repeat(np.arange(stays), 2), stay)
    minute = np.append(np.zeros(2 * stays, dtype=np.int64), minutes[stay, place])
    variable_number = np.append(np.tile([0, 1], stays), variable + len(DESCRIBING))
    value = np.append(describing.ravel(), values[is_measured])
    order = np.lexsort((variable_number, minute, owner))
    return StayChunk(
        counts=np.bincount(owner, minlength=stays),
        describing=np.full(stays, len(DESCRIBING)),
        variable=variable_number[order],
        value=value[order],
        minute=minute[order],
        group=minute[order],
        y=y,
        ids=[str(k) for k in range(stays)],
        more={"log_odds": log_odds},
    )


def auroc(score: np.ndarray, y: np.ndarray) -> float:
    """Return the probability that a patient who died has a higher score than one who survived; nan if all outcomes are equal."""
    died, survived = score[y == 1], np.sort(score[y == 0])
    if not len(died) or not len(survived):
        return float("nan")
    below = np.searchsorted(survived, died, side="left") + np.searchsorted(survived, died, side="right")
    return float(below.mean() / 2 / len(survived))


def expected_auroc(log_odds: np.ndarray) -> float:
    """Return the AUROC of true odds over all possible outcomes: each pair weighted by the probability that one dies and one survives."""
    order = np.argsort(log_odds)
    p = 1 / (1 + np.exp(-log_odds[order]))
    survivors = np.cumsum(1 - p) - (1 - p)  # expected number with lower odds than each patient
    total = p.sum() * (1 - p).sum() - (p * (1 - p)).sum()  # without pairs of a patient with himself
    return float((p * survivors).sum() / total)
