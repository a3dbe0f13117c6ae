"""Logistic regression and a GRU on the stays of physionet2012: the same split, horizon and standardised events as `dataset=physionet2012`.

With `--folds K` each is fitted to every fold of a cross-validation, those of dataset.cv_folds=K dataset.cv_fold=0,1,...: what is chosen
follows from the validation part of the fold, and its test part is scored once. The table has mean ± sample standard deviation over the
folds, and the areas of all stays pooled, each scored by the run that did not see it. `--runs DIR` adds a row for our runs below DIR.

Logistic regression sees of each variable its mean, minimum, maximum and last value, log(1 + how often it was measured) and whether it was;
C is that of the highest AUROC on validation. The GRU (one layer, 64 wide) sees hours: the mean of the hour, carried forward, whether it was
measured in the hour, and how long ago; its best epoch is that of the highest AUROC on validation. Prints a table in Markdown.

    python scripts/icu_baselines.py data/physionet2012
    python scripts/icu_baselines.py data/physionet2012 --split strats --seeds 0 1 2 3 4
    python scripts/icu_baselines.py data/physionet2012 --folds 5 --seeds 0 --runs outputs/scratch outputs/finetuned
"""

import argparse
import copy
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.data.stays.physionet2012 import PhysioNet2012

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
HOURS = 48
WIDTH, DROPOUT, RATE, DECAY, BATCH = 64, 0.5, 3e-3, 1e-3, 64
EPOCHS, PATIENCE = 40, 10


@dataclass
class Judged:
    """Outcomes and probabilities of a split, [N] each."""

    true: np.ndarray
    score: np.ndarray

    @property
    def areas(self) -> tuple[float, float]:
        """AUROC, and AUPRC as average precision."""
        return float(roc_auc_score(self.true, self.score)), float(average_precision_score(self.true, self.score))


Scores = dict[str, Judged]
"""Of the splits "val" and "test"."""


