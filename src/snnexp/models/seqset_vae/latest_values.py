"""The latest value of each variable of a patient at the time of a set."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays


class LatestValues(nn.Module):
    """A vector for each set, linear in the latest values of all variables and in which of them the set has (`latest_values`)."""

    def __init__(self, num_variables: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.value, self.measured = (nn.Linear(num_variables, width, bias=False) for _ in range(2))

    def forward(self, stays: "Stays") -> Tensor:
        """Return the vectors of the sets of a batch, [M, W]."""
        latest, measured = (values.to(self.value.weight.dtype) for values in latest_values(stays, self.value.in_features))
        return self.value(self.dropout(latest)) + self.measured(self.dropout(measured))


@torch.no_grad()
def latest_values(stays: "Stays", num_variables: int) -> tuple[Tensor, Tensor]:
    """Return for each set the last value of each variable up to and with that set, and 1 where the set itself has one; fp32 [M, V] each.

    If a set has several values of a variable, their mean counts. Before the first value it is 0, the mean of a standardised variable.
    """
    rows = stays.stay * stays.longest + stays.place
    row, value = rows.repeat_interleave(stays.sizes, output_size=len(stays.value)), stays.value.float()
    key = row * num_variables + stays.variable
    grid = value.new_zeros(len(stays.lengths) * stays.longest * num_variables)
    total, count = (grid.index_add(0, key, terms).view(-1, stays.longest, num_variables) for terms in (value, torch.ones_like(value)))
    measured = count > 0
    places = torch.arange(stays.longest, device=value.device).unsqueeze(1)
    last = torch.where(measured, places, -1).cummax(1).values  # [N, S, V]
    latest = (total / count.clamp(min=1)).gather(1, last.clamp(min=0)) * (last >= 0)
    return latest.flatten(0, 1)[rows], measured.flatten(0, 1)[rows].float()
