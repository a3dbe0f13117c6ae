"""Statistics of each variable over a stay, which ignore the order of its events, and heads that predict the outcome from them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays

PER_VARIABLE, MEMBERS, HIDDEN = 10, 4, 64
LARGEST_SQUARE = 6.0
SMALLEST_SPREAD = 0.1


class StatisticsHeads(nn.Module):
    """Logits of a stay from the statistics of its variables (`statistics_of`): by a linear head, and by four with 64 hidden features each.

    Each statistic is standardised by its mean and deviation over the stays of all training batches so far. They are saved with the weights,
    so the data need not be known beforehand. `dropout` acts on input and output of the hidden layers; the input of the linear head, which
    starts at 0, has a quarter of it.
    """

    def __init__(self, num_variables: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_variables, PER_VARIABLE))
        self.register_buffer("square", torch.ones(num_variables, PER_VARIABLE))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.sparse, self.dropout = nn.Dropout(dropout / 4), nn.Dropout(dropout)
        self.linear, self.enter = (nn.Linear(num_variables * PER_VARIABLE, features) for features in (num_outputs, MEMBERS * HIDDEN))
        nn.init.zeros_(self.linear.weight)
        self.out = nn.ModuleList(nn.Linear(HIDDEN, num_outputs) for _ in range(MEMBERS))

    def forward(self, stays: "Stays") -> tuple[Tensor, Tensor]:
        """Return the logits of the linear head [N, num_outputs] and of the others [4, N, num_outputs], in the precision of the weights."""
        statistics = statistics_of(stays, len(self.mean)).to(self.mean.dtype)
        if self.training:
            self.update(statistics)
        spread = (self.square - self.mean.square()).clamp(min=SMALLEST_SPREAD**2).sqrt()
        standard = ((statistics - self.mean) / spread).flatten(1)
        hidden = self.dropout(F.gelu(self.enter(self.dropout(standard)))).chunk(MEMBERS, dim=1)
        members = torch.stack([out(features) for out, features in zip(self.out, hidden, strict=True)])
        return self.linear(self.sparse(standard)), members

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Include the statistics of a batch in their running mean and mean square."""
        self.batches += 1
        self.mean.lerp_(statistics.mean(0), 1 / self.batches)
        self.square.lerp_(statistics.square().mean(0), 1 / self.batches)


@torch.no_grad()
def statistics_of(stays: "Stays", num_variables: int) -> Tensor:
    """Return ten statistics of each variable in each stay, fp32 [N, V, 10].

    They are mean, smallest, largest and last value, the squares of these up to 6, log(1 + count), and 1 if the stay has the variable.
    Values are standardised, so a missing variable counts as 0, the mean. If there are several last values at one time, their mean counts.
    The squares let a linear layer express that both extremes are bad.
    """
    size = len(stays.lengths) * num_variables
    stay, place = (of_set.repeat_interleave(stays.sizes, output_size=len(stays.value)) for of_set in (stays.stay, stays.place))
    key, value = stay * num_variables + stays.variable, stays.value.float()

    def total(terms: Tensor) -> Tensor:
        return value.new_zeros(size).index_add(0, key, terms)

    count = total(torch.ones_like(value))
    extremes = [value.new_zeros(size).scatter_reduce(0, key, value, reduce, include_self=False) for reduce in ("amin", "amax")]
    last_place = place.new_full((size,), -1).scatter_reduce(0, key, place, "amax")
    at_last = (place == last_place[key]).float()
    plain = [total(value) / count.clamp(min=1), *extremes, total(value * at_last) / total(at_last).clamp(min=1)]
    squares = [values.square().clamp(max=LARGEST_SQUARE) for values in plain]
    return torch.stack([*plain, *squares, count.log1p(), (count > 0).float()], dim=1).unflatten(0, (-1, num_variables))