def main() -> None:
    """Fit both, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds set-a and Outcomes-a.txt")
    parser.add_argument("--split", choices=("random", "strats"), default="random")
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validate with K folds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", type=Path, default=[], metavar="DIR", help="with --folds: our runs on all of them")
    arguments = parser.parse_args()
    folds = {} if arguments.folds is None else {"cv_folds": arguments.folds}
    linear: list[Scores] = []
    recurrent: dict[int, list[Scores]] = {seed: [] for seed in arguments.seeds}
    for number in range(arguments.folds or 1):
        data = PhysioNet2012(root=arguments.root, split=arguments.split, **folds, cv_fold=number if folds else None)
        print(f"{data.protocol}; {torch.get_num_threads()} threads")
        stays = {split: Events(data, split) for split in data.splits}
        strength, scores = logistic_regression(stays)
        linear.append(scores)
        print(f"logistic regression: C = {strength:g}, {said(scores)}")
        hours = {split: events.hourly() for split, events in stays.items()}
        for seed, runs in recurrent.items():
            began = time.perf_counter()
            epoch, scores = gru(hours, {split: events.y for split, events in stays.items()}, seed)
            runs.append(scores)
            print(f"GRU, seed {seed}: best epoch {epoch}, {said(scores)}; {time.perf_counter() - began:.0f} s", flush=True)
    seeds = ", ".join(map(str, arguments.seeds))
    if not folds:
        print("\n| model | seeds | val AUROC | val AUPRC | test AUROC | test AUPRC |\n|---|---|---|---|---|---|")
        for name, of, runs in (("logistic regression", "none", linear), (f"GRU, {WIDTH} wide, hourly", seeds, sum(recurrent.values(), []))):
            columns = [spread([r[split].areas[i] for r in runs]) for split in ("val", "test") for i in (0, 1)]
            print(f"| {name} | {of} | {' | '.join(columns)} |")
        return
    rows = [("logistic regression", "none", [linear]), (f"GRU, {WIDTH} wide, hourly", seeds, list(recurrent.values()))]
    rows += [(str(place), *runs_below(place, linear)) for place in arguments.runs]
    print("\n| model | seeds | AUROC of the folds | AUPRC of the folds | AUROC, pooled | AUPRC, pooled |\n|---|---|---|---|---|---|")
    for name, of, by_seed in rows:
        print(f"| {name} | {of} | {' | '.join(cross_validated([[r['test'] for r in runs] for runs in by_seed]))} |")


def said(scores: Scores) -> str:
    """The AUROC of both splits."""
    return f"AUROC {scores['val'].areas[0]:.4f} val, {scores['test'].areas[0]:.4f} test"


def cross_validated(by_seed: list[list[Judged]]) -> list[str]:
    """AUROC and AUPRC: spread over folds of what the seeds come to on average, then pooled over the folds, on average of the seeds."""
    folds = [np.mean([judged.areas for judged in fold], axis=0) for fold in zip(*by_seed, strict=True)]
    whole = [Judged(*(np.concatenate([getattr(j, part) for j in runs]) for part in ("true", "score"))).areas for runs in by_seed]
    return [spread([float(fold[i]) for fold in folds]) for i in (0, 1)] + [f"{mean:.3f}" for mean in np.mean(whole, axis=0)]


def runs_below(place: Path, folds: list[Scores]) -> tuple[str, list[list[Scores]]]:
    """The seeds of the finished runs below a folder, and by seed their test scores on all folds.

    Raises: SystemExit if a fold is missing, there twice, or of other stays.
    """
    found: dict[int, dict[int, Scores]] = {}
    for path in sorted(place.rglob("test_y_score.npy")):
        config = json.loads((path.parent / "config.json").read_text())
        seed, number = config["seed"], config["dataset"].get("cv_fold")
        judged = Judged(np.load(path.parent / "test_y_true.npy"), np.load(path))
        if number is None or number in found.get(seed, {}) or not np.array_equal(judged.true, folds[number]["test"].true):
            raise SystemExit(f"{path.parent}: not the one run of fold {number} with seed {seed} on the stays of this cross-validation.")
        found.setdefault(seed, {})[number] = {"test": judged}
    if not found or any(sorted(runs) != list(range(len(folds))) for runs in found.values()):
        have = ", ".join(f"seed {seed}: {sorted(runs)}" for seed, runs in found.items()) or "none"
        raise SystemExit(f"{place}: needed are finished runs of all {len(folds)} folds; there are {have}.")
    return ", ".join(map(str, found)), [[runs[number] for number in sorted(runs)] for runs in found.values()]


class Events:
    """The events of all stays of a split, by stay and time: who, when, what, how much; [E] each, and the outcomes y [N]."""

    def __init__(self, data: PhysioNet2012, split: str) -> None:
        view = data.view(split)
        stays, y = view.__getitems__([(0, index) for index in range(len(view))])
        sizes = np.concatenate([np.full(k, n) for n, k in stays.runs])
        stay, place, minute = (np.repeat(part.numpy(), sizes) for part in (stays.stay, stays.place, stays.minute))
        order = np.lexsort((place, stay))
        self.stay, self.minute, self.variable, self.value = (
            part[order] for part in (stay, minute, stays.variable.numpy(), stays.value.numpy())
        )
        self.y, self.shape = y.numpy(), (len(y), len(data.variables))

    def summary(self) -> np.ndarray:
        """Mean, minimum, maximum, last, log(1 + count) and seen of each variable, [N, 6 V]; of one not measured 0, the training mean."""
        at = self.stay, self.variable
        count, total, last = np.zeros(self.shape), np.zeros(self.shape), np.zeros(self.shape)
        low, high = np.full(self.shape, np.inf), np.full(self.shape, -np.inf)
        np.add.at(count, at, 1)
        np.add.at(total, at, self.value)
        np.minimum.at(low, at, self.value)
        np.maximum.at(high, at, self.value)
        last[at] = self.value  # of several values the last one stays
        seen = count > 0
        parts = total / np.maximum(count, 1), np.where(seen, low, 0), np.where(seen, high, 0), last, np.log1p(count), seen
        return np.concatenate(parts, axis=1)

    def hourly(self) -> Tensor:
        """Value carried forward, measured or not, and days since it was, by hour: fp32 [N, 48, 3 V]; 0 before the first."""
        shape = self.shape[0], HOURS, self.shape[1]
        at = self.stay, np.minimum(self.minute // 60, HOURS - 1).astype(int), self.variable  # what is measured at 48:00 is of the last hour
        count, total = np.zeros(shape), np.zeros(shape)
        np.add.at(count, at, 1)
        np.add.at(total, at, self.value)
        measured = count > 0
        latest = np.maximum.accumulate(np.where(measured, np.arange(HOURS)[:, None], -1), axis=1)
        carried = np.take_along_axis(total / np.maximum(count, 1), np.maximum(latest, 0), axis=1) * (latest >= 0)
        since = (np.arange(HOURS)[:, None] - latest) / 24
        return torch.from_numpy(np.concatenate([carried, measured, since], axis=2)).float()


def logistic_regression(stays: dict[str, Events]) -> tuple[float, Scores]:
    """The C that is best on validation, and what it reaches."""
    x = {split: events.summary() for split, events in stays.items()}
    scaler = StandardScaler().fit(x["train"])
    fitted = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(x["train"]), stays["train"].y)
        judged = {split: Judged(stays[split].y, model.predict_proba(scaler.transform(x[split]))[:, 1]) for split in ("val", "test")}
        fitted.append((judged["val"].areas[0], strength, judged))
    _, strength, judged = max(fitted, key=lambda fit: fit[0])
    return strength, judged


class Recurrent(nn.Module):
    """A GRU over the hours and a linear layer on its last state: logits [N] from [N, 48, 3 V]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, WIDTH, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(self.gru(self.dropout(x))[1][0]))[:, 0]


def gru(x: dict[str, Tensor], y: dict[str, np.ndarray], seed: int) -> tuple[int, Scores]:
    """The epoch, from 1, that is best on validation, and what its weights reach."""
    torch.manual_seed(seed)
    model = Recurrent(x["train"].shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    true = torch.from_numpy(y["train"]).float()
    best, kept, chosen = -1.0, model.state_dict(), 0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in torch.randperm(len(true)).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(model(x["train"][rows]), true[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        reached = Judged(y["val"], probabilities(model, x["val"])).areas[0]
        if reached > best:
            best, kept, chosen = reached, copy.deepcopy(model.state_dict()), epoch
        elif epoch - chosen >= PATIENCE:
            break
    model.load_state_dict(kept)
    return chosen, {split: Judged(y[split], probabilities(model, x[split])) for split in ("val", "test")}


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> np.ndarray:
    """Of the outcome, of all stays, without dropout."""
    model.eval()
    return torch.cat([model(part) for part in x.split(256)]).sigmoid().numpy()


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
