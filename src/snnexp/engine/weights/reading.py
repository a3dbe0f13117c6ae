"""Reads the weights in a file, whoever wrote it and however they are wrapped, without running any code in it."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from snnexp.engine import checkpoint
from snnexp.errors import UserError
from snnexp.untrusted.torch_files import load_plain

AVERAGES = ("state_dict_ema", "params_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys under which files keep a moving average of the weights."""
WRAPPINGS = (*AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "params", "net", "network", "weights", "module")
"""Keys under which files keep weights; a moving average comes before the weights that it averages."""
OTHERS = r"optim\w*|\w*sched\w*|\w*scaler|rngs?|random|callbacks|loops|hyper_?param\w*|hparams|config|cfg|args"
BESIDE = re.compile(rf"(^|[^a-z])({OTHERS})($|[^a-z])")
"""Matches a key under which a file keeps something else than weights."""
WAY_OUT = "In the program that made it, save the weights alone: torch.save(model.state_dict(), FILE)."


@dataclass(frozen=True)
class Weights:
    """The entries of a file, and what the file says about them."""

    path: Path
    entries: dict[str, torch.Tensor]
    kept_under: str = ""  # the keys that lead to the entries
    completed_from: str = ""  # for an average: the keys that lead to the weights from which its missing entries are taken
    variables: list[str] | None = None  # for a run of snnexp: the variables of the medical events that it was trained on, in its order
    pruned: bool = False  # for a run of snnexp: whether channels were pruned
    settings: dict[str, Any] | None = None  # for a run of snnexp: its settings

    @property
    def averaged(self) -> bool:
        """True if the entries are a moving average, by their keys."""
        return bool(set(AVERAGES) & set(self.kept_under.split(".")))


def read(path: Path) -> list[Weights]:
    """Return the weights of a checkpoint of snnexp, or all candidates in a file of another program, the most likely first.

    Raises: UserError if the file is missing, damaged, would run code, or holds no weights.
    """
    content = read_tensors(path) if is_safetensors(path) else read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a single {type(content).__name__}, and no weights. {WAY_OUT}")
    if all(name in content for name in checkpoint.REQUIRED):
        return [weights_of_run(path, content)]
    weights = complete_averages(list(candidates(content)))
    if not weights:
        raise UserError(f"{path} holds no weights; it holds {_contents(content)}. {WAY_OUT}")
    return [replace(each, path=path) for each in weights]


def weights_of_run(path: Path, content: dict[str, Any]) -> Weights:
    """Return the weights that a run of snnexp is evaluated with.

    Raises: UserError if its checkpoint does not hold what belongs under its keys.
    """
    data, pruned, args, ema = content["data"], content.get("pruned"), content["args"], content.get("ema")
    under = "ema" if isinstance(ema, dict) and ema else "state_dict"
    entries = content[under]
    variables = data.get("variables") if isinstance(data, dict) else None
    wrong = [
        name
        for name, is_right in {
            "state_dict": isinstance(entries, dict) and all(isinstance(value, torch.Tensor) for value in entries.values()),
            "data": variables is None or isinstance(variables, list | tuple),
            "pruned": pruned is None or isinstance(pruned, dict),
            "args": isinstance(args, dict) and isinstance(args.get("choices") or {}, dict),
        }.items()
        if not is_right
    ]
    if wrong:
        raise UserError(f"{path} has the keys of a checkpoint of snnexp, but not what belongs under {', '.join(wrong)}. {WAY_OUT}")
    names = None if variables is None else list(variables)
    return Weights(path, entries, under, variables=names, pruned=bool((pruned or {}).get("kept")), settings=args)


def candidates(content: dict[Any, Any], under: tuple[str, ...] = ()) -> Iterator[Weights]:
    """Yield what may be the weights in a dictionary: what it wraps, averages first; then all parts together; then each part."""
    wrapped = [key for key in WRAPPINGS if isinstance(content.get(key), dict)]
    for key in wrapped:
        yield from candidates(content[key], (*under, key))
    parts = {key: part for key, part in content.items() if isinstance(part, dict) and key not in wrapped and not is_beside(key)}
    filled = [key for key in (*wrapped, *parts) if any(value.dim() for value in tensors(content[key]).values())]  # scalars are no weights
    if any(value.dim() for value in content.values() if isinstance(value, torch.Tensor)) or len(filled) > 1:
        yield Weights(Path(), tensors(content), ".".join(under))
    for key, part in parts.items():  # any other key may wrap a dictionary of a known form
        yield from candidates(part, (*under, str(key)))


