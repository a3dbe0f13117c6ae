"""Reads the unresolved configuration of a saved run, which a stranger may have written."""

import io
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.errors import UserError
from snnexp.files import read_small
from snnexp.untrusted.trees import DEPTH

LARGEST = 2**20
"""Bytes that an unresolved configuration may have; that of a recipe has about 6 kB."""
LARGEST_RESOLVED = 16 * 2**20
"""Characters that it may have once every interpolation is replaced by its value."""
REFERENCE = re.compile(r"\$\{\s*([\w.\[\]-]+)\s*\}")


def read(path: Path) -> DictConfig:
    """Return the configuration in a YAML file, before interpolations.

    Raises: UserError if it cannot be read, is no mapping, is too large or too deep, or uses aliases, which can stand for any amount.
    """
    try:
        text = read_small(path, LARGEST).decode("utf-8-sig")
        check_structure(text)
        config = OmegaConf.load(io.StringIO(text))
        check_expansion(OmegaConf.to_container(config, resolve=False))
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not UTF-8 ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}. It says how the run was composed: put it back from a copy. Without it "
            "snnexp.load(RUN) still loads the model, and a new run can begin with its weights: snnexp train ... init_from=RUN."
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} holds a list, not the configuration of a run.")
    return config


def check_structure(text: str) -> None:
    """Refuse aliases and deep nesting while the text is being parsed, before anything is built from it.

    Raises: ValueError; YAMLError.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1} has an alias (*{event.anchor}), which no run writes; write the value.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels at line {event.start_mark.line + 1}.")


def check_expansion(tree: dict[str, Any]) -> None:
    """Refuse interpolations that name each other in such a way that their values grow without end, before any is resolved.

    Raises: ValueError.
    """
    _resolved_length(tree, (), tree, {}, ())


def _resolved_length(value: Any, place: tuple[str, ...], tree: Any, known: dict[tuple[str, ...], int], open_places: tuple) -> int:
    """Return how many characters the value at a place has once its interpolations are replaced."""
    if place in known:
        return known[place]
    if place in open_places or len(open_places) > 4 * DEPTH:
        raise ValueError(f"{'.'.join(place)} names itself, by way of other keys")
    inside = (*open_places, place)
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        length = sum(len(str(key)) + _resolved_length(child, (*place, str(key)), tree, known, inside) for key, child in children)
    else:
        length = len(text := str(value))
        for reference in REFERENCE.findall(text):
            target = _absolute(reference, place)
            found = _find(tree, target)
            length += 0 if found is _ABSENT else _resolved_length(found, target, tree, known, inside)
    if length > LARGEST_RESOLVED:
        raise ValueError(f"{'.'.join(place) or 'it'} has more than {LARGEST_RESOLVED:,} characters once its interpolations are resolved")
    known[place] = length
    return length


_ABSENT = object()


def _absolute(reference: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys that lead to what an interpolation names; leading dots go up from the key that holds it."""
    dots = len(reference) - len(reference.lstrip("."))
    return (*place[: len(place) - dots], *re.findall(r"[^.\[\]]+", reference)) if dots else tuple(re.findall(r"[^.\[\]]+", reference))


def _find(tree: dict[str, Any], keys: tuple[str, ...], hops: int = DEPTH) -> Any:
    """Return the value at a place, by way of other places if a key on the way is an interpolation itself."""
    value: Any = tree
    for number, key in enumerate(keys):
        if isinstance(value, dict):
            value = next((child for name, child in value.items() if str(name) == key), _ABSENT)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
        if number + 1 < len(keys) and isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            if not hops:
                raise ValueError(f"{'.'.join(keys)} leads from key to key without an end")
            return _find(tree, (*_absolute(reference[1], keys[: number + 1]), *keys[number + 1 :]), hops - 1)
    return value
