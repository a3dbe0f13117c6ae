"""Graphs as a few long arrays, their batches, and the contract of every graph data set."""

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from snnexp.data.cache import Source
from snnexp.data.graphs.graphs import Columns, GraphChunk, GraphSamples, compact, load_or_build_graphs
from snnexp.errors import UserError

VALUES = [[3, 5, 7], [0, 1, 2, 3]]
KINDS = [[1, 2]]


def random_block(count: int, seed: int, targets: int = 0, nodes: int = 9) -> GraphChunk:
    """Graphs of 1 to `nodes` nodes with two categorical and two real columns, one column of bonds."""
    chance = np.random.default_rng(seed)
    sizes = chance.integers(1, nodes + 1, count)
    edge_counts = chance.integers(0, 2 * nodes, count)
    edges = [chance.integers(0, n, (e, 2)) for n, e in zip(sizes, edge_counts, strict=True)]
    return GraphChunk(
        nodes=sizes,
        codes=np.stack([chance.integers(0, len(values), sizes.sum()) for values in VALUES], axis=1).astype(np.uint8),
        values=chance.standard_normal((sizes.sum(), 2)).astype(np.float32),
        edge_counts=edge_counts,
        edges=np.concatenate(edges).astype(np.uint8),
        bonds=chance.integers(0, 2, (edge_counts.sum(), 1)).astype(np.uint8),
        y=chance.standard_normal((count, targets)).astype(np.float32) if targets else chance.integers(0, 3, count),
    )


def data(root: Path, *chunks: GraphChunk, **changes) -> GraphSamples:
    asked = []

    def produce(notes):
        asked.append(1)
        yield from chunks

    entry = load_or_build_graphs(root, {"T": 1}, [Source("a", 1, 7)], produce, "test")
    count = len(entry.arrays["y"])
    arguments = {
        "name": "test",
        "protocol": "",
        "directory": root,
        "entry": entry,
        "rows": {"train": np.arange(count - 4), "val": np.arange(count - 4, count - 2), "test": np.arange(count - 2, count)},
        "classes": ["a", "b", "c"] if entry.arrays["y"].ndim == 1 else [],
        "targets": [] if entry.arrays["y"].ndim == 1 else [f"y{k}" for k in range(entry.arrays["y"].shape[1])],
        "node_values": VALUES,
        "edge_values": KINDS,
        "onehot": True,
    }
    data_set = GraphSamples(**(arguments | changes))
    data_set.asked = len(asked)
    return data_set


def one_by_one(chunk: GraphChunk) -> list[tuple[np.ndarray, ...]]:
    """(codes, values, edges, bonds) of each graph, cut by hand."""
    nodes, edges = np.cumsum(chunk.nodes)[:-1], np.cumsum(chunk.edge_counts)[:-1]
    return list(
        zip(
            np.split(chunk.codes, nodes),
            np.split(chunk.values, nodes),
            np.split(chunk.edges, edges),
            np.split(chunk.bonds, edges),
            strict=True,
        )
    )


def test_a_batch_is_its_graphs_side_by_side(tmp_path: Path) -> None:
    chunk = random_block(30, 0)
    data_set = data(tmp_path, chunk, onehot=False, edge_values=KINDS)
    chosen = [7, 0, 25, 7, 13]
    graphs, y = data_set.view("train").__getitems__([(3, i) for i in chosen])
    graphs.validate()
    alone = [one_by_one(chunk)[i] for i in chosen]
    assert graphs.x.dtype == torch.int64 and np.array_equal(graphs.x, np.concatenate([codes for codes, *_ in alone]))
    ptr = np.cumsum([0, *(len(codes) for codes, *_ in alone)])
    assert graphs.ptr.tolist() == ptr.tolist() and graphs.batch.dtype == torch.int64
    assert graphs.batch.tolist() == [g for g, (codes, *_) in enumerate(alone) for _ in codes]
    expected = np.concatenate([edges + first for (_, _, edges, _), first in zip(alone, ptr[:-1], strict=True)])
    assert graphs.edge_index.dtype == torch.int64 and graphs.edge_index.is_contiguous() and np.array_equal(graphs.edge_index.T, expected)
    assert graphs.edge_attr.dtype == torch.int64 and np.array_equal(graphs.edge_attr, np.concatenate([bonds for *_, bonds in alone]))
    assert y.dtype == torch.int64 and y.tolist() == chunk.y[chosen].tolist()


def test_onehot_features_come_before_the_real_ones(tmp_path: Path) -> None:
    chunk = random_block(10, 1, targets=2)
    data_set = data(tmp_path, chunk)
    assert data_set.shape == ("V", 3 + 4 + 2)
    assert data_set.provides == {"num_features": 9, "atom_types": None, "bond_types": None}
    graphs, y = data_set.view("all").__getitems__([(0, i) for i in range(10)])
    assert graphs.x.dtype == torch.float32 and graphs.edge_attr is None
    assert np.array_equal(graphs.x[:, :3], np.eye(3)[chunk.codes[:, 0]]) and np.array_equal(graphs.x[:, 3:7], np.eye(4)[chunk.codes[:, 1]])
    assert np.array_equal(graphs.x[:, 7:], chunk.values)
    assert y.dtype == torch.float32 and np.array_equal(y, chunk.y)


