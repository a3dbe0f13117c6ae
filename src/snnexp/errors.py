"""What goes wrong in words: each of these is shown as one message without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A wrong command line, configuration or input: says what, where, what is allowed and what to do (exit code 2)."""


class MissingData(UserError):
    """A data set is not where it was looked for; the message says how to get it (exit code 2)."""


class RunFailed(Exception):
    """A run that could not go on, for a reason that has a name: a loss that is not finite, a full disk (exit code 1)."""


def nearest(word: str, allowed: Iterable[object]) -> str:
    """` Did you mean 'X'?` for the nearest allowed word, or nothing."""
    words = {str(a).lower(): str(a) for a in allowed}
    within = [name for name in words if word.lower() in name]  # gnn of spiking_gnn
    close = get_close_matches(word.lower(), words, n=1, cutoff=0.85) or ([min(within, key=len)] if within and len(word) > 2 else [])
    close = close or get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    return f" Did you mean {words[close[0]]!r}?" if close else ""
