"""Graph sets in the text format of the TU collection: tiny ones written here, and the real MUTAG, NCI1 and ZINC molecules."""

import http.server
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.io import read_tu_data

from data.conftest import real
from snnexp.data import download
from snnexp.data.graphs import tu
from snnexp.data.graphs.tu import TUSet
from snnexp.errors import MissingData, UserError

# A path of three nodes, a pair, and a node alone.
TINY = {
    "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n1\n2\n2\n3\n",
    "graph_labels": "5\n-1\n5\n",
    "node_labels": "3\n7\n3\n3\n9\n7\n",
    "edge_labels": "0\n0\n4\n4\n0\n0\n",
}


def written(folder: Path, ends: str = "\n", **changes: str | None) -> Path:
    """The tiny set in `folder`, with other content for some files, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in (TINY | changes).items():
        if content is not None:
            (folder / f"TINY_{part}.txt").write_bytes(content.replace("\n", ends).encode())
    return folder


def tiny(root: Path, **options) -> TUSet:
    return TUSet(**({"root": root, "name": "TINY", "val_fraction": 0.0, "test_fraction": 0.0, "node_labels": "index"} | options))


def whole(data_set: TUSet) -> tuple:
    return data_set.view("all").__getitems__([(0, i) for i in range(sum(data_set.splits.values()))])


def test_what_the_text_says(tmp_path: Path) -> None:
    data_set = tiny(written(tmp_path))
    graphs, y = whole(data_set)
    assert data_set.classes == ("-1", "5") and y.tolist() == [1, 0, 1] and data_set.targets == ()
    assert data_set.provides == {"num_features": 1, "atom_types": [3], "bond_types": [2]}
    assert graphs.x.tolist() == [[0], [1], [0], [0], [2], [1]] and graphs.ptr.tolist() == [0, 3, 5, 6]
    assert graphs.edge_index.tolist() == [[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]] and graphs.edge_attr.flatten().tolist() == [
        0,
        0,
        1,
        1,
        0,
        0,
    ]
    assert data_set.state_dict()["node_values"] == [[3, 7, 9]] and data_set.state_dict()["edge_values"] == [[0, 4]]
    assert data_set.protocol.startswith(
        "TINY: 3 train / 0 val / 0 test of 3 graphs; random split with 0% val and 0% test, stratified by class"
    )


@pytest.mark.parametrize(
    "form",
    [
        {"ends": "\r\n"},
        {"A": TINY["A"].replace(", ", ",")},
        {"A": TINY["A"].replace(", ", " ,  ").rstrip()},
        {"node_labels": "\n3\n7\n\n3\n3\n9\n7\n\n"},
        {"A": "4, 5\n2, 3\n1, 2\n5, 4\n2, 1\n3, 2\n", "edge_labels": "0\n4\n0\n0\n0\n4\n"},
        {"graph_labels": "\ufeff5\n-1\n5\n"},
    ],
)
def test_other_forms_of_the_same_text(tmp_path: Path, form: dict) -> None:
    (graphs, y), (other, its_y) = whole(tiny(written(tmp_path / "a"))), whole(tiny(written(tmp_path / "b", **form)))
    assert all(torch.equal(graphs[key], other[key]) for key in graphs.keys()) and torch.equal(y, its_y)
    assert tiny(tmp_path / "a").same_samples(tiny(tmp_path / "b").state_dict())


@pytest.mark.parametrize("place", ["", "raw", "TINY", "TINY/raw", "TINY.zip", "download/TINY.zip"])
def test_where_it_may_lie(tmp_path: Path, place: str) -> None:
    if place.endswith(".zip"):
        written(tmp_path / "made" / "TINY")
        (tmp_path / "set" / place).parent.mkdir(parents=True)
        shutil.make_archive(str(tmp_path / "set" / place[:-4]), "zip", tmp_path / "made", "TINY")
    else:
        written(tmp_path / "set" / place)
    data_set = tiny(tmp_path / "set")
    assert whole(data_set)[0].x.tolist() == [[0], [1], [0], [0], [2], [1]]
    assert sorted(path.name for path in (tmp_path / "set" / "cache").iterdir()) == [
        ".snnexp",
        data_set.entry.directory.name,
        f"{data_set.entry.directory.name}.lock",
    ]


def test_onehot_degree_and_attributes(tmp_path: Path) -> None:
    data_set = tiny(written(tmp_path, node_attributes="0.5, 1\n1,2\n-1.5,3\n2,4\n3,5\n4,6e-1\n"), node_labels="onehot", degree=True)
    graphs, _ = whole(data_set)
    assert data_set.provides == {"num_features": 3 + 3 + 2, "atom_types": None, "bond_types": None} and graphs.edge_attr is None
    assert graphs.x[2].tolist() == [1, 0, 0, 0, 1, 0, -1.5, 3] and graphs.x[5].tolist() == [0, 1, 0, 1, 0, 0, 4, pytest.approx(0.6)]
    assert tiny(tmp_path, node_labels="onehot").shape == ("V", 5)
    with pytest.raises(UserError, match="node_labels=index: the nodes of TINY have 2 real attributes"):
        tiny(tmp_path)


def test_nodes_without_any_feature(tmp_path: Path) -> None:
    written(tmp_path, node_labels=None, edge_labels=None)
    for form in ("index", "onehot"):
        with pytest.raises(UserError, match="neither labels nor attributes. Give them their degree: dataset.degree=true"):
            tiny(tmp_path, node_labels=form)
    data_set = tiny(tmp_path, degree=True)
    assert data_set.provides == {"num_features": 1, "atom_types": [3], "bond_types": None}
    assert whole(data_set)[0].x.flatten().tolist() == [1, 2, 1, 1, 1, 0]


def test_real_targets(tmp_path: Path) -> None:
    written(tmp_path, graph_attributes="0.5\n-2\n1e3\n")
    assert tiny(tmp_path).classes == ("-1", "5")  # labels go first
    data_set = tiny(tmp_path, target="attributes")
    assert data_set.classes == () and data_set.targets == ("y",) and whole(data_set)[1].tolist() == [[0.5], [-2], [1000]]
    assert "stratified" not in data_set.protocol
    several = tiny(written(tmp_path / "b", graph_labels=None, graph_attributes="1, 2\n3,4\n5,6\n"))
    assert several.targets == ("y1", "y2") and whole(several)[1].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert torch.allclose(several.scale, torch.tensor([[3.0, 4.0], [(8 / 3) ** 0.5] * 2]))


def test_loops_and_repeated_edges_are_left_out_and_named(tmp_path: Path) -> None:
    data_set = tiny(written(tmp_path, A="1,2\n2,1\n1,1\n2,1\n2,3\n4,5\n", edge_labels="0\n0\n4\n9\n4\n0\n"))
    graphs, _ = whole(data_set)
    assert graphs.edge_index.tolist() == [[0, 1, 1, 3], [1, 0, 2, 4]] and graphs.edge_attr.flatten().tolist() == [0, 0, 1, 0]
    assert "1 loops and 1 repeated edges left out; 2 edges go one way only" in data_set.protocol
    alone = tiny(written(tmp_path / "b", A="", edge_labels=""), degree=True)
    assert whole(alone)[0].edge_index.shape == (2, 0) and whole(alone)[0].x[:, 1].tolist() == [0] * 6


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("A", "1, 2\n2, 7\n", r"TINY_A\.txt:2: an edge to node 7, which is not there; TINY_graph_indicator.txt has the nodes 1 to 6"),
        ("A", "0, 2\n", r"TINY_A\.txt:1: an edge to node 0"),
        ("A", "1, 2\n\n\n3, 4\n", r"TINY_A\.txt:4: an edge from node 3 of graph 1 to node 4 of graph 2"),
        ("A", "1, 2\n2, x\n", r"TINY_A\.txt:2: 'x' is no whole number"),
        ("A", "1, 2\n2, 1.5\n", r"TINY_A\.txt:2: '1.5' is no whole number"),
        ("A", "1, 2\n2\n", r"TINY_A\.txt:2: 1 columns \('2'\); there must be 2"),
        ("A", "1 2\n", r"TINY_A\.txt:1: 1 columns"),
        ("A", "1, 99999999999999999999\n", r"TINY_A\.txt:1: '99999999999999999999' is no whole number of 64 bits"),
        ("graph_indicator", "1\n1\n1\n3\n3\n4\n", r"graph_indicator\.txt:4: graph 3 after graph 1: graph 2 has no node"),
        ("graph_indicator", "2\n2\n2\n3\n3\n4\n", r"graph_indicator\.txt:1: graph 2 after graph 0: graph 1 has no node"),
        ("graph_indicator", "1\n1\n1\n2\n1\n2\n", r"graph_indicator\.txt:5: graph 1 after graph 2: must ascend"),
        ("graph_indicator", "0\n0\n0\n1\n1\n2\n", r"graph_indicator\.txt:1: graph 0; graphs are counted from 1"),
        ("graph_indicator", "1\n1\na\n", r"graph_indicator\.txt:3: 'a' is no whole number"),
        ("graph_indicator", " \n", r"graph_indicator\.txt: empty"),
        ("graph_labels", "5\n-1\n", r"graph_labels\.txt:2: ends after 2 lines, one per graph, but TINY_graph_indicator\.txt has 3 graphs"),
        ("graph_labels", "5\n-1\n5\n5\n", r"graph_labels\.txt:4: ends after 4 lines"),
        ("graph_labels", "5\nnan\n5\n", r"graph_labels\.txt:2: 'nan' is no whole number"),
        ("graph_labels", "5,1\n5,1\n5,1\n", r"graph_labels\.txt:1: 2 columns"),
        ("node_labels", "3\n7\n3\n3\n9\n", r"node_labels\.txt:5: ends after 5 lines, one per node, but .*has 6 nodes"),
        ("node_labels", "", r"node_labels\.txt: empty"),
        ("edge_labels", "0\n0\n4\n4\n0\n", r"edge_labels\.txt:5: ends after 5 lines, one per edge, but TINY_A\.txt has 6 edges"),
        ("node_attributes", "1\n2\n3\ninf\n5\n6\n", r"node_attributes\.txt:4: a value of node 4 is not finite"),
        ("node_attributes", "1\n2\n3\n1e39\n5\n6\n", r"node_attributes\.txt:4: a value of node 4 is not finite, or beyond 32 bits"),
        ("node_attributes", "1,2\n2,3\n3\n", r"node_attributes\.txt:3: 1 columns"),
        ("splits", "train 1 2\ndev 3 3\n", r"TINY_splits\.txt:2: 'dev 3 3'; a line is a name \(train, val or test\)"),
        ("splits", "train 1 2\ntest 3 4\n", r"TINY_splits\.txt:2: graphs 3 to 4; the set has 1 to 3"),
        ("splits", "train 1 2\ntest 2 3\n", r"TINY_splits\.txt:2: graph 2 is in two splits"),
        ("splits", f"train 1 {'9' * 5000}\n", r"TINY_splits\.txt:1: graphs 1 to 9+; the set has 1 to 3"),
        ("node_attributes", "1\n2\n3\n1_0\n5\n6\n", r"node_attributes\.txt:4: '1_0' is no finite number of 32 bits"),
        ("graph_labels", "5\n1_0\n5\n", r"graph_labels\.txt:2: '1_0' is no whole number of 64 bits"),
        ("splits", "train 1\n", r"TINY_splits\.txt:1: 'train 1'"),
    ],
)
def test_text_that_does_not_fit_together(tmp_path: Path, part: str, content: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(written(tmp_path, **{part: content}), node_labels="onehot")
    assert not list((tmp_path / "cache").glob(".building*"))


def test_a_target_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"TINY_graph_attributes\.txt:2: a value of graph 2 is not finite"):
        tiny(written(tmp_path, graph_labels=None, graph_attributes="1\nNaN\n2\n"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    written(tmp_path / "OTHER" / "TINY")
    with pytest.raises(
        MissingData, match=r"holds neither NOT_A\.txt nor .*; it holds TINY\. Fetch it with: snnexp data dataset=tu dataset"
    ):
        TUSet(root=tmp_path / "OTHER", name="NOT")
    with pytest.raises(MissingData, match="snnexp data dataset=nci1. Or get https://www.chrsmrrs.com/graphkerneldatasets/NCI1.zip by hand"):
        TUSet(root=tmp_path / "none", name="NCI1")
    with pytest.raises(MissingData, match="name a set with dataset.name=NAME"):
        TUSet(root=tmp_path, name=None)
    for missing in ("graph_indicator", "graph_labels"):
        folder = written(tmp_path / missing, **{missing: None})
        with pytest.raises(MissingData, match=r"TINY_A\.txt: beside it there is (no TINY_graph_indicator|neither TINY_graph_labels)"):
            tiny(folder)
    with pytest.raises(MissingData, match=r"there is no TINY_graph_attributes\.txt"):
        tiny(written(tmp_path / "labels"), target="attributes")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "x"}, "dataset.target is 'x'; allowed are auto, labels, attributes"),
        ({"node_labels": "x"}, "dataset.node_labels is 'x'; allowed are onehot, index"),
        ({"name": "../TINY"}, "dataset.name is '../TINY'"),
        ({"cv_fold": 3, "cv_folds": 3}, "dataset.cv_fold is 3; with dataset.cv_folds=3 allowed are 0 to 2"),
        ({"cv_fold": 0, "cv_folds": 4}, "dataset.cv_folds is 4; allowed are 2 to 3, the number of samples"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction . dataset.test_fraction is 1.0; allowed is below 1"),
        ({"val_fraction": -0.1}, "dataset.val_fraction"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(written(tmp_path), **options)


def test_given_splits_are_kept_unless_a_fold_is_asked_for(tmp_path: Path) -> None:
    data_set = tiny(written(tmp_path, splits="train 3 3\r\nvalidation 1 1\n\n"))
    assert [data_set.rows[split].tolist() for split in ("train", "val", "test")] == [[2], [0], []]
    assert "1 train / 1 val / 0 test of 3 graphs; split as given with the set, 1 graphs in none" in data_set.protocol
    fold = tiny(tmp_path, cv_folds=3, cv_fold=1)
    assert fold.splits["test"] == 1 and "test is fold 1 of 3 (counted from 0)" in fold.protocol


class Server(http.server.ThreadingHTTPServer):
    """Gives the files of a folder on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))

    def __enter__(self) -> str:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def test_fetched_by_name_from_the_collection(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    written(tmp_path / "made" / "TINY")
    shutil.make_archive(str(tmp_path / "made" / "TINY"), "zip", tmp_path / "made", "TINY")
    (tmp_path / "made" / "PAGE.zip").write_text("<html>")
    shutil.make_archive(str(tmp_path / "made" / "OTHER"), "zip", tmp_path / "made", "TINY")
    with Server(tmp_path / "made") as url:
        monkeypatch.setattr(tu, "SERVER", url)
        assert tiny(tmp_path / "tu", download=True).splits["train"] == 3
        assert (tmp_path / "tu" / "download" / "TINY.zip").exists()
        with pytest.raises(MissingData, match=r"NONE\.zip could not be fetched .*404"):
            TUSet(root=tmp_path / "tu", name="NONE", download=True)
        for _ in range(2):  # nothing is kept that would be in the way
            with pytest.raises(UserError, match=r"PAGE\.zip from .* is no zip archive \(6 bytes; perhaps a web page\). It was not kept"):
                TUSet(root=tmp_path / "tu", name="PAGE", download=True)
        with pytest.raises(UserError, match=r"OTHER\.zip holds no OTHER_A\.txt; it is not the set OTHER"):
            TUSet(root=tmp_path / "tu", name="OTHER", download=True)
    assert tiny(tmp_path / "tu").splits["train"] == 3


@pytest.fixture(scope="module")
def real_tu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real(tmp_path_factory, "tu")


@pytest.fixture(scope="module")
def real_zinc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real(tmp_path_factory, "zinc7k")


def by_pyg(folder: Path, name: str, tmp_path: Path) -> tuple:
    """What PyTorch Geometric's own reader makes of the files; it takes no CR and chokes on files it does not know."""
    for path in folder.glob(f"{name}_*.txt"):
        if "names" not in path.name and "splits" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\r", b""))
    return read_tu_data(str(tmp_path), name)[:2]


def test_real_mutag(real_tu: Path, tmp_path: Path) -> None:
    data_set = TUSet(root=real_tu, name="MUTAG")
    assert data_set.shape == ("V", 7) and data_set.classes == ("-1", "1") and np.bincount(data_set.entry.arrays["y"]).tolist() == [63, 125]
    assert data_set.protocol == (
        "MUTAG: 151 train / 19 val / 18 test of 188 graphs; random split with 10% val and 10% test, stratified by class, split_seed 42"
    )
    embedded = TUSet(root=real_tu, name="MUTAG", node_labels="index")
    assert embedded.provides == {"num_features": 1, "atom_types": [7], "bond_types": [4]}
    assert embedded.same_samples(data_set.state_dict())
    same_as_pyg(embedded, *by_pyg(real_tu / "MUTAG", "MUTAG", tmp_path))


def test_real_nci1_with_carriage_returns(real_tu: Path, tmp_path: Path) -> None:
    assert b"\r\n" in (real_tu / "NCI1" / "NCI1_A.txt").read_bytes()[:20]
    data_set = TUSet(root=real_tu, name="NCI1", degree=True)
    assert data_set.shape == ("V", 37 + 5) and np.bincount(data_set.entry.arrays["y"]).tolist() == [2053, 2057]
    assert data_set.splits == {"train": 3288, "val": 411, "test": 411} and "NOT the published" not in data_set.protocol
    assert data_set.state_dict()["node_values"] == [list(range(1, 38)), list(range(5))]
    same_as_pyg(TUSet(root=real_tu, name="NCI1"), *by_pyg(real_tu / "NCI1", "NCI1", tmp_path))


def test_real_molecules_with_a_target(real_zinc: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    data_set = TUSet(root=real_zinc, name="ZINC7K", node_labels="index")
    assert time.perf_counter() - start < 5  # alone on a machine 0.2 s
    assert data_set.splits == {"train": 5000, "val": 1000, "test": 1000} and data_set.targets == ("y",) and data_set.classes == ()
    assert data_set.provides == {"num_features": 1, "atom_types": [17], "bond_types": [3]}
    assert data_set.scale.flatten().tolist() == pytest.approx([-0.0552, 2.1349], abs=1e-3)
    same_as_pyg(data_set, *by_pyg(real_zinc, "ZINC7K", tmp_path))


def same_as_pyg(data_set: TUSet, data, slices: dict) -> None:
    """Every graph is the one that PyTorch Geometric reads."""
    count = len(slices["y"]) - 1
    data_set.rows["test"] = np.arange(count)
    graphs, y = data_set.view("test").__getitems__([(0, i) for i in range(count)])
    first = torch.repeat_interleave(slices["x"][:-1], slices["edge_index"].diff())
    assert torch.equal(graphs.ptr, slices["x"]) and torch.equal(graphs.edge_index, data.edge_index + first)
    if data_set.onehot:
        assert torch.equal(graphs.x, data.x)
    else:
        assert torch.equal(graphs.x[:, 0], data.x.argmax(1)) and torch.equal(graphs.edge_attr[:, 0], data.edge_attr.argmax(1))
    assert torch.equal(y.flatten(), data.y.flatten().to(y.dtype))


def test_a_set_that_is_not_as_large_as_published(real_tu: Path, tmp_path: Path) -> None:
    shutil.copytree(real_tu / "MUTAG", tmp_path / "MUTAG")
    path = tmp_path / "MUTAG" / "MUTAG_A.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]))
    (tmp_path / "MUTAG" / "MUTAG_edge_labels.txt").unlink()
    assert (
        "NOT the published data (188 of 188 graphs, 3,371 of 3,371 nodes, 7,440 of 7,442 edges)"
        in TUSet(root=tmp_path, name="MUTAG").protocol
    )


def test_folds_of_real_graphs(real_tu: Path) -> None:
    folds = [TUSet(root=real_tu, name="MUTAG", cv_fold=k) for k in range(10)]
    labels = folds[0].entry.arrays["y"]
    assert np.array_equal(np.sort(np.concatenate([data_set.rows["test"] for data_set in folds])), np.arange(188))
    for k, data_set in enumerate(folds):
        assert np.array_equal(np.sort(np.concatenate(list(data_set.rows.values()))), np.arange(188))
        assert np.bincount(labels[data_set.rows["test"]]).tolist() in ([6, 12], [6, 13], [7, 12], [7, 13])
        assert np.bincount(labels[data_set.rows["val"]])[0] == 6 and 16 <= data_set.splits["val"] <= 18
        assert f"test is fold {k} of 10 (counted from 0), val 10% of the rest to choose the epoch, stratified" in data_set.protocol
    assert {data_set.splits["test"] for data_set in folds} == {18, 19}
    other = TUSet(root=real_tu, name="MUTAG", cv_fold=0, split_seed=1)
    assert not np.array_equal(other.rows["test"], folds[0].rows["test"]) and not other.same_samples(folds[0].state_dict())


def test_endings_hidden_files_links_and_files_that_are_not_used(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "TINY_A.txt").rename(tmp_path / "TINY_A.TXT")
    (tmp_path / "._TINY_A.txt").write_bytes(b"x")
    (tmp_path / "TINY_label_readme.txt").write_bytes(b"x")
    assert tiny(tmp_path, name=None).left_out == ""
    (tmp_path / "TINY_node_label.txt").write_bytes(b"x")
    assert tiny(tmp_path).left_out == "left out: 1 file of the set (TINY_node_label.txt)"
    (tmp_path / "TINY_A.txt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"TINY_A\.TXT and .*TINY_A\.txt would be one"):
        tiny(tmp_path)
    (tmp_path / "TINY_A.txt").unlink()
    (tmp_path / "TINY_node_labels.txt").unlink()
    (tmp_path / "TINY_node_labels.txt").symlink_to("lost.txt")
    with pytest.raises(UserError, match=r"TINY_node_labels\.txt is a link to lost\.txt, which is not there"):
        tiny(tmp_path)
