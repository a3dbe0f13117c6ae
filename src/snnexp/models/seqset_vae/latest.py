"""What is known of a patient at the time of a set: the latest value of each variable."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays


class LatestValues(nn.Module):
    """A vector of each set, linear in the latest values of all variables and in what the set measured (`latest_values`)."""

    def __init__(self, num_variables: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.value, self.measured = (nn.Linear(num_variables, width, bias=False) for _ in range(2))

    def forward(self, stays: "Stays") -> Tensor:
        """The vectors of a batch's sets, [M, W]."""
        latest, measured = (found.to(self.value.weight.dtype) for found in latest_values(stays, self.value.in_features))
        return self.value(self.dropout(latest)) + self.measured(self.dropout(measured))


@torch.compiler.disable
@torch.no_grad()
def latest_values(stays: "Stays", num_variables: int) -> tuple[Tensor, Tensor]:
    """Of each set the value that each variable had last in the stay, up to and with the set, and 1 where the set has it; fp32 [M, V] each.

    Of several values in one set the mean is taken; before the first it is 0, the mean of a standardised variable.
    """
    sizes = torch.repeat_interleave(*torch.tensor(stays.runs, device=stays.value.device).T)
    rows = stays.stay * stays.longest + stays.place
    key, value = torch.repeat_interleave(rows, sizes) * num_variables + stays.variable, stays.value.float()
    grid = value.new_zeros(len(stays.lengths) * stays.longest * num_variables)
    total, often = (
        grid.index_add(0, key, of_events).view(-1, stays.longest, num_variables) for of_events in (value, torch.ones_like(value))
    )
    measured = often > 0
    places = torch.arange(stays.longest, device=value.device).unsqueeze(1)
    last = torch.where(measured, places, -1).cummax(1).values  # [N, S, V]
    latest = (total / often.clamp(min=1)).gather(1, last.clamp(min=0)) * (last >= 0)
    return latest.flatten(0, 1)[rows], measured.flatten(0, 1)[rows].float()