def test_numbers_for_a_model_that_embeds_them(tmp_path: Path) -> None:
    data_set = data(tmp_path, random_block(10, 1), onehot=False)
    assert data_set.shape == ("V", 2) and data_set.provides == {"num_features": 2, "atom_types": [3, 4], "bond_types": [2]}
    fewer = data(tmp_path, random_block(10, 1), onehot=False, node_values=VALUES[:1], edge_values=[])
    graphs, _ = fewer.view("train").__getitems__([(0, 0)])
    assert fewer.provides == {"num_features": 1, "atom_types": [3], "bond_types": None}
    assert graphs.x.shape[1] == 1 and graphs.edge_attr is None


def test_blocks_join_into_one_set(tmp_path: Path) -> None:
    chunks = [random_block(count, seed) for seed, count in enumerate((5, 1, 7))]
    data_set = data(tmp_path, *chunks, onehot=False)
    view = data_set.view("all")
    apart = [graph for chunk in chunks for graph in one_by_one(chunk)]
    assert len(view) == 13 and data_set.sizes("all").tolist() == [len(codes) for codes, *_ in apart]
    for i, (codes, _, edges, _) in enumerate(apart):
        graphs, _ = view.__getitems__([(0, i)])
        assert np.array_equal(graphs.x, codes) and np.array_equal(graphs.edge_index.T, edges)


def test_prepared_once_and_mapped(tmp_path: Path) -> None:
    chunk = random_block(20, 0)
    assert data(tmp_path, chunk).asked == 1
    again = data(tmp_path, chunk)
    assert again.asked == 0
    x = again.entry.arrays["values"]
    assert isinstance(x.base, np.memmap) and not x.flags.writeable
    with open(again.entry.directory / "values.npy", "r+b") as file:
        file.truncate(200)
    assert data(tmp_path, chunk).asked == 1  # a cut file is noticed and made again


def test_a_view_in_another_process_maps_the_files_again(tmp_path: Path) -> None:
    view = data(tmp_path, random_block(2000, 0, nodes=40)).view("train")
    whole = pickle.dumps(view)
    copy = pickle.loads(whole)
    assert len(whole) < 25_000 and isinstance(copy.entry.arrays["codes"].base, np.memmap)
    keys = [[(0, i) for i in range(first, first + 8)] for first in (0, 100)]
    for context in ("fork", "spawn"):
        batches = DataLoader(view, batch_sampler=keys, num_workers=1, multiprocessing_context=context, collate_fn=tuple)
        for (graphs, y), key in zip(batches, keys, strict=True):
            here, its_y = view.__getitems__(key)
            assert torch.equal(graphs.x, here.x) and torch.equal(graphs.edge_index, here.edge_index) and torch.equal(y, its_y)


def test_graphs_without_edges_or_a_batch_without_graphs(tmp_path: Path) -> None:
    none = GraphChunk(
        nodes=np.ones(6, dtype=np.int64),
        codes=np.zeros((6, 2), dtype=np.uint8),
        values=np.zeros((6, 0), dtype=np.float32),
        edge_counts=np.zeros(6, dtype=np.int64),
        edges=np.empty((0, 2), dtype=np.uint8),
        bonds=np.empty((0, 1), dtype=np.uint8),
        y=np.zeros(6, dtype=np.int64),
    )
    data_set = data(tmp_path, none, onehot=False)
    for keys in ([(0, 0), (0, 1)], []):
        graphs, y = data_set.view("train").__getitems__(keys)
        assert graphs.x.shape == (len(keys), 2) and graphs.edge_index.shape == (2, 0) and graphs.edge_attr.shape == (0, 1)
        assert len(y) == len(keys) and graphs.ptr.tolist() == list(range(len(keys) + 1))


