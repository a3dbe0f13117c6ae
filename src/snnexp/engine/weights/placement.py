"""Finds the places of a file's entries in a model: every known reading of the names is tried, and the one that places most is taken."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnexp.contracts import optional_member
from snnexp.published import Published, split_name

WRAPPERS = ("module", "_orig_mod")
"""Names of layers that DDP and torch.compile put around a network."""
OWN_NAMES = Published("snnexp", [])
"""The reading that takes the names as they are."""


@dataclass
class Fit:
    """One reading of a file's names: the values that it gives the model's entries, and what is left over on both sides."""

    names: Published
    prefix: str  # what precedes the names in the file that have a place
    into: str  # what precedes their names in the model
    placed: dict[str, Tensor] = field(default_factory=dict)  # values by the names of the model
    places: dict[str, list[str]] = field(default_factory=dict)  # names in the file -> their places in the model
    unplaced: dict[str, str] = field(default_factory=dict)  # names in the file without a place -> why
    misshapen: dict[str, str] = field(default_factory=dict)  # those of the unplaced whose place has another shape -> that place
    without_counterpart: list[str] = field(default_factory=list)  # names in the file that are known to have no place
    unfilled: list[str] = field(default_factory=list)  # names of the model without a value
    head: str | None = None  # the output layer of the model, if it has another size in the file
    of_head: list[str] = field(default_factory=list)  # the model's entries of that layer


def best_fit(entries: dict[str, Tensor], model: nn.Module) -> Fit:
    """Return the reading that places most of a file's numbers in a model, or in a part of it."""
    best = max(readings(entries, model), key=lambda fit: (count_numbers(entries, fit.places), -count_numbers(entries, fit.unplaced)))
    complete(best, entries, model)
    return best


def readings(entries: dict[str, Tensor], model: nn.Module) -> Iterator[Fit]:
    """Yield the possible readings of a file's names, the plain one first, up to the first that places every entry."""
    model_entries = model.state_dict()
    known_names = {*model_entries, *(name.partition(".")[2] for name in model_entries)}
    parts: list[tuple[str, nn.Module]] = [("", model), *((f"{name}.", part) for name, part in model.named_children())]
    choices = [(OWN_NAMES, into) for into, _ in parts]
    choices += [(names, into) for into, part in parts for names in optional_member(part, "published")]
    for file_names in dict.fromkeys([tuple(entries), tuple(map(without_wrappers, entries))]):
        if len(set(file_names)) < len(entries):
            continue
        for prefix in prefixes(file_names, entries.values(), known_names):
            inner = {name: new.removeprefix(prefix) for name, new in zip(entries, file_names, strict=True) if new.startswith(prefix)}
            for names, into in choices:
                reading = place(entries, inner, model_entries, Fit(names, prefix, into))
                if reading is not None:
                    yield reading
                    if not reading.unplaced:
                        return


def without_wrappers(name: str) -> str:
    """Return a name without the layers that wrap a network or a part of it."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def prefixes(names: Sequence[str], values: Iterable[Tensor], known_names: set[str]) -> list[str]:
    """Return the prefixes, "" first, that precede the names of at least a quarter of a file's numbers or one of the `known_names`."""
    sizes: dict[str, int] = {"": 0}
    known = {""}
    for name, value in zip(names, values, strict=True):
        words = name.split(".")
        for i in range(len(words)):
            prefix = "".join(f"{word}." for word in words[:i])
            sizes[prefix] = sizes.get(prefix, 0) + value.numel()
            if name.removeprefix(prefix) in known_names and words[-1] != name.removeprefix(prefix):
                known.add(prefix)
    return [prefix for prefix, size in sizes.items() if 4 * size >= sizes[""] or prefix in known]


