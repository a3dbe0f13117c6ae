"""snnexp resume RUN: exact continuation in the same directory."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp import app, config, provenance
from snnexp.commands.train import write_hydra
from snnexp.errors import UserError
from snnexp.rundir import RunDir, is_alive, read_json, write_json


def run(argv: list[str]) -> int:
    """Go on with the run that the command line names."""
    if app.asks_for_help(argv) and app.run_argument(argv) is None:
        print("snnexp resume RUN [KEY=VALUE ...]: go on with a run, exactly, in its own directory; RUN may be one of its checkpoints.")
        return 0
    source, checkpoint, argv = app.take_run("resume", argv)
    if app.read_command_line(argv).multirun:
        raise UserError("resume goes on with one run; -m has no meaning here.")
    app.refuse_groups(argv, config.GROUPS, "a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    app.run("resume", argv, lambda cfg: job(cfg, source, checkpoint), saved=source)
    return 0


def check_resumable(run: RunDir) -> None:
    """Raises: UserError if another process is at work in the directory."""
    status = read_json(run.status) if run.status.exists() else {}
    if is_alive(status):
        raise UserError(f"{run.root} is being trained by process {status['pid']}; stop it first (kill {status['pid']} lets it save).")


def job(cfg: DictConfig, run: RunDir, checkpoint: Path | None) -> None:
    """Put the changes in force and start the work."""
    from snnexp import build
    from snnexp.engine import checkpoint as checkpoints
    from snnexp.launch import launch

    check_resumable(run)
    before = read_json(run.config)
    settings = config.finish(cfg, before["choices"], saved=True)
    status = read_json(run.status) if run.status.exists() else {}
    if checkpoint is None and status.get("state") == "finished" and settings["epochs"] <= before["epochs"]:
        print(f"{run.root} is finished ({before['epochs']} epochs); nothing is left to do. More epochs: snnexp resume {run.root} epochs=...")
        return
    build.check(settings, trust=settings["trust"])
    if checkpoint is not None:
        checkpoints.load(checkpoint)
        if checkpoint != run.checkpoint("latest"):
            checkpoints.link(checkpoint, run.checkpoint("latest"))
    number = 1 + max((int(path.name) for path in run.resumes.glob("*") if path.name.isdigit()), default=0)
    folder = run.resumes / str(number)
    write_hydra(cfg, folder)
    write_json(run.config, settings)
    hydra = HydraConfig.get()
    provenance.write(folder, ["snnexp resume", str(run.root), *hydra.overrides.task], settings["seed"])
    launch(run, settings["devices"])
