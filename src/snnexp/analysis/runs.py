"""What runs there are and how they compare, read from the files of their directories; no torch, no Hydra."""

import difflib
import fnmatch
import json
import math
import os
import socket
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.rundir import is_alive, runs_below

STALE_AFTER_S = 3600.0
"""Silence in seconds after which a run that another machine began may be dead."""
MAIN = ("model", "dataset", "T", "lr", "batch_size", "seed")
"""Settings that say most about a run."""
NOT_SETTINGS = (
    "command", "choices", "exp_name", "output_dir", "run_dir", "source", "hydra", "start", "shapes", "trust", "prune_from"
)  # fmt: skip
"""Top-level keys of config.json that name or begin a run and do not shape it."""
FACTS = ("name", "state", "epoch", "best", "test", "time", "speed", "started")
"""What runs can be filtered and sorted by besides their settings."""
MONITORED = ("Acc1", "AUROC", "MAE", "PSNR", "Loss")
"""What a run is judged by, as far as its log tells: the first of these that it has."""
SMALLER_IS_BETTER = ("Loss", "MAE", "MSE", "RMSE", "NLL", "Perplexity", "Recon", "KL", "CE", "Beta")


@dataclass
class Run:
    """One run directory; `problem` says why it cannot be read, and then the rest is empty."""

    path: Path
    name: str
    state: str
    problem: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    started: str | None = None
    updated: str | None = None
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    test: dict[str, float] = field(default_factory=dict)
    protocol: str | None = None
    wall_time_s: float | None = None
    samples_per_s: float | None = None

    @property
    def test_metric(self) -> str | None:
        """Name of the test metric that stands for the run: the monitored one, or the first of MONITORED where that is the loss or none."""
        monitored = str(self.best["metric"]).rpartition("/")[2] if self.best else "Loss"
        first = () if monitored == "Loss" else (monitored,)
        return next((name for name in (*first, *MONITORED, *self.test) if name in self.test), None)

    def fact(self, key: str) -> Any:
        """A setting by its dotted key, or one of FACTS; None if the run has none."""
        if key in self.settings:
            return self.settings[key]
        return {
            "name": self.name,
            "state": self.state,
            "epoch": self.epoch,
            "best": self.best["value"] if self.best else None,
            "test": self.test.get(self.test_metric) if self.test_metric else None,
            "time": self.wall_time_s,
            "speed": self.samples_per_s,
            "started": self.started,
        }.get(key)

    def as_json(self) -> dict[str, Any]:
        """Everything known, in JSON's types."""
        record = {key: value for key, value in vars(self).items() if key != "path"}
        return {"path": str(self.path), **record}


def find(directory: Path) -> list[Run]:
    """All runs at or below `directory`, the oldest first; one that cannot be read is among them, with its problem.

    Raises: UserError if there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory. Name the one that holds the runs: snnexp runs DIR")
    runs = [load(path, directory) for path in runs_below(directory)]
    return sorted(runs, key=lambda run: (run.started or "", run.name))


def load(path: Path, below: Path | None = None) -> Run:
    """Read one run directory; its name is the path from `below`."""
    relative = os.path.relpath(path, below) if below else str(path)
    name = path.resolve().name if relative == "." else relative
    try:
        status = _read_object(path / "status.json")
        config = _read_object(path / "config.json")
        result = _read_object(path / "result.json") if _exists(path / "result.json") else {}
        if not isinstance(status.get("state"), str):
            raise ValueError("status.json: names no state; it may be another program's")
        return _run(path, name, config, status, result)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Files of strangers may hold anything; one bad directory must not hide the others.
        return Run(path, name, "unreadable", problem=_why(error))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name if error.filename else 'file'}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"unexpected content ({type(error).__name__}: {error})"


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: holds a {type(content).__name__}, not an object")
    return content


def _run(path: Path, name: str, config: dict[str, Any], status: dict[str, Any], result: dict[str, Any]) -> Run:
    run = Run(
        path,
        name,
        _state(path, status),
        epoch=_whole(status.get("epoch")),
        epochs=_whole(status.get("epochs", config.get("epochs"))),
        started=_text(status.get("started")),
        updated=_text(status.get("updated")),
        error=_text(status.get("error")),
        settings=settings(config | in_force(path, config)),
        best=_best(result.get("best")),
        test={key: value for key, value in (result.get("test") or {}).items() if _is_number(value)},
        protocol=_text(result.get("protocol")),
        wall_time_s=_number(result.get("wall_time_s")),
        samples_per_s=_number(result.get("samples_per_s")),
    )
    if not result:
        run.best = _best_so_far(path / "logs" / "metrics.jsonl", config.get("monitor") or status.get("monitor"))
        run.samples_per_s = _number(_last_object(path / "logs" / "progress.jsonl").get("samples_per_s"))
    return run


def in_force(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the keys that a run left open (`auto`) came to on its machine: runs that computed otherwise are not equal."""
    recorded = _read_object(path / "arithmetic.json") if _exists(path / "arithmetic.json") else {}
    return {key: recorded[key] for key in ("precision", "channels_last") if config.get(key) == "auto" and key in recorded}


