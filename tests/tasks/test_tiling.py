"""Pieces cover a clip, overlap as asked, and give what the whole gives where a model looks no further than the overlap."""

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.models.neurons import make_lif
from snnexp.tasks.tiling import restore_in_tiles, tile_starts


class Frames(nn.Module):
    """A 3x3 mean of each frame, plus the sum of its spikes; notes the sizes that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, blurry, spikes):
        self.seen.append(tuple(blurry.shape))
        means = nn.functional.avg_pool2d(blurry.flatten(0, 1), 3, 1, 1, count_include_pad=False).view(blurry.shape)
        return means + spikes.sum(2, keepdim=True)


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "expected"), [(10, 12, 2, [0]), (10, 4, 1, [0, 3, 6]), (11, 4, 2, [0, 2, 4, 6, 7]), (8, 4, 0, [0, 4])]
)
def test_where_pieces_begin(side, tile, overlap, expected):
    assert tile_starts(side, tile, overlap) == expected
    covered = {place for first in expected for place in range(first, min(first + tile, side))}
    assert covered == set(range(side))


def test_where_pieces_overlap_each_counts_the_less_the_nearer_its_border():
    torch.manual_seed(0)
    model, blurry, spikes = Frames(), torch.rand(2, 5, 1, 9, 7), torch.rand(2, 5, 3, 9, 7)
    whole = model(blurry, spikes)
    model.seen.clear()
    pieces = restore_in_tiles(model, blurry, spikes, [3, 6, 7], [1, 2, 2])
    assert set(model.seen) == {(2, 3, 1, 6, 7)} and len(model.seen) == 2 * 2
    # Rows 3 to 5 belong to both pieces; rows 3 and 5 each lack a neighbour in one of them, which counts a third there.
    assert torch.allclose(pieces[..., [0, 1, 2, 4, 6, 7, 8], :], whole[..., [0, 1, 2, 4, 6, 7, 8], :], atol=1e-6)
    upper, lower = model(blurry[..., :6, :], spikes[..., :6, :]), model(blurry[..., 3:, :], spikes[..., 3:, :])
    assert torch.allclose(pieces[..., 5, :], (upper[..., 5, :] / 3 + lower[..., 2, :]) / (4 / 3), atol=1e-6)


def test_a_clip_that_fits_is_one_piece():
    model = Frames()
    restore_in_tiles(model, torch.rand(1, 2, 1, 4, 4), torch.rand(1, 2, 1, 4, 4), [2, 4, 4], [1, 1, 1])
    assert model.seen == [(1, 2, 1, 4, 4)]


class Spiking(nn.Module):
    """A LIF that sees the frames as steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = make_lif("tet")

    def forward(self, blurry, spikes):
        return self.lif(blurry.transpose(0, 1)).transpose(0, 1)


def test_membranes_rest_between_pieces_and_counts_stay():
    torch.manual_seed(0)
    model, blurry = Spiking(), 1.5 * torch.rand(1, 2, 1, 4, 8)
    model.lif.count_spikes = True
    whole = model(blurry, blurry)
    total = model.lif.spike_counts.clone()
    functional.reset_net(model)
    assert torch.equal(restore_in_tiles(model, blurry, blurry, [2, 4, 4], [0, 0, 0]), whole)
    assert torch.equal(model.lif.spike_counts, total) and total.sum() > 0
