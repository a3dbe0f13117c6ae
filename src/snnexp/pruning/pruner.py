"""The pruner: it scores the channels of a model, selects those to remove, and removes them.

pruner = SpikeMapPruner(model, ratio=0.3)
scores = pruner.compute_channel_scores(batches)     # hooks only while it runs
pruner.apply_pruning(pruner.select_channels_to_prune(scores))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from math import ceil, floor
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp import contracts
from snnexp.errors import UserError, nearest
from snnexp.models.channels import ChannelGroup
from snnexp.pruning.evaluation_mode import evaluation_mode
from snnexp.pruning.schedule import create_pruning_scheduler
from snnexp.pruning.scores import SpikeMap
from snnexp.pruning.surgery import Cut, groups_of

RANKINGS = ("per_layer", "global")


class Pruner(contracts.Pruner):
    """Prunes the groups of `model` by a criterion (pruning/scores.py); conf/pruner/spike_map.yaml explains the settings.

    `ratio` refers to the units that the model has when the pruner is made. `finetune` is read by the command that fine-tunes, not here.
    Raises: UserError for settings that are not allowed, for a model that cannot be pruned, and for a layer that it does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        ratio: float = 0.3,
        ranking: str = "per_layer",
        round_to: int = 1,
        floor: float = 0.1,
        layers: list[str] | None = None,
        ignore: list[str] | None = None,
        calibration_samples: int = 100,
        schedule: dict[str, Any] | None = None,
        finetune: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= ratio < 1:
            raise UserError(f"pruner.ratio={ratio}: must be at least 0 and below 1; it is the part of the channels that is taken out.")
        if ranking not in RANKINGS:
            raise UserError(f"pruner.ranking={ranking}: not one of {', '.join(RANKINGS)}.{nearest(ranking, RANKINGS)}")
        if not 0 <= floor <= 1:
            raise UserError(f"pruner.floor={floor}: the part of a layer that stays at least, from 0 (one channel) to 1.")
        for name, value in (("round_to", round_to), ("calibration_samples", calibration_samples)):
            if value < 1:
                raise UserError(f"pruner.{name}={value}: must be at least 1.")
        self.model, self.criterion = model, criterion
        self.ratio, self.ranking, self.round_to, self.floor = ratio, ranking, round_to, floor
        self.calibration_samples, self.schedule = calibration_samples, schedule or {}
        groups = groups_of(model)
        self.sizes = {group.name: group.size for group in groups}
        layers, ignore = ([names] if isinstance(names, str) else names for names in (layers, ignore))
        if wrong := [name for name in [*(layers or []), *(ignore or [])] if not isinstance(name, str)]:
            raise UserError(f"pruner.layers, pruner.ignore: {wrong[0]!r} is no name of a layer.")
        self.names = select_groups(groups, layers, ignore or [])

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that it prunes, as they are now."""
        return [group for group in groups_of(self.model) if group.name in self.names]

    def scheduled(self, total_epochs: int) -> Callable[[int], float]:
        """Return the function that gives the ratio of each epoch, for pruning during training.

        Raises: UserError for settings of the schedule that are not allowed.
        """
        for name, value in self.schedule.items():
            if name not in ("start", "end", "initial", "interval"):
                raise UserError(f"pruner.schedule.{name}: there is no such setting; there are start, end, initial, interval.")
            if isinstance(value, bool) or not isinstance(value, int if name == "interval" else int | float):
                raise UserError(f"pruner.schedule.{name}={value!r}: must be a {'whole number' if name == 'interval' else 'number'}.")
        return create_pruning_scheduler(total_epochs, self.ratio, **self.schedule)

    def register_hooks(self) -> ExitStack:
        """Register the hooks by which the criterion watches forward passes; leaving the returned context removes them."""
        hooks = ExitStack()
        for handle in self.criterion.watch(self.model, self.groups) or []:
            hooks.callback(handle.remove)
        return hooks

    @torch.no_grad()
    def compute_channel_scores(self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None) -> dict[str, Tensor]:
        """Return the scores of every unit, by group, on calibration batches: model inputs with or without labels, or what `forward` takes.

        The model runs in evaluation mode, with neurons at rest before and after.
        Raises: UserError if there are no batches or no spikes, and the criterion needs them.
        """
        if isinstance(batches, Tensor):
            raise UserError(f"batches is one tensor of shape {list(batches.shape)}; give a list of batches, [x], or a loader.")
        count = 0
        with evaluation_mode(self.model), self.register_hooks():
            for batch in batches:
                if forward is not None:
                    forward(batch)
                else:
                    self.model(batch[0] if isinstance(batch, tuple | list) else batch)
                functional.reset_net(self.model)
                count += 1
        if not count and isinstance(self.criterion, SpikeMap):
            raise UserError("there are no calibration samples to score the channels on.")
        scores = self.criterion.scores()
        if without := [name for name, values in scores.items() if not len(values)]:
            raise UserError(
                f"{without[0]} is carried by no spiking neuron, so it has no spike map. Use pruner=weight_magnitude, or leave the layer "
                f"out: pruner.ignore=[{without[0]}]."
            )
        if isinstance(self.criterion, SpikeMap) and not any(bool(values.any()) for values in scores.values()):
            raise UserError(
                f"no layer tells its channels apart on the calibration data: the {self.criterion.title} is 0 everywhere. Either no neuron "
                "fires on these samples, and the model is not trained, or its input is wrong."
            )
        return scores

    def select_channels_to_prune(self, scores: Mapping[str, Tensor], ratio: float | None = None) -> dict[str, list[int]]:
        """Return the units to remove from each group, numbered as in the present model, so that in all `ratio` of the units are removed.

        Among equal scores, the first units are removed first.
        """
        ratio = self.ratio if ratio is None else ratio
        groups = self.groups
        if missing := [group.name for group in groups if len(scores.get(group.name, [])) != group.size]:
            raise UserError(f"there are no scores of all channels of {missing[0]}; they come from compute_channel_scores().")
        order = {group.name: scores[group.name].argsort(stable=True).tolist() for group in groups}
        if self.ranking == "per_layer":
            counts = {name: floor(round(ratio * self.sizes[name], 9)) - (self.sizes[name] - len(units)) for name, units in order.items()}
        else:
            counts = self._global_counts(scores, order, ratio)
        return {group.name: sorted(order[group.name][: self._allowed_count(group, counts[group.name])]) for group in groups}

    def cut(self, removed: Mapping[str, Sequence[int]]) -> Cut:
        """Return the Cut that removes units from the model and from what mirrors its weights (optimizer moments, averages).

        Raises: UserError for a layer or a unit that the model does not have, and if a layer would lose all units.
        """
        sizes = {group.name: group.size for group in self.groups}
        for name, units in removed.items():
            if name not in sizes:
                raise UserError(f"there is no layer {name!r} to prune; there are {', '.join(sizes)}.{nearest(name, sizes)}")
            if not set(units) < set(range(sizes[name])):
                raise UserError(
                    f"{name}: units {sorted(units)[:4]} ... cannot go; it has units 0 to {sizes[name] - 1}, and one has to stay."
                )
        return Cut(self.model, {name: sorted(set(range(sizes[name])) - set(units)) for name, units in removed.items() if units})

    def apply_pruning(self, removed: Mapping[str, Sequence[int]]) -> Cut:
        """Remove units from the model itself."""
        cut = self.cut(removed)
        cut.apply(self.model)
        return cut

    def _global_counts(self, scores: Mapping[str, Tensor], order: dict[str, list[int]], ratio: float) -> dict[str, int]:
        """Return how many units of each group are among the lowest of all, with each score divided by the mean of its group."""
        ranked = []
        for group in self.groups:
            mean = scores[group.name].mean().item() or 1.0
            removable = order[group.name][: self._allowed_count(group, group.size)]
            ranked += [(scores[group.name][unit].item() / mean, rank, group.name) for rank, unit in enumerate(removable)]
        total = sum(self.sizes[group.name] for group in self.groups)
        present = sum(group.size for group in self.groups)
        target = max(0, floor(round(ratio * total, 9)) - (total - present))
        counts = dict.fromkeys(order, 0)
        for _, _, name in sorted(ranked)[:target]:
            counts[name] += 1
        return counts

    def _allowed_count(self, group: ChannelGroup, target: int) -> int:
        """Return how many of `target` units may be removed: the floor holds, and a multiple of `round_to` channels is kept."""
        kept = max(group.size - max(target, 0), ceil(round(self.floor * self.sizes[group.name], 9)), 1)
        while kept * group.width % self.round_to and kept < group.size:
            kept += 1
        return max(0, group.size - kept)


class SpikeMapPruner(Pruner):
    """Prunes the channels with the lowest mean spike rate."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, SpikeMap(), **settings)


def select_groups(groups: list[ChannelGroup], layers: list[str] | None, ignore: list[str]) -> list[str]:
    """Return the names of the groups to prune: those that `layers` names (None: all) without those that `ignore` names.

    A name may contain *. If it matches no group, it may match a neuron that carries one.
    Raises: UserError for a name that matches neither, and if no group is left.
    """
    carriers = {group.name: {group.name, *(place.name for place in group.carriers)} for group in groups}

    def matching(key: str, patterns: Iterable[str]) -> set[str]:
        matches: set[str] = set()
        for pattern in patterns:
            names = {name for name in carriers if fnmatchcase(name, pattern)}
            names = names or {group for group, members in carriers.items() if any(fnmatchcase(name, pattern) for name in members)}
            if not names:
                known = sorted(set().union(*carriers.values()))
                raise UserError(f"pruner.{key}: there is no layer {pattern!r}; there are {', '.join(carriers)}.{nearest(pattern, known)}")
            matches |= names
        return matches

    selected = set(carriers) if layers is None else matching("layers", layers)
    selected -= matching("ignore", ignore)
    if not selected:
        raise UserError("pruner.layers and pruner.ignore leave no layer to prune.")
    return [name for name in carriers if name in selected]
