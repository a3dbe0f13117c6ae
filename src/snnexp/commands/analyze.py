"""snnexp analyze RUN [RUN ...]: curves, spike, pruning and latent plots and a text report into RUN/plots/, from the files of the run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import RunFailed, UserError, nearest
from snnexp.files import write_text
from snnexp.rundir import RunDir, find_run, runs_below

if TYPE_CHECKING:
    from snnexp.analysis.tensorboard import Events

HELP = """snnexp analyze RUN [RUN ...] [save_dir=DIR] [checkpoint=best|latest|final|PATH] [split=train|val|test|all] [max_batches=N]
snnexp analyze SWEEP
snnexp analyze --tensorboard DIR [save_dir=DIR]

Draw what a run has recorded, and say what of it deserves a look; all into RUN/plots/. Only the files of the run are read, so a run
may be finished, going on, or killed. RUN is a run directory, or a checkpoint file in one.

  curves.png          loss, metrics (training and validation, the best epoch marked) and learning rate     logs/metrics.jsonl
  spikes.png          firing rate of each layer at each step over training      tracker=lif: epochs; lif_full, in its JSON: forwards
  spikes_heatmap.png  layers x steps: firing rate                               lif_activation_stats.json, or what there is of it
  units.png           how the rates of units are distributed; dead and saturated units              test_spikes.npz
  pruning.png         of a pruned run: how many units of each layer have which score, and the cut   pruning.json
  pruning_layers.png  of a pruned run: channels and heads of each layer before and after; parameters over epochs if it was gradual
  spike_maps.png      of a pruned run: spikes of one sample, units that were kept and that were removed    spike_maps.npz
  report.txt          results, pruning, the posterior, rates, energy and findings; also printed

of a variational run (set_vae, seqset_vae) also, from logs/metrics.jsonl, posterior_metrics/ and test_latents.npz, whichever there are:

  loss_curves.png                  loss, reconstruction, KL, prediction loss: training and validation over optimizer steps
  performance_metrics.png          AUROC, AUPRC, accuracy
  training_dynamics.png            β, the shares of the terms of the loss, KL against reconstruction
  collapse_analysis.txt            has the posterior collapsed? KL, active units, mutual information, alarms, a verdict; what helps
  posterior_collapse_analysis.png  KL and activity of each latent dimension; over training, with tracker=posterior
  latent_space_umap.png            stays by outcome, sets by time (latent_space_pca.png without the extra: pip install "snnexp[umap]")
  reconstruction_errors.png        distribution; by size of the set, hour of the stay, outcome
  latent_correlation.png           |correlation| between latent dimensions, of each level

save_dir=DIR puts all files of a RUN there. checkpoint=, split= (test) or max_batches= pass the data through the model anew, which leaves
RUN/evaluations/<stamp>/<split>_latents.npz, and draw the latents of that; the curves are those of the run.

--tensorboard DIR draws from event files, another program's too (train_kl_step, val_kl, val_auc, train_beta, Train/KL, ...):
loss_curves.png, performance_metrics.png, training_dynamics.png and collapse_analysis.txt, into DIR/analysis or save_dir; if several
directories in or below DIR hold events (version_0, version_1), each into a folder of its own name.

SWEEP is a directory with runs in it, as `snnexp prune RUN -m pruner.ratio=0.1,0.3,0.5,0.7` leaves one. Each run is analysed, and those
that pruned and are finished are compared, in SWEEP/plots/:

  pruning_sweep.png   test metric against parameters: one line for each criterion (mean and std where seeds are several), the dense model
  report.txt          the same as a table, with synaptic operations, energy and the speed-up of a training step; also printed
