"""`snnexp runs`: the table of runs, a comparison, means over seeds."""

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
    load,
    order,
    over,
    select,
    shown,
)
from snnexp.errors import UserError
from snnexp.rundir import find_run

USAGE = "snnexp runs [DIR] [KEY=VALUE ...] [--sort KEY] [--over KEY,KEY] [--json]\n       snnexp runs --compare RUN RUN ..."
HELP = f"""
A table of the runs at or below DIR (default: outputs): state, the settings in which they differ, best validation metric
with its epoch, test metric, wall time, samples/s.

KEY=VALUE keeps the runs whose setting has that value: a key of the config (model, lr, model.lif.tau), or one of
{", ".join(FACTS)}.
Several must all hold; VALUE,VALUE means either; * in a text stands for any letters.

States: running, finished, interrupted (stopped by a signal, saved), failed; killed = says "running", but its process is
gone; stale? = began on another machine and has been silent for an hour; unreadable.

  snnexp runs                                    everything below outputs/
  snnexp runs outputs/sweep state=finished       a sweep, what is done of it
  snnexp runs model=vggsnn,resnet19 lr=1e-3      numbers compare as numbers
  snnexp runs --sort test                        best test metric first
  snnexp runs model=vggsnn --over seed           mean ± std (n) of runs that differ in nothing but the seed
  snnexp runs --over dataset.cv_fold,seed        mean ± std over folds and seeds together
  snnexp runs --compare outputs/a outputs/b      the settings that differ side by side, and the results
  snnexp runs --json | jq '.[].best.value'       for programs
"""
COLUMNS = 8
"""Settings shown in the table, at most."""
NAME_WIDTH = 32
"""Letters of a run's name in a line, at least, before a setting must go for want of room."""
MARK = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "killed": "red"}

Column = tuple[str, bool, Callable[[Any], str]]  # title, figures (aligned to the right), cell of a row


