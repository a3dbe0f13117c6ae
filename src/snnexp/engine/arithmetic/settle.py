"""What a run computes in for all its life: chosen once, recorded in RUN/arithmetic.json."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from snnexp.engine import checkpoint
from snnexp.engine.arithmetic import auto
from snnexp.engine.arithmetic.auto import OPEN, Choice
from snnexp.engine.distributed import Ranks
from snnexp.engine.pruning.start import source_of
from snnexp.rundir import RunDir, read_json, write_json


def settled(run: RunDir, settings: dict[str, Any], model: nn.Module, ranks: Ranks) -> Choice:
    """What a run computes in, the same on every rank and for its life: where the configuration says auto, it is recorded here.

    Raises: UserError if the record is damaged; RunFailed if the disk refuses it.
    """
    if "auto" not in [settings[key] for key in OPEN]:
        return auto.choose(settings, model, ranks.device)
    chosen = None
    if ranks.main:
        chosen = auto.choose(settings, model, ranks.device, chosen_before(run, settings))
        record = read_json(run.arithmetic) if run.arithmetic.exists() else {}
        if not set(chosen.open) <= record.keys():
            write_json(run.arithmetic, record | chosen.record())
    return ranks.gather(chosen)[0]


def chosen_before(run: RunDir, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a run has chosen already: by its record; by its checkpoint, if it is older than such records; by the run it is pruned from."""
    if run.arithmetic.exists():
        yield auto.recorded(run.arithmetic)
    if (latest := run.checkpoint("latest")).exists():
        yield auto.of_checkpoint(checkpoint.load(latest))
    elif settings.get("prune_from") is not None:
        yield auto.of_checkpoint(checkpoint.load(source_of(settings)))
