"""Which channels of a model leave together: each model says so, in the names of its own modules; pruning acts on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from snnexp.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where the units of a group lie on one axis: unit u has the `spread` entries from `offset + u * spread` on."""

    name: str  # of an entry of the state dict, or of a module whose output is meant
    axis: int
    spread: int = 1
    offset: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Units of a model, channels or whole attention heads, each of which can only leave everywhere at once.

    A unit speaks to the rest of the model through its carriers alone: with those outputs 0 it is as if it were not there.
    """

    name: str
    size: int  # units there are now
    carriers: tuple[Place, ...]  # modules whose output carries the units: the spiking neurons, or what stands in their place
    made: tuple[Place, ...]  # entries of the state dict that make them: weights, biases, norms with their running statistics
    read: tuple[Place, ...]  # entries that read them
    heads: tuple[str, ...] = ()  # modules whose attribute `heads` counts the units

    @property
    def of(self) -> str:
        """What the units are, in a word."""
        return "heads" if self.heads else "channels"

    @property
    def width(self) -> int:
        """Channels of one unit."""
        return self.made[0].spread


def channel_group(
    model: nn.Module,
    name: str,
    *,
    carriers: Iterable[Place],
    made_by: Sequence[str | Place],
    read_by: Sequence[str | Place],
    spread: int = 1,
    heads: Sequence[str] = (),
) -> ChannelGroup:
    """Return the group made by every entry of some modules (first axis) and read by the weights of others (second axis).

    `spread` channels make a unit. A maker or reader is the name of a module or entry, or a Place of it, for another axis, spread or offset.
    Raises: UserError for a name that the model does not have.
    """
    entries = {key: value for key, value in model.state_dict(keep_vars=True).items() if value.dim()}  # without counters

    def places(parts: Sequence[str | Place], axis: int) -> list[Place]:
        named = [part if isinstance(part, Place) else Place(part, axis, spread) for part in parts]
        found = {place: [key for key in entries if f"{key}.".startswith(f"{place.name}.")] for place in named}
        if absent := [place.name for place, keys in found.items() if not keys]:
            raise UserError(f"channel group {name}: the model has no weights of the name {absent[0]!r}.")
        return [replace(place, name=key) for place, keys in found.items() for key in keys]

    if not made_by:
        raise UserError(f"channel group {name}: made_by is empty, so nothing makes its channels.")
    made = places(made_by, 0)
    read = [place for place in places(read_by, 1) if place.name.endswith("weight") and entries[place.name].dim() > 1]
    size = entries[made[0].name].shape[made[0].axis] // made[0].spread
    return ChannelGroup(name, size, tuple(carriers), tuple(made), tuple(read), tuple(heads))