def run(argv: list[str]) -> int:
    """The command line after `snnexp runs`; the exit code.

    Raises: UserError if a word of it makes no sense.
    """
    words = _parser().parse_intermixed_args(argv)
    if words.compare:
        if words.over or words.sort:
            raise UserError("--compare shows the runs in the order given; --over and --sort do not go with it.")
        return _compare(words.words, words.json)

    directory, conditions = _directory(words.words)
    everything = find(directory)
    if not everything:
        _say_none(directory, words.json)
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
        print(f"None of the {len(everything)} runs below {directory} meets {' and '.join(conditions)}.")
        return 0
    readable = [run for run in runs if run.state != "unreadable"]
    different = differing(readable)[:COLUMNS]
    _table(_run_columns(readable, different), runs, keep=4, wanted=5 + len(different))
    _notes(runs, everything)
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
    parser.add_argument("words", nargs="*", metavar="DIR | KEY=VALUE", help="where to look, and which runs to keep")
    parser.add_argument("--sort", metavar="KEY", help="order by a setting or fact; best and test: the best run first")
    parser.add_argument("--over", metavar="KEY,KEY", help="mean ± std over runs equal in everything but these (seed)")
    parser.add_argument("--compare", action="store_true", help="the words are run directories: show what differs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _directory(words: list[str]) -> tuple[Path, list[str]]:
    """Which word is the directory; it is tried before `=` is looked for, since names of runs hold one (lr=0.1)."""
    directories = [word for word in words if Path(word).is_dir()]
    conditions = [word for word in words if word not in directories]
    for word in conditions:
        if "=" not in word:
            raise UserError(f"{word}: no such directory. Name the one that holds the runs, or a filter KEY=VALUE.")
    if len(directories) > 1:
        named = ", ".join(directories)
        raise UserError(f"runs: one directory, not {len(directories)} ({named}); --compare takes several.")
    if not directories and not Path("outputs").is_dir():
        raise UserError(
            f"no directory outputs/ in {Path.cwd()}.\n"
            "Go to where you trained, name the directory (snnexp runs DIR), or begin with: snnexp train"
        )
    return Path(directories[0] if directories else "outputs"), conditions


def _say_none(directory: Path, as_json: bool) -> None:
    if as_json:
        _print_json([])
    print(
        f"No runs at or below {directory.resolve()}: no directory there holds config.json and status.json.\n"
        "Make one with `snnexp train`, or name another directory: snnexp runs DIR",
        file=sys.stderr if as_json else sys.stdout,
    )


# ---- the table


def _run_columns(runs: list[Run], different: list[str]) -> list[Column]:
    keys = _with_main(different, runs)
    return [
        ("run", False, lambda run: run.name),
        ("state", False, lambda run: run.state),
        ("best", True, _best),
        ("test", True, _test),
        ("epoch", True, _epoch),
        *[(key, _figures(runs, key), lambda run, key=key: _setting(run, key)) for key in keys],
        ("time", True, lambda run: _duration(run.wall_time_s)),
        ("samples/s", True, lambda run: "" if run.samples_per_s is None else f"{run.samples_per_s:.4g}"),
    ]


def _with_main(different: list[str], runs: list[Run], but: Sequence[str] = ()) -> list[str]:
    """Settings to show: those that differ first, then the main ones while there is room."""
    main = [key for key in MAIN if key not in different and key not in but and any(key in run.settings for run in runs)]
    return [*different, *main[: COLUMNS - len(different)]]


def _figures(runs: list[Run], key: str) -> bool:
    return all(isinstance(run.settings[key], int | float) for run in runs if key in run.settings)


def _setting(run: Run, key: str) -> str:
    text = shown(run.settings[key]) if key in run.settings else ""
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


def _notes(runs: list[Run], everything: list[Run]) -> None:
    if len(runs) < len(everything):
        print(f"{len(runs)} of {len(everything)} runs")
    hidden = differing([run for run in runs if run.state != "unreadable"])[COLUMNS:]
    if hidden:
        rest = f" and {len(hidden) - 6} more" if len(hidden) > 6 else ""
        print(f"They also differ in {', '.join(hidden[:6])}{rest}: --compare RUN RUN shows all.")
    for one in runs:
        if one.problem:
            print(f"{one.name}: unreadable: {one.problem}")
    failed = [run for run in runs if run.state == "failed" and run.error]
    for one in failed[:5]:
        print(f"{one.name}: failed: {one.error.splitlines()[0]}")
    if len(failed) > 5:
        print(f"... and {len(failed) - 5} more failed; state=failed shows them.")


# ---- --over


def _over(runs: list[Run], over_keys: list[str], sort: str | None, as_json: bool) -> int:
    groups = over(order(runs, sort) if sort else runs, over_keys)
    named, several = ",".join(over_keys), len(over_keys) > 1
    representatives = [group.runs[0] for group in groups]
    keys = [name for name in differing(representatives) if not any(key in (name, name.rpartition(".")[2]) for key in over_keys)]
    if as_json:
        _print_json([_group_json(group, named, keys) for group in groups])
        return 0
    left_out = len(runs) - sum(len(group.runs) for group in groups)
    if not groups:
        print(f"No finished run to take a mean of ({left_out} not finished).")
        return 0
    different = keys[:COLUMNS]
    keys = _with_main(different, representatives, but=over_keys)
    columns: list[Column] = [
        (f"runs over {named}", False, lambda group: " x ".join(",".join(values[:10]) for values in _over_values(group, several))),
        ("n", True, lambda group: str(len(group.runs))),
        ("best", True, lambda group: _spread(group.best)),
        ("test", True, lambda group: _spread(group.test[group.test_metric]) if group.test_metric else ""),
        *[(name, _figures(representatives, name), lambda group, k=name: _setting(group.runs[0], k)) for name in keys],
    ]
    _table(columns, groups, keep=4, wanted=4 + len(different))
    print(f"Mean ± sample standard deviation over the runs that are equal in everything but {' and '.join(over_keys)}.")
    if left_out:
        print(f"{left_out} not finished: left out.")
    test_metrics = list(dict.fromkeys(group.test_metric for group in groups if group.test_metric))
    others = [name for name in dict.fromkeys(name for group in groups for name in group.test) if name not in test_metrics]
    if others:
        print(f"test is {' or '.join(test_metrics)}; --json has {', '.join(others)} too.")
    for group in groups:
        twice = sorted({shown(value) for value in group.values if group.values.count(value) > 1})
        if twice:
            print(f"{named}={','.join(twice)} occurs more than once in {group.runs[0].name} and its like: n counts runs.")
        there, all_of_them = len(set(map(shown, group.values))), math.prod(map(len, _over_values(group, several)))
        if there < all_of_them:
            print(f"{there} of the {all_of_them} combinations are there of {group.runs[0].name} and its like.")
    return 0


def _over_values(group: Group, several: bool) -> list[list[str]]:
    """The values of each setting over which a group is one."""
    rows = group.values if several else [[value] for value in group.values]
    return [list(dict.fromkeys(map(shown, column))) for column in zip(*rows, strict=True)]


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
        one = load(find_run(word)[0].root)
        if one.problem:
            raise UserError(f"{word} cannot be read: {one.problem}")
        one.name = word.rstrip("/")
        runs.append(one)
    keys = _every_difference(runs)
    if as_json:
        differ = {key: [run.settings.get(key) for run in runs] for key in keys}
        _print_json({"runs": [run.as_json() for run in runs], "differ": differ})
        return 0
    lines: list[tuple[str, list[str]]] = [
        *[(key, [shown(run.settings[key]) if key in run.settings else "-" for run in runs]) for key in keys],
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
    columns += [(run.name, True, lambda line, place=place: line[1][place]) for place, run in enumerate(runs)]
    _table(columns, lines, keep=len(columns), wanted=len(columns))
    if not keys:
        print("Their settings are equal.")
    protocols = dict.fromkeys(run.protocol for run in runs if run.protocol)
    if len(protocols) > 1:
        print("Not the same protocol, so the numbers do not compare:")
    for protocol in protocols if len(protocols) > 1 else ():
        print(f"  {protocol}")
    return 0


def _every_difference(runs: list[Run]) -> list[str]:
    """Settings that differ, those that only some of the runs have included."""
    keys = differing(runs)
    some = [key for run in runs for key in run.settings if not all(key in other.settings for other in runs)]
    return keys + sorted(set(some) - set(keys))


# ---- printing


def _print_json(content: Any) -> None:
    print(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON readers refuse."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _table(columns: list[Column], rows: list[Any], keep: int, wanted: int) -> None:
    """Print rows under columns; a terminal too narrow loses the last ones, never the first `keep`, and that is said.

    For the sake of the first `wanted` columns the names in the first are broken into lines; for others they are not.
    """
    cells = [[cell(row) for _, _, cell in columns] for row in rows]
    filled = [number for number in range(len(columns)) if number < keep or any(row[number] for row in cells)]
    widths = {number: max(len(columns[number][0]), *(len(row[number]) for row in cells)) for number in filled}
    if not sys.stdout.isatty():
        _plain(columns, cells, filled, widths)
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    dropped: list[str] = []
    while filled[-1] >= wanted and sum(widths[number] + 2 for number in filled) > console.width:
        dropped.insert(0, columns[filled.pop()][0])
    folded = widths | {0: min(widths[0], NAME_WIDTH)}
    while filled[-1] >= keep and sum(folded[number] + 2 for number in filled) > console.width:
        dropped.insert(0, columns[filled.pop()][0])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number in filled:
        title, figures, _ = columns[number]
        table.add_column(Text(title), justify="right" if figures else "left", overflow="fold", no_wrap=number != 0)
    for row in cells:
        table.add_row(*[Text(row[number], style=MARK.get(row[number], "")) for number in filled])
    console.print(table)
    if dropped:
        console.print(f"The terminal is too narrow for: {', '.join(dropped)}.", markup=False)


def _plain(columns: list[Column], cells: list[list[str]], filled: list[int], widths: dict[int, int]) -> None:
    titles = [title for title, _, _ in columns]
    for row in [titles, *cells]:
        parts = [row[number].rjust(widths[number]) if columns[number][1] else row[number].ljust(widths[number]) for number in filled]
        print("  ".join(parts).rstrip())
