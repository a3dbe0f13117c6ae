"""`snnexp runs`: a table of runs, a comparison of runs, means over seeds."""

import argparse
import difflib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from snnexp.analysis.runs import (
    FACTS,
    MAIN,
    Group,
    Run,
    Spread,
    differing,
    find,
    group_except,
    load,
    order,
    select,
    setting_text,
)
from snnexp.errors import UserError
from snnexp.rundir import find_run
from snnexp.untrusted.text import say, shown

USAGE = "snnexp runs [DIR] [KEY=VALUE ...] [--sort KEY] [--over KEY,KEY] [--json]\n       snnexp runs --compare RUN RUN ..."
HELP = f"""
A table of the runs at or below DIR (default: outputs): state, the settings in which they differ, best validation metric
with its epoch, test metric, wall time, samples/s.

KEY=VALUE selects the runs in which KEY has that value. KEY is a key of the configuration (model, lr, model.lif.tau), or
one of {", ".join(FACTS)}.
Several conditions must all hold; VALUE,VALUE means one or the other; * in a text stands for any characters.

States: running, finished, interrupted (stopped by a signal, saved), failed; killed = status.json says "running", but the
process does not exist; stale? = a run on another machine that has been silent for an hour; unreadable.

  snnexp runs                                    all runs below outputs/
  snnexp runs outputs/sweep state=finished       the finished runs of a sweep
  snnexp runs model=vggsnn,resnet19 lr=1e-3      numbers are compared as numbers
  snnexp runs --sort test                        best test metric first
  snnexp runs model=vggsnn --over seed           mean ± std (n) over runs that differ only in the seed
  snnexp runs --over dataset.cv_fold,seed        mean ± std over folds and seeds together
  snnexp runs --compare outputs/a outputs/b      settings that differ, side by side, and results
  snnexp runs --json | jq '.[].best.value'       for programs
"""
COLUMNS = 8
"""Largest number of settings shown in the table."""
NAME_WIDTH = 32
"""Characters of a run's name that stay on one line before a column of settings is dropped for lack of room."""
STATE_COLORS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "killed": "red"}

Column = tuple[str, bool, Callable[[Any], str]]  # title, whether numeric (aligned to the right), function that returns a row's cell


def run(argv: list[str]) -> int:
    """Run the command line after `snnexp runs` and return the exit code.

    Raises: UserError for a wrong word.
    """
    words = _parser().parse_intermixed_args(argv)
    if words.compare:
        if words.over or words.sort:
            raise UserError("--compare shows the runs in the order given; --over and --sort do not go with it.")
        return _compare(words.words, words.json)

    directory, conditions = _directory(words.words)
    everything = find(directory)
    if not everything:
        _print_no_runs(directory, words.json)
        return 0
    runs = select(everything, conditions)
    if words.over:
        return _over(runs, words.over.split(","), words.sort, words.json)
    if words.sort:
        runs = order(runs, words.sort)
    if words.json:
        _print_json([run.as_json() for run in runs])
        return 0
    if not runs:
        say(f"None of the {len(everything)} runs below {directory} meets {' and '.join(conditions)}.")
        return 0
    readable = [run for run in runs if run.state != "unreadable"]
    keys = differing(readable)[:COLUMNS]
    _print_table(_run_columns(readable, keys), runs, keep=4, preferred=5 + len(keys))
    _print_notes(runs, everything)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = ""
        for word in message.split():
            if word.startswith("--"):
                near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1)
                hint = f" Did you mean {near[0]}?" if near and near[0] not in message else hint
        raise UserError(f"runs: {message}.{hint}\nusage: {USAGE}\n`snnexp runs --help` explains them.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="snnexp runs",
        usage=USAGE,
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="DIR | KEY=VALUE", help="directory of runs; conditions on the runs to show")
    parser.add_argument("--sort", metavar="KEY", help="sort by a setting or fact; by best or test: the best run first")
    parser.add_argument("--over", metavar="KEY,KEY", help="mean ± std over runs that differ only in these keys (seed)")
    parser.add_argument("--compare", action="store_true", help="show the differences between the given run directories")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _directory(words: list[str]) -> tuple[Path, list[str]]:
    """Return the directory among the words, and the conditions; an existing path may contain `=`, as names of runs do (lr=0.1)."""
    directories = [word for word in words if Path(word).is_dir()]
    conditions = [word for word in words if word not in directories]
    for word in conditions:
        if "=" not in word:
            raise UserError(f"{word}: no such directory. Name the one that holds the runs, or a filter KEY=VALUE.")
    if len(directories) > 1:
        listed = ", ".join(directories)
        raise UserError(f"runs: one directory, not {len(directories)} ({listed}); --compare takes several.")
    if not directories and not Path("outputs").is_dir():
        raise UserError(
            f"no directory outputs/ in {Path.cwd()}.\n"
            "Go to where you trained, name the directory (snnexp runs DIR), or begin with: snnexp train"
        )
    return Path(directories[0] if directories else "outputs"), conditions


