"""Pickles of untrusted data sets, read without executing any code that they name."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from snnexp.errors import UserError


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that looks names up in `admitted`, by (module, name), instead of importing them.

    `content` says in messages what the pickle holds ("molecules have", "a batch file has").

    Raises: UserError for a name that is not admitted.
    """

    def __init__(
        self, stream: BinaryIO, admitted: Mapping[tuple[str, str], Callable[..., Any]], content: str, encoding: str = "ASCII"
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self.admitted, self.content = admitted, content

    def find_class(self, module: str, name: str) -> Any:
        """Return what `admitted` has for a name; pickles from before NumPy 2 call `numpy._core` `numpy.core`."""
        key = (module.replace("numpy.core", "numpy._core"), name)
        if key in self.admitted:
            return self.admitted[key]
        raise UserError(f"asks for {module}.{name}, which {self.content} no use for; it was not read. Fetch it from its publisher.")


def encode_latin1(text: str, encoding: str) -> bytes:
    """Return what `codecs.encode` returns for bytes in older pickle protocols of Python 3; no other codec is admitted."""
    if encoding != "latin1":
        raise ValueError(f"codec {encoding}")
    return text.encode("latin1")