"""


SETTINGS = ("save_dir", "checkpoint", "split", "max_batches")
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Settings:
    """What the command line sets; None where it does not."""

    save_dir: Path | None = None
    checkpoint: str | None = None
    split: str | None = None
    max_batches: int | None = None

    @property
    def anew(self) -> bool:
        """True if the latents are to be made anew."""
        return (self.checkpoint, self.split, self.max_batches) != (None, None, None)


def run(argv: list[str]) -> int:
    """Analyse the runs and sweeps, or the event files, that the command line names; the exit code.

    Raises: UserError if a word is none of them; RunFailed if the disk refuses.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return 0
    words, settings, events = read_words(argv)
    if events is not None:
        if words or settings.anew:
            extra = words[0] if words else "checkpoint=, split= or max_batches="
            raise UserError(f"analyze --tensorboard {events}: {extra} has no place here; event files go with save_dir=DIR only.")
        analyze_events(events, settings.save_dir)
        return 0
    if not words:
        raise UserError("analyze which run? snnexp analyze RUN [RUN ...]; `snnexp runs` lists them.")
    found = list(dict.fromkeys(Path(word).expanduser().resolve() if is_sweep(word) else find_run(word)[0] for word in words))
    if settings != Settings() and (len(found) > 1 or not isinstance(found[0], RunDir)):
        given = next(name for name in SETTINGS if getattr(settings, name) is not None)
        raise UserError(f"{given}= goes with one run, and {'a sweep is' if len(found) == 1 else f'{len(found)} are'} named here; name one.")
    for number, one in enumerate(found):
        print("\n" * (number > 0), end="")
        if isinstance(one, RunDir):
            print(analyze(one, settings), end="")
        else:
            analyze_sweep(one)
    return 0


def read_words(argv: list[str]) -> tuple[list[str], Settings, Path | None]:
    """The words that name runs, the settings, and the directory after --tensorboard.

    Raises: UserError for an option or setting that there is not, or a value that is not allowed.
    """
    words: list[str] = []
    given: dict[str, str] = {}
    events: Path | None = None
    left = iter(argv)
    for word in left:
        key, equals, value = word.partition("=")
        if key == "--tensorboard":
            if not (value := value if equals else next(left, "")):
                raise UserError("--tensorboard wants a directory with event files: snnexp analyze --tensorboard DIR")
            events = Path(value).expanduser()
        elif word.startswith("-"):
            hint = nearest(word, ("--help", "--tensorboard"))
            raise UserError(f"analyze: there is no option {word}.{hint} `snnexp analyze --help` says what it does.")
        elif equals and key in SETTINGS:
            if not value:
                raise UserError(f"{key}= wants a value; `snnexp analyze --help` says which.")
            given[key] = value
        elif equals and re.fullmatch(r"\w+", key) and not Path(word).expanduser().exists():
            raise UserError(
                f"{word}: no such run directory, and analyze has no such setting. It has {', '.join(SETTINGS)}.{nearest(key, SETTINGS)}"
            )
        else:
            words.append(word)
    if given.get("split", "test") not in SPLITS:
        raise UserError(f"split={given['split']}: allowed are {', '.join(SPLITS)}.{nearest(given['split'], SPLITS)}")
    batches = given.get("max_batches")
    if batches is not None and not (batches.isascii() and batches.isdecimal() and int(batches) > 0):
        raise UserError(f"max_batches={batches}: must be a whole number of at least 1.")
    save_dir = Path(given["save_dir"]).expanduser() if "save_dir" in given else None
    return words, Settings(save_dir, given.get("checkpoint"), given.get("split"), int(batches) if batches else None), events


def is_sweep(word: str) -> bool:
    """True if a word names a directory that is no run itself and holds runs."""
    path = Path(word).expanduser()
    return path.is_dir() and not (path / "config.json").is_file() and any(run != path for run in runs_below(path))


def analyze_sweep(directory: Path) -> None:
    """Draw and report on each run of a sweep, then compare those that pruned; says what it does as it goes.

    Raises: RunFailed if the disk refuses.
    """
    from snnexp.analysis import runs
    from snnexp.analysis.pruning import sweep as pruning_sweep

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
        write_text(folder / "report.txt", text)
    print(f"\n{text}", end="")


