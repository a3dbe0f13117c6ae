"""snnexp analyze RUN [RUN ...]: plots of curves, spikes, pruning and latents and a text report in RUN/plots/, from the files of a run."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import RunFailed, UserError, nearest
from snnexp.files import pastable, write_text
from snnexp.rundir import RunDir, find_run, refuse_links, runs_below
from snnexp.untrusted.text import say, shown

if TYPE_CHECKING:
    from snnexp.analysis.tensorboard import Events

HELP = """snnexp analyze RUN [RUN ...] [save_dir=DIR] [checkpoint=best|latest|final|PATH] [split=train|val|test|all] [max_batches=N]
snnexp analyze SWEEP
snnexp analyze --tensorboard DIR [save_dir=DIR]

Plot what a run has recorded and report what deserves attention; all files are written to RUN/plots/. Only the files of the run are
read, so it may be finished, running or killed. RUN is a run directory, or a checkpoint file in one. Each plot, and what it is drawn from:

  curves.png          loss, metrics (training and validation, the best epoch marked) and learning rate     logs/metrics.jsonl
  spikes.png          firing rate of each layer at each time step, over training   tracker=lif: by epoch; lif_full: by forward pass
  spikes_heatmap.png  firing rate by layer and time step                           lif_activation_stats.json, even if incomplete
  units.png           distribution of the firing rates of units; dead and saturated units           test_spikes.npz
  pruning.png         of a pruned run: histogram of the scores in each layer, with the cut          pruning.json
  pruning_layers.png  of a pruned run: channels and heads of each layer before and after; with gradual pruning, parameters over epochs
  spike_maps.png      of a pruned run: spikes of one sample, of kept and of removed units           spike_maps.npz
  report.txt          results, pruning, the posterior, rates, energy and findings; also printed

For a variational run (set_vae, seqset_vae) also, from those of logs/metrics.jsonl, posterior_metrics/ and test_latents.npz that exist:

  loss_curves.png                  loss, reconstruction, KL, prediction loss: training and validation over optimizer steps
  performance_metrics.png          AUROC, AUPRC, accuracy
  training_dynamics.png            β, the shares of the terms of the loss, KL against reconstruction
  collapse_analysis.txt            has the posterior collapsed? KL, active units, mutual information, alarms, a verdict and remedies
  posterior_collapse_analysis.png  KL and activity of each latent dimension; with tracker=posterior also over training
  latent_space_umap.png            stays by outcome, sets by time (latent_space_pca.png without the extra: pip install "snnexp[umap]")
  reconstruction_errors.png        distribution of the error; by size of the set, hour of the stay, outcome
  latent_correlation.png           |correlation| between the latent dimensions of each level

save_dir=DIR writes all files of a RUN to DIR. With checkpoint=, split= (default: test) or max_batches=, the latents are computed anew
with the model and saved in RUN/evaluations/<stamp>/<split>_latents.npz; the curves are still those of the run.

--tensorboard DIR draws from event files, also those of other programs (train_kl_step, val_kl, val_auc, train_beta, Train/KL, ...):
loss_curves.png, performance_metrics.png, training_dynamics.png and collapse_analysis.txt, in DIR/analysis or save_dir. If several
directories in or below DIR hold events (version_0, version_1), each gets a folder of the same name.

SWEEP is a directory of runs, such as `snnexp prune RUN -m pruner.ratio=0.1,0.3,0.5,0.7` creates. Each run is analysed, and the finished
pruned runs are compared in SWEEP/plots/:

  pruning_sweep.png   test metric against parameters: a line for each criterion (mean and std over seeds), and the dense model
  report.txt          the same as a table, with synaptic operations, energy and the speed-up of a training step; also printed
