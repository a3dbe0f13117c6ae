"""snnexp analyze RUN [RUN ...]: curves, spike and pruning plots and a text report into RUN/plots/, drawn from the files of the run."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import RunFailed, UserError, nearest
from snnexp.rundir import RunDir, find_run

HELP = """snnexp analyze RUN [RUN ...]
snnexp analyze SWEEP

Draw what a run has recorded, and say what of it deserves a look; all into RUN/plots/. Only the files of the run are read, so a run
may be finished, going on, or killed. RUN is a run directory, or a checkpoint file in one.

  curves.png          loss, metrics (training and validation, the best epoch marked) and learning rate     logs/metrics.jsonl
  spikes.png          firing rate of each layer at each step over training      tracker=lif: epochs; lif_full, in its JSON: forwards
  spikes_heatmap.png  layers x steps: firing rate                               lif_activation_stats.json, or what there is of it
  units.png           how the rates of units are distributed; dead and saturated units              test_spikes.npz
  pruning.png         of a pruned run: how many units of each layer have which score, and the cut   pruning.json
  pruning_layers.png  of a pruned run: channels and heads of each layer before and after; parameters over epochs if it was gradual
  spike_maps.png      of a pruned run: spikes of one sample, units that were kept and that were removed    spike_maps.npz
  report.txt          results, pruning, rates, energy and findings; also printed

SWEEP is a directory with runs in it, as `snnexp prune RUN -m pruner.ratio=0.1,0.3,0.5,0.7` leaves one. Each run is analysed, and those
that pruned and are finished are compared, in SWEEP/plots/:

  pruning_sweep.png   test metric against parameters: one line for each criterion (mean and std where seeds are several), the dense model
  report.txt          the same as a table, with synaptic operations, energy and the speed-up of a training step; also printed
"""


def run(argv: list[str]) -> int:
    """Analyse the runs and sweeps that the command line names; the exit code.

    Raises: UserError if a word is neither; RunFailed if the disk refuses.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return 0
    for word in argv:
        if word.startswith("-"):
            raise UserError(f"analyze: there is no option {word}.{nearest(word, ('--help',))} `snnexp analyze --help` says what it does.")
    if not argv:
        raise UserError("analyze which run? snnexp analyze RUN [RUN ...]; `snnexp runs` lists them.")
    found = [Path(word).expanduser().resolve() if is_sweep(word) else find_run(word)[0] for word in argv]
    for number, one in enumerate(dict.fromkeys(found)):
        print("\n" * (number > 0), end="")
        if isinstance(one, RunDir):
            print(analyze(one), end="")
        else:
            analyze_sweep(one)
    return 0


def is_sweep(word: str) -> bool:
    """True if a word names a directory that is no run itself and holds runs."""
    path = Path(word).expanduser()
    return path.is_dir() and not (path / "config.json").is_file() and next(runs_below(path), None) is not None


def runs_below(directory: Path) -> Iterator[Path]:
    """The run directories below `directory`, by name; what lies inside one belongs to it."""
    for folder, inside, files in os.walk(directory):
        inside[:] = [] if "config.json" in files else sorted((name for name in inside if not name.startswith(".")), key=_by_number)
        if "config.json" in files:
            yield Path(folder)


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # 2_... before 10_...


def analyze_sweep(directory: Path) -> None:
    """Draw and report on each run of a sweep, then compare those that pruned; says what it does as it goes.

    Raises: RunFailed if the disk refuses.
    """
    from snnexp.analysis import pruning_sweep, runs

    found = [runs.load(path, directory) for path in runs_below(directory)]
    for one in found:
        analyze(RunDir(one.path))
        print(f"{one.name}: {one.state}; {one.path / 'plots' / 'report.txt'}", flush=True)
    sweep = pruning_sweep.collect(found)
    drawn = ["pruning_sweep.png", "report.txt"] if sweep.lines else []
    text = pruning_sweep.text(sweep, directory, len(found), drawn)
    if drawn:
        folder = _plots(directory)
        pruning_sweep.draw(sweep, directory.name, folder / "pruning_sweep.png")
        _write(folder / "report.txt", text)
    print(f"\n{text}", end="")


def analyze(run: RunDir) -> str:
    """Draw and report on one run; the report.

    Raises: RunFailed if the disk refuses.
    """
    from snnexp.analysis import curves, pruning, pruning_plots, report, runs, spikes

    folder = _plots(run.root)
    facts = runs.load(run.root)
    rows, problems = _rows(run)
    record = spikes.read(run.root, rows)
    problems += record.problems
    result = report.read_object(run.result, problems) if run.result.exists() else {}
    activity, source = report.find_activity(run.root, result, problems)
    record.problems = problems
    pruned = pruning.read(report.read_object(run.root / "pruning.json", problems), run.root / "spike_maps.npz", problems)

    title, drawn = run.root.name, []
    if curves.draw(rows, facts.best, title, folder / "curves.png"):
        drawn.append("curves.png")
    for there, draw, name in (
        (record.over_training, spikes.draw_over_training, "spikes.png"),
        (record.table, spikes.draw_heatmap, "spikes_heatmap.png"),
        (record.units, spikes.draw_units, "units.png"),
    ):
        if there:
            draw(record, title, folder / name)
            drawn.append(name)
    if pruned:
        drawn += pruning_plots.draw(pruned, title, folder)
    text = report.write(report.Facts(facts, rows, record, result, activity, source, [*drawn, "report.txt"], pruned))
    _write(folder / "report.txt", text)
    return text


def _plots(directory: Path) -> Path:
    folder = directory / "plots"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {folder}: {error.strerror}.") from error
    return folder


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror}.") from error


def _rows(run: RunDir) -> tuple[list[dict[str, Any]], list[str]]:
    """The epochs of the metrics log, and why it cannot be read."""
    from snnexp.analysis.curves import read_log

    path: Path = run.metrics_log
    try:
        return read_log(path), []
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path.name} cannot be read: {error.strerror}."]
