"""The names of a model's entries in published weight files: tables with which `init_from` places such weights.

A model for which others have published weights declares them in a class attribute, `published = (Published(...), ...)`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Replacement = str | Callable[[re.Match], str] | None
Table = list[tuple[str, Replacement]]
"""Pairs of a pattern and its replacement for `re.sub`, applied in order; None means that an entry with such a name has no counterpart."""


@dataclass(frozen=True)
class Published:
    """The weight files of one source.

    `table` maps its names to the model's; it may be a function that makes the table from all names of a file, where a single name is not
    enough. A new name with `a+b` in it stands for an entry that holds those of a and b, joined along the first axis. `lacks` is a pattern
    for the entries of the model that no such file has. `form` holds the arguments with which the model computes what the source's does.
    """

    source: str
    table: Table | Callable[[list[str]], Table]
    lacks: str | None = None
    form: dict[str, Any] = field(default_factory=dict)

    def renamed(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return the model's name of each entry, None where it has no counterpart."""
        names = list(names)
        table = self.table(names) if callable(self.table) else self.table
        compiled = [(re.compile(pattern), replacement) for pattern, replacement in table]
        return {name: _rename(name, compiled) for name in names}

    def other_form(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of `form` from which a model's arguments differ; within a dict, only the keys that are set can differ."""
        differing: dict[str, Any] = {}
        for name, value in self.form.items():
            argument = arguments.get(name, value)
            if isinstance(value, dict):
                inner = argument or {}
                differing |= {f"{name}.{key}": right for key, right in value.items() if inner.get(key, right) not in (right, "preset")}
            elif argument != value:
                differing[name] = value
        return differing

    def is_lacking(self, name: str) -> bool:
        """Return True for an entry of the model that such files never have."""
        return self.lacks is not None and re.search(self.lacks, name) is not None


def _rename(name: str, table: list[tuple[re.Pattern, Replacement]]) -> str | None:
    for pattern, replacement in table:
        if replacement is not None:
            name = pattern.sub(replacement, name)
        elif pattern.search(name):
            return None
    return name


def renumber(text: str, shift: int) -> Callable[[re.Match], str]:
    """Return a replacement that expands `text`: `#` is the number in the first group plus `shift`, `\\2` and so on are the other groups."""
    return lambda match: match.expand(text.replace("#", str(int(match[1]) + shift)))


def split_name(name: str) -> list[str]:
    """Return the entries that a name stands for: `x.q+kv.weight` those of x.q and x.kv, any other name itself."""
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if "+" in word), -1)
    return [".".join([*words[:at], part, *words[at:][1:]]) for part in words[at].split("+")]