def _print_no_runs(directory: Path, as_json: bool) -> None:
    if as_json:
        _print_json([])
    say(
        f"No runs at or below {directory.resolve()}: no directory there holds config.json and status.json.\n"
        "Make one with `snnexp train`, or name another directory: snnexp runs DIR",
        file=sys.stderr if as_json else sys.stdout,
    )


# ---- the table


def _run_columns(runs: list[Run], differing_keys: list[str]) -> list[Column]:
    keys = _with_main_keys(differing_keys, runs)
    return [
        ("run", False, lambda run: run.name),
        ("state", False, lambda run: run.state),
        ("best", True, _best),
        ("test", True, _test),
        ("epoch", True, _epoch),
        *[(key, _is_numeric(runs, key), lambda run, key=key: _setting(run, key)) for key in keys],
        ("time", True, lambda run: _duration(run.wall_time_s)),
        ("samples/s", True, lambda run: "" if run.samples_per_s is None else f"{run.samples_per_s:.4g}"),
    ]


def _with_main_keys(differing_keys: list[str], runs: list[Run], excluded: Sequence[str] = ()) -> list[str]:
    """Return the settings to show: those that differ first, then the main ones as far as there is room."""
    hidden = {*differing_keys, *excluded}
    main = [key for key in MAIN if key not in hidden and any(key in run.settings for run in runs)]
    return [*differing_keys, *main[: COLUMNS - len(differing_keys)]]


def _is_numeric(runs: list[Run], key: str) -> bool:
    return all(isinstance(run.settings[key], int | float) for run in runs if key in run.settings)


def _setting(run: Run, key: str) -> str:
    text = setting_text(run.settings[key]) if key in run.settings else ""
    return text if len(text) <= 24 else text[:21] + "..."


def _epoch(run: Run) -> str:
    if run.epoch is None:
        return ""
    return f"{run.epoch}/{run.epochs}" if run.epochs is not None else str(run.epoch)


def _best(run: Run) -> str:
    if run.best is None:
        return ""
    metric, at = run.best["metric"], run.best.get("epoch")
    return f"{metric} {_value(metric, run.best['value'])}" + (f" @{at}" if at is not None else "")


def _test(run: Run) -> str:
    name = run.test_metric
    return f"{name} {_value(name, run.test[name])}" if name else ""


def _value(metric: str, value: float) -> str:
    return f"{value:.2f}" if "Acc" in metric else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _print_notes(runs: list[Run], everything: list[Run]) -> None:
    if len(runs) < len(everything):
        say(f"{len(runs)} of {len(everything)} runs")
    hidden = differing([run for run in runs if run.state != "unreadable"])[COLUMNS:]
    if hidden:
        rest = f" and {len(hidden) - 6} more" if len(hidden) > 6 else ""
        say(f"They also differ in {', '.join(hidden[:6])}{rest}: --compare RUN RUN shows all.")
    for run in runs:
        if run.problem:
            say(f"{run.name}: unreadable: {run.problem}")
    failed = [run for run in runs if run.state == "failed" and run.error]
    for run in failed[:5]:
        say(f"{run.name}: failed: {run.error.splitlines()[0]}")
    if len(failed) > 5:
        say(f"... and {len(failed) - 5} more failed; state=failed shows them.")


