"""Weights in a file, whoever wrote it and however it wraps them; no code in it is run."""

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

AVERAGES = ("state_dict_ema", "params_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys under which files keep a moving average of the weights."""
WRAPPINGS = (*AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "params", "net", "network", "weights", "module")
"""Keys under which files keep weights, a moving average before what it is the average of."""
OTHERS = r"optim\w*|\w*sched\w*|\w*scaler|rngs?|random|callbacks|loops|hyper_?param\w*|hparams|config|cfg|args"
BESIDE = re.compile(rf"(^|[^a-z])({OTHERS})($|[^a-z])")
"""What a key says that holds something else."""
WAY_OUT = "In the program that made it, save the weights alone: torch.save(model.state_dict(), FILE)."


@dataclass(frozen=True)
class Weights:
    """The entries of a file, and what it says of them."""

    path: Path
    entries: dict[str, torch.Tensor]
    kept_under: str = ""  # the keys that lead to them
    completed_from: str = ""  # for an average: the keys that lead to what it averages, if entries that it lacks are taken from there
    variables: list[str] | None = None  # those of the medical events that a run of ours was trained on, in its order
    pruned: bool = False  # a run of ours took channels out
    settings: dict[str, Any] | None = None  # of the run of ours

    @property
    def averaged(self) -> bool:
        """True if a moving average is kept under these keys."""
        return bool(set(AVERAGES) & set(self.kept_under.split(".")))


def read(path: Path) -> list[Weights]:
    """The weights in a checkpoint of ours, as a run is judged by them, or all that may be meant in a file of others, the likeliest first.

    Raises: UserError if the file is missing, damaged, would run code, or holds no weights.
    """
    content = read_tensors(path) if is_safetensors(path) else read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a single {type(content).__name__}, and no weights. {WAY_OUT}")
    if all(name in content for name in checkpoint.REQUIRED):
        return [of_a_run(path, content)]
    found = completed(list(candidates(content)))
    if not found:
        raise UserError(f"{path} holds no weights; it holds {_contents(content)}. {WAY_OUT}")
    return [replace(each, path=path) for each in found]


def of_a_run(path: Path, content: dict[str, Any]) -> Weights:
    """The weights by which a run of ours is judged.

    Raises: UserError if its checkpoint holds something else where they, or what is said of them, belong.
    """
    data, pruned, args, ema = content["data"], content.get("pruned"), content["args"], content.get("ema")
    under = "ema" if isinstance(ema, dict) and ema else "state_dict"
    entries = content[under]
    variables = data.get("variables") if isinstance(data, dict) else None
    odd = [
        name
        for name, right in {
            "state_dict": isinstance(entries, dict) and all(isinstance(value, torch.Tensor) for value in entries.values()),
            "data": variables is None or isinstance(variables, list | tuple),
            "pruned": pruned is None or isinstance(pruned, dict),
            "args": isinstance(args, dict) and isinstance(args.get("choices") or {}, dict),
        }.items()
        if not right
    ]
    if odd:
        raise UserError(f"{path} has the keys of a checkpoint of snnexp, but not what belongs under {', '.join(odd)}. {WAY_OUT}")
    names = None if variables is None else list(variables)
    return Weights(path, entries, under, variables=names, pruned=bool((pruned or {}).get("kept")), settings=args)


def candidates(content: dict[Any, Any], under: tuple[str, ...] = ()) -> Iterator[Weights]:
    """What may be meant in a dictionary: what it wraps, averages first; all of it, parts side by side by their names; each part."""
    wrapped = [key for key in WRAPPINGS if isinstance(content.get(key), dict)]
    for key in wrapped:
        yield from candidates(content[key], (*under, key))
    parts = {key: part for key, part in content.items() if isinstance(part, dict) and key not in wrapped and not is_beside(key)}
    filled = [key for key in (*wrapped, *parts) if any(value.dim() for value in tensors(content[key]).values())]  # a number is no weight
    if any(value.dim() for value in content.values() if isinstance(value, torch.Tensor)) or len(filled) > 1:
        yield Weights(Path(), tensors(content), ".".join(under))
    for key, part in parts.items():  # a key of any name around a file that one knows
        yield from candidates(part, (*under, str(key)))


def completed(found: list[Weights]) -> list[Weights]:
    """The same, with averages that are of parameters alone completed by what they average: its statistics of batches are theirs too."""
    whole = []
    for each in found:
        plain = next((other for other in found if each.averaged and not other.averaged and is_part(each.entries, other.entries)), None)
        if plain is not None:
            each = replace(each, entries=plain.entries | each.entries, completed_from=plain.kept_under or "the rest of the file")
        whole.append(each)
    return whole


def is_part(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """True if entries are some of others, and not all of them, in the same shapes."""
    return len(some) < len(others) and all(name in others and others[name].shape == value.shape for name, value in some.items())


def is_beside(key: object) -> bool:
    """True if a key says that it holds no weights."""
    return BESIDE.search(str(key).lower()) is not None


def tensors(content: dict[Any, Any], before: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a dictionary and of those in it that may hold weights, by their names with dots between."""
    found: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor) and isinstance(name, str):
            found[before + name] = value
        elif isinstance(value, dict) and not is_beside(name):
            found |= tensors(value, f"{before}{name}.")
    return found


# ---- files


def is_safetensors(path: Path) -> bool:
    """True for a file that begins with the length of a JSON header, and that header."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The entries of a safetensors file.

    Raises: UserError if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # a type of number that torch does not know is a KeyError
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again.") from error


def read_pickle(path: Path) -> Any:
    """The content of a file of `torch.save`, in which objects of some harmless classes are stand-ins without a meaning.

    Raises: UserError.
    """
    if not path.is_file():
        what = "a directory that is no run" if path.is_dir() else "no such file"
        raise UserError(f"no checkpoint {path}: {what}. There is: {checkpoint.listing(path if path.is_dir() else path.parent)}")
    try:
        with stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another protocol of pickle: what cannot be read is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds {named[1]}, which is no number and no plain value; it was not loaded, because a checkpoint never runs code"
        else:
            words = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            reason = f"it is damaged, no file of torch.save, or would run code ({words[1] if words else _reason(error)})"
        raise UserError(f"{path}: {reason}. {WAY_OUT}") from error
    except Exception as error:  # torch's reader of damaged bytes fails in a dozen ways, AssertionError and struct.error among them
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program. {WAY_OUT}") from error
        raise UserError(
            f"{path} is no whole file of torch.save and no safetensors file ({_reason(error)}): fetch it again, or give another."
        ) from error


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let files name the classes of `STAND_INS`, and none that libraries had torch admit: imports do not change what a file may hold."""
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(STAND_INS):
            yield
    finally:
        torch.serialization.add_safe_globals(admitted)


class Blank:
    """What stands in for an object: takes whatever is said of it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Blank":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class PlainDict:
    """What stands in for a dictionary of another class, or for an object that is its attributes: a plain one."""

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
"""Classes and functions that occur beside the weights of published files, and what is made of them instead; none of theirs is called."""


# ---- words


def _reason(error: Exception) -> str:
    """The first line of an error, behind its kind if that line alone says nothing, as a bare key or number does."""
    line = next(iter(str(error).splitlines()), "")
    return line if " " in line else f"{type(error).__name__} {line}".strip()


def _contents(content: dict[Any, Any]) -> str:
    """The first keys of a dictionary, with what kind of thing each of them holds."""
    kinds = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:8]]
    return ", ".join(kinds) + (" ..." if len(content) > 8 else "") if kinds else "nothing"
