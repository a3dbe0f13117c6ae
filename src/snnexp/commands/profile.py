"""snnexp profile: where the time and memory of a training step go; with tune=true the fastest setting that fits, found by measurement.

Its directory, outputs/profile_<model>_<dataset>_<time>, is no run: it holds profile.json, the same as text in profile.txt and, after a
search, experiment/tuned.yaml, an experiment for snnexp train.
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
from snnexp.files import pastable, write_text
from snnexp.profile import child_process, report
from snnexp.profile.tuning import CHANGES_TRAINING, THRESHOLD, UNCONFIRMED, WORKERS, Ladder, Row, Setting, Space
from snnexp.rundir import now, write_json

PROFILE_KEYS = ("warmup", "steps", "tune", "memory_limit", "tune_budget_minutes")
"""Keys that `snnexp train` does not have."""
TUNABLE_KEYS = ("precision", "compile", "channels_last", "batch_size", "accumulate", "workers", "prefetch")
"""Top-level keys that the search may change."""


def run(argv: list[str]) -> int:
    """Profile, or tune, what the command line composes; return the exit code."""
    line = command_line.read_command_line(argv)
    if line.multirun:
        raise UserError("profile measures one setting, alone on the machine: -m has no meaning here. To search: snnexp profile tune=true.")
    compose.run("profile", argv, lambda cfg: job(cfg, line.config_dirs), schema=config.ProfileConfig)
    return 0


def job(cfg: DictConfig, config_dirs: list[str]) -> None:
    """Measure one setting, or search for a faster one; print and write the result.

    Raises: UserError, RunFailed.
    """
    from snnexp import check

    choices = dict(HydraConfig.get().runtime.choices)
    original = copy.deepcopy(cfg)
    config.make_self_contained(cfg)
    settings = config.finish(cfg, choices)
    if settings["devices"] > 1:
        raise UserError(
            f"devices={settings['devices']}: profile measures one process on one device; devices=1, and the batch_size of one of them."
        )
    check_match(settings)
    check.check(settings)
    if settings["tune"]:
        Tuning(cfg, original, choices, settings, config_dirs).run()
    else:
        profile_setting(settings)


def profile_setting(settings: dict[str, Any]) -> None:
    """Profile one setting in this process.

    Raises: UserError, RunFailed.
    """
    from snnexp.engine.arithmetic import layer_speed
    from snnexp.engine.distributed import choose_device
    from snnexp.profile import memory, steps

    device = choose_device(settings["device"])
    for kind in layer_speed.KINDS if device.type == "cpu" else ():
        layer_speed.measure_anew(kind)  # first, so that the setting that auto chooses is the one that is timed
    peak_before = memory.peak_bytes(device)
    folder = claim_folder(settings)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="snnexp_profile_") as scratch,
            child_process.scratch_experiment(settings, Path(scratch)) as experiment,
        ):
            measured = steps.profile(experiment, settings["warmup"], settings["steps"], peak_before)
    except BaseException as error:  # also a Ctrl-C, which is raised again after the empty directory is removed
        folder.rmdir()
        is_full = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in child_process.OUT_OF_MEMORY_WORDS)
        if is_full or isinstance(error, MemoryError):
            lines = str(error).strip().splitlines() or ["no more is known"]
            raise RunFailed(f"out of memory: {lines[0]}\nLower batch_size, or let tune=true find what fits.") from error
        raise
    content = {"command": command_line_text(), "when": now(), "warmup": settings["warmup"]} | measured
    text = report.profile_text(content)
    write_json(folder / "profile.json", content | {"settings": settings})
    write_text(folder / "profile.txt", f"{content['command']}\n{content['when']}\n\n{text}\n")
    print(f"{text}\n{pastable(os.path.relpath(folder))}")


class Tuning:
    """A search for the fastest setting: the configuration, the measurements so far, and the directory for the results.

    `cfg` is the unresolved configuration with absolute paths, `original` the same with paths as the user wrote them.
    """

    def __init__(
        self, cfg: DictConfig, original: DictConfig, choices: dict[str, Any], settings: dict[str, Any], config_dirs: list[str]
    ) -> None:
        self.cfg, self.original, self.choices, self.settings, self.config_dirs = cfg, original, choices, settings, config_dirs
        self.folder = claim_folder(settings)
        baseline = {key: settings[key] for key in TUNABLE_KEYS} | {"optimizer": choices["optimizer"]}
        self.checkpoints = sorted(
            key for key, value in settings["model"].items() if key.startswith("checkpoint_") and isinstance(value, bool)
        )
        baseline |= {f"model.{key}": settings["model"][key] for key in self.checkpoints}
        limit = settings["memory_limit"]
        self.memory_limit = None if limit is None else int(limit * 2**30)
        self.ladder = Ladder(baseline, self.run_in_child, 60 * settings["tune_budget_minutes"], on_row=self.show)
        self.facts: dict[str, Any] = {}

    def run(self) -> None:
        """Search, compare the result with the baseline and write both; after a Ctrl-C the measurements so far are kept.

        Raises: UserError if the baseline is wrong, RunFailed if nothing runs; KeyboardInterrupt.
        """
        print("snnexp profile tune=true: each row is a process of its own; * changes the numbers of training", flush=True)
        try:
            outcome = self.ladder.start()
            if outcome.state == "failed" or not self.facts:
                self.write("nothing ran")
                message = outcome.reason if outcome.mistake else f"the baseline does not run: {outcome.state}: {outcome.reason}"
                raise (UserError if outcome.mistake else RunFailed)(
                    f"{message}\n(what it said: {pastable(os.path.relpath(self.folder / 'tune.log'))})"
                )
            self.ladder.climb(self.space())
            self.ladder.compare()
        except KeyboardInterrupt:
            self.write("interrupted")
            print(f"\n{self.table()}\nInterrupted: the rows so far are in {pastable(os.path.relpath(self.folder))}", file=sys.stderr)
            raise
        content = self.write(self.ladder.stopped)
        tuned = self.write_yaml(content)
        text = f"{self.table()}\n\n{report.verdict(content)}"
        write_text(self.folder / "profile.txt", f"{command_line_text()}\n{now()}\n\n{text}\n\n{tuned}\n")
        print(f"\n{text}\n\n{pastable(os.path.relpath(self.folder))}\n{tuned}")

    def run_in_child(self, setting: Setting, seconds: float) -> child_process.Outcome:
        """Measure one setting in a process of its own."""
        try:
            settings = config.finish(self.with_setting(self.cfg, setting), self.choices | {"optimizer": setting["optimizer"]})
        except UserError as error:
            return child_process.Outcome("failed", str(error), mistake=True)
        outcome = child_process.attempt(settings, memory_limit=self.memory_limit, seconds=seconds, log=self.folder / "tune.log")
        self.facts = self.facts or outcome.report
        return outcome

    def with_setting(self, cfg: DictConfig, setting: Setting) -> DictConfig:
        """Return a copy of an unresolved configuration with the keys of a setting."""
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
        """Return the values to try on this machine."""
        facts = self.facts
        return Space(
            precisions=[name for name in facts["precisions"] if name != facts["precision"]],
            layouts=[not facts["channels_last"]],
            compiles=tuple(facts["compiles"]),
            checkpoints=[f"model.{key}" for key in self.checkpoints],
            eight_bit=self.settings["optimizer"]["_target_"] in ("torch.optim.Adam", "torch.optim.AdamW"),
            workers=[count for count in WORKERS if count <= facts["cores"]],
            samples=facts["training_samples"],
        )

    def show(self, row: Row) -> None:
        """Print and save a row as soon as it is measured."""
        cells = [cell for cell in report.cells(as_dict(row), CHANGES_TRAINING) if cell]
        print(f"{len(self.ladder.rows):3}  {'  '.join(cells)}", flush=True)
        self.write("running")

    def table(self) -> str:
        """Return the rows so far as text."""
        return report.ladder([as_dict(row) for row in self.ladder.rows], CHANGES_TRAINING)

    def write(self, stopped: str) -> dict[str, Any]:
        """Write profile.json and return its content without the settings; `stopped` says why the search ended."""
        content = self.facts | {
            "command": command_line_text(),
            "when": now(),
            "warmup": self.settings["warmup"],
            "threshold": THRESHOLD,
            "memory_limit": self.memory_limit,
            "baseline": self.ladder.baseline,
            "tuned": self.ladder.changes(),
            "final": self.ladder.final,
            "broken": self.ladder.broken,
            "stopped": stopped,
            "rows": [as_dict(row) for row in self.ladder.rows],
        }
        for name in ("step_ms", "samples_per_s", "peak_bytes"):  # of the first row only
            content.pop(name, None)
        write_json(self.folder / "profile.json", content | {"settings": self.settings})
        return content

    def write_yaml(self, content: dict[str, Any]) -> str:
        """Write experiment/tuned.yaml from the content of profile.json, and return the command that trains with it."""
        setting, facts = content["tuned"], self.facts
        train_command = " ".join(["snnexp train", *(f"--config-dir {shlex.quote(folder)}" for folder in self.config_dirs)])
        train_command += f" --config-dir {shlex.quote(os.path.relpath(self.folder))} experiment=tuned"
        comments = [
            f"Found by snnexp profile tune=true on {date.today()}: {facts['model']} on {facts['dataset']}, {facts['device']}"
            f" ({facts['cores']} cores), torch {facts['torch']}.",
            report.outcome(content),
            f"Measured by: {command_line_text()}",
            *(f"{key}: {report.as_typed(self.ladder.baseline[key])} -> {report.as_typed(value)}"
              + (", which changes the numbers of training" if key in CHANGES_TRAINING else "") for key, value in setting.items()),
            train_command,
        ]  # fmt: skip
        groups = self.options_in_force(setting)
        defaults = {"defaults": [{f"override /{group}": option} for group, option in groups.items()]}
        nested: dict[str, Any] = {}
        for key, value in self.changed_keys(groups, setting).items():
            *parents, last = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        body = yaml.safe_dump(defaults, sort_keys=False, width=120) + (yaml.safe_dump(nested, sort_keys=False, width=120) if nested else "")
        (self.folder / "experiment").mkdir(exist_ok=True)
        lines = [line for comment in comments for line in wrap_comment(comment)]
        write_text(self.folder / "experiment" / "tuned.yaml", "# @package _global_\n" + "\n".join(lines) + f"\n{body}")
        return train_command

    def options_in_force(self, setting: Setting) -> dict[str, Any]:
        """Return the option of each group."""
        options = {group: self.choices.get(group) for group in config.NODES}
        options["optimizer"] = setting.get("optimizer", self.choices["optimizer"])
        return {group: OmegaConf.to_container(name) if OmegaConf.is_config(name) else name for group, name in options.items()}

    def changed_keys(self, groups: dict[str, Any], setting: Setting) -> dict[str, Any]:
        """Return the dotted keys in which the tuned configuration differs from what its groups alone compose, with absolute paths."""
        plain = hydra.compose("train", overrides=[f"{group}={_option_text(option)}" for group, option in groups.items()])
        tuned = self.ladder.baseline | setting
        before, original, absolute = (
            config.flatten(OmegaConf.to_container(cfg, resolve=False))
            for cfg in (plain, self.with_setting(self.original, tuned), self.with_setting(self.cfg, tuned))
        )
        excluded = ("exp_name", "output_dir", "trust", *PROFILE_KEYS)
        return {key: absolute[key] for key, value in original.items() if key not in excluded and before.get(key, _ABSENT) != value}


_ABSENT = object()


def _option_text(option: Any) -> str:
    if isinstance(option, list):
        return f"[{','.join(option)}]"
    return "null" if option is None else str(option)


def wrap_comment(comment: str) -> list[str]:
    """Return a YAML comment in lines of at most 140 columns."""
    import textwrap

    return textwrap.wrap(comment, 140, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False)


def as_dict(row: Row) -> dict[str, Any]:
    """Return a row of the search as profile.json holds it."""
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


def claim_folder(settings: dict[str, Any]) -> Path:
    """Create a new directory for a profile.

    Raises: UserError if it cannot be made, or if a given name exists already.
    """
    choices, parent = settings["choices"], Path(settings["output_dir"])
    name = settings["exp_name"] or f"profile_{choices['model']}_{choices['dataset']}_{time.strftime('%Y%m%d_%H%M%S')}"
    try:
        return files.claim_directory(parent, name, exclusive=bool(settings["exp_name"])).resolve()
    except FileExistsError:
        if settings["exp_name"]:
            raise UserError(f"exp_name={name}: {parent / name} exists already; choose another.") from None
        raise UserError(f"{parent / name}: a thousand profiles have this name; choose exp_name=...") from None
    except OSError as error:
        raise UserError(f"cannot make the directory {parent / name}: {error.strerror}. Set output_dir=... elsewhere.") from error


def command_line_text() -> str:
    """Return the command line as the user gave it."""
    hydra_config = HydraConfig.get()
    return " ".join([f"snnexp {hydra_config.job.name}", *map(shlex.quote, hydra_config.overrides.task)])
