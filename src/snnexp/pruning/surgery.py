"""Remove channels from a model and from everything that mirrors its weights: optimizer moments, moving averages, saved state dicts.

A model declares which entries of its state dict belong together (models/channels.py). A graph traced from a forward pass would have to see
through the kernels of the spiking neurons, sparse adjacencies and reshapes to heads, and could not know what silences a channel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.contracts import optional_member
from snnexp.errors import UserError, nearest
from snnexp.models.channels import ChannelGroup, Place

Units = Mapping[str, Sequence[int]]
"""Units of each group, by the group's name."""
WRAPPED, BLOCK = "__bnb_optimizer_quant_state__", 256
"""The key of the moments in a state dict of bitsandbytes, and the number of 8-bit entries that share a scale."""


def groups_of(model: nn.Module) -> list[ChannelGroup]:
    """Return the groups of channels that a model declares.

    Raises: UserError if it declares no groups, or something that is no group.
    """
    if (declared := optional_member(model, "channel_groups")) is None:
        raise UserError(
            f"{type(model).__name__} cannot be pruned: it does not say which of its channels belong together. Give the class a method "
            "channel_groups() (snnexp/models/channels.py has its parts, snnexp/models/vggsnn.py a short one)."
        )
    groups = declared()
    if not groups or not all(isinstance(group, ChannelGroup) for group in groups):
        raise UserError(f"{type(model).__name__}.channel_groups() must return a list of at least one channel_group(...), not {groups!r}.")
    modules = dict(model.named_modules())
    for group in groups:
        for place in group.carriers:
            if place.name not in modules:
                raise UserError(f"{group.name}: its carrier {place.name!r} is no module of the model.{nearest(place.name, modules)}")
    return groups