def place(entries: dict[str, Tensor], inner: dict[str, str], model_entries: dict[str, Tensor], reading: Fit) -> Fit | None:
    """Sort every entry of a file into a reading, placed or not, and return it; None if two entries claim the same place.

    `inner` maps the names in the file to the names without prefix.
    """
    new_names = reading.names.renamed(inner.values())
    for name, value in entries.items():
        new = new_names[inner[name]] if name in inner else ""
        if new is None:
            reading.without_counterpart.append(name)
            continue
        targets = split_name(reading.into + new)
        if not all(target in model_entries for target in targets):
            reading.unplaced[name] = "no such name"
            continue
        pieces = pieces_of(value, [model_entries[target].shape for target in targets])
        if pieces is None:
            shapes = " and ".join(shape_text(model_entries[target]) for target in targets)
            reading.unplaced[name] = f"{shape_text(value)} there, {shapes} here"
            reading.misshapen[name] = targets[0]
            continue
        if any(target in reading.placed for target in targets):
            return None
        reading.placed |= zip(targets, pieces, strict=True)
        reading.places[name] = targets
    return reading


def pieces_of(value: Tensor, shapes: list[torch.Size]) -> list[Tensor] | None:
    """Split a value along the first axis into pieces of these shapes; None if it does not fit. Trailing axes of length 1 do not count."""
    if len(shapes) == 1:
        return [value.reshape(shapes[0])] if trim_shape(value.shape) == trim_shape(shapes[0]) else None
    if value.dim() == 0 or any(value.shape[1:] != s[1:] or not s for s in shapes) or value.shape[0] != sum(s[0] for s in shapes):
        return None
    return list(value.split([s[0] for s in shapes]))


def trim_shape(size: torch.Size) -> tuple[int, ...]:
    """Return a shape without trailing axes of length 1, because a convolution with a kernel of size 1 is a linear layer."""
    axes = tuple(size)
    while axes and axes[-1] == 1:
        axes = axes[:-1]
    return axes


def complete(reading: Fit, entries: dict[str, Tensor], model: nn.Module) -> None:
    """Find the head that has another size in the file, if there is one, and the entries of the model that a reading leaves unfilled."""
    model_entries = model.state_dict()
    layers = {layer_of(target) for target in reading.misshapen.values()}
    if len(layers) == 1 and is_head(*layers, reading, entries, model):
        (reading.head,) = layers
        reading.of_head = [name for name in model_entries if layer_of(name) == reading.head]
        for name, targets in list(reading.places.items()):
            if layer_of(targets[0]) == reading.head:  # such as a bias, which is useless without its weight
                reading.unplaced[name], reading.misshapen[name] = "of that layer", targets[0]
                del reading.places[name], reading.placed[targets[0]]
    reading.unfilled = [
        name
        for name in model_entries
        if name not in reading.placed
        and name not in reading.of_head
        and not name.endswith("num_batches_tracked")  # no result depends on this counter
        and not (name.startswith(reading.into) and reading.names.is_lacking(name.removeprefix(reading.into)))
    ]


def layer_of(name: str) -> str:
    """Return the name of the layer that an entry belongs to."""
    return name.rpartition(".")[0]


def is_head(layer: str, reading: Fit, entries: dict[str, Tensor], model: nn.Module) -> bool:
    """Return True if the only layer of another size is the output layer of a model.

    It is if it differs in the number of outputs only, or if it is the last layer, whose inputs may differ with the size of the images.
    """
    module = model.get_submodule(layer)
    file_values = {target: entries[name] for name, target in reading.misshapen.items()}
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(module, nn.Embedding) or f"{layer}.weight" not in file_values:
        return False
    last = [name for name, each in model.named_modules() if any(True for _ in each.parameters(recurse=False))][-1]
    file_shape = file_values[f"{layer}.weight"].shape
    return len(file_shape) == weight.dim() and (file_shape[1:] == weight.shape[1:] or layer == last)


def count_numbers(entries: dict[str, Tensor], names: Iterable[str]) -> int:
    """Return how many numbers the named entries hold."""
    return sum(entries[name].numel() for name in names)


def shape_text(value: Tensor) -> str:
    """Return the shape of a tensor as text, such as [3, 4]."""
    return f"[{', '.join(map(str, value.shape))}]"
