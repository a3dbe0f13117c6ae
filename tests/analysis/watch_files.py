"""The files of a run that is going on, written as the runner and the posterior tracker write them."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def write(path: Path, **changes) -> None:
    """Merge into a JSON file."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | changes))


def append(path: Path, *records, end="\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write("\n".join(json.dumps(record) for record in records) + end)


def make(path: Path, *, epochs=10, **status) -> Path:
    """A run that began a minute ago and has done nothing yet; its process is this one."""
    (path / "logs").mkdir(parents=True)
    write(path / "config.json", epochs=epochs, monitor=None, model={}, choices={"model": "vggsnn"})
    own = {"state": "running", "epoch": 0, "step": 0, "epochs": epochs, "started": ago(60), "updated": ago(5), "error": None}
    write(path / "status.json", **own | {"pid": os.getpid(), "host": socket.gethostname()} | status)
    return path


def epoch(number, loss, accuracy, lr=1e-3, steps=20):
    row = {"epoch": number, "step": round(steps * number), "Train/Loss": loss, "Train/Acc1": accuracy - 1}
    return row | {"Val/Loss": loss + 0.1, "Val/Acc1": accuracy, "LR": lr}


def block(kl, active):
    level = {"kl": kl, "active_units": active, "kl_per_dim": [kl / 4] * 4, "mean_variance_per_dim": [0.1] * 4}
    figures = {"sets": 500, "kl": kl, "reconstruction": 3.25, "active_units": active, "collapsed_units": 1 - active}
    return figures | {"mutual_information": None, "variance": 0.5, "levels": [level]}


def update(step, kl, active, verdict="healthy", alarms=(), held_out=True):
    """A line of the posterior tracker."""
    own = [{"condition": name, "since": since, "value": active, "threshold": 0.1, "where": "held_out"} for name, since in alarms]
    blocks = {"held_out": block(kl, active) if held_out else None, "window": block(kl + 1, active)}
    return {"step": step, "epoch": 1, "beta": 0.05, **blocks, "verdict": verdict, "alarms": own, "legacy_active_units": 1.0}