class Cut:
    """The part of each entry of a model's state dict that stays when only the units `kept` of its groups stay.

    `kept` numbers the units of the present model; a group that it does not name stays whole.
    """

    def __init__(self, model: nn.Module, kept: Units) -> None:
        entries = model.state_dict(keep_vars=True)
        self.shapes = {name: value.shape for name, value in entries.items()}
        self.groups = [group for group in groups_of(model) if group.name in kept]
        self.kept = {group.name: sorted(kept[group.name]) for group in self.groups}
        masks: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            for place in (*group.makers, *group.readers):
                mask = masks.setdefault((place.name, place.axis), torch.ones(entries[place.name].shape[place.axis], dtype=torch.bool))
                mask[removed_entries(place, group.size, self.kept[group.name])] = False
        self.indices = {key: mask.nonzero().flatten() for key, mask in masks.items() if not mask.all()}

    def of(self, name: str, value: Tensor) -> Tensor:
        """Return what stays of the entry `name`, or of a tensor that mirrors it, in the same memory format."""
        channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        for (entry, axis), index in self.indices.items():
            if entry == name:
                value = value.index_select(axis, index.to(value.device))
        return value.contiguous(memory_format=torch.channels_last) if channels_last else value

    def of_entries(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what stays of a whole state dict, or of an average of it."""
        return {name: self.of(name, value) for name, value in entries.items()}

    def of_moments(self, state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return what stays of an optimizer's state dict, whose parameters have these names; a tensor is cut like the weight it mirrors."""
        moments = dict(state["state"])
        for index, values in moments.items():
            name = names[index]
            if any(entry == name for entry, _ in self.indices):
                moments[index] = cut_state(self, name, values)
        return {"state": moments, "param_groups": state["param_groups"]}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Remove the channels from the model itself; gradients are dropped, modules stay the same objects."""
        for name, value in model.state_dict(keep_vars=True).items():
            if not any(entry == name for entry, _ in self.indices):
                continue
            module, _, leaf = name.rpartition(".")
            rest = self.of(name, value.detach())
            rest = nn.Parameter(rest, value.requires_grad) if isinstance(value, nn.Parameter) else rest
            setattr(model.get_submodule(module), leaf, rest)
        for group in self.groups:
            for name in group.heads:
                model.get_submodule(name).heads = len(self.kept[group.name])
        for module in model.modules():
            update_shape_attributes(module)


def removed_entries(place: Place, size: int, kept: Sequence[int]) -> Tensor:
    """Return the indices, on the axis of the place, of all entries whose units are not kept."""
    removed = torch.ones(size, dtype=torch.bool)
    removed[list(kept)] = False
    units = removed.nonzero()
    return (place.offset + units * place.spread + torch.arange(place.spread)).flatten()


def cut_state(cut: Cut, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what stays of the optimizer's state of one parameter; tensors of its shape are cut, step counters are not.

    Raises: UserError for a tensor of another shape, such as a factored optimizer has.
    """
    if WRAPPED in values:
        return values | {WRAPPED: cut_state(cut, name, values[WRAPPED])}
    if "qmap1" in values:
        return cut_quantised_state(cut, name, values)
    rest = dict(values)
    for key, value in values.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != cut.shapes[name]:
                raise UserError(
                    f"the optimizer's {key} of {name} has the shape {tuple(value.shape)}, not the weight's {tuple(cut.shapes[name])}: "
                    "it cannot be pruned in training. Use optimizer=adamw or sgd, or prune the trained run: snnexp prune RUN."
                )
            rest[key] = cut.of(name, value)
    return rest


def cut_quantised_state(cut: Cut, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the same for 8-bit moments; they are dequantised, cut and quantised anew, because their blocks cross the channels."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    rest = dict(values)
    for n in ("1", "2"):
        code = values[f"qmap{n}"]
        plain = dequantize_blockwise(values[f"state{n}"], absmax=values[f"absmax{n}"], code=code, blocksize=BLOCK)
        rest[f"state{n}"], blocks = quantize_blockwise(cut.of(name, plain).contiguous(), code=code, blocksize=BLOCK)
        rest[f"absmax{n}"] = blocks.absmax
    return rest


def update_shape_attributes(module: nn.Module) -> None:
    """Set the attributes in which a layer keeps its shape to the shape of its weights."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        if hasattr(module, "num_features"):
            module.num_features = len(weight)
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(weight.shape)
        elif hasattr(module, "in_features"):
            module.out_features, module.in_features = weight.shape
        elif hasattr(module, "in_channels"):
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * getattr(module, "groups", 1)
    elif linear := next((child for child in module.children() if hasattr(module, "in_channels") and hasattr(child, "in_channels")), None):
        # A graph convolution has the shape of its linear layers.
        module.in_channels, module.out_channels = linear.weight.shape[1], linear.weight.shape[0] // getattr(module, "heads", 1)


def compose_kept(before: Units, kept: Units, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the units that stay after a cut, in the numbers of the dense model.

    `before` are the units that earlier cuts kept, in the same numbers; `kept` are those of this cut and `sizes` the sizes of the groups, in
    the numbers of the present model.
    """
    present = {name: list(before.get(name, range(size))) for name, size in sizes.items()}
    composed = {name: [units[i] for i in sorted(kept[name])] if name in kept else units for name, units in present.items()}
    return {name: units for name, units in composed.items() if name in before or name in kept}


def rebuild(model: nn.Module, kept: Units, path: object) -> None:
    """Give a dense model the structure that a checkpoint records; `path` names the checkpoint in messages.

    Raises: UserError if the structure does not fit the model.
    """
    if not kept:
        return
    groups = {group.name: group for group in groups_of(model)}
    for name, units in kept.items():
        if name not in groups or not units or len(set(units)) < len(units) or not 0 <= min(units) <= max(units) < groups[name].size:
            raise UserError(f"{path} records kept channels of {name!r} that do not fit {type(model).__name__}; its structure is another.")
    Cut(model, kept).apply(model)


@contextmanager
def silenced(model: nn.Module, kept: Units) -> Iterator[None]:
    """Let the dense model compute as if it had only the units `kept`, inside the context: this is what the surgery must reproduce.

    The other outputs of the carriers are 0, and a LayerNorm over the channels takes its mean and variance from the kept channels.
    """
    with ExitStack() as hooks:
        for group in groups_of(model):
            if group.name not in kept:
                continue
            for place in group.carriers:
                removed = removed_entries(place, group.size, kept[group.name])
                hooks.callback(model.get_submodule(place.name).register_forward_hook(_zeroing_hook(place.axis, removed)).remove)
            for place in group.makers:
                module = model.get_submodule(place.name.rpartition(".")[0])
                if isinstance(module, nn.LayerNorm) and place.name.endswith("weight"):
                    removed = removed_entries(place, group.size, kept[group.name])
                    hooks.callback(module.register_forward_hook(_norm_hook(removed)).remove)
        yield


def _zeroing_hook(axis: int, removed: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(axis, removed.to(output.device), 0)

    return hook


def _norm_hook(removed: Tensor) -> Callable:
    def hook(module: nn.LayerNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept = torch.ones(output.shape[-1], dtype=torch.bool)
        kept[removed] = False
        kept = kept.to(output.device)
        rest = nn.functional.layer_norm(inputs[0][..., kept], (int(kept.sum()),), module.weight[kept], module.bias[kept], module.eps)
        return torch.zeros_like(output).masked_scatter(kept.expand_as(output), rest.to(output.dtype))

    return hook
