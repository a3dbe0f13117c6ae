from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import contains_self_loops, is_undirected

from snnexp.data.frames.digits_dvs import scikit_digits
from snnexp.data.graphs.digits_graph import DigitsGraph, pixel_graphs
from snnexp.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DigitsGraph:
    return DigitsGraph(root=tmp_path_factory.mktemp("digits"))


def test_contract(data: DigitsGraph) -> None:
    assert data.shape == ("V", 3) and data.classes == tuple("0123456789") and data.targets == ()
    assert data.provides == {"num_features": 3, "atom_types": None, "bond_types": None}
    assert data.splits == {"train": 1259, "val": 269, "test": 269} and "split_seed 0" in data.protocol
    graphs, y = data.prepare(data.view("train", augment=True).__getitems__([(0, i) for i in range(1259)]))
    graphs.validate()
    assert graphs.x.dtype == torch.float32 and graphs.edge_attr is None and y.shape == (1259,)
    assert is_undirected(graphs.edge_index) and not contains_self_loops(graphs.edge_index)
    assert data.sizes("all").min() >= 10 and data.sizes("all").max() <= 64


def test_a_graph_is_its_pixels(data: DigitsGraph) -> None:
    images, labels = scikit_digits()
    data.rows["val"] = np.arange(len(images))
    for index in (0, 17, 1796):
        graphs, y = data.view("val").__getitems__([(0, index)])
        image = np.zeros((8, 8))
        column, row = ((graphs.x[:, k].numpy() + 1) * 3.5 for k in (1, 2))
        place = np.stack([row, column], axis=1).round().astype(int)
        image[place[:, 0], place[:, 1]] = graphs.x[:, 0]
        assert np.array_equal(image, images[index]) and y.item() == labels[index]
        near = np.abs(place[:, None] - place[None]).max(axis=2) == 1
        assert np.array_equal(np.argwhere(near), graphs.edge_index.T.numpy())


def test_a_pixel_alone_has_no_edge() -> None:
    image = np.zeros((1, 8, 8))
    image[0, 0, 0], image[0, 7, 7], image[0, 7, 6] = 1.0, 0.5, 0.25
    chunk = pixel_graphs(image, np.array([1]))
    assert chunk.nodes.tolist() == [3] and chunk.edges.tolist() == [[1, 2], [2, 1]]
    assert chunk.values.tolist() == [[1.0, -1.0, -1.0], [0.25, pytest.approx(5 / 7), 1.0], [0.5, 1.0, 1.0]]


def test_split_moves_with_its_own_seed_only(data: DigitsGraph) -> None:
    other = DigitsGraph(root=data.directory, split_seed=1)
    assert other.entry.directory == data.entry.directory and not np.array_equal(other.rows["test"], data.rows["test"])
    with pytest.raises(UserError, match="dataset.val_fraction"):
        DigitsGraph(root=Path(data.directory), val_fraction=-0.1)
