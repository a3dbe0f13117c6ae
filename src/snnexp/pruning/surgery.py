"""Take channels out of a model and out of all that mirrors its weights: optimizer moments, moving averages, saved state dicts.

A model says itself which entries of its state dict belong together (models/channels.py). A graph traced from a forward pass would have
to see through the spiking neurons' own kernels, sparse adjacencies and reshapes to heads, and could not know what silences a channel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.contracts import offered
from snnexp.errors import UserError, nearest
from snnexp.models.channels import ChannelGroup, Place

Units = Mapping[str, Sequence[int]]
"""Units of each group, by the group's name."""
WRAPPED, BLOCK = "__bnb_optimizer_quant_state__", 256
"""Where bitsandbytes keeps the moments in a state dict, and how many entries of 8 bits share a scale."""


def groups_of(model: nn.Module) -> list[ChannelGroup]:
    """The groups of channels that a model declares.

    Raises: UserError if it declares none, or what is no group.
    """
    if (declared := offered(model, "channel_groups")) is None:
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
    """What stays of each axis of each entry of a model's state dict when only `kept` units of its groups do.

    `kept` counts units as they are now; a group it does not name stays whole.
    """

    def __init__(self, model: nn.Module, kept: Units) -> None:
        entries = model.state_dict(keep_vars=True)
        self.shapes = {name: value.shape for name, value in entries.items()}
        self.groups = [group for group in groups_of(model) if group.name in kept]
        self.kept = {group.name: sorted(kept[group.name]) for group in self.groups}
        masks: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            for place in (*group.made, *group.read):
                mask = masks.setdefault((place.name, place.axis), torch.ones(entries[place.name].shape[place.axis], dtype=torch.bool))
                mask[removed_entries(place, group.size, self.kept[group.name])] = False
        self.indices = {key: mask.nonzero().flatten() for key, mask in masks.items() if not mask.all()}

    def of(self, name: str, value: Tensor) -> Tensor:
        """What stays of the entry `name`, or of a tensor that mirrors it, in the same memory format."""
        channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        for (entry, axis), index in self.indices.items():
            if entry == name:
                value = value.index_select(axis, index.to(value.device))
        return value.contiguous(memory_format=torch.channels_last) if channels_last else value

    def of_entries(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stays of a whole state dict, or of an average of it."""
        return {name: self.of(name, value) for name, value in entries.items()}

    def of_moments(self, state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """What stays of an optimizer's state dict whose parameters have these names: what has a weight's shape is cut like it."""
        state = {"state": dict(state["state"]), "param_groups": state["param_groups"]}
        for number, values in state["state"].items():
            name = names[number]
            if any(entry == name for entry, _ in self.indices):
                state["state"][number] = cut_state(self, name, values)
        return state

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Take the channels out of the model itself, whose gradients are dropped; its modules stay the same objects."""
        for name, value in model.state_dict(keep_vars=True).items():
            if not any(entry == name for entry, _ in self.indices):
                continue
            module, _, leaf = name.rpartition(".")
            owner, fresh = model.get_submodule(module), self.of(name, value.detach())
            setattr(owner, leaf, nn.Parameter(fresh, value.requires_grad) if isinstance(value, nn.Parameter) else fresh)
        for group in self.groups:
            for name in group.heads:
                model.get_submodule(name).heads = len(self.kept[group.name])
        for module in model.modules():
            tell_shape(module)


def removed_entries(place: Place, size: int, kept: Sequence[int]) -> Tensor:
    """Indices, on the place's axis, of all units but those kept."""
    gone = torch.ones(size, dtype=torch.bool)
    gone[list(kept)] = False
    units = gone.nonzero()
    return (place.offset + units * place.spread + torch.arange(place.spread)).flatten()


def cut_state(cut: Cut, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state of one parameter: tensors of its shape are cut, step counters are not.

    Raises: UserError for a state of another shape, as of a factored optimizer.
    """
    if WRAPPED in values:
        return values | {WRAPPED: cut_state(cut, name, values[WRAPPED])}
    if "qmap1" in values:
        return cut_quantised(cut, name, values)
    kept = dict(values)
    for key, value in values.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != cut.shapes[name]:
                raise UserError(
                    f"the optimizer's {key} of {name} has the shape {tuple(value.shape)}, not the weight's {tuple(cut.shapes[name])}: "
                    "it cannot be pruned in training. Use optimizer=adamw or sgd, or prune the trained run: snnexp prune RUN."
                )
            kept[key] = cut.of(name, value)
    return kept


def cut_quantised(cut: Cut, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same of 8-bit moments: their blocks run through the flat tensor, so it is read, cut and quantised anew."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    kept = dict(values)
    for n in ("1", "2"):
        code = values[f"qmap{n}"]
        plain = dequantize_blockwise(values[f"state{n}"], absmax=values[f"absmax{n}"], code=code, blocksize=BLOCK)
        kept[f"state{n}"], blocks = quantize_blockwise(cut.of(name, plain).contiguous(), code=code, blocksize=BLOCK)
        kept[f"absmax{n}"] = blocks.absmax
    return kept


def tell_shape(module: nn.Module) -> None:
    """Bring the numbers that a layer keeps of its shape up to date with its weights."""
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
        # A graph convolution: its shape is that of its linear layers.
        module.in_channels, module.out_channels = linear.weight.shape[1], linear.weight.shape[0] // getattr(module, "heads", 1)


def compose(before: Units, kept: Units, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Kept units, counted in the model as it is, in the numbers of the dense model, of which `before` says what there was."""
    whole = {name: list(before.get(name, range(size))) for name, size in sizes.items()}
    composed = {name: [units[i] for i in sorted(kept[name])] if name in kept else units for name, units in whole.items()}
    return {name: units for name, units in composed.items() if name in before or name in kept}


def rebuild(model: nn.Module, kept: Units, path: object) -> None:
    """Give a dense model the structure that a checkpoint records.

    Raises: UserError if it is not one of this model.
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
    """Inside the context the dense model computes as if only `kept` units were there: what the surgery must reproduce.

    The carriers' other outputs are 0, and a LayerNorm over the channels takes its mean and variance from those that are kept.
    """
    with ExitStack() as hooks:
        for group in groups_of(model):
            if group.name not in kept:
                continue
            for place in group.carriers:
                gone = removed_entries(place, group.size, kept[group.name])
                hooks.callback(model.get_submodule(place.name).register_forward_hook(_mask(place.axis, gone)).remove)
            for place in group.made:
                module = model.get_submodule(place.name.rpartition(".")[0])
                if isinstance(module, nn.LayerNorm) and place.name.endswith("weight"):
                    gone = removed_entries(place, group.size, kept[group.name])
                    hooks.callback(module.register_forward_hook(_norm_of_the_rest(gone)).remove)
        yield


def _mask(axis: int, gone: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(axis, gone.to(output.device), 0)

    return hook


def _norm_of_the_rest(gone: Tensor) -> Callable:
    def hook(module: nn.LayerNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        stay = torch.ones(output.shape[-1], dtype=torch.bool)
        stay[gone] = False
        stay = stay.to(output.device)
        rest = nn.functional.layer_norm(inputs[0][..., stay], (int(stay.sum()),), module.weight[stay], module.bias[stay], module.eps)
        return torch.zeros_like(output).masked_scatter(stay.expand_as(output), rest.to(output.dtype))

    return hook
