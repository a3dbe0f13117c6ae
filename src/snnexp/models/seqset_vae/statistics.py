"""What a stay comes to without its order: plain statistics of each variable, and heads on them."""

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
    """Logits of a stay from the statistics of its variables (`statistics_of`): of a linear layer, and of four with 64 hidden features each.

    Each statistic is standardised by its mean and deviation over the stays of all training batches so far, which are kept with the
    weights: nobody needs to know the data before. `dropout` is on what enters the hidden layers and on what leaves them; on what enters the
    linear one, which is 0 at first, a quarter of it.
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
        """The logits of the linear layer, [N, num_outputs], and of the others [4, N, num_outputs], in the precision of the weights."""
        found = statistics_of(stays, len(self.mean)).to(self.mean.dtype)
        if self.training:
            self.learn(found)
        spread = (self.square - self.mean.square()).clamp(min=SMALLEST_SPREAD**2).sqrt()
        standard = ((found - self.mean) / spread).flatten(1)
        hidden = self.dropout(F.gelu(self.enter(self.dropout(standard)))).chunk(MEMBERS, dim=1)
        members = torch.stack([out(features) for out, features in zip(self.out, hidden, strict=True)])
        return self.linear(self.sparse(standard)), members

    @torch.no_grad()
    def learn(self, found: Tensor) -> None:
        """Take the statistics of a batch into their mean and mean square."""
        self.batches += 1
        self.mean.lerp_(found.mean(0), 1 / self.batches)
        self.square.lerp_(found.square().mean(0), 1 / self.batches)


@torch.compiler.disable
@torch.no_grad()
def statistics_of(stays: "Stays", num_variables: int) -> Tensor:
    """Of each variable in each stay, fp32 [N, V, 10]: mean, smallest, largest, last value, their squares up to 6, log(1 + count), seen.

    Values are standardised ones: a variable that a stay has not counts as 0, the mean. Of values at one last time the mean is taken. The
    squares let a linear layer say that both extremes are bad.
    """
    count = len(stays.lengths) * num_variables
    sizes = torch.repeat_interleave(*torch.tensor(stays.runs, device=stays.value.device).T)
    stay, place = (torch.repeat_interleave(of_set, sizes) for of_set in (stays.stay, stays.place))
    key, value = stay * num_variables + stays.variable, stays.value.float()

    def total(of_events: Tensor) -> Tensor:
        return value.new_zeros(count).index_add(0, key, of_events)

    often = total(torch.ones_like(value))
    seen = often > 0
    extremes = [value.new_zeros(count).scatter_reduce(0, key, value, reduce, include_self=False) for reduce in ("amin", "amax")]
    last_place = place.new_full((count,), -1).scatter_reduce(0, key, place, "amax")
    at_last = (place == last_place[key]).float()
    of_values = [total(value) / often.clamp(min=1), *extremes, total(value * at_last) / total(at_last).clamp(min=1)]
    squares = [of_value.square().clamp(max=LARGEST_SQUARE) for of_value in of_values]
    return torch.stack([*of_values, *squares, often.log1p(), seen.float()], dim=1).unflatten(0, (-1, num_variables))
