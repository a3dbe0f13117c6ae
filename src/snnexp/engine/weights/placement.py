"""Where the entries of a file go in a model: its names are tried in every way that is known, and the one that places most is taken."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnexp.contracts import offered
from snnexp.published import Published, joined

WRAPPERS = ("module", "_orig_mod")
"""Names of layers that DDP and torch.compile put around a network."""
AS_HERE = Published("snnexp", [])


@dataclass
class Fit:
    """What one reading of a file's names makes of it: the reading, the values for the model's entries, and what is left over."""

    names: Published
    prefix: str  # before the names in the file that have a place
    into: str  # before their names in the model
    placed: dict[str, Tensor] = field(default_factory=dict)  # by the model's names
    taken: dict[str, list[str]] = field(default_factory=dict)  # names in the file, and where they are placed
    left: dict[str, str] = field(default_factory=dict)  # names in the file without a place, and why
    misshapen: dict[str, str] = field(default_factory=dict)  # of these, those whose place has another shape, and that place
    apart: list[str] = field(default_factory=list)  # known to have no counterpart
    unfilled: list[str] = field(default_factory=list)  # of the model
    head: str | None = None  # the layer that makes the model's outputs, if it is of another size in the file
    of_head: list[str] = field(default_factory=list)  # the model's entries of it


def best_fit(entries: dict[str, Tensor], model: nn.Module) -> Fit:
    """The reading that places most of a file's numbers in a model, or in a part of it."""
    best = max(readings(entries, model), key=lambda each: (numbers(entries, each.taken), -numbers(entries, each.left)))
    complete(best, entries, model)
    return best


def readings(entries: dict[str, Tensor], model: nn.Module) -> Iterator[Fit]:
    """The ways in which a file's names may be meant, the plain one first; those after one that places all are not tried."""
    own = model.state_dict()
    here = {*own, *(name.partition(".")[2] for name in own)}
    parts: list[tuple[str, nn.Module]] = [("", model), *((f"{name}.", part) for name, part in model.named_children())]
    choices = [(AS_HERE, into) for into, _ in parts]
    choices += [(names, into) for into, part in parts for names in offered(part, "published")]
    for given in dict.fromkeys([tuple(entries), tuple(map(unwrapped, entries))]):
        if len(set(given)) < len(entries):
            continue
        for prefix in prefixes(given, entries.values(), here):
            inner = {name: new.removeprefix(prefix) for name, new in zip(entries, given, strict=True) if new.startswith(prefix)}
            for names, into in choices:
                reading = placed(entries, inner, own, Fit(names, prefix, into))
                if reading is not None:
                    yield reading
                    if not reading.left:
                        return


def unwrapped(name: str) -> str:
    """A name without the layers that wrap a network or a part of it."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def prefixes(names: Sequence[str], values: Iterable[Tensor], here: set[str]) -> list[str]:
    """What stands before the names of at least a quarter of a file's numbers, or before a name that is one `here`; nothing first."""
    sizes: dict[str, int] = {"": 0}
    known = {""}
    for name, value in zip(names, values, strict=True):
        words = name.split(".")
        for i in range(len(words)):
            prefix = "".join(f"{word}." for word in words[:i])
            sizes[prefix] = sizes.get(prefix, 0) + value.numel()
            if name.removeprefix(prefix) in here and words[-1] != name.removeprefix(prefix):
                known.add(prefix)
    return [prefix for prefix, size in sizes.items() if 4 * size >= sizes[""] or prefix in known]


def placed(entries: dict[str, Tensor], inner: dict[str, str], own: dict[str, Tensor], reading: Fit) -> Fit | None:
    """A reading with each entry in its place or left over; None if two claim one place. `inner` are names without the prefix."""
    new_names = reading.names.renamed(inner.values())
    for name, value in entries.items():
        new = new_names[inner[name]] if name in inner else ""
        if new is None:
            reading.apart.append(name)
            continue
        targets = joined(reading.into + new)
        if not all(target in own for target in targets):
            reading.left[name] = "no such name"
            continue
        pieces = cut(value, [own[target].shape for target in targets])
        if pieces is None:
            reading.left[name] = f"{shape(value)} there, {' and '.join(shape(own[target]) for target in targets)} here"
            reading.misshapen[name] = targets[0]
            continue
        if any(target in reading.placed for target in targets):
            return None
        reading.placed |= zip(targets, pieces, strict=True)
        reading.taken[name] = targets
    return reading


def cut(value: Tensor, shapes: list[torch.Size]) -> list[Tensor] | None:
    """A value in pieces of these shapes, cut along the first axis; None if it has another. Axes of length 1 at the end do not count."""
    if len(shapes) == 1:
        return [value.reshape(shapes[0])] if trimmed(value.shape) == trimmed(shapes[0]) else None
    if value.dim() == 0 or any(value.shape[1:] != s[1:] or not s for s in shapes) or value.shape[0] != sum(s[0] for s in shapes):
        return None
    return list(value.split([s[0] for s in shapes]))


def trimmed(size: torch.Size) -> tuple[int, ...]:
    """A shape without axes of length 1 at its end: a convolution of one tap is a linear layer."""
    axes = tuple(size)
    while axes and axes[-1] == 1:
        axes = axes[:-1]
    return axes


def complete(reading: Fit, entries: dict[str, Tensor], model: nn.Module) -> None:
    """Find out which entries of the model a reading leaves as they are, and whether its head is of another size in the file."""
    own = model.state_dict()
    layers = {layer_of(target) for target in reading.misshapen.values()}
    if len(layers) == 1 and is_head(*layers, reading, entries, model):
        (reading.head,) = layers
        reading.of_head = [name for name in own if layer_of(name) == reading.head]
        for name, targets in list(reading.taken.items()):
            if layer_of(targets[0]) == reading.head:  # such as a bias, which is of no use without its weight
                reading.left[name], reading.misshapen[name] = "of that layer", targets[0]
                del reading.taken[name], reading.placed[targets[0]]
    reading.unfilled = [
        name
        for name in own
        if name not in reading.placed
        and name not in reading.of_head
        and not name.endswith("num_batches_tracked")  # a count that no result depends on
        and not (name.startswith(reading.into) and reading.names.is_lacking(name.removeprefix(reading.into)))
    ]


def layer_of(name: str) -> str:
    """The layer that an entry belongs to."""
    return name.rpartition(".")[0]


def is_head(layer: str, reading: Fit, entries: dict[str, Tensor], model: nn.Module) -> bool:
    """True if a layer is the one that makes a model's outputs: no other has to change where the number of them is another.

    Or it is the last one, and the file's has another number of inputs, those of an image of another size.
    """
    module = model.get_submodule(layer)
    theirs = {target: entries[name] for name, target in reading.misshapen.items()}
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(module, nn.Embedding) or f"{layer}.weight" not in theirs:
        return False
    last = [name for name, each in model.named_modules() if any(True for _ in each.parameters(recurse=False))][-1]
    there = theirs[f"{layer}.weight"].shape
    return len(there) == weight.dim() and (there[1:] == weight.shape[1:] or layer == last)


def numbers(entries: dict[str, Tensor], names: Iterable[str]) -> int:
    """How many numbers some entries hold."""
    return sum(entries[name].numel() for name in names)


def shape(value: Tensor) -> str:
    """A shape as one writes it."""
    return f"[{', '.join(map(str, value.shape))}]"
