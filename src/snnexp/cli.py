"""argv -> command. Only the standard library is imported here, so that `snnexp --help` answers at once."""

import os
import sys

from snnexp.commands import COMMANDS

COMMAND_LIST = "\n  ".join(f"snnexp {name:<9} {text}" for name, text in COMMANDS.items())

HELP = f"""snnexp: train, resume and evaluate spiking neural networks.

  {COMMAND_LIST}

RUN is a run directory, or a checkpoint file in one. Settings are written KEY=VALUE, in any order.
  snnexp COMMAND --help          all keys and options of a command
  snnexp train --cfg job         show the configuration without running
  snnexp train -m lr=1e-3,1e-2   sweep over values
  eval "$(snnexp -sc install=bash)"   complete commands, keys and options with Tab (also zsh, fish)
Exit codes: 0 done; 1 the run failed; 2 a wrong command line, configuration or input; 128+N saved, then stopped by signal N."""


def main() -> None:
    """Run the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        return dispatch(argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has ended: snnexp train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(argv: list[str]) -> int:
    """Run the command that argv names, turn its errors into one message each, and return the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if argv[0] == "--version":
        from snnexp import __version__

        print(f"snnexp {__version__}")
        return 0
    from snnexp.errors import RunFailed, UserError, nearest
    from snnexp.errors.remedies import first_words, remedy
    from snnexp.untrusted.text import say

    try:
        if argv[0] in ("-sc", "--shell-completion"):
            from snnexp.commands.completion import complete

            return complete(argv[1:])
        command, rest = argv[0], argv[1:]
        if command not in COMMANDS:
            raise UserError(f"{command!r} is not a command: {', '.join(COMMANDS)}.{nearest(command, COMMANDS)}")
        if command == "runs":
            from snnexp.commands import runs

            return runs.run(rest)
        from importlib import import_module

        return import_module(f"snnexp.commands.{command}").run(rest)
    except (UserError, RunFailed) as error:
        say(f"snnexp: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:
        if (known := remedy(error)) is None:
            raise
        say(f"snnexp: {type(error).__name__}: {first_words(error)}\n{known[0]}", file=sys.stderr)
        return 2 if known[1] is UserError else 1


if __name__ == "__main__":
    main()
