"""Runs and their comparison, read from the files of their directories, without torch and Hydra."""

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

from snnexp.analysis.reading import parse_object, read_objects
from snnexp.errors import UserError
from snnexp.files import read_small
from snnexp.rundir import is_alive, runs_below

STALE_AFTER_S = 3600.0
"""Seconds without a sign of life after which a run on another machine may be dead."""
MAIN = ("model", "dataset", "T", "lr", "batch_size", "seed")
"""The main settings of a run."""
NOT_SETTINGS = (
    "command", "choices", "exp_name", "output_dir", "run_dir", "source", "hydra", "start", "shapes", "trust", "prune_from"
)  # fmt: skip
"""Top-level keys of config.json that name or start a run, but do not influence its result."""
FACTS = ("name", "state", "epoch", "best", "test", "time", "speed", "started")
"""Properties of runs, besides their settings, to filter and sort by."""
MONITORED = ("Acc1", "AUROC", "MAE", "PSNR", "Loss")
"""Metrics by which a run is judged if its files do not name one: the first of these that it has."""
SMALLER_IS_BETTER = ("Loss", "MAE", "MSE", "RMSE", "NLL", "Perplexity", "Recon", "KL", "CE", "Beta")


@dataclass
class Run:
    """One run directory; if it cannot be read, `problem` says why and the other fields are empty."""

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
        """Name of the test metric that stands for the run."""
        return self.main_metric(self.test)

    def main_metric(self, metrics: dict[str, float]) -> str | None:
        """Return the name of the metric that stands for the run: the monitored one unless that is the loss, else the first of MONITORED."""
        monitored = str(self.best["metric"]).rpartition("/")[2] if self.best else "Loss"
        first = () if monitored == "Loss" else (monitored,)
        return next((name for name in (*first, *MONITORED, *metrics) if name in metrics), None)

    def fact(self, key: str) -> Any:
        """Return a setting by its dotted key, or one of FACTS; None if the run does not have it."""
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
        """Return all fields as values that JSON has."""
        record = {key: value for key, value in vars(self).items() if key != "path"}
        return {"path": str(self.path), **record}


def find(directory: Path) -> list[Run]:
    """Return all runs at or below `directory`, the oldest first, including those that cannot be read.

    Raises: UserError if there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory. Name the one that holds the runs: snnexp runs DIR")
    runs = [load(path, directory) for path in runs_below(directory)]
    return sorted(runs, key=lambda run: (run.started or "", run.name))


def load(path: Path, below: Path | None = None) -> Run:
    """Read one run directory; its name is its path relative to `below`."""
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
        # Files of others may contain anything; one bad directory must not hide the rest.
        return Run(path, name, "unreadable", problem=_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name if error.filename else 'file'}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"unexpected content ({type(error).__name__}: {error})"


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: holds a {type(content).__name__}, not an object")
    return content


def _run(path: Path, name: str, config: dict[str, Any], status: dict[str, Any], result: dict[str, Any]) -> Run:
    run = Run(
        path,
        name,
        _state(path, status),
        epoch=_integer(status.get("epoch")),
        epochs=_integer(status.get("epochs", config.get("epochs"))),
        started=_text(status.get("started")),
        updated=_text(status.get("updated")),
        error=_text(status.get("error")),
        settings=flat_settings(config | resolved_auto(path, config)),
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


def resolved_auto(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the keys which a run left open took on its machine, for runs with other values are not equal."""
    recorded = _read_object(path / "arithmetic.json") if _exists(path / "arithmetic.json") else {}
    return {key: recorded[key] for key in ("precision", "channels_last") if config.get(key) in ("auto", "fp32_or_tf32") and key in recorded}


def _state(path: Path, status: dict[str, Any]) -> str:
    """Return the state of status.json, or "killed" or "stale?" if the running process is or may be gone."""
    state = status["state"]
    if state != "running":
        return state
    if status.get("host") == socket.gethostname():
        pid = status.get("pid")
        is_valid = isinstance(pid, int) and 0 < pid < 2**31
        return "running" if is_valid and is_alive(status) else "killed"
    ages = [_seconds_since(status.get("updated"))]
    progress = path / "logs" / "progress.jsonl"
    if _exists(progress):
        ages.append(datetime.now().timestamp() - progress.stat().st_mtime)
    silence = min((age for age in ages if age is not None), default=math.inf)
    return "running" if silence < STALE_AFTER_S else "stale?"


