"""Groups of channels that pruning can only remove together; each model declares its own, by the names of its modules."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from snnexp.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where the units of a group lie on one axis of a tensor: unit u covers `spread` entries, starting at `offset + u * spread`."""

    name: str  # of an entry of the state dict, or of a module; then its output is meant
    axis: int
    spread: int = 1
    offset: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Units of a model (channels or whole attention heads); a unit can only be removed from all of its places at once.

    A unit acts on the rest of the model through its carriers alone: with their outputs at 0, the model computes as if it were absent.
    """

    name: str
    size: int  # number of units at present
    carriers: tuple[Place, ...]  # modules whose output carries the units: the spiking neurons, or what replaces them
    makers: tuple[Place, ...]  # entries of the state dict that produce the units: weights, biases, norms with their running statistics
    readers: tuple[Place, ...]  # entries whose input the units are
    heads: tuple[str, ...] = ()  # modules whose attribute `heads` counts the units

    @property
    def kind(self) -> str:
        """What the units are: "heads" or "channels"."""
        return "heads" if self.heads else "channels"

    @property
    def width(self) -> int:
        """Number of channels in one unit."""
        return self.makers[0].spread


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
    """Return the group that the modules `made_by` produce (first axis of all entries) and `read_by` take in (second axis of weights).

    A unit has `spread` channels. `made_by` and `read_by` hold names of modules or entries; where axis, spread or offset differ, a Place.
    Raises: UserError for a name that the model does not have.
    """
    entries = {key: value for key, value in model.state_dict(keep_vars=True).items() if value.dim()}  # without counters

    def places_of(parts: Sequence[str | Place], axis: int) -> list[Place]:
        places = []
        for part in parts:
            place = part if isinstance(part, Place) else Place(part, axis, spread)
            keys = [key for key in entries if f"{key}.".startswith(f"{place.name}.")]
            if not keys:
                raise UserError(f"channel group {name}: the model has no weights of the name {place.name!r}.")
            places += [replace(place, name=key) for key in keys]
        return places

    if not made_by:
        raise UserError(f"channel group {name}: made_by is empty, so nothing makes its channels.")
    makers = places_of(made_by, 0)
    readers = [place for place in places_of(read_by, 1) if place.name.endswith("weight") and entries[place.name].dim() > 1]
    size = entries[makers[0].name].shape[makers[0].axis] // makers[0].spread
    return ChannelGroup(name, size, tuple(carriers), tuple(makers), tuple(readers), tuple(heads))
