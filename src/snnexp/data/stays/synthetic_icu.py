"""synthetic_icu: made stays in an intensive care unit, whose hidden severity decides what is measured and who dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source
from snnexp.data.splits import apportion, fold
from snnexp.data.stays.medical import MedicalStays
from snnexp.data.stays.stay_arrays import Block, prepared_stays
from snnexp.errors import UserError

VERSION = 1  # of the making; another one is another data set
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
"""Of the logarithm of the odds of death: severity at the end, mean severity, age in standard deviations."""


class SyntheticICU(MedicalStays):
    """`stays` made stays of 48 hours with 14 variables; about a quarter dies, by a law that is known.

    A hidden severity starts at random and walks at random, half an hour at a time. It shifts what is measured, how often, and decides the
    odds of death with age: log odds = -2 + 1.1 * severity at the end + 0.9 * its mean + 0.5 * age (standardised). The AUROC of these odds
    themselves, which nothing that sees only measurements can be expected to exceed, is said in the protocol. The stays follow from
    `data_seed`. Split: `val_fraction` and `test_fraction` of all, stratified by outcome (`split_seed`), or with `cv_fold` =
    0..`cv_folds` - 1 that fold of all as the test and `val_fraction` of the rest.
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

        def produce(notes: Notes) -> Iterator[Block]:
            yield made(stays, data_seed)

        settings = {"data": "synthetic_icu", "stays": stays, "seed": data_seed}
        sources = [Source("made", stays, VERSION)]
        entry = prepared_stays(root, settings, sources, produce, "synthetic_icu", len(VARIABLES), stays)
        y, odds = entry.arrays["y"], entry.arrays["log_odds"]
        if cv_fold is not None:
            rows, words = fold(y, cv_fold, cv_folds, val_fraction, split_seed)
        else:
            rows, words = apportion(y, val_fraction, test_fraction, split_seed)
        best = {split: auroc(odds[rows[split]], y[rows[split]]) for split in ("val", "test")}
        said = ", ".join(f"{value:.3f} on {split}" for split, value in best.items())
        super().__init__(
            name="synthetic_icu",
            title="synthetic_icu",
            words=f"made from data_seed {data_seed}; {words}; Bayes AUROC (of the true odds) {said}, {expected_auroc(odds):.3f} expected",
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


def made(stays: int, seed: int) -> Block:
    """The stays that follow from a seed, with the true log odds of death float64 [N] beside them."""
    draw = np.random.Generator(np.random.Philox(key=[seed, VERSION]))
    severity = 0.9 * draw.standard_normal((stays, 1)) + np.cumsum(0.1 * draw.standard_normal((stays, STEPS)), axis=1)  # [N, STEPS]
    age = draw.standard_normal(stays)
    log_odds = INTERCEPT + LAST * severity[:, -1] + MEAN * severity.mean(axis=1) + AGE * age
    y = (draw.random(stays) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)

    # The sicker, the more often somebody looks: 15 to 30 times in 48 hours, at minutes of their own.
    times = np.clip(np.round(21 + 3 * severity.mean(axis=1) + draw.standard_normal(stays)), 15, 30).astype(np.int64)
    half_hours = np.argsort(draw.random((stays, STEPS)), axis=1)[:, : times.max()]
    half_hours = np.sort(np.where(np.arange(times.max()) < times[:, None], half_hours, STEPS), axis=1)  # [N, 30], STEPS where there is none
    minutes = 30 * half_hours + 1 + draw.integers(0, 29, half_hours.shape)
    now = np.take_along_axis(severity, np.minimum(half_hours, STEPS - 1), axis=1)

    mean, std, shift, chance = np.array(list(MEASURED.values())).T
    values = mean + std * (shift * now[..., None] + draw.standard_normal((*now.shape, len(mean))))  # [N, 30, V]
    lowest = np.zeros(len(mean))
    lowest[list(MEASURED).index("GCS")] = 3
    values = np.maximum(values, lowest)
    for name, highest in (("SaO2", 100), ("GCS", 15)):
        values[..., list(MEASURED).index(name)] = np.minimum(values[..., list(MEASURED).index(name)], highest)
    taken = draw.random(values.shape) < chance * np.clip(1 + 0.15 * now, 0.5, 1.3)[..., None]
    taken &= (half_hours < STEPS)[..., None]
    stay, place, variable = np.nonzero(taken)

    describing = np.column_stack([np.clip(np.round(63 + 16 * age), 15, 90), draw.integers(0, 2, stays)])
    owner = np.append(np.repeat(np.arange(stays), 2), stay)
    minute = np.append(np.zeros(2 * stays, dtype=np.int64), minutes[stay, place])
    number = np.append(np.tile([0, 1], stays), variable + len(DESCRIBING))
    value = np.append(describing.ravel(), values[taken])
    order = np.lexsort((number, minute, owner))
    return Block(
        counts=np.bincount(owner, minlength=stays),
        describing=np.full(stays, len(DESCRIBING)),
        variable=number[order],
        value=value[order],
        minute=minute[order],
        group=minute[order],
        y=y,
        ids=[str(k) for k in range(stays)],
        more={"log_odds": log_odds},
    )


def auroc(score: np.ndarray, y: np.ndarray) -> float:
    """The chance that who died has the higher score than who survived; nan where all did the same."""
    died, survived = score[y == 1], np.sort(score[y == 0])
    if not len(died) or not len(survived):
        return float("nan")
    below = np.searchsorted(survived, died, side="left") + np.searchsorted(survived, died, side="right")
    return float(below.mean() / 2 / len(survived))


def expected_auroc(log_odds: np.ndarray) -> float:
    """The AUROC of true odds over all outcomes that they may lead to: pairs weighted by the chance of who dies and who survives."""
    order = np.argsort(log_odds)
    p = 1 / (1 + np.exp(-log_odds[order]))
    survivors = np.cumsum(1 - p) - (1 - p)  # expected below each
    total = p.sum() * (1 - p).sum() - (p * (1 - p)).sum()  # nobody is compared with himself
    return float((p * survivors).sum() / total)
