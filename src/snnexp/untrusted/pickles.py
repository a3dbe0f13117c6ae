"""Pickles that a stranger may have written, looked at before they are read: reading some of them never ends, though they run no code.

The hash of a tuple is computed anew each time, from those of its parts. A tuple of two references to a tuple of two references ... takes
2^n steps to become a key; a dictionary whose keys all have the same hash, n^2.
"""

import pickletools
from typing import BinaryIO

from snnexp.untrusted.trees import TooLarge

LARGEST_TUPLE = 1_000_000
"""Values that a tuple may have, shared ones counted at each place; the largest of a checkpoint has 625."""
LONG_NUMBERS = 10_000
"""Numbers of more than 64 bits that a pickle may have: such numbers can all have one hash."""


LARGEST_VALUE = 2**29
"""Bytes of a text or a number; the pictures of CIFAR-100 have 154 MB."""


class _Limited:
    """A stream that gives no value of a pickle which would fill the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        return self.checked(self.stream.read(min(size, LARGEST_VALUE + 1)))

    def readline(self) -> bytes:
        return self.checked(self.stream.readline(LARGEST_VALUE + 1))

    @staticmethod
    def checked(value: bytes) -> bytes:
        if len(value) > LARGEST_VALUE:
            raise TooLarge(f"a value in it has more than {LARGEST_VALUE:,} bytes")
        return value


def check_pickle(stream: BinaryIO) -> None:
    """Read the operations of one pickle, up to its end, without performing them.

    Raises: TooLarge; ValueError for something that is no whole pickle.
    """
    sizes: list[int | None] = []  # of the values on the unpickler's stack, 1 for all but tuples; None for its marks
    memo: dict[int, int] = {}
    long_numbers = 0
    for operation, argument, _ in pickletools.genops(_Limited(stream)):
        name = operation.name
        if name == "MARK":
            sizes.append(None)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            sizes.append(memo.get(argument, 1))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = _last(sizes)
        elif name == "DUP":
            sizes.append(_last(sizes))
        elif name in ("TUPLE", "FROZENSET"):
            sizes.append(1 + sum(_down_to_mark(sizes)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            sizes.append(1 + sum(_pop(sizes) for _ in range(int(name[-1]))))
        else:
            before = operation.stack_before
            if pickletools.markobject in before:
                _down_to_mark(sizes)
                before = before[: before.index(pickletools.markobject)]
            for _ in before:
                _pop(sizes)
            sizes += [1] * len(operation.stack_after)
        if sizes and (sizes[-1] or 0) > LARGEST_TUPLE:
            raise TooLarge(f"a tuple in it has more than {LARGEST_TUPLE:,} values once its parts are written out")
        if isinstance(argument, int) and not -(2**64) < argument < 2**64:
            long_numbers += 1
            if long_numbers > LONG_NUMBERS:
                raise TooLarge(f"it has more than {LONG_NUMBERS:,} numbers of more than 64 bits")


def _last(sizes: list[int | None]) -> int:
    if not sizes or sizes[-1] is None:
        raise ValueError("no whole pickle: a value is missing")
    return sizes[-1]


def _pop(sizes: list[int | None]) -> int:
    if not sizes or (size := sizes.pop()) is None:
        raise ValueError("no whole pickle: a value is missing")
    return size


def _down_to_mark(sizes: list[int | None]) -> list[int]:
    """Remove what lies above the last mark, and the mark, and return it."""
    above = []
    while sizes:
        if (size := sizes.pop()) is None:
            return above
        above.append(size)
    raise ValueError("no whole pickle: a mark is missing")