def complete_averages(every: list[Weights]) -> list[Weights]:
    """Return the weights, with averages of parameters alone completed from what they average, which has the batch statistics too."""
    plain = [each for each in every if not each.averaged]
    completed = []
    for weights in every:
        source = next((each for each in plain if weights.averaged and is_subset(weights.entries, each.entries)), None)
        if source is not None:
            entries = source.entries | weights.entries
            weights = replace(weights, entries=entries, completed_from=source.kept_under or "the rest of the file")
        completed.append(weights)
    return completed


def is_subset(entries: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Return True if the entries are a proper subset of the others, with the same shapes."""
    return len(entries) < len(others) and all(name in others and others[name].shape == value.shape for name, value in entries.items())


def is_beside(key: object) -> bool:
    """Return True if a key says that it holds something else than weights."""
    return BESIDE.search(str(key).lower()) is not None


def tensors(content: dict[Any, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a dictionary and of the dictionaries in it that may hold weights, with dots between the parts of a name."""
    values: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor) and isinstance(name, str):
            values[prefix + name] = value
        elif isinstance(value, dict) and not is_beside(name):
            values |= tensors(value, f"{prefix}{name}.")
    return values


# ---- files


def is_safetensors(path: Path) -> bool:
    """Return True for a file that begins with the length of a JSON header, followed by the header."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the entries of a safetensors file.

    Raises: UserError if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # KeyError: a number type that torch does not have
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again.") from error


def read_pickle(path: Path) -> Any:
    """Return the content of a file of `torch.save`, with meaningless stand-ins for the objects of some harmless classes.

    Raises: UserError.
    """
    if not path.is_file():
        what = "a directory that is no run" if path.is_dir() else "no such file"
        raise UserError(f"no checkpoint {path}: {what}. There is: {checkpoint.listing(path if path.is_dir() else path.parent)}")
    try:
        with stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols; what cannot be read is an error anyway
            return load_plain(path)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds {named[1]}, which is no number and no plain value; it was not loaded, because a checkpoint never runs code"
        else:
            words = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            reason = f"it is damaged, no file of torch.save, or would run code ({words[1] if words else _reason(error)})"
        raise UserError(f"{path}: {reason}. {WAY_OUT}") from error
    except Exception as error:  # torch fails on damaged bytes in many ways, AssertionError and struct.error among them
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program. {WAY_OUT}") from error
        raise UserError(
            f"{path} is no whole file of torch.save and no safetensors file ({_reason(error)}): fetch it again, or give another."
        ) from error


@contextmanager
def stand_ins() -> Iterator[None]:
    """Allow files the classes of `STAND_INS` only, not those that libraries have registered, so that imports do not matter."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(STAND_INS):
            yield
    finally:
        torch.serialization.add_safe_globals(registered)


class Blank:
    """Stands in for an object: accepts any arguments and any state, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Blank":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class PlainDict:
    """Stands in for a dictionary of another class, or for an object that only holds attributes; makes a plain dictionary."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()


_BLANK = [
    "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{place}{name}" for place in ("", "_local.") for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "datetime.datetime", "datetime.date", "datetime.timedelta", "torch.torch_version.TorchVersion",
    *(f"builtins.{name}" for name in ("list", "dict", "tuple", "int", "float", "str", "bool", "frozenset", "slice", "range")),
    *(f"{lightning}.callbacks.{place}" for lightning in ("pytorch_lightning", "lightning.pytorch")
      for place in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")),
    *(f"omegaconf.{place}" for place in ("base.ContainerMetadata", "base.Metadata", "listconfig.ListConfig", "dictconfig.DictConfig")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")), "typing.Any",
]  # fmt: skip
_PLAIN = [
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "yacs.config.CfgNode", "easydict.EasyDict",
    *(f"{place}.AttributeDict" for place in (
        "pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing", "lightning_fabric.utilities.data",
        "lightning.fabric.utilities.data")),
]  # fmt: skip
STAND_INS = [(type(name, (kind,), {}), name) for kind, names in ((Blank, _BLANK), (PlainDict, _PLAIN)) for name in names]
"""Stand-ins for the classes and functions that occur in published files besides the weights; the originals are never called."""


# ---- words


def _reason(error: Exception) -> str:
    """Return the first line of an error, preceded by its type if the line alone says too little, such as a single key or number."""
    line = next(iter(str(error).splitlines()), "")
    return line if " " in line else f"{type(error).__name__} {line}".strip()


def _contents(content: dict[Any, Any]) -> str:
    """Return the first keys of a dictionary with the types of their values, as text."""
    kinds = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:8]]
    return ", ".join(kinds) + (" ..." if len(content) > 8 else "") if kinds else "nothing"
