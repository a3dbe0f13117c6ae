"""Values as their user typed them: text that Hydra's grammar cannot read, or reads as a number, gets the quotes that it needs."""

import re
import types
import typing
from contextlib import suppress
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp import config as configuration
from snnexp import targets
from snnexp.composing.command_line import path_exists
from snnexp.errors import UserError

TEXT_KEYS = {
    key.name
    for schema in (configuration.EvaluateConfig, configuration.PruneConfig)
    for key in fields(schema)
    if {key.type, *typing.get_args(key.type)} & {str} and not {bool, Any} & set(typing.get_args(key.type))
}
"""The top-level keys whose values are text."""


def parsed(word: str) -> Any:
    """Return a setting as Hydra's grammar reads it, or None if it cannot be read."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def in_quotes(text: str) -> str:
    """Return a text as Hydra's grammar reads it back whole."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def with_quotes(word: str) -> str:
    """Return a setting with quotes around its value, or around elements of it, where Hydra would misread or refuse what is meant.

    These are text keys with a value that looks like a number, and paths and other plain text with characters such as `~`, `=`, `#` or é.
    """
    key, equals, value = word.partition("=")
    name, bare = key.lstrip("+~").partition("@")[0], value.strip()
    if not equals or not bare or bare[0] in "'\"{" or "${" in bare:
        return word
    read, is_text = parsed(word), name in TEXT_KEYS
    if (read is None or "," in bare) and path_exists(bare) and not bare.startswith("["):
        return f"{key}={in_quotes(bare)}"
    if read is not None and not (is_text and any(is_number(each) for each in elements_of(read))):
        return word
    several = re.match(r"\[[^\[\]]*\]\Z", bare) or ("," in bare and not bare.startswith("["))
    if read is None and not (is_text or "/" in bare or not re.search(r"""['"(){}]""" if several else r"""['"\[\](){}]""", bare)):
        return word
    quoted = f"{key}={in_quotes(bare)}"
    if several:
        parts = re.split(r"([,\[\]])", value)
        quoted = f"{key}={''.join(quote_element(part, is_text) for part in parts)}"
    return word if parsed(quoted) is None else quoted


def quote_element(text: str, is_text: bool) -> str:
    """Return one value of several, in quotes if Hydra cannot read it, or reads text as a number."""
    bare = text.strip()
    if not bare or bare in ",[]":
        return text
    read = parsed(f"x={bare}")
    return in_quotes(bare) if read is None or (is_text and is_number(read.value())) else text


def is_number(value: Any) -> bool:
    """Return True for a number or a truth value."""
    return isinstance(value, bool | int | float)


def elements_of(override: Any) -> list[Any]:
    """Return the values that a setting gives to its key: one, those of a list, or those of a sweep and of the lists in it."""
    value = override.value()
    values = value.list if hasattr(value, "list") else value if isinstance(value, list) else [value]
    return [each for one in values for each in (one if isinstance(one, list) else [one])]


Typed = dict[str, list[tuple[Any, str]]]
"""By key: the numbers that Hydra has read, each with the text from which it has read them."""


def typed_numbers(words: list[str]) -> Typed:
    """Return the numbers of a command line with the text that was typed for each."""
    typed: Typed = {}
    for word in words:
        key, _, value = word.partition("=")
        for text in filter(None, (part.strip() for part in re.split(r"[,\[\]]", value))):
            if not re.search(r"['\"{}()$]", text) and (read := parsed(f"x={text}")) is not None and is_number(read.value()):
                typed.setdefault(key.lstrip("+"), []).append((read.value(), text))
    return typed


def restore_text(cfg: DictConfig, typed: Typed, saved: bool) -> None:
    """Give the arguments of which a class says that they are text the text that was typed, not the number that Hydra made of it; in place.

    The class that a `saved` run names is imported only if the run may name it.
    """
    for key, numbers in typed.items():
        parent, _, name = key.rpartition(".")
        with suppress(UserError, OmegaConfBaseException, KeyError):  # what is wrong with the class is said later
            node = OmegaConf.select(cfg, parent) if parent else None
            if not isinstance(node, DictConfig) or name not in node or not node.get("_target_"):
                continue
            hint = targets.hint_of(targets.locate(node["_target_"], list(cfg.trust) if saved else None), name)
            if is_text_hint(hint):
                node[name] = as_typed(node[name], list(numbers))


def is_text_hint(hint: Any) -> bool:
    """Return True for the type of an argument that is text, or a list of texts, and may be no number."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    options = [option for option in options if option is not type(None)]
    elements = [typing.get_args(option)[:1] or (None,) for option in options]
    return bool(options) and all(
        option in targets.TEXT_TYPES or (typing.get_origin(option) in targets.LIST_TYPES and each[0] in targets.TEXT_TYPES)
        for option, each in zip(options, elements, strict=True)
    )


def as_typed(value: Any, numbers: list[tuple[Any, str]]) -> Any:
    """Return a value with its numbers replaced by their text; of equal numbers in a list, each by its own."""
    if isinstance(value, ListConfig):
        return [as_typed(each, numbers) for each in value]
    found = next((pair for pair in numbers if is_number(value) and type(pair[0]) is type(value) and pair[0] == value), None)
    if found is None:
        return value
    if sum(pair[0] == value for pair in numbers) > 1:
        numbers.remove(found)
    return found[1]


def refuse_none(cfg: DictConfig, words: list[str], saved: bool) -> None:
    """Refuse Python's None where a key that may have no value would take it for a text; a run may be called None.

    Raises: UserError.
    """
    for word in words:
        key, _, value = word.partition("=")
        key = key.lstrip("+")
        if "None" not in re.split(r"[,\[\]\s]", value) or key == "exp_name":
            continue
        parent, _, name = key.rpartition(".")
        with suppress(UserError, OmegaConfBaseException, KeyError, AttributeError):  # what is wrong with the class is said later
            node = OmegaConf.select(cfg, parent) if parent else None
            if parent:
                hint = targets.hint_of(targets.locate(node["_target_"], list(cfg.trust) if saved else None), name)
            else:
                hint = typing.get_type_hints(configuration.TrainConfig).get(key)
            if type(None) not in typing.get_args(hint) or (parent and node[name] != "None"):
                continue
            break
    else:
        return
    raise UserError(f"{word}: for no value write {key}=null.")
