"""snnexp profile: where the time and memory of a training step go; with tune=true the fastest setting that fits, found by measurement.

Its directory, outputs/profile_<model>_<dataset>_<time>, is no run: it holds profile.json, the same as text in profile.txt and, of a search,
experiment/tuned.yaml, which snnexp train takes.
"""

import copy
import os
import shlex
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp import config, files
from snnexp.composing import command_line, compose
from snnexp.composing.model_and_data import check_match
from snnexp.errors import RunFailed, UserError
from snnexp.files import write_text
from snnexp.profile import child_process, report
from snnexp.profile.tuning import CHANGES_TRAINING, THRESHOLD, UNCONFIRMED, WORKERS, Ladder, Row, Setting, Space
from snnexp.rundir import now, write_json

OWN = ("warmup", "steps", "tune", "memory_limit", "tune_budget_minutes")
"""Keys that a training does not have."""
SWITCHES = ("precision", "compile", "channels_last", "batch_size", "accumulate", "workers", "prefetch")
"""Keys of the top level that the search may change."""


def run(argv: list[str]) -> int:
    """Profile, or tune, what the command line composes."""
    line = command_line.read_command_line(argv)
    if line.multirun:
        raise UserError("profile measures one setting, alone on the machine: -m has no meaning here. To search: snnexp profile tune=true.")
    compose.run("profile", argv, lambda cfg: job(cfg, line.config_dirs), schema=config.ProfileConfig)
    return 0


def job(cfg: DictConfig, config_dirs: list[str]) -> None:
    """Measure, say, write.

    Raises: UserError, RunFailed.
    """
    from snnexp import check

    choices = dict(HydraConfig.get().runtime.choices)
    given = copy.deepcopy(cfg)
    config.settle_resolvers(cfg)
    config.anchor_paths(cfg)
    config.write_out_defaults(cfg)
    settings = config.finish(cfg, choices)
    if settings["devices"] > 1:
        raise UserError(
            f"devices={settings['devices']}: profile measures one process on one device; devices=1, and the batch_size of one of them."
        )
    check_match(settings)
    check.check(settings)
    if settings["tune"]:
        Tuning(cfg, given, choices, settings, config_dirs).run()
    else:
        measure(settings)


def measure(settings: dict[str, Any]) -> None:
    """Profile one setting in this process.

    Raises: UserError, RunFailed.
    """
    from snnexp.engine.arithmetic import layer_speed
    from snnexp.engine.distributed import choose_device
    from snnexp.profile import memory, steps

    device = choose_device(settings["device"])
    for kind in layer_speed.KINDS if device.type == "cpu" else ():
        layer_speed.renewed(kind)  # first, so that what auto takes is what is timed
    before = memory.peak_bytes(device)
    folder = claim(settings)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="snnexp_profile_") as scratch,
            child_process.scratch_experiment(settings, Path(scratch)) as experiment,
        ):
            found = steps.profile(experiment, settings["warmup"], settings["steps"], before)
    except BaseException as error:  # whatever it is, a Ctrl-C too, goes on; only the directory, in which nothing is, goes away
        folder.rmdir()
        full = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in child_process.FULL)
        if full or isinstance(error, MemoryError):
            said = str(error).strip().splitlines() or ["no more is known"]
            raise RunFailed(f"out of memory: {said[0]}\nLower batch_size, or let tune=true find what fits.") from error
        raise
    found = {"command": command(), "when": now(), "warmup": settings["warmup"]} | found
    said = report.report(found)
    write_json(folder / "profile.json", found | {"settings": settings})
    write_text(folder / "profile.txt", f"{found['command']}\n{found['when']}\n\n{said}\n")
    print(f"{said}\n{os.path.relpath(folder)}")