"""


SETTINGS = ("save_dir", "checkpoint", "split", "max_batches")
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Settings:
    """The settings of the command line, None for those that it does not set."""

    save_dir: Path | None = None
    checkpoint: str | None = None
    split: str | None = None
    max_batches: int | None = None

    @property
    def new_latents(self) -> bool:
        """True if the latents have to be computed anew."""
        return (self.checkpoint, self.split, self.max_batches) != (None, None, None)


def run(argv: list[str]) -> int:
    """Analyse the runs and sweeps, or the event files, that the command line names; return the exit code.

    Raises: UserError if a word names none of them; RunFailed if a file cannot be written.
    """
    if any(word in ("-h", "--help") for word in argv):
        say(HELP, end="")
        return 0
    words, settings, events = read_words(argv)
    if events is not None:
        if words or settings.new_latents:
            extra = words[0] if words else "checkpoint=, split= or max_batches="
            raise UserError(f"analyze --tensorboard {events}: {extra} has no place here; event files go with save_dir=DIR only.")
        analyze_events(events, settings.save_dir)
        return 0
    if not words:
        raise UserError("analyze which run? snnexp analyze RUN [RUN ...]; `snnexp runs` lists them.")
    targets = list(dict.fromkeys(Path(word).expanduser().resolve() if is_sweep(word) else find_run(word)[0] for word in words))
    if settings != Settings() and (len(targets) > 1 or not isinstance(targets[0], RunDir)):
        key = next(name for name in SETTINGS if getattr(settings, name) is not None)
        count = len(targets)
        raise UserError(f"{key}= goes with one run, and {'a sweep is' if count == 1 else f'{count} are'} named here; name one.")
    for index, run_or_sweep in enumerate(targets):
        say("\n" * (index > 0), end="")
        if isinstance(run_or_sweep, RunDir):
            say(analyze(run_or_sweep, settings), end="")
        else:
            analyze_sweep(run_or_sweep)
    return 0


def read_words(argv: list[str]) -> tuple[list[str], Settings, Path | None]:
    """Return the words that name runs, the settings, and the directory after --tensorboard.

    Raises: UserError for an unknown option or setting, or a value that is not allowed.
    """
    words: list[str] = []
    values: dict[str, str] = {}
    events: Path | None = None
    remaining = iter(argv)
    for word in remaining:
        key, equals, value = word.partition("=")
        if key == "--tensorboard":
            if not (value := value if equals else next(remaining, "")):
                raise UserError("--tensorboard wants a directory with event files: snnexp analyze --tensorboard DIR")
            events = Path(value).expanduser()
        elif word.startswith("-"):
            hint = nearest(word, ("--help", "--tensorboard"))
            raise UserError(f"analyze: there is no option {word}.{hint} `snnexp analyze --help` says what it does.")
        elif equals and key in SETTINGS:
            if not value:
                raise UserError(f"{key}= wants a value; `snnexp analyze --help` says which.")
            values[key] = value
        elif equals and re.fullmatch(r"\w+", key) and not Path(word).expanduser().exists():
            raise UserError(
                f"{word}: no such run directory, and analyze has no such setting. It has {', '.join(SETTINGS)}.{nearest(key, SETTINGS)}"
            )
        else:
            words.append(word)
    if values.get("split", "test") not in SPLITS:
        raise UserError(f"split={values['split']}: allowed are {', '.join(SPLITS)}.{nearest(values['split'], SPLITS)}")
    batches = values.get("max_batches")
    if batches is not None and not (batches.isascii() and batches.isdecimal() and int(batches) > 0):
        raise UserError(f"max_batches={batches}: must be a whole number of at least 1.")
    save_dir = Path(values["save_dir"]).expanduser() if "save_dir" in values else None
    return words, Settings(save_dir, values.get("checkpoint"), values.get("split"), int(batches) if batches else None), events


def is_sweep(word: str) -> bool:
    """Return True if a word names a directory that holds runs and is not a run itself."""
    path = Path(word).expanduser()
    return path.is_dir() and not (path / "config.json").is_file() and any(readable_runs(path))


def readable_runs(directory: Path) -> Iterator[Path]:
    """Yield the run directories at or below a directory, without directories that cannot be read."""
    return (path for path in runs_below(directory) if os.path.isfile(path / "config.json"))


def analyze_sweep(directory: Path) -> None:
    """Analyse each run of a sweep, then compare those that pruned, and print what has been done.

    Raises: RunFailed if a file cannot be written.
    """
    from snnexp.analysis import runs
    from snnexp.analysis.pruning import sweep as pruning_sweep

    facts = [runs.load(path, directory) for path in readable_runs(directory)]
    for run in facts:
        analyze(RunDir(run.path))
        say(f"{run.name}: {run.state}; {pastable(run.path / 'plots' / 'report.txt')}", flush=True)
    sweep = pruning_sweep.collect(facts)
    files = ["pruning_sweep.png", "report.txt"] if sweep.lines else []
    text = pruning_sweep.sweep_text(sweep, directory, len(facts), files)
    if files:
        folder = _plots(directory)
        pruning_sweep.draw(sweep, directory.name, folder / "pruning_sweep.png")
        write_text(folder / "report.txt", shown(text))
    say(f"\n{text}", end="")


def analyze(run: RunDir, settings: Settings = Settings()) -> str:  # noqa: B008 - frozen, so the one default may be shared
    """Draw the plots of one run, write its report and return it.

    Raises: UserError if latents are requested of a run that has none, or cannot be computed; RunFailed if a file cannot be written.
    """
    from snnexp.analysis import curves, reading, report, runs, spikes
    from snnexp.analysis.posterior import collapse, variational
    from snnexp.analysis.pruning import plots
    from snnexp.analysis.pruning import record as pruning

    facts = runs.load(run.root)
    rows, problems = _rows(run)
    posterior = None
    if variational.is_variational(run.root, rows) or settings.new_latents:
        posterior = variational.read(facts, rows, _latents(run, rows, settings) if settings.new_latents else None)
        problems += posterior.problems
    if settings.save_dir is None:
        refuse_links(run)
    folder = _plots(run.root) if settings.save_dir is None else _folder(settings.save_dir)
    record = spikes.read(run.root, rows)
    problems += record.problems
    result = reading.read_object(run.result, problems) if run.result.exists() else {}
    activity, source = report.find_activity(run.root, result, problems)
    record.problems = problems
    pruned = pruning.read(reading.read_object(run.root / "pruning.json", problems), run.root / "spike_maps.npz", problems)

    title, files = run.root.name, []
    if curves.draw(rows, facts.best, title, folder / "curves.png"):
        files.append("curves.png")
    for data, draw, name in (
        (record.over_training, spikes.draw_over_training, "spikes.png"),
        (record.table, spikes.draw_heatmap, "spikes_heatmap.png"),
        (record.units, spikes.draw_units, "units.png"),
    ):
        if data:
            draw(record, title, folder / name)
            files.append(name)
    if pruned:
        files += plots.draw(pruned, title, folder)
    if posterior:
        files += [*variational.draw(posterior, title, folder), "collapse_analysis.txt"]
        write_text(folder / "collapse_analysis.txt", shown(collapse.analysis_text(posterior.evidence)))
    summary = collapse.summary(posterior.evidence) if posterior else None
    save_dir = None if settings.save_dir is None else folder
    text = report.report_text(
        report.ReportData(facts, rows, record, result, activity, source, [*files, "report.txt"], pruned, save_dir, summary)
    )
    write_text(folder / "report.txt", shown(text))
    return text


def _latents(run: RunDir, rows: list[dict[str, Any]], settings: Settings) -> Path:
    """Compute latents with the model and return their file.

    Raises: UserError if the run is not variational, or the checkpoint or split does not exist.
    """
    from snnexp.analysis.posterior.variational import is_variational

    if not is_variational(run.root, rows):
        raise UserError(
            f"{run.root} is no variational run (its log has no KL), so it has no latents to draw; checkpoint=, split= and max_batches= are "
            f"for those. A checkpoint is judged by: snnexp evaluate {pastable(run.root)} checkpoint=..."
        )
    from snnexp.commands import evaluate  # imports torch, which nothing else here needs

    return evaluate.latents(run, settings.checkpoint or "best", settings.split or "test", settings.max_batches)


def analyze_events(directory: Path, save_dir: Path | None) -> None:
    """Draw and report on each directory of event files in or below `directory`, and print what has been done.

    Raises: UserError if there is no such directory, or none with tags that can be drawn; RunFailed if a file cannot be written.
    """
    from snnexp.analysis import tensorboard

    everything = [tensorboard.read(path) for path in tensorboard.find(directory)]
    drawable = [events for events in everything if events.tags]
    for events in everything:
        if events.problem:
            say(events.problem)
    if not drawable:
        unknown = sorted({tag for events in everything for tag in events.unknown})
        listed = f"{', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}"
        scalars = f"Their scalars are: {listed}." if unknown else "They hold no scalars."
        raise UserError(
            f"--tensorboard {directory}: its event files have no tag that is known. {scalars}\n"
            "Known are those of a part (train, val), a metric (loss, kl, recon, pred, auc, auprc, accuracy, beta, recon_weight) and\n"
            "perhaps an ending (step, epoch): train_kl_step, val_auc, Train/KL."
        )
    target = save_dir or directory / "analysis"
    count = len(everything)
    if count > 1:
        say(f"{count} directories at or below {directory} hold event files; each is drawn into a folder of its own below {target}.")
    for events in drawable:
        relative = events.directory.relative_to(directory)
        title = str(relative) if relative.parts else directory.resolve().name
        _draw_events(events, _folder(target / relative if count > 1 else target), title)
    for events in everything:
        if events not in drawable and not events.problem:
            say(f"{events.directory}: no tag that is known ({', '.join(events.unknown[:8]) or 'no scalars'}); left out.")


def _draw_events(events: "Events", folder: Path, title: str) -> None:
    from snnexp.analysis.posterior import collapse
    from snnexp.analysis.posterior import curves as vae_curves

    evidence = collapse.Evidence(title, curves=events.curves)
    files = [*vae_curves.draw(events.curves, title, folder), "collapse_analysis.txt"]
    write_text(folder / "collapse_analysis.txt", shown(collapse.analysis_text(evidence)))
    say(f"{events.directory}: {len(events.tags)} tags read ({', '.join(sorted(events.tags.values()))})")
    if events.unknown:
        say(f"  not known, left out: {', '.join(sorted(events.unknown))}")
    say(f"  verdict: {collapse.verdict(evidence)}\n  written to {folder}: {', '.join(files)}")


def _plots(directory: Path) -> Path:
    return _folder(directory / "plots", parents=False)


def _folder(folder: Path, parents: bool = True) -> Path:
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {folder}: {error.strerror}.") from error
    return folder


def _rows(run: RunDir) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the epochs of the metrics log, and the problem if it cannot be read."""
    from snnexp.analysis.curves import read_log

    path: Path = run.metrics_log
    try:
        return read_log(path), []
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path.name} cannot be read: {error.strerror}."]