def _state(path: Path, status: dict[str, Any]) -> str:
    """The state that status.json claims, unless the process that claimed it is gone."""
    state = status["state"]
    if state != "running":
        return state
    if status.get("host") == socket.gethostname():
        pid = status.get("pid")
        known = isinstance(pid, int) and 0 < pid < 2**31
        return "running" if known and is_alive(status) else "killed"
    said = [_seconds_ago(status.get("updated"))]
    progress = path / "logs" / "progress.jsonl"
    if _exists(progress):
        said.append(datetime.now().timestamp() - progress.stat().st_mtime)
    silence = min((seconds for seconds in said if seconds is not None), default=math.inf)
    return "running" if silence < STALE_AFTER_S else "stale?"


def _seconds_ago(stamp: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        return None
    return (datetime.now(UTC) - moment.replace(tzinfo=moment.tzinfo or UTC)).total_seconds()


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as dotted keys; a group's own name gives its choice (`model` -> "vggsnn")."""
    flat: dict[str, Any] = {}

    def descend(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                descend(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    descend({key: value for key, value in config.items() if key not in NOT_SETTINGS}, "")
    return flat | {group: choice for group, choice in (config.get("choices") or {}).items() if "hydra" not in group}


def _best(best: Any) -> dict[str, Any] | None:
    return best if isinstance(best, dict) and "metric" in best and _is_number(best.get("value")) else None


def _best_so_far(log: Path, monitor: Any) -> dict[str, Any] | None:
    """Best validation metric in the log of a run that has no result yet."""
    if not _exists(log):
        return None
    rows = [row for row in (_object(line) for line in log.read_bytes().splitlines()) if row]
    if isinstance(monitor, str):
        metric = monitor if "/" in monitor else f"Val/{monitor}"
    else:
        metric = next((f"Val/{name}" for name in MONITORED if any(f"Val/{name}" in row for row in rows)), None)
    points = [(row[metric], row.get("epoch")) for row in rows if _is_number(row.get(metric))]
    if not points:
        return None
    value, epoch = (min if smaller_is_better(metric) else max)(points, key=lambda point: point[0])
    return {"epoch": epoch, "metric": metric, "value": value}


def _last_object(log: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file."""
    if not _exists(log):
        return {}
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        return next((row for row in map(_object, reversed(file.read().splitlines())) if row), {})


def _object(line: bytes) -> dict[str, Any]:
    """A line's object; nothing for a line that is being written just now."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def smaller_is_better(metric: str) -> bool:
    """True for losses and errors, by the name of the metric."""
    return metric.rpartition("/")[2] in SMALLER_IS_BETTER


# ---- choosing


def select(runs: list[Run], conditions: list[str]) -> list[Run]:
    """Runs that meet every `KEY=VALUE`; `VALUE,VALUE` = one of them; `*` and `?` in a text stand for any letters.

    Raises: UserError if a condition is no KEY=VALUE or no run has such a key.
    """
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals or not key:
            raise UserError(f"{condition!r} is neither a directory nor KEY=VALUE; for instance: model=vggsnn lr=1e-3")
        _known(key, runs)
        choices = _split(text)
        runs = [run for run in runs if any(_equal(run.fact(key), choice) for choice in choices if _has(run, key))]
    return runs


def order(runs: list[Run], key: str) -> list[Run]:
    """Runs by a setting or one of FACTS, ascending; `best` and `test` have the best run first, no value comes last.

    Raises: UserError if no run has such a key.
    """
    _known(key, runs)

    def rank(run: Run) -> tuple[int, float, str]:
        value = run.fact(key)
        if _is_number(value) and not math.isnan(value):
            metric = {"best": run.best and run.best["metric"], "test": run.test_metric}.get(key)
            return (0, -value if metric and not smaller_is_better(str(metric)) else value, "")
        return (2, 0.0, "") if value is None else (1, 0.0, shown(value))

    return sorted(runs, key=rank)


def _has(run: Run, key: str) -> bool:
    return key in run.settings or key in FACTS


def _known(key: str, runs: list[Run]) -> None:
    keys = dict.fromkeys(name for run in runs for name in run.settings) | dict.fromkeys(FACTS)
    if key in keys or not any(run.settings for run in runs):
        return
    near = [name for name in keys if name.rpartition(".")[2] == key] or difflib.get_close_matches(key, keys, 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Besides config keys there are: {', '.join(FACTS)}."
    raise UserError(f"{key}: no run here has such a setting. {hint}")


def _split(text: str) -> list[str]:
    """`a,b` -> a and b; commas within brackets do not part."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _equal(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return shown(value) == text.lower()
    if _is_number(value):
        try:
            wanted = float(text)
        except ValueError:
            return False
        return math.isclose(value, wanted, rel_tol=1e-9) or (math.isnan(value) and math.isnan(wanted))
    if isinstance(value, str):
        return fnmatch.fnmatchcase(value, text) or value == text
    return shown(value).replace(" ", "") == text.replace(" ", "")


def shown(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ",".join(shown(item) for item in value) + "]"
    return json.dumps(value)


# ---- comparing


def differing(runs: list[Run]) -> list[str]:
    """Settings in which runs that have them differ: the main ones first, then by name; copies of one another once."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, {})[_exact(value)] = None
    several = [key for key, found in values.items() if len(found) > 1]
    # The class follows from the group's choice.
    several = [key for key in several if not (key.endswith("._target_") and key.removesuffix("._target_") in several)]
    several.sort(key=lambda key: (MAIN.index(key) if key in MAIN else len(MAIN), key.count("."), key))
    kept: dict[str, list[str]] = {}
    for key in several:
        # `model.T: ${T}` follows T in every run: one of the two says it all.
        if not any(_copy(key, other, runs) for other in kept.get(key.rpartition(".")[2], ())):
            kept.setdefault(key.rpartition(".")[2], []).append(key)
    return [key for key in several if key in kept[key.rpartition(".")[2]]]


def _copy(key: str, other: str, runs: list[Run]) -> bool:
    """True if `key` has the last name of `other` and its value wherever it stands."""
    same_name = key.rpartition(".")[2] == other.rpartition(".")[2]
    return same_name and all(key not in run.settings or _exact(run.settings[key]) == _exact(run.settings.get(other)) for run in runs)


def _exact(value: Any) -> str:
    # 1 and 1.0 are one value in a config; true is not 1.
    return json.dumps(float(value) if _is_number(value) and abs(value) < 2**53 else value, sort_keys=True)


@dataclass
class Spread:
    """Mean and sample standard deviation (n - 1) of one metric; `std` is None for a single run."""

    metric: str
    mean: float
    std: float | None
    n: int


@dataclass
class Group:
    """Finished runs that are equal in everything but some settings; `values` of each run: of the one setting, or a list of several."""

    runs: list[Run]
    values: list[Any]
    best: Spread | None
    test: dict[str, Spread]

    @property
    def test_metric(self) -> str | None:
        """Name of the test metric that stands for the group."""
        return self.runs[0].test_metric


def over(runs: list[Run], keys: list[str]) -> list[Group]:
    """Groups of the finished runs among `runs` that differ in nothing but `keys`.

    Raises: UserError if no run has one of the settings.
    """
    for key in keys:
        _known(key, runs)
    finished = [run for run in runs if run.state == "finished"]
    names = {name for run in finished for name in run.settings}
    follow = {name for name in names if any(_copy(name, key, finished) for key in keys)} | set(keys)
    groups: dict[tuple, list[Run]] = {}
    for run in finished:
        rest = sorted((name, _exact(value)) for name, value in run.settings.items() if name not in follow)
        groups.setdefault(tuple(rest), []).append(run)
    return [_group(members, keys) for members in groups.values()]


def _group(runs: list[Run], keys: list[str]) -> Group:
    bests = [run.best for run in runs if run.best]
    metric = bests[0]["metric"] if bests else None
    tests = {name: [run.test[name] for run in runs if name in run.test] for run in runs[:1] for name in run.test}
    values = [[run.settings.get(key) for key in keys] for run in runs]
    return Group(
        runs,
        [of_run[0] for of_run in values] if len(keys) == 1 else values,
        _spread(metric, [best["value"] for best in bests if best["metric"] == metric]) if metric else None,
        {name: _spread(name, values) for name, values in tests.items()},
    )


def _spread(metric: str, values: list[float]) -> Spread:
    finite = all(math.isfinite(value) for value in values)
    mean = statistics.fmean(values) if finite else math.nan
    std = None if len(values) < 2 else statistics.stdev(values) if finite else math.nan
    return Spread(metric, mean, std, len(values))