class Tuning:
    """A search: its settings, what it has measured so far, and where that is written."""

    def __init__(
        self, cfg: DictConfig, given: DictConfig, choices: dict[str, Any], settings: dict[str, Any], config_dirs: list[str]
    ) -> None:
        self.cfg, self.given, self.choices, self.settings, self.config_dirs = cfg, given, choices, settings, config_dirs
        self.folder = claim(settings)
        baseline = {key: settings[key] for key in SWITCHES} | {"optimizer": choices["optimizer"]}
        self.checkpoints = sorted(
            key for key, value in settings["model"].items() if key.startswith("checkpoint_") and isinstance(value, bool)
        )
        baseline |= {f"model.{key}": settings["model"][key] for key in self.checkpoints}
        limit = settings["memory_limit"]
        self.memory_limit = None if limit is None else int(limit * 2**30)
        self.ladder = Ladder(baseline, self.measure, 60 * settings["tune_budget_minutes"], on_row=self.show)
        self.facts: dict[str, Any] = {}

    def run(self) -> None:
        """Climb, compare, write; a Ctrl-C leaves what was measured.

        Raises: UserError if the baseline is at fault, RunFailed if nothing runs; KeyboardInterrupt.
        """
        print("snnexp profile tune=true: each row is a process of its own; * changes the numbers of training", flush=True)
        try:
            outcome = self.ladder.start()
            if outcome.state == "failed" or not self.facts:
                self.write("nothing ran")
                message = outcome.reason if outcome.mistake else f"the baseline does not run: {outcome.state}: {outcome.reason}"
                raise (UserError if outcome.mistake else RunFailed)(
                    f"{message}\n(what it said: {os.path.relpath(self.folder / 'tune.log')})"
                )
            self.ladder.climb(self.space())
            self.ladder.compare()
        except KeyboardInterrupt:
            self.write("interrupted")
            print(f"\n{self.table()}\nInterrupted: the rows so far are in {os.path.relpath(self.folder)}", file=sys.stderr)
            raise
        found = self.write(self.ladder.stopped)
        tuned = self.write_yaml(found)
        said = f"{self.table()}\n\n{report.verdict(found)}"
        write_text(self.folder / "profile.txt", f"{command()}\n{now()}\n\n{said}\n\n{tuned}\n")
        print(f"\n{said}\n\n{os.path.relpath(self.folder)}\n{tuned}")

    def measure(self, setting: Setting, seconds: float) -> child_process.Outcome:
        """One setting in a process of its own."""
        try:
            settings = config.finish(self.changed(setting, self.cfg), self.choices | {"optimizer": setting["optimizer"]})
        except UserError as error:
            return child_process.Outcome("failed", str(error), mistake=True)
        outcome = child_process.attempt(settings, memory_limit=self.memory_limit, seconds=seconds, log=self.folder / "tune.log")
        self.facts = self.facts or outcome.report
        return outcome

    def changed(self, setting: Setting, cfg: DictConfig) -> DictConfig:
        """An unresolved configuration with the keys of a setting in it."""
        cfg = copy.deepcopy(cfg)
        with open_dict(cfg):
            for key, value in setting.items():
                if key != "optimizer":
                    OmegaConf.update(cfg, key, value)
                elif value != self.choices["optimizer"]:
                    node = hydra.compose("train", overrides=[f"optimizer={value}"])["optimizer"]
                    before = OmegaConf.to_container(cfg.optimizer, resolve=False)
                    node.update({name: before[name] for name in node if name in before and name != "_target_"})
                    cfg.optimizer = node
        return cfg

    def space(self) -> Space:
        """What there is to try here."""
        facts = self.facts
        return Space(
            precisions=[name for name in facts["precisions"] if name != facts["precision"]],
            layouts=[not facts["channels_last"]],
            checkpoints=[f"model.{key}" for key in self.checkpoints],
            eight_bit=self.settings["optimizer"]["_target_"] in ("torch.optim.Adam", "torch.optim.AdamW"),
            workers=[count for count in WORKERS if count <= facts["cores"]],
            samples=facts["training_samples"],
        )

    def show(self, row: Row) -> None:
        """Say and keep a row as soon as it is there."""
        number = len(self.ladder.rows)
        cells = [cell for cell in report.cells(as_dict(row), CHANGES_TRAINING) if cell]
        print(f"{number:3}  {'  '.join(cells)}", flush=True)
        self.write("running")

    def table(self) -> str:
        """The rows so far."""
        return report.ladder([as_dict(row) for row in self.ladder.rows], CHANGES_TRAINING)

    def write(self, stopped: str) -> dict[str, Any]:
        """Write profile.json; its content."""
        found = self.facts | {
            "command": command(),
            "when": now(),
            "warmup": self.settings["warmup"],
            "threshold": THRESHOLD,
            "memory_limit": self.memory_limit,
            "baseline": self.ladder.baseline,
            "tuned": self.ladder.differing(),
            "final": self.ladder.final,
            "broken": self.ladder.broken,
            "stopped": stopped,
            "rows": [as_dict(row) for row in self.ladder.rows],
        }
        for name in ("step_ms", "samples_per_s", "peak_bytes"):  # of the first row only
            found.pop(name, None)
        write_json(self.folder / "profile.json", found | {"settings": self.settings})
        return found

    def write_yaml(self, found: dict[str, Any]) -> str:
        """Write experiment/tuned.yaml, from the content of profile.json; the command that takes it."""
        setting, facts = found["tuned"], self.facts
        taken = " ".join(["snnexp train", *(f"--config-dir {shlex.quote(folder)}" for folder in self.config_dirs)])
        taken += f" --config-dir {shlex.quote(os.path.relpath(self.folder))} experiment=tuned"
        comments = [
            f"Found by snnexp profile tune=true on {date.today()}: {facts['model']} on {facts['dataset']}, {facts['device']}"
            f" ({facts['cores']} cores), torch {facts['torch']}.",
            report.outcome(found),
            f"Measured by: {command()}",
            *(f"{key}: {report.spelt(self.ladder.baseline[key])} -> {report.spelt(value)}"
              + (", which changes the numbers of training" if key in CHANGES_TRAINING else "") for key, value in setting.items()),
            taken,
        ]  # fmt: skip
        groups = self.groups(setting)
        content: dict[str, Any] = {"defaults": [{f"override /{group}": option} for group, option in groups.items()]}
        nested: dict[str, Any] = {}
        for key, value in self.own_keys(groups, setting).items():
            *parents, last = key.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        body = yaml.safe_dump(content, sort_keys=False, width=120) + (yaml.safe_dump(nested, sort_keys=False, width=120) if nested else "")
        (self.folder / "experiment").mkdir(exist_ok=True)
        lines = [part for comment in comments for part in wrapped(comment)]
        write_text(self.folder / "experiment" / "tuned.yaml", "# @package _global_\n" + "\n".join(lines) + f"\n{body}")
        return taken

    def groups(self, setting: Setting) -> dict[str, Any]:
        """The option of each group that is in force."""
        chosen = {group: self.choices.get(group) for group in config.NODES}
        chosen["optimizer"] = setting.get("optimizer", self.choices["optimizer"])
        return {group: OmegaConf.to_container(name) if OmegaConf.is_config(name) else name for group, name in chosen.items()}

    def own_keys(self, groups: dict[str, Any], setting: Setting) -> dict[str, Any]:
        """The keys, dotted, in which the tuned configuration is not what its groups alone compose; paths as they are from here."""
        plain = hydra.compose("train", overrides=[f"{group}={_word(option)}" for group, option in groups.items()])
        whole = self.ladder.baseline | setting
        before, given, ours = (
            config.flatten(OmegaConf.to_container(cfg, resolve=False))
            for cfg in (plain, self.changed(whole, self.given), self.changed(whole, self.cfg))
        )
        left_out = ("exp_name", "output_dir", "trust", *OWN)
        return {key: ours[key] for key, value in given.items() if key not in left_out and before.get(key, _ABSENT) != value}


