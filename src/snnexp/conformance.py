"""Whether a class keeps its contract, and the defaults that one gets which does not inherit from it."""

import dis
import inspect
import types
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

from snnexp.contracts import CONTRACTS, MORE
from snnexp.errors import UserError

OTHERS = ("torch", "snnexp", "builtins")
"""Packages whose classes set their attributes by name."""


class Everything:
    """Holds any name."""

    def __contains__(self, name: object) -> bool:
        return True


def check_class(path: str, target: type, contract: type) -> None:
    """Hold a class to the place in the configuration that it is named for, before one is made.

    Raises: UserError that lists all that it lacks.
    """
    if complaints(contract, target, ()):
        refuse(path, target, contract, complaints(contract, target, assigned(target)))


def check_made(made: Any, contract: type) -> None:
    """Hold an object to its contract: whatever its class promised to set is there now.

    Raises: UserError that lists all that it lacks.
    """
    group = next(group for group, each in (CONTRACTS | MORE).items() if each is contract)
    there = [name for name in required(contract) if name not in vars(contract) or not inherits(type(made), contract, name)]
    refuse(group, type(made), contract, complaints(contract, type(made), [name for name in there if hasattr(made, name)]))


def refuse(path: str, target: type, contract: type, found: list[str]) -> None:
    """Raises: UserError if there is something to complain of."""
    if found:
        group = path if path.startswith("pruner") else path.partition(".")[0]
        lines = "".join(f"\n  {line}" for line in found)
        raise UserError(
            f"{path}._target_={target.__module__}.{target.__qualname__}: not a {group}; it lacks{lines}\n"
            f"snnexp.contracts.{contract.__name__} says what else it may have; docs/extending.md has an example."
        )


def required(contract: type) -> list[str]:
    """The members of a contract that have no default."""
    announced = [name for name in inspect.get_annotations(contract) if name not in vars(contract)]
    return announced + [name for name, value in vars(contract).items() if getattr(value, "must", False)]


def complaints(contract: type, target: type, there: Container[str]) -> list[str]:
    """What a class does not do as its contract has it, in words; what is `there` on the instance is not asked of the class."""
    found = []
    for name in dict.fromkeys([*required(contract), *verbs(contract)]):
        ours, theirs = vars(contract).get(name), inspect.getattr_static(target, name, None)
        if theirs is None or theirs is ours:
            if name in required(contract) and name not in there:
                found.append(described(contract, name))
        elif ours is None and isinstance(theirs, types.FunctionType):
            found.append(f"{described(contract, name)}, which is a method here: make it an attribute, or a @property")
        elif ours is not None and isinstance(theirs, types.FunctionType) and not takes(theirs, ours):
            found.append(f"{described(contract, name)}, which is {name}{inspect.signature(theirs)} here")
    return found


def inherits(target: type, contract: type, name: str) -> bool:
    """True if a class has a member from its contract and from nowhere else."""
    return inspect.getattr_static(target, name, None) is vars(contract)[name]


def verbs(contract: type) -> list[str]:
    """The methods of a contract."""
    return [name for name, value in vars(contract).items() if isinstance(value, types.FunctionType)]


def takes(theirs: types.FunctionType, ours: types.FunctionType) -> bool:
    """True if a method can be called as that of the contract is."""
    by_place, by_name = [None], {}
    for parameter in list(inspect.signature(ours).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind is parameter.POSITIONAL_ONLY:
            by_place.append(None)
        else:
            by_name[parameter.name] = None
    try:
        inspect.signature(theirs).bind(*by_place, **by_name)
    except TypeError:
        return False
    return True


def described(contract: type, name: str) -> str:
    """A member of a contract with its signature or type."""
    member = vars(contract).get(name)
    if member is None:
        return f"{name}: {inspect.get_annotations(contract)[name]}"
    signature = inspect.signature(member)
    parameters = list(signature.parameters.values())[1:]
    plain = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.POSITIONAL_ONLY else p for p in parameters]
    return f"{name}{signature.replace(parameters=plain)}".replace("'", "")


def assigned(target: type) -> Container[str]:
    """The names of attributes that the methods of a class set, on whatever object; all of them where it may make up names as it goes."""
    names: set[str] = set()
    for kind in target.__mro__:
        own = kind.__module__.partition(".")[0] not in OTHERS
        if own and "__getattr__" in vars(kind):
            return Everything()
        for value in vars(kind).values():
            function = value.fget if isinstance(value, property) else value
            if not isinstance(function, types.FunctionType):
                continue
            code = inspect.unwrap(function).__code__
            if own and {"setattr", "__dict__", "vars"} & set(code.co_names):
                return Everything()
            names |= {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR"}
    return names


@cache
def served(target: type, contract: type) -> type:
    """A class that has the defaults of its contract: itself if it inherits from that, else a form of it that falls back on them."""
    if issubclass(target, contract):
        return target
    theirs = getattr(target, "__getattr__", None)

    def fallback(made: Any, name: str) -> Any:
        """Called by Python for what is found neither on the object nor on its class."""
        if theirs is not None:
            try:
                return theirs(made, name)
            except AttributeError:
                pass
        if name.startswith("_") or name not in vars(contract) or name in required(contract):
            raise AttributeError(f"{target.__name__!r} object has no attribute {name!r}")
        default = vars(contract)[name]
        return types.MethodType(default, made) if isinstance(default, types.FunctionType) else default

    def reduce(made: Any, protocol: int) -> tuple[Any, ...]:  # its name is that of the class it was made of
        return blank, (target, contract), made.__getstate__()

    body = {name: getattr(target, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"__getattr__": fallback, "__reduce_ex__": reduce}
    return types.new_class(target.__name__, (target,), exec_body=lambda names: names.update(body))


def blank(target: type, contract: type) -> Any:
    """An object of a served class without its state."""
    kind = served(target, contract)
    return kind.__new__(kind)


def place(target: Any, error: Exception) -> str:
    """Where an error came from: the last line of the file of a class that it went through, or of any file."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = source(target)
    file, line = next((frame for frame in reversed(frames) if frame[0] == own), frames[-1])
    return f"{Path(file).name}:{line}"


def source(target: Any) -> str | None:
    """The file in which a class is written."""
    try:
        return inspect.getsourcefile(target)
    except (OSError, TypeError):
        return None
