"""snnexp evaluate RUN: a checkpoint on a split, written to RUN/evaluations/<stamp>/."""

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
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, is_run, now, write_json


def run(argv: list[str]) -> int:
    """Judge the run that the command line names."""
    if command_line.asks_for_help(argv) and command_line.run_argument(argv) is None:
        print(
            "snnexp evaluate RUN [checkpoint=best|latest|final|pruned|epoch<N>|PATH] [split=train|val|test|all] [limit_val=N]\n"
            "                    [data_dir=ELSEWHERE | dataset.root=ELSEWHERE | dataset.file=TABLE]\n"
            "Judge a checkpoint on a split, of other data of the same kind if you name some; they are prepared with the run's own\n"
            "statistics. Data that were named by their place are named so again: dataset.root=, dataset.file=."
        )
        return 0
    if (word := command_line.run_argument(argv)) is not None and (file := Path(word).expanduser()).is_file() and not lies_in_a_run(file):
        raise UserError(how_to_judge(word, file, argv))
    source, checkpoint, argv = command_line.take_run("evaluate", argv)
    if command_line.read_command_line(argv).multirun:
        raise UserError("evaluate judges one checkpoint on one split; -m has no meaning here.")
    refuse_groups(argv, config.GROUPS, "a run is judged as it was made. Other data of the same kind: data_dir=ELSEWHERE.")
    compose.run("evaluate", argv, lambda cfg: job(cfg, source, checkpoint), saved=source, schema=config.EvaluateConfig)
    return 0


def lies_in_a_run(file: Path) -> bool:
    """True for a checkpoint in its run directory."""
    return file.suffix == ".pth" and is_run(file.resolve().parent.parent)