_ABSENT = object()


def _word(option: Any) -> str:
    if isinstance(option, list):
        return f"[{','.join(option)}]"
    return "null" if option is None else str(option)


def wrapped(comment: str) -> list[str]:
    """A comment in lines of at most 140 columns."""
    import textwrap

    return textwrap.wrap(comment, 140, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False)


def as_dict(row: Row) -> dict[str, Any]:
    """A rung as profile.json has it."""
    outcome = row.outcome
    measured = {name: outcome.report[name] for name in ("step_ms", "samples_per_s", "steps")} if outcome.state == "ok" else {}
    return {
        "changed": row.changed,
        "batch_size": row.setting["batch_size"],
        "accumulate": row.setting["accumulate"],
        "state": outcome.state,
        "reason": outcome.reason,
        "memory": outcome.memory,
        "gain": row.gain,
        "over_baseline": row.over_baseline,
        "kept": row.kept,
        "note": row.note,
        "unconfirmed": row.note == UNCONFIRMED,
        **measured,
    }


def claim(settings: dict[str, Any]) -> Path:
    """A new directory for a profile, which is no run's.

    Raises: UserError if it cannot be made, or if its name was given and is taken.
    """
    choices, parent = settings["choices"], Path(settings["output_dir"])
    name = settings["exp_name"] or f"profile_{choices['model']}_{choices['dataset']}_{time.strftime('%Y%m%d_%H%M%S')}"
    try:
        return files.claim(parent, name, exclusive=bool(settings["exp_name"])).resolve()
    except FileExistsError:
        if settings["exp_name"]:
            raise UserError(f"exp_name={name}: {parent / name} exists already; choose another.") from None
        raise UserError(f"{parent / name}: a thousand profiles have this name; choose exp_name=...") from None
    except OSError as error:
        raise UserError(f"cannot make the directory {parent / name}: {error.strerror}. Set output_dir=... elsewhere.") from error


def command() -> str:
    """The command line as it was given."""
    hydra_config = HydraConfig.get()
    return " ".join([f"snnexp {hydra_config.job.name}", *map(shlex.quote, hydra_config.overrides.task)])
