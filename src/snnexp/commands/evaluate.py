"""snnexp evaluate RUN: evaluate a checkpoint on a split; the results are written to RUN/evaluations/<stamp>/."""

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from snnexp import config, files, targets
from snnexp.composing import command_line, compose
from snnexp.composing.command_line import refuse_groups
from snnexp.composing.other_data import check_data_dir
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, has_checkpoint, now, refuse_links, write_json


def run(argv: list[str]) -> int:
    """Evaluate the run that the command line names; return the exit code."""
    if command_line.asks_for_help(argv) and command_line.run_argument(argv) is None:
        print(
            "snnexp evaluate RUN [checkpoint=best|latest|final|pruned|epoch<N>|PATH] [split=train|val|test|all] [limit_val=N]\n"
            "                    [data_dir=ELSEWHERE | dataset.root=ELSEWHERE | dataset.file=TABLE]\n"
            "Evaluate a checkpoint on a split, of the run's data or of other data of the same kind, which are prepared with the run's\n"
            "own statistics. Where the run was given dataset.root= or dataset.file=, give the other data by the same key."
        )
        return 0
    if (word := command_line.run_argument(argv)) is not None and (file := Path(word).expanduser()).is_file() and not has_checkpoint(file):
        raise UserError(message_for_weights(word, file, argv))
    source, checkpoint, argv = command_line.take_run("evaluate", argv)
    if command_line.read_command_line(argv).multirun:
        raise UserError("evaluate judges one checkpoint on one split; -m has no meaning here.")
    refuse_groups(argv, config.GROUPS, "a run is judged as it was made. Other data of the same kind: data_dir=ELSEWHERE.")
    compose.run("evaluate", argv, lambda cfg: job(cfg, source, checkpoint), saved=source, schema=config.EvaluateConfig)
    return 0


