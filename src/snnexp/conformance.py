"""Checks of a class against its contract, and the defaults for a class that does not inherit from it."""

import dis
import inspect
import types
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

from snnexp.contracts import CONTRACTS, OPTIONAL_CONTRACTS
from snnexp.errors import UserError

PLAIN_PACKAGES = ("torch", "snnexp", "builtins")
"""Packages whose classes set every attribute by a plain assignment, never by a computed name."""


class AnyName:
    """A container that contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


def check_class(path: str, target: type, contract: type) -> None:
    """Check the class that a configuration names at `path`, before an instance is made.

    Raises: UserError that lists everything it lacks.
    """
    if find_faults(contract, target, ()):
        raise_if_faulty(path, target, contract, find_faults(contract, target, assigned_names(target)))


def check_instance(instance: Any, contract: type) -> None:
    """Check an instance, which must have every attribute that the methods of its class seemed to set.

    Raises: UserError that lists everything it lacks.
    """
    cls = type(instance)
    group = next(group for group, each in (CONTRACTS | OPTIONAL_CONTRACTS).items() if each is contract)
    own = [name for name in required_members(contract) if name not in vars(contract) or not is_inherited(cls, contract, name)]
    raise_if_faulty(group, cls, contract, find_faults(contract, cls, [name for name in own if hasattr(instance, name)]))


def raise_if_faulty(path: str, target: type, contract: type, faults: list[str]) -> None:
    """Raises: UserError that lists the faults, if there are any."""
    if faults:
        group = path if path.startswith("pruner") else path.partition(".")[0]
        lines = "".join(f"\n  {line}" for line in faults)
        raise UserError(
            f"{path}._target_={target.__module__}.{target.__qualname__}: not a {group}; it lacks{lines}\n"
            f"snnexp.contracts.{contract.__name__} says what else it may have; docs/extending.md has an example."
        )


def required_members(contract: type) -> list[str]:
    """Return the names of the members of a contract that have no default."""
    declared = [name for name in inspect.get_annotations(contract) if name not in vars(contract)]
    return declared + [name for name, value in vars(contract).items() if getattr(value, "required", False)]


def find_faults(contract: type, target: type, on_instance: Container[str]) -> list[str]:
    """Return, in words, how a class departs from its contract; members that exist `on_instance` need not exist on the class."""
    faults = []
    for name in dict.fromkeys([*required_members(contract), *methods(contract)]):
        expected, actual = vars(contract).get(name), inspect.getattr_static(target, name, None)
        if actual is None or actual is expected:
            if name in required_members(contract) and name not in on_instance:
                faults.append(declaration(contract, name))
        elif expected is None and isinstance(actual, types.FunctionType):
            faults.append(f"{declaration(contract, name)}, which is a method here: make it an attribute, or a @property")
        elif expected is not None and isinstance(actual, types.FunctionType) and not accepts_calls_of(actual, expected):
            faults.append(f"{declaration(contract, name)}, which is {name}{inspect.signature(actual)} here")
    return faults


def is_inherited(target: type, contract: type, name: str) -> bool:
    """Return True if a class has a member from its contract and does not override it."""
    return inspect.getattr_static(target, name, None) is vars(contract)[name]


def overrides(instance: Any, contract: type, name: str) -> bool:
    """Return True if an instance has a method of its own where the contract has a default, whether or not its class inherits from it."""
    return getattr(getattr(instance, name), "__func__", None) is not vars(contract)[name]


def methods(contract: type) -> list[str]:
    """Return the names of the methods of a contract."""
    return [name for name, value in vars(contract).items() if isinstance(value, types.FunctionType)]


def accepts_calls_of(actual: types.FunctionType, expected: types.FunctionType) -> bool:
    """Return True if a method can be called the way the method of the contract is called, with and without its optional arguments."""
    by_position, by_name, required_names = [None], {}, {}
    for parameter in list(inspect.signature(expected).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind is parameter.POSITIONAL_ONLY:
            by_position.append(None)
        else:
            by_name[parameter.name] = None
            required_names |= {parameter.name: None} if parameter.default is parameter.empty else {}
    try:
        inspect.signature(actual).bind(*by_position, **by_name)
        inspect.signature(actual).bind(*by_position, **required_names)
    except TypeError:
        return False
    return True


def declaration(contract: type, name: str) -> str:
    """Return a member of a contract with its signature or type, as text."""
    member = vars(contract).get(name)
    if member is None:
        return f"{name}: {inspect.get_annotations(contract)[name]}"
    signature = inspect.signature(member)
    parameters = list(signature.parameters.values())[1:]
    plain = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.POSITIONAL_ONLY else p for p in parameters]
    return f"{name}{signature.replace(parameters=plain)}".replace("'", "")


def assigned_names(target: type) -> Container[str]:
    """Return the names of all attributes that the methods of a class set on any object; every name if the class may compute names."""
    names: set[str] = set()
    for kind in target.__mro__:
        own = kind.__module__.partition(".")[0] not in PLAIN_PACKAGES
        if own and "__getattr__" in vars(kind):
            return AnyName()
        for value in vars(kind).values():
            function = value.fget if isinstance(value, property) else value
            if not isinstance(function, types.FunctionType):
                continue
            code = inspect.unwrap(function).__code__
            if own and {"setattr", "__dict__", "vars"} & set(code.co_names):
                return AnyName()
            names |= {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR"}
    return names


@cache
def class_with_defaults(target: type, contract: type) -> type:
    """Return a class with the defaults of its contract: itself if it inherits from the contract, else a subclass that falls back on it."""
    if issubclass(target, contract):
        return target
    own_getattr = getattr(target, "__getattr__", None)

    def fallback(instance: Any, name: str) -> Any:
        """Look up what Python finds neither on the instance nor on its class."""
        if own_getattr is not None:
            try:
                return own_getattr(instance, name)
            except AttributeError:
                pass
        if name.startswith("_") or name not in vars(contract) or name in required_members(contract):
            raise AttributeError(f"{target.__name__!r} object has no attribute {name!r}")
        default = vars(contract)[name]
        return types.MethodType(default, instance) if isinstance(default, types.FunctionType) else default

    def reduce(instance: Any, protocol: int) -> tuple[Any, ...]:  # pickle would look this class up by its name, which is the user's class's
        return new_without_state, (target, contract), instance.__getstate__()

    body = {name: getattr(target, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"__getattr__": fallback, "__reduce_ex__": reduce}
    return types.new_class(target.__name__, (target,), exec_body=lambda names: names.update(body))


def new_without_state(target: type, contract: type) -> Any:
    """Return an instance of the class with defaults, without calling its constructor."""
    kind = class_with_defaults(target, contract)
    return kind.__new__(kind)


def location_of(target: Any, error: Exception) -> str:
    """Return file and line where an error arose: the innermost in the source file of a class or, if it passed none there, of all."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    source = source_file(target)
    file, line = next((frame for frame in reversed(frames) if frame[0] == source), frames[-1])
    return f"{Path(file).name}:{line}"


def source_file(target: Any) -> str | None:
    """Return the file in which a class is written, or None."""
    try:
        return inspect.getsourcefile(target)
    except (OSError, TypeError):
        return None
