"""Shell completion: this module completes commands and run directories, Hydra completes keys and options."""

import os
import sys
from pathlib import Path

from snnexp.commands import COMMANDS, TAKES_RUN


def complete(argv: list[str]) -> int:
    """Answer `snnexp -sc install=SHELL`, or the query that the installed script makes with COMP_LINE; return the exit code."""
    if not any(word.startswith("query=") for word in argv):
        from snnexp.composing import compose

        compose.run("train", ["-sc", *argv], _do_nothing)
        return 0
    words = os.environ.get("COMP_LINE", "").split(" ")[1:]
    words = [word for index, word in enumerate(words) if word or index == len(words) - 1]
    if len(words) <= 1:
        print("\n".join(f"{name} " for name in COMMANDS if name.startswith(words[0] if words else "")))
        return 0
    command, rest = words[0], words[1:]
    if command in ("analyze", "watch", "runs") or command not in COMMANDS:
        print("\n".join(directories(rest[-1])))
        return 0
    if command == "train" and rest[-1].startswith("from="):
        print("\n".join(f"from={directory}" for directory in directories(rest[-1].removeprefix("from="))))
        return 0
    rest = [word for word in rest if command != "train" or not word.startswith("from=")]
    saved = None
    if command in TAKES_RUN:
        runs = [word for word in rest[:-1] if (Path(word).expanduser() / "config.json").is_file()]
        if not runs:
            print("\n".join(directories(rest[-1])))
            if command != "prune":  # which also works without a run
                return 0
        else:
            from snnexp.rundir import RunDir

            saved = RunDir(Path(runs[0]).expanduser().resolve())
            rest.remove(runs[0])
    from snnexp import config
    from snnexp.composing import compose

    os.environ["COMP_LINE"] = " ".join(["snnexp", *rest])
    sys.argv = ["snnexp"]
    schema = {"evaluate": config.EvaluateConfig, "prune": config.PruneConfig, "profile": config.ProfileConfig}.get(command)
    primary = "prune_run" if command == "prune" and saved is not None else command
    reset = {"stages": [], "prune_from": None} if primary == "prune_run" else None
    compose.run(primary, ["-sc", *argv], _do_nothing, saved=saved, schema=schema, reset=reset)
    return 0


def directories(start: str) -> list[str]:
    """Return the directories whose paths begin with `start`, each with a slash at its end."""
    folder = Path(start).expanduser() if start.endswith("/") else Path(start).expanduser().parent
    prefix = start[: start.rfind("/") + 1]
    names = sorted(path.name for path in folder.glob("*/")) if folder.is_dir() else []
    return [f"{prefix}{name}/" for name in names if f"{prefix}{name}".startswith(start)]


def _do_nothing(cfg: object) -> None:
    return None