def message_for_weights(word: str, file: Path, argv: list[str]) -> str:
    """Return a message with the command that evaluates weights outside a run, completed from the file and the command line."""
    from snnexp.engine.weights import reading

    known = model_and_data_settings(reading.read(file)[0].settings or {})
    pairs = (each.partition("=") for each in argv if each != word)
    known |= {name: value for name, _, value in pairs if value and name not in ("split", "checkpoint")}
    first = {name: known.pop(name, "...") for name in ("model", "dataset")}
    settings = " ".join(
        shlex.quote(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        for name, value in ({"init_from": word, "epochs": 0} | first | known).items()
    )
    return (
        f"{word} lies in no run: it holds weights, but nothing tells evaluate of which network they are, or on which data to judge them.\n"
        f"This tests them and trains nothing:\n  snnexp train {settings}"
    )


def model_and_data_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings by which a run chose its network and data, and those in which its network differs from the defaults."""
    choices, node = settings.get("choices") or {}, settings.get("model")
    node = node if isinstance(node, dict) else {}
    selected: dict[str, Any] = {group: choices[group] for group in ("model", "dataset", "task", "experiment") if choices.get(group)}
    selected |= {"T": settings["T"]} if "T" in settings else {}
    with suppress(UserError, KeyError):  # the defaults of a class that is not installed or not trusted are unknown
        parameters = targets.parameters(targets.locate(node["_target_"], trust=[]))
        selected |= {
            f"model.{name}": value
            for name, value in node.items()
            if name in parameters and name != "T" and isinstance(value, bool | int | float | str) and value != parameters[name].default
        }
    return selected


def latents(run: RunDir, checkpoint: str = "best", split: str = "test", max_batches: int | None = None) -> Path:
    """Compute the latents of a split with a checkpoint of a run, and return their file; `max_batches` limits the number of samples.

    Raises: UserError if the model has no latents; UserError, RunFailed as `snnexp evaluate` does.
    """
    settings = config.read_saved(run.config)
    limit = [] if max_batches is None else [f"limit_val={max_batches * settings['batch_size']}"]
    folders: list[Path] = []
    argv = [f"checkpoint={checkpoint}", f"split={split}", *limit]
    compose.run("evaluate", argv, lambda cfg: folders.append(job(cfg, run, None)), saved=run, schema=config.EvaluateConfig)
    path = folders[0] / f"{split}_latents.npz"
    if not path.exists():
        raise UserError(f"{run.root}: its model has no latents; only a variational one (seqset_vae, set_vae) has.")
    return path


def job(cfg: DictConfig, run: RunDir, checkpoint: Path | None) -> Path:
    """Evaluate a run and return the folder with the results; `checkpoint` is the file that the command line names, if any.

    Raises: UserError, RunFailed.
    """
    from snnexp import parts
    from snnexp.engine import allocator, experiment, trained
    from snnexp.engine.arithmetic.compiled import check_compile, compiled
    from snnexp.engine.arithmetic.precision import check_precision
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.evaluation import evaluate
    from snnexp.engine.fitting.structure import build_fitting
    from snnexp.engine.measures.activity import measure_activity
    from snnexp.engine.measures.latents import Latents
    from snnexp.engine.measures.restored import Frames
    from snnexp.engine.results import as_json, protocol_with_limits, write_predictions
    from snnexp.engine.terminal import Terminal

    before = config.read_saved(run.config)
    settings = config.finish(cfg, before["choices"], saved=True)
    path = checkpoint or checkpoint_path(run, settings["checkpoint"])
    saved = trained.load(path, before)
    terminal = Terminal(None, main=True)
    allocator.keep_memory()
    experiment.set_determinism(settings["deterministic"])
    ranks = Ranks(0, 1, choose_device(settings["device"]))
    check_precision(settings["precision"], ranks.device)
    check_compile(settings, ranks.device)

    check_data_dir(settings, before, "give dataset.root=ELSEWHERE.")
    task = parts.make_task(settings)
    data, own_samples = trained.data_of(settings, saved, path)
    if (root := settings["dataset"].get("root")) == before["dataset"].get("root"):
        if not own_samples:
            terminal.say("These are not the samples or the split of the run: what it saw in training may be among them.")
    elif own_samples:
        terminal.say("These are the very samples of the run, and its split.")
    model = build_fitting(lambda: parts.make_model(settings, data, task), saved, path).to(ranks.device)
    precision = trained.take_over(model, settings, saved, path, ranks.device)
    precision.set_kernels()

    split, samples = settings["split"], trained.samples_in(data, settings["split"])
    seen_before = data.seen_before(saved["data"], split)
    if seen_before and not own_samples:
        terminal.say(f"{seen_before} of these {samples} samples are among those that the run was trained on or chose its epoch by.")
    latent_records = Latents(model, data, split, min(samples, settings["limit_val"] or samples), ranks)
    folder = claim_folder(run)
    frames = Frames(data, split, settings["limit_val"], folder)

    def collect(batch: Any, output: Any) -> None:
        latent_records(batch, output)
        frames(batch, output)

    with removed_on_error(folder):
        with terminal.bar(split, samples) as bar:
            evaluation = evaluate(
                compiled(model, settings["compile"]),
                task,
                data,
                split,
                batch_size=settings["batch_size"],
                ranks=ranks,
                precision=precision,
                workers=settings["workers"],
                limit=settings["limit_val"],
                on_batch=bar.advance,
                collect=collect,
            )
        activity = measure_activity(
            model,
            task,
            data,
            split=split,
            batch_size=settings["batch_size"],
            device=ranks.device,
            precision=precision,
            limit=settings["limit_val"],
        )
    protocol = protocol_with_limits(data.protocol, None, settings["limit_val"])
    report: dict[str, Any] = {
        "run": str(run.root),
        "checkpoint": path.name,
        "epoch": saved["epoch"],
        "split": split,
        "samples": len(evaluation.true),
        "metrics": as_json(evaluation.metrics),
        "activity": activity.summary(),
        "protocol": protocol,
        "data": root,
        "samples_of_the_run": own_samples,
        **({} if seen_before is None else {"samples_it_had_seen": seen_before}),
        "changes": config.differences(before, settings, ignoring={"limit_val", "checkpoint", "split", *config.NAMING}),
        "seed": settings["seed"],
        "precision": precision.name,
        "when": now(),
    }
    write_predictions(folder, split, evaluation)
    best = saved["state"]["best"] or {}
    latent_records.write(folder / f"{split}_latents.npz", best["epoch"] if best.get("step") == saved["step"] else saved["epoch"])
    activity.write(folder / f"{split}_spikes.npz")
    write_json(folder / f"{split}.json", report)
    values = "  ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())
    if left_out := data.left_out:
        terminal.say(f"{data.name}: {left_out}")
    samples = f"{split} ({len(evaluation.true)} samples), {path.name} of epoch {saved['epoch']}"
    terminal.say(f"{protocol}\n{samples}: {values}\n{files.pastable(folder)}")
    return folder


def checkpoint_path(run: RunDir, name: str) -> Path:
    """Return the checkpoint of a run that `name` stands for; print a line if the latest has to stand in for the best."""
    from snnexp.engine import trained

    path = trained.checkpoint_path(run, name)
    if name == "best" and path == run.checkpoint("latest"):
        print("No epoch was validated, so there is no best one: this is the latest.")
    return path


@contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Remove the folder of an evaluation that does not complete, so that it is not taken for a complete one."""
    try:
        yield
    except BaseException:  # also a Ctrl-C, which must not leave pictures without their numbers
        shutil.rmtree(folder, ignore_errors=True)
        raise


def claim_folder(run: RunDir) -> Path:
    """Create a new directory for an evaluation, named by the time.

    Raises: RunFailed if it cannot be made.
    """
    refuse_links(run)
    try:
        return files.claim_directory(run.evaluations, time.strftime("%Y%m%d_%H%M%S"))
    except FileExistsError:
        raise UserError(f"{run.evaluations}: too many evaluations in one second.") from None
    except OSError as error:
        raise RunFailed(f"cannot make a directory in {run.evaluations}: {error.strerror}.") from error