def analyze(run: RunDir, settings: Settings = Settings()) -> str:  # noqa: B008 - frozen, so the one default may be shared
    """Draw and report on one run; the report.

    Raises: UserError if latents are to be made of a run that has none, or cannot be; RunFailed if the disk refuses.
    """
    from snnexp.analysis import curves, report, runs, spikes
    from snnexp.analysis.posterior import collapse
    from snnexp.analysis.posterior import draw as variational
    from snnexp.analysis.pruning import plots
    from snnexp.analysis.pruning import record as pruning

    facts = runs.load(run.root)
    rows, problems = _rows(run)
    posterior = None
    if variational.is_variational(run.root, rows) or settings.anew:
        posterior = variational.read(facts, rows, _latents(run, rows, settings) if settings.anew else None)
        problems += posterior.problems
    folder = _plots(run.root) if settings.save_dir is None else _folder(settings.save_dir)
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
        drawn += plots.draw(pruned, title, folder)
    if posterior:
        drawn += [*variational.draw(posterior, title, folder), "collapse_analysis.txt"]
        write_text(folder / "collapse_analysis.txt", collapse.text(posterior.evidence))
    said = collapse.summary(posterior.evidence) if posterior else None
    place = None if settings.save_dir is None else folder
    text = report.write(report.Facts(facts, rows, record, result, activity, source, [*drawn, "report.txt"], pruned, place, said))
    write_text(folder / "report.txt", text)
    return text


def _latents(run: RunDir, rows: list[dict[str, Any]], settings: Settings) -> Path:
    """Latents made anew, by a pass through the model.

    Raises: UserError if the run is not variational, or the checkpoint or split is not there.
    """
    from snnexp.analysis.posterior.draw import is_variational

    if not is_variational(run.root, rows):
        raise UserError(
            f"{run.root} is no variational run (its log has no KL), so it has no latents to draw; checkpoint=, split= and max_batches= are "
            f"for those. A checkpoint is judged by: snnexp evaluate {run.root} checkpoint=..."
        )
    from snnexp.commands import evaluate  # torch, which nothing else here needs

    return evaluate.latents(run, settings.checkpoint or "best", settings.split or "test", settings.max_batches)


def analyze_events(directory: Path, save_dir: Path | None) -> None:
    """Draw and report on each directory of event files in or below `directory`; says what it does.

    Raises: UserError if there is none, or none holds what could be drawn; RunFailed if the disk refuses.
    """
    from snnexp.analysis import tensorboard

    found = [tensorboard.read(path) for path in tensorboard.find(directory)]
    told = [events for events in found if events.tags]
    for events in found:
        if events.problem:
            print(events.problem)
    if not told:
        unknown = sorted({tag for events in found for tag in events.unknown})
        there = (
            f"Their scalars are: {', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}." if unknown else "They hold no scalars."
        )
        raise UserError(
            f"--tensorboard {directory}: its event files have no tag that is known. {there}\n"
            "Known are those of a part (train, val), a metric (loss, kl, recon, pred, auc, auprc, accuracy, beta, recon_weight) and\n"
            "perhaps an ending (step, epoch): train_kl_step, val_auc, Train/KL."
        )
    target = save_dir or directory / "analysis"
    if len(found) > 1:
        print(f"{len(found)} directories at or below {directory} hold event files; each is drawn into a folder of its own below {target}.")
    for events in told:
        below = events.directory.relative_to(directory)
        _draw_events(events, _folder(target / below if len(found) > 1 else target), str(below) if below.parts else directory.resolve().name)
    for events in found:
        if events not in told and not events.problem:
            print(f"{events.directory}: no tag that is known ({', '.join(events.unknown[:8]) or 'no scalars'}); left out.")


def _draw_events(events: "Events", folder: Path, title: str) -> None:
    from snnexp.analysis.posterior import collapse
    from snnexp.analysis.posterior import curves as vae_curves

    evidence = collapse.Evidence(title, curves=events.curves)
    drawn = [*vae_curves.draw(events.curves, title, folder), "collapse_analysis.txt"]
    write_text(folder / "collapse_analysis.txt", collapse.text(evidence))
    print(f"{events.directory}: {len(events.tags)} tags read ({', '.join(sorted(events.tags.values()))})")
    if events.unknown:
        print(f"  not known, left out: {', '.join(sorted(events.unknown))}")
    print(f"  verdict: {collapse.verdict(evidence)}\n  written to {folder}: {', '.join(drawn)}")


def _plots(directory: Path) -> Path:
    return _folder(directory / "plots", parents=False)


def _folder(folder: Path, parents: bool = True) -> Path:
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {folder}: {error.strerror}.") from error
    return folder


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