# ---- --over


def _over(runs: list[Run], over_keys: list[str], sort: str | None, as_json: bool) -> int:
    groups = group_except(order(runs, sort) if sort else runs, over_keys)
    title, several = ",".join(over_keys), len(over_keys) > 1
    representatives = [group.runs[0] for group in groups]
    keys = [name for name in differing(representatives) if not any(key in (name, name.rpartition(".")[2]) for key in over_keys)]
    if as_json:
        _print_json([_group_json(group, title, keys) for group in groups])
        return 0
    left_out = len(runs) - sum(len(group.runs) for group in groups)
    if not groups:
        say(f"No finished run to take a mean of ({left_out} not finished).")
        return 0
    differing_keys = keys[:COLUMNS]
    keys = _with_main_keys(differing_keys, representatives, excluded=over_keys)
    columns: list[Column] = [
        (f"runs over {title}", False, lambda group: " x ".join(",".join(values[:10]) for values in _over_values(group, several))),
        ("n", True, lambda group: str(len(group.runs))),
        ("best", True, lambda group: _spread(group.best)),
        ("test", True, lambda group: _spread(group.test[group.test_metric]) if group.test_metric else ""),
        *[(key, _is_numeric(representatives, key), lambda group, key=key: _setting(group.runs[0], key)) for key in keys],
    ]
    _print_table(columns, groups, keep=4, preferred=4 + len(differing_keys))
    say(f"Mean ± sample standard deviation over the runs that are equal in everything but {' and '.join(over_keys)}.")
    if left_out:
        say(f"{left_out} not finished: left out.")
    test_metrics = list(dict.fromkeys(group.test_metric for group in groups if group.test_metric))
    others = [name for name in dict.fromkeys(name for group in groups for name in group.test) if name not in test_metrics]
    if others:
        say(f"test is {' or '.join(test_metrics)}; --json has {', '.join(others)} too.")
    for group in groups:
        twice = sorted({setting_text(value) for value in group.values if group.values.count(value) > 1})
        if twice:
            say(f"{title}={','.join(twice)} occurs more than once in {group.runs[0].name} and its like: n counts runs.")
        present, combinations = len(set(map(setting_text, group.values))), math.prod(map(len, _over_values(group, several)))
        if present < combinations:
            say(f"{present} of the {combinations} combinations are there of {group.runs[0].name} and its like.")
    return 0


def _over_values(group: Group, several: bool) -> list[list[str]]:
    """Return the values of each setting over which the mean of a group is taken."""
    rows = group.values if several else [[value] for value in group.values]
    return [list(dict.fromkeys(map(setting_text, column))) for column in zip(*rows, strict=True)]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    std = "" if spread.std is None else f" ± {_value(spread.metric, spread.std)}"
    return f"{spread.metric} {_value(spread.metric, spread.mean)}{std} ({spread.n})"


def _group_json(group: Group, key: str, keys: list[str]) -> dict[str, Any]:
    return {
        "over": key,
        "n": len(group.runs),
        "values": group.values,
        "settings": {name: group.runs[0].settings.get(name) for name in keys},
        "best": vars(group.best) if group.best else None,
        "test": {name: vars(spread) for name, spread in group.test.items()},
        "runs": [run.name for run in group.runs],
    }


# ---- --compare


