"""What the settings of a sweep mean together: which keys are swept, how a job is named, and which faults all jobs share."""

import re
import sys
from collections.abc import Callable

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from snnexp import config as configuration
from snnexp.composing.command_line import CommandLine, read_command_line
from snnexp.errors import MissingData, UserError

WHOLE = ("exp_name", "output_dir")
"""Keys that say where the whole sweep lies."""


def settle(words: list[str]) -> list[str]:
    """Return the settings of a sweep without those that a later sweep over the same key replaces, each of which is printed.

    Raises: UserError if a later setting would undo a sweep, or if a key is swept that says where the whole sweep lies.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException:
        return words  # the error will be explained when the line is composed
    kept = list(zip(words, overrides, strict=True))
    for word, override in [pair for pair in kept if pair[1].is_sweep_override()]:
        key, place = override.key_or_group, next(index for index, pair in enumerate(kept) if pair[1] is override)
        if key in WHOLE:
            raise UserError(
                f"{word}: a sweep lies in one directory, {key} says where; its jobs are told apart by their other settings. Give one value."
            )
        for other, later in kept[place + 1 :]:
            if later.key_or_group == key or (key.startswith(f"{later.key_or_group}.") and isinstance(later.value(), dict)):
                raise UserError(f"{word} {other}: the second would undo the sweep over {key}. Leave one of them out.")
        replaced = [pair for pair in kept[:place] if pair[1].key_or_group == key]
        for each, _ in replaced:
            print(f"{each}: left out, {word} comes after it.", file=sys.stderr)
        kept = [pair for pair in kept if pair not in replaced]
    for word, override in kept:
        if override.key_or_group == "hydra.sweep.subdir" and "${" not in str(override.value()):
            raise UserError(f"{word}: the jobs would share one directory. Leave it out, or let it hold ${{hydra.job.num}}.")
    return [word for word, _ in kept]


check_job: Callable[[DictConfig], None] | None = None
"""Checks the configuration of a job of the sweep at work before it is handed to another process; None: nothing is checked."""


def first_job(config: DictConfig) -> DictConfig | None:
    """Return the configuration of a sweep's first job, Hydra's own node included; None if a search will choose its values.

    Raises: UserError if there is no job, because a pattern fits nothing or a range is empty.
    """
    loader, words = GlobalHydra.instance().config_loader(), list(config.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    if any(each.is_sweep_override() and not each.is_discrete_sweep() for each in overrides):
        return None
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    if not jobs:
        empty = next(word for word, each in zip(words, overrides, strict=True) if each.is_sweep_override() and not [*each.sweep_iterator()])
        raise UserError(f"{empty}: there is no such value, and so no job.")
    return loader.load_sweep_config(config, jobs[0])


def unswept_keys(line: CommandLine) -> list[str]:
    """Return the keys of a sweep's command line that are equal in all jobs, and are therefore left out of their names."""
    return sorted(_keys(line, swept=False) - _keys(line, swept=True))


def swept_keys() -> set[str]:
    """Return the keys that the command line at work sweeps over."""
    return _keys(read_command_line(sys.argv[1:]), swept=True)


def _keys(line: CommandLine, swept: bool) -> set[str]:
    try:
        overrides = OverridesParser.create().parse_overrides(line.overrides)
    except HydraException:
        return set()
    return {override.key_or_group for override in overrides if override.is_sweep_override() == swept}


BY_THEMSELVES = {
    *configuration.AT_LEAST, *configuration.ABOVE_ZERO, *configuration.ONE_OF,
    "device", "sync_bn", "init_from", "monitor", "seed", "deterministic", "ema", "exp_name", "output_dir",
} - {"val_every", "batch_size", "limit_train", "limit_val", "accumulate"}  # fmt: skip
"""Keys whose faults depend on no other key than those that the message names."""


def all_share(error: Exception) -> bool:
    """Return True if the fault of one job is that of every job, because no key on which it depends is swept."""
    swept = swept_keys()
    groups = {key.partition(".")[0] for key in swept} & set(configuration.GROUPS)
    if isinstance(error, MissingData):  # a model may bring a data set
        own = any(key.startswith("extra.") for key in swept)
        return "dataset" not in groups and not own and not swept & {"model", "experiment", "debug", "data_dir"}
    if not isinstance(error, UserError) or any(key in configuration.GROUPS for key in swept):
        return False
    named = set(re.findall(r"[\w.]+(?==)|(?<=the )[\w.]+(?= extra)", str(error)))
    first = re.match(r"[\w.]+(?==)", str(error))
    if first is not None and first[0] in BY_THEMSELVES:
        return not named & swept
    return "pip install" in str(error) and not groups
