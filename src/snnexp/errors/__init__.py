"""The errors that a user sees as one message without a traceback, and the hint `Did you mean ...?`."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A wrong command line, configuration or input; the message says what, where, what is allowed and what to do (exit code 2)."""


class MissingData(UserError):
    """A data set that is not where it was expected; the message says how to get it (exit code 2)."""


class RunFailed(Exception):
    """A run that could not continue for a known reason, such as a loss that is not finite or a full disk (exit code 1)."""


def nearest(word: str, allowed: Iterable[object]) -> str:
    """Return ` Did you mean 'X'?` for the nearest allowed word, or an empty string if none is near."""
    words = {str(option).lower(): str(option) for option in allowed}
    containing = [name for name in words if word.lower() in name]  # spiking_gnn for gnn
    close = get_close_matches(word.lower(), words, n=1, cutoff=0.85) or ([min(containing, key=len)] if containing and len(word) > 2 else [])
    close = close or get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    return f" Did you mean {words[close[0]]!r}?" if close else ""
