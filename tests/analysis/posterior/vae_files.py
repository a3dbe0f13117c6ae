"""Variational runs as the runner leaves them: the log, latents, the posterior's history; half of the second level is collapsed."""

import json
import math
from pathlib import Path

import numpy as np


def posterior(sets, dims, levels=2, collapsed=(0.25, 0.5), seed=0):
    """mu, logvar float32 [L, M, D] of N(0, 1) data: healthy units have means c x, variance 1 - c²; the last
    `collapsed` of a level are the prior.

    Healthy ones come in pairs that share half of what they say, so that there are correlations to draw.
    """
    generator = np.random.default_rng(seed)
    mu = np.empty((levels, sets, dims), np.float32)
    logvar = np.empty((levels, sets, dims), np.float32)
    for level in range(levels):
        dead = round(dims * collapsed[level % len(collapsed)])
        informative = generator.standard_normal((sets, dims))
        informative[:, 1::2] = 0.7 * informative[:, 0 : 2 * (dims // 2) : 2] + 0.7 * informative[:, 1::2]
        scale = np.linspace(0.98, 0.4, dims)  # the last say less than the first, less surely
        mu[level] = scale * informative
        logvar[level] = np.log(1 - scale**2) + 0.2 * generator.standard_normal((sets, dims))
        mu[level][:, dims - dead :] = 1e-3 * generator.standard_normal((sets, dead))
        logvar[level][:, dims - dead :] = 1e-3 * generator.standard_normal((sets, dead))
    return mu, logvar


def latents(path: Path, sets=300, stays=30, dims=8, width=16, died=0.2, head=True, **posterior_options) -> dict[str, np.ndarray]:
    """A file of latents; stays that died lie apart in `state`, and their sets are reconstructed worse, larger sets too."""
    generator = np.random.default_rng(1)
    mu, logvar = posterior(sets, dims, **posterior_options)
    y = (np.arange(stays) < round(died * stays)).astype(np.int64)
    generator.shuffle(y)
    stay = np.sort(generator.integers(0, stays, sets)).astype(np.int32)
    minute = generator.uniform(0, 48 * 60, sets).round().astype(np.float32)
    mu[-1][:, 0] += minute / 1000
    size = np.minimum(60, generator.geometric(0.18, sets)).astype(np.int32)
    error = (0.3 * size**0.7 * generator.lognormal(0, 0.4, sets) * (1 + 0.3 * y[stay])).astype(np.float32)
    arrays = {"mu": mu, "logvar": logvar, "stay": stay, "minute": minute, "size": size, "error": error, "y": y}
    if head:
        state = generator.standard_normal((stays, width)) + 1.5 * y[:, None]
        arrays |= {"score": (0.2 + 0.3 * y).astype(np.float32), "state": state.astype(np.float32)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return arrays


def row_of(epoch, epochs, steps, every=1.0):
    """A line of the metrics log at an epoch, which may be a fraction; those have no Train."""
    f = epoch / epochs
    row = {"epoch": int(epoch) if float(epoch).is_integer() else epoch, "step": round(epoch * steps)}
    if float(epoch).is_integer():
        beta = min(0.1, 0.2 * f)
        terms = {"Recon": 3 + 6 * math.exp(-4 * f), "KL": 40 * (1 - math.exp(-6 * f)), "CE": 0.4 + 0.3 * math.exp(-2 * f)}
        loss = terms["Recon"] + beta * terms["KL"] + terms["CE"]
        row |= {"Train/Loss": loss, **{f"Train/{name}": value for name, value in terms.items()}, "Train/Beta": beta}
        row |= {"Train/Acc1": 86 + 4 * f, "LR": 1e-3 * (1 - f)}
    row |= {"Val/Loss": 8.3 + 6 * math.exp(-4 * f), "Val/Recon": 3.3 + 6 * math.exp(-4 * f), "Val/KL": 41 * (1 - math.exp(-6 * f))}
    return row | {"Val/CE": 0.45, "Val/Acc1": 86 + f, "Val/AUROC": 0.6 + 0.24 * f - 0.04 * f**3, "Val/AUPRC": 0.2 + 0.25 * f}


def make(path: Path, *, epochs=4, steps=250, per_epoch=2, rows=None, state="finished") -> Path:
    """A run of seqset_vae with a log of `per_epoch` validations an epoch."""
    (path / "logs").mkdir(parents=True)
    choices = {"model": "seqset_vae", "dataset": "physionet2012", "task": "stay_outcome", "tracker": "posterior"}
    config = {"T": 1, "lr": 1e-3, "seed": 0, "batch_size": 16, "epochs": epochs, "monitor": "AUROC", "task": {"weight": 1.0}}
    (path / "config.json").write_text(json.dumps(config | {"choices": choices}))
    status = {"state": state, "epoch": epochs, "epochs": epochs, "started": "2026-01-01T00:00:00+00:00", "host": "elsewhere"}
    (path / "status.json").write_text(json.dumps(status))
    if rows is None:
        rows = [row_of(n / per_epoch, epochs, steps) for n in range(1, epochs * per_epoch + 1)]
    (path / "logs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state == "finished" and rows:
        best = max(rows, key=lambda row: row.get("Val/AUROC") or 0)
        value = best.get("Val/AUROC")
        result = {"best": {"epoch": best["epoch"], "metric": "Val/AUROC", "value": value}, "split": "test", "test": {"AUROC": 0.8}}
        (path / "result.json").write_text(json.dumps(result))
    return path


def update(step, last, dims, levels=2, held_out=True, active=0.625):
    """A line of posterior_metrics/metrics.jsonl: activity grows to its end."""
    f = step / last
    dead = [round(dims * (1 - active * f)) for _ in range(levels)]
    each = []
    for gone in dead:
        kl = [1.2 + 0.01 * n for n in range(dims - gone)] + [1e-4] * gone
        spread = [0.9] * (dims - gone) + [1e-6] * gone
        each.append(
            {"kl": sum(kl), "active_units": 1 - gone / dims, "collapsed_units": gone / dims, "mutual_information": 6.0 * f,
             "variance": 1 - 0.9 * (1 - gone / dims), "kl_per_dim": kl, "mean_variance_per_dim": spread}
        )  # fmt: skip
    mean = {name: sum(level[name] for level in each) / levels for name in ("active_units", "collapsed_units", "variance")}
    block = {"sets": 512, "kl": sum(level["kl"] for level in each), "reconstruction": 9 - 5 * f, **mean, "levels": each}
    block["mutual_information"] = 6.0 * f
    alarms = [{"condition": "active_units", "since": 200, "value": mean["active_units"], "threshold": 0.1, "where": "held_out"}]
    return {
        "step": step, "epoch": 1 + step // 250, "beta": 0.1 * f, "held_out": block if held_out else None, "window": block,
        "verdict": "partly collapsed" if f > 0.5 else "collapsed", "alarms": alarms if 200 <= step <= last / 2 else [],
        "legacy_active_units": 1.0, "legacy_variance_below": False, "legacy_mean_variance": mean["variance"],
    }  # fmt: skip


def history(run: Path, updates=5, every=200, dims=8, **options) -> list[dict]:
    """posterior_metrics/metrics.jsonl of a run."""
    (run / "posterior_metrics").mkdir(parents=True)
    rows = [update(every * n, every * updates, dims, **options) for n in range(1, updates + 1)]
    (run / "posterior_metrics/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
