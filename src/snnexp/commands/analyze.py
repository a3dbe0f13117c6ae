"""snnexp analyze RUN [RUN ...]: curves, spike plots and a text report into RUN/plots/, drawn from the files of the run."""

from pathlib import Path
from typing import Any

from snnexp.errors import RunFailed, UserError, nearest
from snnexp.rundir import RunDir, find_run

HELP = """snnexp analyze RUN [RUN ...]

Draw what a run has recorded, and say what of it deserves a look; all into RUN/plots/. Only the files of the run are read, so a run
may be finished, going on, or killed. RUN is a run directory, or a checkpoint file in one.

  curves.png          loss, metrics (training and validation, the best epoch marked) and learning rate     logs/metrics.jsonl
  spikes.png          firing rate of each layer at each step over training      tracker=lif: epochs; lif_full, in its JSON: forwards
  spikes_heatmap.png  layers x steps: firing rate                               lif_activation_stats.json, or what there is of it
  units.png           how the rates of units are distributed; dead and saturated units              test_spikes.npz
  report.txt          results, rates, energy and findings; also printed
"""


def run(argv: list[str]) -> int:
    """Analyse the runs that the command line names; the exit code.

    Raises: UserError if a word is no run; RunFailed if the disk refuses.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return 0
    for word in argv:
        if word.startswith("-"):
            raise UserError(f"analyze: there is no option {word}.{nearest(word, ('--help',))} `snnexp analyze --help` says what it does.")
    if not argv:
        raise UserError("analyze which run? snnexp analyze RUN [RUN ...]; `snnexp runs` lists them.")
    found = [find_run(word)[0] for word in argv]
    for number, one in enumerate(dict.fromkeys(found)):
        print("\n" * (number > 0) + analyze(one), end="")
    return 0


def analyze(run: RunDir) -> str:
    """Draw and report on one run; the report.

    Raises: RunFailed if the disk refuses.
    """
    from snnexp.analysis import curves, report, runs, spikes

    folder = run.root / "plots"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {folder}: {error.strerror}.") from error
    facts = runs.load(run.root)
    rows, problems = _rows(run)
    record = spikes.read(run.root, rows)
    problems += record.problems
    result = report.read_object(run.result, problems) if run.result.exists() else {}
    activity, source = report.find_activity(run.root, result, problems)
    record.problems = problems

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
    text = report.write(report.Facts(facts, rows, record, result, activity, source, [*drawn, "report.txt"]))
    try:
        (folder / "report.txt").write_text(text)
    except OSError as error:
        raise RunFailed(f"cannot write {folder / 'report.txt'}: {error.strerror}.") from error
    return text


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
