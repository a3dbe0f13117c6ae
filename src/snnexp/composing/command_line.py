"""Parsing of a command line before Hydra reads it: settings, flags, config directories, and the run that it names."""

from dataclasses import dataclass, field
from pathlib import Path

from snnexp import config as configuration
from snnexp.errors import UserError
from snnexp.rundir import RunDir, find_run

FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")


@dataclass
class CommandLine:
    """A command line with settings and flags separated, because Hydra's parser expects all settings together."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        """True if the command line asks for a sweep."""
        return any(flag in ("-m", "--multirun") for flag in self.flags)


def read_command_line(argv: list[str]) -> CommandLine:
    """Separate a command line into settings, flags and config directories.

    Raises: UserError for a flag that Hydra does not know.
    """
    line, words = CommandLine(), iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            if not (directory := value or next(words, "")):
                raise UserError(f"{name} which directory? Write {name} DIRECTORY.")
            line.config_dirs.append(directory)
        elif word in FLAGS_WITH_VALUE:
            line.flags.append(word)
            if (value := next(words, None)) is not None:
                optional = word in ("--info", "-i") and ("=" in value or value.startswith("-"))
                (line.overrides if optional and "=" in value else line.flags).append(value)
        elif word in FLAGS or name in FLAGS_WITH_VALUE:
            line.flags.append(word)
        elif word.startswith("-"):
            setting = name.lstrip("-").replace("-", "_") or "KEY"
            raise UserError(f"{word}: there is no such flag; settings have no dashes: {setting}={value or 'VALUE'}.")
        else:
            # Hydra refuses a plus before a group in the list of defaults.
            line.overrides.append(word[1:] if word.startswith("+") and name[1:] in configuration.GROUPS else word)
    return line


ONE_OPTION = tuple(group for group in configuration.NODES if group != "tracker")
"""Groups of which one option is chosen: of several, Hydra would make one node in which the settings of all are mixed."""


def check_settings(words: list[str]) -> None:
    """Refuse settings that Hydra would misread, or refuse in words about something else.

    Raises: UserError.
    """
    for word in words:
        key, equals, value = word.partition("=")
        name = key.lstrip("+~")
        if equals and not name.strip():
            raise UserError(f"{word}: settings are KEY=VALUE, and here the key is missing.")
        if equals and name != name.strip():
            raise UserError(f"{word}: a key has no blanks around it; write {key.strip()}={value.strip()}.")
        if name in ONE_OPTION and value.lstrip().startswith("["):
            names = value.strip(" []")
            raise UserError(f"{word}: {name} takes one option (tracker takes several). For one run with each: -m {name}={names}.")


def asks_for_help(argv: list[str]) -> bool:
    """Return True if the command line asks for help."""
    return any(word in ("--help", "-h") for word in argv)


def run_argument(argv: list[str]) -> str | None:
    """Return the word that names a run: an existing path, even with `=` in it, or else the first word that is no setting and no flag."""
    line = read_command_line(argv)
    existing = [word for word in line.overrides if path_exists(word)]
    return next(iter(existing + [word for word in line.overrides if "=" not in word and not word.startswith("~")]), None)


def path_exists(word: str) -> bool:
    """Return True if a word is an existing path, False also for a setting that cannot be a path."""
    try:
        return Path(word).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def take_run(command: str, argv: list[str]) -> tuple[RunDir, Path | None, list[str]]:
    """Return the run that a command line names, the checkpoint if it names one, and the remaining words.

    Raises: UserError if it names no run.
    """
    word = run_argument(argv)
    if word is None:
        raise UserError(f"{command} which run? snnexp {command} RUN [KEY=VALUE ...]; `snnexp runs` lists them.")
    run, checkpoint = find_run(word)
    rest = list(argv)
    rest.remove(word)
    return run, checkpoint, rest


def refuse_groups(argv: list[str], groups: tuple[str, ...], reason: str) -> None:
    """Refuse a word that chooses another option of a group, which a saved run has fixed.

    Raises: UserError with the `reason`.
    """
    for word in argv:
        name = word.lstrip("+~").partition("=")[0].partition("@")[0]
        if name in groups and "=" in word:
            raise UserError(f"{word}: {reason}")
