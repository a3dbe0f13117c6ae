"""Looking whether the files of a data set are there, without fetching or preparing anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from snnexp.errors import UserError

_looking: ContextVar[bool] = ContextVar("looking", default=False)


class NotPrepared(UserError):
    """What a data set is made from is there, or can be fetched, but is not prepared yet."""


@contextmanager
def only_looking() -> Iterator[None]:
    """Let data sets that are not prepared raise NotPrepared inside the context, where they would begin to fetch or prepare."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def stop_if_only_looking() -> None:
    """Raise NotPrepared inside `only_looking`.

    Raises: NotPrepared.
    """
    if _looking.get():
        raise NotPrepared("not prepared yet")
