"""How published files call the entries of a model: the tables by which `init_from` finds their places.

A model of which others have published weights declares them as a class attribute, `published = (Published(...), ...)`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Replacement = str | Callable[[re.Match], str] | None
Table = list[tuple[str, Replacement]]
"""Patterns, and what `re.sub` puts in their place, one after another; None: an entry with such a name has no counterpart."""


@dataclass(frozen=True)
class Published:
    """The files of one source.

    `table` leads from its names to the model's; a function makes it of all names of a file, where one of them alone does not tell. A new
    name with `a+b` in it means an entry that holds those of a and b, joined along the first axis. `lacks` is a pattern of entries of the
    model that no such file has. `form` are the arguments of the model with which it computes what theirs does.
    """

    source: str
    table: Table | Callable[[list[str]], Table]
    lacks: str | None = None
    form: dict[str, Any] = field(default_factory=dict)

    def renamed(self, names: Iterable[str]) -> dict[str, str | None]:
        """The model's name of each entry, None where it has no counterpart."""
        names = list(names)
        table = self.table(names) if callable(self.table) else self.table
        compiled = [(re.compile(pattern), replacement) for pattern, replacement in table]
        return {name: _rename(name, compiled) for name in names}

    def other_form(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What `form` asks for where a model's arguments say something else; of settings within one, those that are given."""
        other: dict[str, Any] = {}
        for name, value in self.form.items():
            given = arguments.get(name, value)
            if isinstance(value, dict):
                other |= {f"{name}.{key}": right for key, right in value.items() if (given or {}).get(key, right) not in (right, "preset")}
            elif given != value:
                other[name] = value
        return other

    def is_lacking(self, name: str) -> bool:
        """True for an entry of the model that such files never have."""
        return self.lacks is not None and re.search(self.lacks, name) is not None


def _rename(name: str, table: list[tuple[re.Pattern, Replacement]]) -> str | None:
    for pattern, replacement in table:
        if replacement is not None:
            name = pattern.sub(replacement, name)
        elif pattern.search(name):
            return None
    return name


def counted(text: str, more: int) -> Callable[[re.Match], str]:
    """A replacement: `text`, whose `#` is the first group, a number, plus `more`, and whose `\\2` and so on are the other groups."""
    return lambda match: match.expand(text.replace("#", str(int(match[1]) + more)))


def joined(name: str) -> list[str]:
    """The entries that a name means: `x.q+kv.weight` those of x.q and x.kv, any other name itself."""
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if "+" in word), -1)
    return [".".join([*words[:at], part, *words[at:][1:]]) for part in words[at].split("+")]
