"""What the trackers of a run return, checked, because they may be a user's own: a mistake in one must not cost the run its record."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from snnexp import conformance
from snnexp.contracts import Tracker
from snnexp.data.first_batch import at, check_state, described
from snnexp.engine.terminal import Terminal
from snnexp.errors import RunFailed, UserError


def name_of(observer: Any) -> str:
    """Return the class of a tracker or a logger as a configuration names it."""
    return f"{type(observer).__module__}.{type(observer).__qualname__}"


def checked_values(tracker: Tracker, verb: str, values: Any, lists: bool = False) -> dict[str, Any]:
    """Return the values of a tracker, numbers by name; with `lists`, also lists of numbers.

    Raises: UserError.
    """
    allowed = f"numbers{', or a list of a number for each step' if lists else ''}"
    if not isinstance(values, dict):
        raise UserError(
            f"{name_of(tracker)}: {verb}() gave {described(values)}, where a dict of {allowed} was expected{at(tracker, verb)}."
        )
    for name, value in values.items():
        numbers = value if lists and isinstance(value, list) and value else [value]
        if not isinstance(name, str) or not all(isinstance(number, int | float) for number in numbers):
            raise UserError(
                f"{name_of(tracker)}: {verb}() gave {described(value)} as {name!r}, where {allowed} by name were expected: write float(x), "
                f"or x.item() of a tensor{at(tracker, verb)}."
            )
    return values


def context_of(tracker: Tracker, net: nn.Module, console: Any) -> AbstractContextManager[Any]:
    """Return the context of a tracker for an epoch.

    Raises: UserError.
    """
    context = tracker.listening(net, console)
    if not hasattr(context, "__enter__"):
        what = f"gave {described(context)}, where a context was expected: decorate it with @contextlib.contextmanager"
        raise UserError(f"{name_of(tracker)}: listening() {what}{at(tracker, 'listening')}.")
    return context


def state_of(part: Any) -> Any:
    """Return the state of a part of a run; that of a user's own must be what a checkpoint can hold.

    Raises: UserError.
    """
    return part.state_dict() if name_of(part).startswith("snnexp.") else check_state(part, name_of(part))


def states_of(trackers: dict[str, Tracker], terminal: Terminal) -> dict[str, Any]:
    """Return the state of each tracker, without those that would make a checkpoint unreadable; these are printed."""
    states = {}
    for name, tracker in trackers.items():
        try:
            states[name] = state_of(tracker)
        except UserError as error:
            terminal.say(f"{error}\nThe checkpoint is written without it, and a resumed run begins it anew.")
    return states


def news_of(tracker: Tracker) -> list[str]:
    """Return the lines that a tracker wants printed, and remove them from its list.

    Raises: UserError.
    """
    if not tracker.news:
        return []
    if not isinstance(tracker.news, list):
        raise UserError(
            f"{name_of(tracker)}: news is {tracker.news!r}; it must be a list of lines, from which the printed ones are removed."
        )
    lines, tracker.news[:] = list(tracker.news), []
    return lines


def finish(trackers: dict[str, Tracker], terminal: Terminal) -> list[Path]:
    """Let the trackers write what is left, and return the paths of all their files; a tracker that fails is printed."""
    return [path for tracker in trackers.values() for path in tolerate(tracker, terminal, "finish()", read_files)]


def read_files(tracker: Tracker) -> list[Path]:
    """Let a tracker finish, and return its files."""
    return [Path(path) for path in tracker.finish()]


def rows_of(trackers: dict[str, Tracker], terminal: Terminal) -> list[tuple[str, str]]:
    """Return the trackers' rows of the final table; a tracker that fails is printed."""
    return [row for tracker in trackers.values() for row in tolerate(tracker, terminal, "rows()", read_rows)]


def read_rows(tracker: Tracker) -> list[tuple[str, str]]:
    """Return the rows of a tracker, as text."""
    return [(str(title), str(text)) for title, text in tracker.rows()]


def tolerate(tracker: Tracker, terminal: Terminal, verb: str, work: Callable[[Tracker], list[Any]]) -> list[Any]:
    """Return what `work` returns, or an empty list if it fails: the result of a long run must not be lost with it."""
    try:
        return work(tracker)
    except (UserError, RunFailed):  # such as a full disk
        raise
    except Exception as error:  # a user's own code may fail in any way
        terminal.say(failure_in_words(tracker, verb, error))
        return []


def failure_in_words(observer: Any, verb: str, error: Exception) -> str:
    """Return a message for an error in a tracker or a logger, with its place."""
    place = conformance.location_of(type(observer), error)
    return f"{name_of(observer)}: {verb} failed: {type(error).__name__}: {error} ({place})."
