"""Text from a file that a stranger may have written, as it may be shown on a terminal."""

from typing import Any


def shown(value: Any) -> str:
    r"""Return a value as text whose control characters, which could affect a terminal, are escaped (`\x1b`); line ends and tabs stay."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else escaped(letter) for letter in text)


def say(*values: Any, **options: Any) -> None:
    """Print values as `shown`, with the options of print."""
    print(*map(shown, values), **options)


def escaped(letter: str) -> str:
    r"""Return a character as in a Python literal: `\x1b`, `\u202e`, `\ud800`."""
    return letter.encode("unicode_escape").decode("ascii")