def how_to_judge(word: str, file: Path, argv: list[str]) -> str:
    """What to type to judge weights that lie in no run, with what the file and the command line tell of their network and data."""
    from snnexp.engine.weights import reading

    known = made_with(reading.read(file)[0].settings or {})
    given = {name: value for name, _, value in (each.partition("=") for each in argv if each != word) if value}
    known |= {name: value for name, value in given.items() if name not in ("split", "checkpoint")}
    first = {name: known.pop(name, "...") for name in ("model", "dataset")}
    settings = " ".join(
        shlex.quote(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        for name, value in ({"init_from": word, "epochs": 0} | first | known).items()
    )
    return (
        f"{word} lies in no run: it holds weights, but nothing tells evaluate of which network they are, or on which data to judge them.\n"
        f"This tests them and trains nothing:\n  snnexp train {settings}"
    )


def made_with(settings: dict[str, Any]) -> dict[str, Any]:
    """By what a run chose its network and data, and what it changed about the network."""
    choices, node = settings.get("choices") or {}, settings.get("model")
    node = node if isinstance(node, dict) else {}
    chosen: dict[str, Any] = {group: choices[group] for group in ("model", "dataset", "task", "experiment") if choices.get(group)}
    chosen |= {"T": settings["T"]} if "T" in settings else {}
    with suppress(UserError, KeyError):  # of a class that is not here or not trusted, nothing more is known
        usual = targets.parameters(targets.locate(node["_target_"], trust=[]))
        chosen |= {
            f"model.{name}": value
            for name, value in node.items()
            if name in usual and name != "T" and isinstance(value, bool | int | float | str) and value != usual[name].default
        }
    return chosen


def latents(run: RunDir, checkpoint: str = "best", split: str = "test", max_batches: int | None = None) -> Path:
    """The latents that a checkpoint of a run gives of a split (of its first `max_batches` batches' worth of samples), newly computed.

    Raises: UserError if the model has no latents; UserError, RunFailed as `snnexp evaluate` does.
    """
    settings = config.read_saved(run.config)
    limit = [] if max_batches is None else [f"limit_val={max_batches * settings['batch_size']}"]
    written: list[Path] = []
    argv = [f"checkpoint={checkpoint}", f"split={split}", *limit]
    compose.run("evaluate", argv, lambda cfg: written.append(job(cfg, run, None)), saved=run, schema=config.EvaluateConfig)
    path = written[0] / f"{split}_latents.npz"
    if not path.exists():
        raise UserError(f"{run.root}: its model has no latents; only a variational one (seqset_vae, set_vae) has.")
    return path


def job(cfg: DictConfig, run: RunDir, given: Path | None) -> Path:
    """Load, judge, write; the folder written.

    Raises: UserError, RunFailed.
    """
    from snnexp import parts
    from snnexp.engine import allocator, experiment, trained
    from snnexp.engine.arithmetic.precision import check
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.evaluation import evaluate
    from snnexp.engine.measures.activity import measure
    from snnexp.engine.measures.latents import Latents
    from snnexp.engine.measures.restored import Frames
    from snnexp.engine.results import as_json, limited, write_predictions
    from snnexp.engine.terminal import Terminal

    before = config.read_saved(run.config)
    settings = config.finish(cfg, before["choices"], saved=True)
    path = given or checkpoint_path(run, settings["checkpoint"])
    saved = trained.load(path, before)
    terminal = Terminal(None, main=True)
    allocator.keep_memory()
    experiment.set_determinism(settings["deterministic"])
    ranks = Ranks(0, 1, choose_device(settings["device"]))
    check(settings["precision"], ranks.device)

    if settings["data_dir"] != before["data_dir"]:
        if not Path(settings["data_dir"]).is_dir():
            raise UserError(f"data_dir={settings['data_dir']}: no such directory.")
        if (table := settings["dataset"].get("file")) is not None and table == before["dataset"].get("file"):
            raise UserError(f"data_dir={settings['data_dir']}: this run's molecules are those of {table}; give dataset.file=OTHER.")
    task = parts.make_task(settings)
    data, own_samples = trained.data_of(settings, saved)
    if (root := settings["dataset"].get("root")) == before["dataset"].get("root"):
        if settings["data_dir"] != before["data_dir"]:
            raise UserError(f"data_dir={settings['data_dir']}: this run's data lie in {root}; give dataset.root=ELSEWHERE.")
        if not own_samples:
            terminal.say("These are not the samples or the split of the run: what it saw in training may be among them.")
    elif own_samples:
        terminal.say("These are the very samples of the run, and its split.")
    model = parts.make_model(settings, data, task).to(ranks.device)
    precision = trained.take_over(model, settings, saved, path, ranks.device)

    split, samples = settings["split"], trained.samples_in(data, settings["split"])
    known = data.seen_before(saved["data"], split)
    if known and not own_samples:
        terminal.say(f"{known} of these {samples} samples are among those that the run was trained on or chose its epoch by.")
    seen = Latents(model, data, split, min(samples, settings["limit_val"] or samples), ranks)
    folder = claim_stamp(run)
    frames = Frames(data, split, settings["limit_val"], folder)

    def collect(batch: Any, output: Any) -> None:
        seen(batch, output)
        frames(batch, output)

    with removed_if_broken_off(folder):
        with terminal.bar(split, samples) as bar:
            judged = evaluate(
                model,
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
        active = measure(
            model,
            task,
            data,
            split=split,
            batch_size=settings["batch_size"],
            device=ranks.device,
            precision=precision,
            limit=settings["limit_val"],
        )
    protocol = limited(data.protocol, None, settings["limit_val"])
    report: dict[str, Any] = {
        "run": str(run.root),
        "checkpoint": path.name,
        "epoch": saved["epoch"],
        "split": split,
        "samples": len(judged.true),
        "metrics": as_json(judged.metrics),
        "activity": active.summary(),
        "protocol": protocol,
        "data": root,
        "samples_of_the_run": own_samples,
        **({} if known is None else {"samples_it_had_seen": known}),
        "changes": config.differences(before, settings, ignoring={"limit_val", "checkpoint", "split", *config.NAMING}),
        "seed": settings["seed"],
        "precision": precision.name,
        "when": now(),
    }
    write_predictions(folder, split, judged)
    best = saved["state"]["best"] or {}
    seen.write(folder / f"{split}_latents.npz", best["epoch"] if best.get("step") == saved["step"] else saved["epoch"])
    active.write(folder / f"{split}_spikes.npz")
    write_json(folder / f"{split}.json", report)
    values = "  ".join(f"{name} {value:.4g}" for name, value in judged.metrics.items())
    terminal.say(f"{protocol}\n{split} ({len(judged.true)} samples), {path.name} of epoch {saved['epoch']}: {values}\n{folder}")
    return folder


def checkpoint_path(run: RunDir, name: str) -> Path:
    """The checkpoint of a run that `name` means; where that is not the one it names, it is said."""
    from snnexp.engine import trained

    path = trained.checkpoint_path(run, name)
    if name == "best" and path == run.checkpoint("latest"):
        print("No epoch was validated, so there is no best one: this is the latest.")
    return path


@contextmanager
def removed_if_broken_off(folder: Path) -> Iterator[None]:
    """An evaluation that does not come to its end leaves no folder that looks like one."""
    try:
        yield
    except BaseException:  # a Ctrl-C too must not leave pictures without their figures; it goes on
        shutil.rmtree(folder, ignore_errors=True)
        raise


def claim_stamp(run: RunDir) -> Path:
    """A new directory for an evaluation, named by the time.

    Raises: RunFailed if it cannot be made.
    """
    try:
        return files.claim(run.evaluations, time.strftime("%Y%m%d_%H%M%S"))
    except FileExistsError:
        raise UserError(f"{run.evaluations}: too many evaluations in one second.") from None
    except OSError as error:
        raise RunFailed(f"cannot make a directory in {run.evaluations}: {error.strerror}.") from error