def _seconds_since(stamp: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        return None
    return (datetime.now(UTC) - moment.replace(tzinfo=moment.tzinfo or UTC)).total_seconds()


def flat_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json by dotted keys; the name of a group gives its choice (`model` -> "vggsnn")."""
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
    """Return the best validation metric in the log of a run that has no result yet."""
    if not _exists(log):
        return None
    rows = list(read_objects(log))
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
    """Return the object of the last complete line of a JSON-lines file."""
    if not _exists(log):
        return {}
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        return next((content for content in map(parse_object, reversed(file.read().splitlines())) if content), {})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _integer(value: Any) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def smaller_is_better(metric: str) -> bool:
    """Return whether a metric is a loss or an error, by its name."""
    return metric.rpartition("/")[2] in SMALLER_IS_BETTER


# ---- choosing


def select(runs: list[Run], conditions: list[str]) -> list[Run]:
    """Return the runs that meet every `KEY=VALUE`; `VALUE,VALUE` means any of them; `*` and `?` in a text match any characters.

    Raises: UserError if a condition is not KEY=VALUE or no run has such a key.
    """
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals or not key:
            raise UserError(f"{condition!r} is neither a directory nor KEY=VALUE; for instance: model=vggsnn lr=1e-3")
        _raise_if_unknown(key, runs)
        choices = _split_choices(text)
        runs = [run for run in runs if any(_matches(run.fact(key), choice) for choice in choices if _has_key(run, key))]
    return runs


def order(runs: list[Run], key: str) -> list[Run]:
    """Sort runs by a setting or one of FACTS, ascending, but `best` and `test` with the best run first; runs without a value come last.

    Raises: UserError if no run has such a key.
    """
    _raise_if_unknown(key, runs)

    def rank(run: Run) -> tuple[int, float, str]:
        value = run.fact(key)
        if _is_number(value) and not math.isnan(value):
            metric = {"best": run.best and run.best["metric"], "test": run.test_metric}.get(key)
            return (0, -value if metric and not smaller_is_better(str(metric)) else value, "")
        return (2, 0.0, "") if value is None else (1, 0.0, setting_text(value))

    return sorted(runs, key=rank)


def _has_key(run: Run, key: str) -> bool:
    return key in run.settings or key in FACTS


def _raise_if_unknown(key: str, runs: list[Run]) -> None:
    keys = dict.fromkeys(name for run in runs for name in run.settings) | dict.fromkeys(FACTS)
    if key in keys or not any(run.settings for run in runs):
        return
    near = [name for name in keys if name.rpartition(".")[2] == key] or difflib.get_close_matches(key, keys, 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Besides config keys there are: {', '.join(FACTS)}."
    raise UserError(f"{key}: no run here has such a setting. {hint}")


def _split_choices(text: str) -> list[str]:
    """Split `a,b` into a and b, but not at commas within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _matches(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return setting_text(value) == text.lower()
    if _is_number(value):
        try:
            number = float(text)
        except ValueError:
            return False
        return math.isclose(value, number, rel_tol=1e-9) or (math.isnan(value) and math.isnan(number))
    if isinstance(value, str):
        return fnmatch.fnmatchcase(value, text) or value == text
    return setting_text(value).replace(" ", "") == text.replace(" ", "")


def setting_text(value: Any) -> str:
    """Return a setting as it is typed on the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ",".join(setting_text(item) for item in value) + "]"
    return json.dumps(value)


# ---- comparing


def differing(runs: list[Run]) -> list[str]:
    """Return the settings that differ between runs that have them, the main ones first, then by name; of copies only one."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, {})[_canonical(value)] = None
    several = [key for key, distinct in values.items() if len(distinct) > 1]
    # The class of a node follows from the choice of its group.
    several = [key for key in several if not (key.endswith("._target_") and key.removesuffix("._target_") in several)]
    several.sort(key=lambda key: (MAIN.index(key) if key in MAIN else len(MAIN), key.count("."), key))
    chosen: dict[str, list[str]] = {}
    for key in several:
        # `model.T: ${T}` equals T in every run, so one of the two is enough.
        if not any(_is_copy(key, other, runs) for other in chosen.get(key.rpartition(".")[2], ())):
            chosen.setdefault(key.rpartition(".")[2], []).append(key)
    return [key for key in several if key in chosen[key.rpartition(".")[2]]]


def _is_copy(key: str, other: str, runs: list[Run]) -> bool:
    """Return whether `key` has the same last name as `other`, and the same value in every run that has it."""
    if key.rpartition(".")[2] != other.rpartition(".")[2]:
        return False
    return all(_canonical(run.settings[key]) == _canonical(run.settings.get(other)) for run in runs if key in run.settings)


def _canonical(value: Any) -> str:
    # 1 and 1.0 are the same value in a config; true is not 1.
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
    """Finished runs that are equal except for some settings; `values` per run: that of the one setting, or a list for several."""

    runs: list[Run]
    values: list[Any]
    best: Spread | None
    test: dict[str, Spread]

    @property
    def test_metric(self) -> str | None:
        """Name of the test metric that stands for the group."""
        return self.runs[0].test_metric


def group_except(runs: list[Run], keys: list[str]) -> list[Group]:
    """Group the finished runs that differ only in `keys`.

    Raises: UserError if no run has one of the settings.
    """
    for key in keys:
        _raise_if_unknown(key, runs)
    finished = [run for run in runs if run.state == "finished"]
    names = {name for run in finished for name in run.settings}
    ignored = {name for name in names if any(_is_copy(name, key, finished) for key in keys)} | set(keys)
    groups: dict[tuple, list[Run]] = {}
    for run in finished:
        rest = sorted((name, _canonical(value)) for name, value in run.settings.items() if name not in ignored)
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
