"""Settles the precision and the layout of a run once for its whole life, recorded in RUN/arithmetic.json."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from snnexp.engine import checkpoint
from snnexp.engine.arithmetic import auto
from snnexp.engine.arithmetic.auto import Choice
from snnexp.engine.distributed import Ranks
from snnexp.engine.pruning.start import source_of
from snnexp.rundir import RunDir, read_record, write_json


def settle(run: RunDir, settings: dict[str, Any], model: nn.Module, ranks: Ranks) -> Choice:
    """Return the choice of a run, the same on every rank and after every restart; what the configuration leaves open is recorded.

    Raises: UserError if the record is damaged; RunFailed if the disk refuses.
    """
    if not auto.is_open(settings):
        return auto.choose(settings, model, ranks.device)
    choice = None
    if ranks.main:
        choice = auto.choose(settings, model, ranks.device, earlier_choices(run, settings))
        record = read_record(run.arithmetic)
        if not set(choice.auto_keys) <= record.keys():
            write_json(run.arithmetic, record | choice.record())
    return ranks.gather(choice)[0]


def earlier_choices(run: RunDir, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the choices made before: by the record, by the checkpoint (runs older than such records), by the source of a pruning run."""
    if run.arithmetic.exists():
        yield auto.read_record(run.arithmetic)
    if (latest := run.checkpoint("latest")).exists():
        yield auto.choice_in_checkpoint(checkpoint.load(latest))
    elif settings.get("prune_from") is not None:
        yield auto.choice_in_checkpoint(checkpoint.load(source_of(settings)))