def _compare(words: list[str], as_json: bool) -> int:
    if len(words) < 2:
        raise UserError("--compare wants two runs or more: snnexp runs --compare RUN RUN ...")
    runs = []
    for word in words:
        run = load(find_run(word)[0].root)
        if run.problem:
            raise UserError(f"{word} cannot be read: {run.problem}")
        run.name = word.rstrip("/")
        runs.append(run)
    keys = _every_difference(runs)
    if as_json:
        differ = {key: [run.settings.get(key) for run in runs] for key in keys}
        _print_json({"runs": [run.as_json() for run in runs], "differ": differ})
        return 0
    lines: list[tuple[str, list[str]]] = [
        *[(key, [setting_text(run.settings[key]) if key in run.settings else "-" for run in runs]) for key in keys],
        ("state", [run.state for run in runs]),
        ("epoch", [_epoch(run) for run in runs]),
        ("best", [_best(run) for run in runs]),
        *[
            (f"Test/{name}", [_value(name, run.test[name]) if name in run.test else "-" for run in runs])
            for name in dict.fromkeys(name for run in runs for name in run.test)
        ],
        ("time", [_duration(run.wall_time_s) for run in runs]),
        ("samples/s", ["" if run.samples_per_s is None else f"{run.samples_per_s:.4g}" for run in runs]),
    ]
    columns: list[Column] = [("", False, lambda line: line[0])]
    columns += [(run.name, True, lambda line, index=index: line[1][index]) for index, run in enumerate(runs)]
    _print_table(columns, lines, keep=len(columns), preferred=len(columns))
    if not keys:
        say("Their settings are equal.")
    protocols = dict.fromkeys(run.protocol for run in runs if run.protocol)
    if len(protocols) > 1:
        say("Not the same protocol, so the numbers do not compare:")
        for protocol in protocols:
            say(f"  {protocol}")
    return 0


def _every_difference(runs: list[Run]) -> list[str]:
    """Return the settings that differ, including those that only some of the runs have."""
    keys = differing(runs)
    in_any, in_all = set().union(*(run.settings for run in runs)), set.intersection(*(set(run.settings) for run in runs))
    return keys + sorted(in_any - in_all - set(keys))


# ---- printing


def _print_json(content: Any) -> None:
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    print("".join(letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text))


def _finite(value: Any) -> Any:
    """Return `value` with None for NaN and infinities, which JSON readers refuse."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _print_table(columns: list[Column], rows: list[Any], keep: int, preferred: int) -> None:
    """Print a table; on a terminal that is too narrow, drop the last columns, but never the first `keep`, and print which.

    To fit the first `preferred` columns, the names in the first column may be broken into lines of NAME_WIDTH characters.
    """
    columns = [(shown(title), is_numeric, cell) for title, is_numeric, cell in columns]
    cells = [[shown(cell(row)).replace("\n", "\\n") for _, _, cell in columns] for row in rows]
    shown_columns = [index for index in range(len(columns)) if index < keep or any(row[index] for row in cells)]
    widths = {index: max(len(columns[index][0]), *(len(row[index]) for row in cells)) for index in shown_columns}
    if not sys.stdout.isatty():
        _print_plain(columns, cells, shown_columns, widths)
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    dropped_titles: list[str] = []
    while shown_columns[-1] >= preferred and sum(widths[index] + 2 for index in shown_columns) > console.width:
        dropped_titles.insert(0, columns[shown_columns.pop()][0])
    folded_widths = widths | {0: min(widths[0], NAME_WIDTH)}
    while shown_columns[-1] >= keep and sum(folded_widths[index] + 2 for index in shown_columns) > console.width:
        dropped_titles.insert(0, columns[shown_columns.pop()][0])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in shown_columns:
        title, is_numeric, _ = columns[index]
        table.add_column(Text(title), justify="right" if is_numeric else "left", overflow="fold", no_wrap=index != 0)
    for row in cells:
        table.add_row(*[Text(row[index], style=STATE_COLORS.get(row[index], "")) for index in shown_columns])
    console.print(table)
    if dropped_titles:
        console.print(f"The terminal is too narrow for: {', '.join(dropped_titles)}.", markup=False)


def _print_plain(columns: list[Column], cells: list[list[str]], shown_columns: list[int], widths: dict[int, int]) -> None:
    titles = [title for title, _, _ in columns]
    for row in [titles, *cells]:
        parts = [row[index].rjust(widths[index]) if columns[index][1] else row[index].ljust(widths[index]) for index in shown_columns]
        say("  ".join(parts).rstrip())