def test_targets_are_scaled_by_the_training_part_only(tmp_path: Path) -> None:
    chunk = random_block(10, 0, targets=3)
    chunk.y[:, 1] = 4.0
    chunk.y[6:, 0] = 1000.0  # val and test
    data_set = data(tmp_path, chunk)
    assert torch.allclose(data_set.scale[:, 0], torch.tensor([chunk.y[:6, 0].mean(), chunk.y[:6, 0].std()]))
    assert data_set.scale[:, 1].tolist() == [4.0, 1.0]
    batch = data_set.view("val").__getitems__([(0, 0)])
    graphs, y, scale = data_set.prepare(batch)
    assert graphs is batch[0] and torch.equal(y, batch[1]) and scale.dtype == torch.float32 and torch.equal(scale, data_set.scale)
    rows = {"train": np.arange(0), "val": np.arange(0), "test": np.arange(10)}
    assert data(tmp_path, chunk, rows=rows).scale.tolist() == [[0.0] * 3, [1.0] * 3]
    classes = data(tmp_path / "c", random_block(10, 0))
    assert len(classes.prepare(classes.view("val").__getitems__([(0, 0)]))) == 2


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_state_carries_the_scale_and_the_categories(tmp_path: Path) -> None:
    run = data(tmp_path / "a", random_block(10, 0, targets=1), onehot=False)
    state = through_a_file(run.state_dict())
    # Elsewhere there are fewer values, in another order of numbers.
    other = data(tmp_path / "b", random_block(10, 5, targets=1), onehot=False, node_values=[[7, 3, 5], [0, 1, 2, 3]])
    before = other.view("all").__getitems__([(0, i) for i in range(10)])[0].x
    other.load_state_dict(state)
    assert torch.equal(other.scale, run.scale) and other.provides == run.provides
    graphs, y = other.view("all").__getitems__([(0, i) for i in range(10)])
    assert torch.equal(graphs.x[:, 0], torch.tensor([2, 0, 1])[before[:, 0]]) and torch.equal(graphs.x[:, 1], before[:, 1])
    assert torch.equal(other.prepare((graphs, y))[2], run.scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["a", "b"]}, "trained on the classes a, b, c, but test in .* has a, b"),
        ({"classes": [], "targets": ["y"]}, r"trained on the classes a, b, c, but .* has \(none\)"),
        ({"node_values": [[3, 5, 8], [0, 1, 2, 3]]}, "Column 0 of the node labels has the values 8, .* knows 3 values, 3 to 7"),
        ({"node_values": [[3, 5, 7]]}, "trained on 2 node label columns, but these data have 1"),
        ({"edge_values": [[1, 9]]}, "Column 0 of the edge labels has the values 9"),
        ({"onehot": True}, "trained on numbers of categories, but .* has one-hot labels and 2 real columns"),
    ],
)
def test_data_that_do_not_fit_a_run(tmp_path: Path, change: dict, words: str) -> None:
    state = data(tmp_path, random_block(10, 0), onehot=False).state_dict()
    chunk = random_block(10, 0)
    if "targets" in change:
        chunk = random_block(10, 0, targets=1)
    other = data(tmp_path / "other", chunk, **({"onehot": False} | change))
    with pytest.raises(UserError, match=words):
        other.load_state_dict(state)


def test_state_tells_the_graphs_and_their_split(tmp_path: Path) -> None:
    chunk = random_block(10, 0)
    state = through_a_file(data(tmp_path / "a", chunk).state_dict())
    assert set(state["split"]) == {"train", "val", "test"} and len(set(state["split"].values())) == 3
    assert data(tmp_path / "b", random_block(10, 0), onehot=False).same_samples(state)  # elsewhere on the disk, in another form
    moved = {"train": np.arange(6), "val": np.array([6, 8]), "test": np.array([7, 9])}
    assert not data(tmp_path / "a", chunk, rows=moved).same_samples(state)
    for part, array in vars(chunk).items():
        if array is not None and part not in ("nodes", "edge_counts"):
            changed = random_block(10, 0)
            getattr(changed, part).reshape(-1)[0] = 1 - np.sign(array.reshape(-1)[0])
            assert not data(tmp_path / part, changed).same_samples(state), part


def test_splits_and_sizes(tmp_path: Path) -> None:
    chunk = random_block(12, 0)
    data_set = data(tmp_path, chunk, node_budget=7)
    assert data_set.splits == {"train": 8, "val": 2, "test": 2} and data_set.node_budget == 7
    assert data_set.sizes("test").tolist() == chunk.nodes[10:].tolist() and len(data_set.view("all", augment=True)) == 12
    with pytest.raises(UserError, match="split is 'dev'; allowed are train, val, test and all"):
        data_set.view("dev")
    with pytest.raises(UserError, match="dataset.node_budget is 0; allowed are null"):
        data(tmp_path, chunk, node_budget=0)


def test_compact_integers() -> None:
    assert [compact(np.array([0, top])).dtype for top in (1, 255, 256, 65536)] == [np.uint8, np.uint8, np.uint16, np.uint32]
    assert compact(np.empty((0, 2), dtype=np.int64)).shape == (0, 2)


def test_columns_number_by_what_is_known() -> None:
    columns = Columns([[1, 4], [0]], [[4, 2, 1], [9, 0]], "node label")
    assert columns.sizes == [3, 2] and columns.numbers(np.array([[0, 0], [1, 0]], dtype=np.uint8)).tolist() == [[2, 1], [0, 1]]


def test_a_batch_of_molecules_is_cheap(tmp_path: Path) -> None:
    view = data(tmp_path, random_block(2000, 0, nodes=45), onehot=False).view("train")
    times = []
    for epoch in range(30):
        keys = [(epoch, int(i)) for i in np.random.default_rng(epoch).integers(0, len(view), 128)]
        start = time.perf_counter()
        view.__getitems__(keys)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # alone on a machine it is under 0.3 ms
