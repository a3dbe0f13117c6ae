"""Curves and results for Weights & Biases (`pip install "snnexp[wandb]"`); a resumed run continues the same run there."""

import secrets
from pathlib import Path
from typing import Any

from snnexp.contracts import Logger
from snnexp.errors import UserError
from snnexp.files import write_text
from snnexp.loggers.tensorboard import final_metrics

MODES = ("online", "offline", "disabled")


class Wandb(Logger):
    """Sends a run to Weights & Biases; its id is kept in `<run_dir>/wandb_run_id`.

    `mode`: online, offline (written below the run directory; `wandb sync` sends it later) or disabled; null: the value of $WANDB_MODE.
    `name`: null: the name of the run directory. An epoch that was sent before an interruption is not sent again, for the service's step
    axis only moves forward. Values by step are not sent, for the axis there is the epoch.

    Raises: UserError if the package is missing, the mode is unknown, or the service refuses.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        first_epoch: int = 0,
        project: str = "snnexp",
        entity: str | None = None,
        mode: str | None = None,
        name: str | None = None,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise UserError(f"logger.mode={mode}: choose one of {', '.join(MODES)}, or null for $WANDB_MODE.")
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f'logger=wandb needs the package wandb ({error}). Install it: pip install "snnexp[wandb]",\nor take logger=tensorboard.'
            ) from error

        run_dir = Path(run_dir).resolve()
        id_file = run_dir / "wandb_run_id"
        run_id = id_file.read_text().strip() if id_file.is_file() else ""
        if not run_id:
            run_id = secrets.token_hex(4)
            # Written before the run exists there: a kill between the two does no harm ("allow" creates a missing run).
            write_text(id_file, run_id + "\n")
        try:
            self._run = wandb.init(
                dir=str(run_dir),
                project=project,
                entity=entity,
                mode=mode,
                name=name or run_dir.name,
                id=run_id,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(f"Weights & Biases refused the run: {error}\nLog in with `wandb login`, or set logger.mode=offline.") from error
        self._next = max(first_epoch, getattr(self._run, "step", 0) or 0)

    def scalars(self, values: dict[str, float], epoch: int) -> None:
        """Send one point per name at `epoch`; skip epochs that were sent before."""
        if epoch >= self._next:
            self._run.log(dict(values), step=epoch, commit=True)
            self._next = epoch + 1

    def hparams(self, config: dict[str, Any]) -> None:
        """Send the config of the run; values that a resume changed replace the earlier ones."""
        self._run.config.update(config, allow_val_change=True)

    def upload(self, path: Path) -> None:
        """Send a file of the run directory, as it is now."""
        self._run.save(str(path), base_path=str(Path(path).parent), policy="now")

    def finish(self, result: dict[str, Any]) -> None:
        """Send the final metrics, `Best/<monitored metric>` and `Test/<metric>`, to the summary of the run."""
        self._run.summary.update(final_metrics(result))

    def close(self) -> None:
        """Wait until everything is sent and end the run."""
        self._run.finish()
