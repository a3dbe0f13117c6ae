"""Fit logistic regression and a GRU to physionet2012, with the split, horizon and standardised events of `dataset=physionet2012`.

With `--folds K`, both are fitted to every fold of a cross-validation, those of dataset.cv_folds=K dataset.cv_fold=0,1,...: all choices use
the validation part of the fold, and its test part is scored once. The table has mean ± sample standard deviation over the folds, and the
areas over all stays pooled, each scored by the run that did not see it. `--runs DIR` adds a row for our runs below DIR.

Logistic regression sees, for each variable, its mean, minimum, maximum and last value, log(1 + count) and whether it was measured; its C
has the highest AUROC on validation. The GRU (one layer, 64 wide) sees, for each hour, the mean of the hour carried forward, whether it was
measured in the hour, and how long ago; its best epoch has the highest AUROC on validation. Prints a table in Markdown.

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
class Predictions:
    """True outcomes and predicted probabilities of a split, [N] each."""

    true: np.ndarray
    score: np.ndarray

    @property
    def areas(self) -> tuple[float, float]:
        """AUROC, and AUPRC as average precision."""
        return float(roc_auc_score(self.true, self.score)), float(average_precision_score(self.true, self.score))


Scores = dict[str, Predictions]
"""The predictions for the splits "val" and "test"."""


def main() -> None:
    """Fit both models, then print the table."""
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
    for fold in range(arguments.folds or 1):
        data = PhysioNet2012(root=arguments.root, split=arguments.split, **folds, cv_fold=fold if folds else None)
        print(f"{data.protocol}; {torch.get_num_threads()} threads")
        stays = {split: Events(data, split) for split in data.splits}
        strength, scores = logistic_regression(stays)
        linear.append(scores)
        print(f"logistic regression: C = {strength:g}, {describe(scores)}")
        hours = {split: events.hourly() for split, events in stays.items()}
        for seed, runs in recurrent.items():
            start = time.perf_counter()
            epoch, scores = gru(hours, {split: events.y for split, events in stays.items()}, seed)
            runs.append(scores)
            print(f"GRU, seed {seed}: best epoch {epoch}, {describe(scores)}; {time.perf_counter() - start:.0f} s", flush=True)
    seeds = ", ".join(map(str, arguments.seeds))
    if not folds:
        print("\n| model | seeds | val AUROC | val AUPRC | test AUROC | test AUPRC |\n|---|---|---|---|---|---|")
        rows = [("logistic regression", "none", linear), (f"GRU, {WIDTH} wide, hourly", seeds, sum(recurrent.values(), []))]
        for name, seeds_of, runs in rows:
            columns = [spread([r[split].areas[i] for r in runs]) for split in ("val", "test") for i in (0, 1)]
            print(f"| {name} | {seeds_of} | {' | '.join(columns)} |")
        return
    fold_rows = [("logistic regression", "none", [linear]), (f"GRU, {WIDTH} wide, hourly", seeds, list(recurrent.values()))]
    fold_rows += [(str(folder), *read_runs(folder, linear)) for folder in arguments.runs]
    print("\n| model | seeds | AUROC of the folds | AUPRC of the folds | AUROC, pooled | AUPRC, pooled |\n|---|---|---|---|---|---|")
    for name, seeds_of, by_seed in fold_rows:
        print(f"| {name} | {seeds_of} | {' | '.join(cross_validated([[r['test'] for r in runs] for runs in by_seed]))} |")


def describe(scores: Scores) -> str:
    """Return a text with the AUROC of both splits."""
    return f"AUROC {scores['val'].areas[0]:.4f} val, {scores['test'].areas[0]:.4f} test"


def cross_validated(by_seed: list[list[Predictions]]) -> list[str]:
    """Return cells for AUROC and AUPRC, both averaged over seeds: mean and spread over the folds, then the areas pooled over the folds."""
    folds = [np.mean([predictions.areas for predictions in fold], axis=0) for fold in zip(*by_seed, strict=True)]
    pooled = [Predictions(np.concatenate([run.true for run in runs]), np.concatenate([run.score for run in runs])) for runs in by_seed]
    means = np.mean([predictions.areas for predictions in pooled], axis=0)
    return [spread([float(fold[i]) for fold in folds]) for i in (0, 1)] + [f"{mean:.3f}" for mean in means]


def read_runs(folder: Path, folds: list[Scores]) -> tuple[str, list[list[Scores]]]:
    """Return the seeds of the finished runs below a folder, and for each seed their test scores on all folds.

    Raises: SystemExit if a fold is missing, occurs twice, or has other stays.
    """
    by_seed: dict[int, dict[int, Scores]] = {}
    for path in sorted(folder.rglob("test_y_score.npy")):
        config = json.loads((path.parent / "config.json").read_text())
        seed, fold = config["seed"], config["dataset"].get("cv_fold")
        predictions = Predictions(np.load(path.parent / "test_y_true.npy"), np.load(path))
        if fold is None or fold in by_seed.get(seed, {}) or not np.array_equal(predictions.true, folds[fold]["test"].true):
            raise SystemExit(f"{path.parent}: not the one run of fold {fold} with seed {seed} on the stays of this cross-validation.")
        by_seed.setdefault(seed, {})[fold] = {"test": predictions}
    if not by_seed or any(sorted(runs) != list(range(len(folds))) for runs in by_seed.values()):
        present = ", ".join(f"seed {seed}: {sorted(runs)}" for seed, runs in by_seed.items()) or "none"
        raise SystemExit(f"{folder}: needed are finished runs of all {len(folds)} folds; there are {present}.")
    return ", ".join(map(str, by_seed)), [[runs[fold] for fold in sorted(runs)] for runs in by_seed.values()]


class Events:
    """The events of all stays of a split, ordered by stay and time: stay, minute, variable and value [E], and the outcomes y [N]."""

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
        """Return mean, minimum, maximum, last, log(1 + count), seen of each variable, [N, 6 V]; 0, the training mean, if not measured."""
        at = self.stay, self.variable
        count, total, last = np.zeros(self.shape), np.zeros(self.shape), np.zeros(self.shape)
        low, high = np.full(self.shape, np.inf), np.full(self.shape, -np.inf)
        np.add.at(count, at, 1)
        np.add.at(total, at, self.value)
        np.minimum.at(low, at, self.value)
        np.maximum.at(high, at, self.value)
        last[at] = self.value  # the last of several values stays
        seen = count > 0
        parts = total / np.maximum(count, 1), np.where(seen, low, 0), np.where(seen, high, 0), last, np.log1p(count), seen
        return np.concatenate(parts, axis=1)

    def hourly(self) -> Tensor:
        """Return for each hour the value carried forward (0 before the first), measured or not, days since: fp32 [N, 48, 3 V]."""
        shape = self.shape[0], HOURS, self.shape[1]
        at = self.stay, np.minimum(self.minute // 60, HOURS - 1).astype(int), self.variable  # 48:00 belongs to the last hour
        count, total = np.zeros(shape), np.zeros(shape)
        np.add.at(count, at, 1)
        np.add.at(total, at, self.value)
        measured = count > 0
        latest = np.maximum.accumulate(np.where(measured, np.arange(HOURS)[:, None], -1), axis=1)
        carried = np.take_along_axis(total / np.maximum(count, 1), np.maximum(latest, 0), axis=1) * (latest >= 0)
        since = (np.arange(HOURS)[:, None] - latest) / 24
        return torch.from_numpy(np.concatenate([carried, measured, since], axis=2)).float()


def logistic_regression(stays: dict[str, Events]) -> tuple[float, Scores]:
    """Return the C that is best on validation, and its predictions."""
    x = {split: events.summary() for split, events in stays.items()}
    scaler = StandardScaler().fit(x["train"])
    fits = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(x["train"]), stays["train"].y)
        scores = {split: Predictions(stays[split].y, model.predict_proba(scaler.transform(x[split]))[:, 1]) for split in ("val", "test")}
        fits.append((scores["val"].areas[0], strength, scores))
    _, strength, scores = max(fits, key=lambda fit: fit[0])
    return strength, scores


class Recurrent(nn.Module):
    """A GRU over the hours, and a linear layer on its last state: logits [N] from [N, 48, 3 V]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, WIDTH, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(self.gru(self.dropout(x))[1][0]))[:, 0]


def gru(x: dict[str, Tensor], y: dict[str, np.ndarray], seed: int) -> tuple[int, Scores]:
    """Return the epoch (from 1) that is best on validation, and the predictions of its weights."""
    torch.manual_seed(seed)
    model = Recurrent(x["train"].shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    true = torch.from_numpy(y["train"]).float()
    best, best_weights, best_epoch = -1.0, model.state_dict(), 0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in torch.randperm(len(true)).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(model(x["train"][rows]), true[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        auroc = Predictions(y["val"], probabilities(model, x["val"])).areas[0]
        if auroc > best:
            best, best_weights, best_epoch = auroc, copy.deepcopy(model.state_dict()), epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(best_weights)
    return best_epoch, {split: Predictions(y[split], probabilities(model, x[split])) for split in ("val", "test")}


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> np.ndarray:
    """Return the probability of the outcome for all stays, without dropout."""
    model.eval()
    return torch.cat([model(part) for part in x.split(256)]).sigmoid().numpy()


def spread(values: list[float]) -> str:
    """Return a text with mean and sample standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
