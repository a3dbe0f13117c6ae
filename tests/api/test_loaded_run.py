"""snnexp.load and snnexp.runs: the numbers of a run again, for every task, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import snnexp as program
from conftest import CLIPS, GRAPHS, STAYS, TINY, assert_same, load
from snnexp import parts
from snnexp.api.loaded_run import Run
from snnexp.errors import MissingData, UserError

SHORT = ["epochs=1"]
STILL = ["model=spikformer", "model.dim=32", "model.depth=1", "model.heads=2", "dataset=digits", "dataset.size=16", "T=2"]
TASKS = {
    "events": [*TINY, *SHORT, "ema=0.5"],
    "images": [*STILL, *SHORT, "limit_train=64", "limit_val=32", "batch_size=32", "precision=fp32", "logger=none", "device=cpu"],
    "graphs": [*GRAPHS, *SHORT],
    "numbers": [*GRAPHS, *SHORT, "dataset=tu", "dataset.name=CHAINS", "dataset.root=chains", "task=graph_regression", "limit_val=null"],
    "stays": [*STAYS, "epochs=1"],
    "sets": [*STAYS, "epochs=1", "model=set_vae"],
    "clips": [*CLIPS, "epochs=1"],
    "ranks": [*TINY, *SHORT, "devices=2"],
}
"""A run of each task, of each kind of frames, and of two processes."""
EVERY = [*TASKS, "pruned"]


def chains(folder: Path) -> None:
    """60 chains of 3 to 8 nodes with two real targets each, in the text format of the TU collection."""
    folder.mkdir()
    lengths = [3 + k % 6 for k in range(60)]
    first = np.cumsum([1, *lengths])
    edges = [(a, a + 1) for k, length in enumerate(lengths) for a in range(first[k], first[k] + length - 1)]
    text = {
        "A": "".join(f"{a}, {b}\n{b}, {a}\n" for a, b in edges),
        "graph_indicator": "".join(f"{k + 1}\n" * length for k, length in enumerate(lengths)),
        "node_labels": "".join(f"{node % 3}\n" for node in range(sum(lengths))),
        "graph_attributes": "".join(f"{length / 7:.4f}, {100 - length}\n" for length in lengths),
    }
    for part, content in text.items():
        (folder / f"CHAINS_{part}.txt").write_text(content)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many threads as the commands under test have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run_of(snnexp, tmp_path_factory):
    """The directory of a run by its name in EVERY, trained when it is first asked for."""
    cwd = tmp_path_factory.mktemp("made")
    chains(cwd / "chains")

    def run_of(name: str) -> Path:
        run = cwd / "outputs" / name
        if not run.exists():
            if name == "pruned":
                words = ["pruner.ratio=0.5", "pruner.finetune.epochs=1", "pruner.calibration_samples=32", "exp_name=pruned"]
                snnexp("prune", run_of("events"), *words, cwd=cwd)
            else:
                snnexp("train", *TASKS[name], f"exp_name={name}", cwd=cwd)
        return run

    return run_of


@pytest.mark.parametrize("name", EVERY)
def test_a_split_comes_out_as_the_run_itself_had_it(run_of, name):
    path = run_of(name)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    run = program.load(path)
    found = run.predict("test")
    for part, values in (("pred", found.predicted), ("true", found.true), ("score", found.score)):
        file = path / f"test_y_{part}.npy"
        assert (values is None) == (not file.exists())
        if values is not None:
            stored = np.load(file)
            assert values.dtype == stored.dtype and np.array_equal(values, stored), part
    stored = np.load(path / "test_metrics.npy")
    assert list(found.metrics) == list(stored.dtype.names)
    if name == "ranks":  # two processes judge other batches
        assert np.allclose(list(found.metrics.values()), list(stored.item()), rtol=1e-6)
    else:
        assert np.array_equal(list(found.metrics.values()), list(stored.item()), equal_nan=True)
    assert torch.equal(before[0], torch.get_rng_state()) and torch.are_deterministic_algorithms_enabled() == before[1]
    assert not run.model.training and sum(p.numel() for p in run.model.parameters()) == run.result["parameters"]


def inputs_alone(name: str, batch: tuple) -> object:
    """A batch without its truth."""
    return (batch[0], batch[2]) if name == "clips" else batch[0]


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_needs_no_data_on_disk_and_no_truth(run_of, name, monkeypatch):
    run = program.load(run_of(name))
    batch = run.data.view("test").__getitems__([(0, 2), (0, 0), (0, 1)])
    with torch.no_grad():
        output = run.task.loss(run.model, prepared := run.data.prepare(batch), step=0)[1]
        predicted, _, *score = run.task.predict(output, prepared)
    monkeypatch.setattr(parts, "make_data", lambda *_: pytest.fail("the data were read"))
    alone = program.load(run_of(name))
    for inputs in (batch, inputs_alone(name, batch)):
        found = alone.predict(inputs)
        assert np.array_equal(found.predicted, predicted.numpy()) and found.true is None and found.metrics == {}
        if name != "clips":  # whose scores are distances to the truth
            assert (found.score is None) == (not score) and (not score or np.array_equal(found.score, score[0].numpy()))
        assert_same(*((one if isinstance(one, torch.Tensor) else one.logits if one.logits is not None else one.error)
                      for one in (found.output, output)))  # fmt: skip
    assert alone.predict(batch, outputs=False).output is None


@pytest.mark.parametrize("name", ["events", "graphs", "clips", "stays", "sets"])
def test_the_output_of_a_split_is_that_of_its_samples(run_of, name):
    run = program.load(run_of(name))
    found = run.predict("val")
    samples = min(run.data.splits["val"], run.config["limit_val"] or 1000)
    if name in ("stays", "sets"):
        assert len(found.output.error) == len(found.output.stay) == run.data.lengths("val").sum()
        assert found.output.stay.unique().tolist() == list(range(samples))
        mean = torch.zeros(samples).index_add(0, found.output.stay, found.output.error) / torch.from_numpy(run.data.lengths("val"))
        if name == "sets":
            assert np.allclose(mean, found.predicted, rtol=1e-6)
        else:
            assert np.array_equal(found.output.logits.argmax(1), found.predicted)
            assert float(found.output.cross_entropy) == pytest.approx(found.metrics["CE"], rel=1e-5)
    elif name == "clips":
        assert found.output.shape == (samples, 3, 3, 32, 32)
    else:
        mean = found.output.mean(0) if name == "events" else found.output
        assert mean.shape == (samples, 10) and np.array_equal(mean.argmax(1), found.predicted)
    assert run.predict("val", outputs=False).output is None


def test_val_and_all_are_what_evaluate_says(snnexp, run_of):
    for name, split in (("events", "all"), ("ranks", "val")):
        path = run_of(name)
        snnexp("evaluate", path, f"split={split}", "limit_val=32", cwd=path)
        (report,) = path.glob(f"evaluations/*/{split}.json")
        found = program.load(path).predict(split)
        assert found.metrics == json.loads(report.read_text())["metrics"]
        assert np.array_equal(found.predicted, np.load(report.parent / f"{split}_y_pred.npy"))


def test_any_checkpoint_of_the_run(run_of):
    path = run_of("pruned")
    latest = path / "checkpoints/checkpoint_latest.pth"
    for run in (program.load(path, checkpoint="latest"), program.load(latest), program.load(path, str(latest))):
        assert_same(dict(run.model.state_dict()), load(latest)["ema"])
    assert_same(dict(program.load(path, "pruned").model.state_dict()), load(path / "checkpoints/checkpoint_pruned.pth")["ema"])
    assert_same(program.load(run_of("graphs")).model.state_dict(), load(run_of("graphs") / "checkpoints/checkpoint_best.pth")["state_dict"])
    with pytest.raises(UserError, match="no checkpoint .*checkpoint_nowhere.pth. There is: checkpoint_best.pth"):
        program.load(path, "nowhere")
    with pytest.raises(UserError, match="of another network"):
        program.load(path, run_of("graphs") / "checkpoints/checkpoint_best.pth")
    for name in ("checkpoint_latest.pth", "checkpoints/checkpoint_latest.pth"):
        assert program.load(path, name).loaded.path == latest
    for name in ("elsewhere/checkpoint_best.pth", "~nobody-of-this-name/x.pth", "x" * 5000 + ".pth"):
        with pytest.raises(UserError, match=f"no checkpoint {name}. In .* there is: checkpoint_best.pth"):
            program.load(path, name)


def test_a_file_that_is_called_as_a_checkpoint_is_none(run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("latest").write_text("a file of somebody else's")
    assert program.load(run_of("graphs"), "latest").loaded.path == run_of("graphs") / "checkpoints/checkpoint_latest.pth"
    Path("weights.ckpt").symlink_to(run_of("graphs") / "checkpoints/checkpoint_best.pth")
    assert program.load(run_of("graphs"), "weights.ckpt").loaded.path == Path("weights.ckpt")
    with pytest.raises(UserError, match="no checkpoint .*checkpoint_epoch0.5.pth"):
        program.load(run_of("graphs"), "epoch0.5")


@pytest.mark.parametrize("run", ["x" * 5000, "~nobody-of-this-name/run", "", None, 3])
def test_what_is_no_path_of_a_run(run):
    with pytest.raises(UserError, match="no path of a run|no such run directory|not a run directory"):
        program.load(run)


@pytest.mark.parametrize("directory", ["x" * 5000, "~nobody-of-this-name/runs", None, 3])
def test_what_is_no_directory_of_runs(directory):
    with pytest.raises(UserError, match="no directory of runs"):
        program.runs(directory)


def test_runs_below_the_home_directory(run_of, monkeypatch):
    monkeypatch.setenv("HOME", str(run_of("graphs").parent))
    assert "graphs" in [run.name for run in program.runs("~")]


@pytest.mark.parametrize("trust", [None, 3, [3]])
def test_trust_is_a_list_of_names(run_of, trust):
    assert program.load(run_of("graphs"), trust="mypackage").trust == ["mypackage"]
    with pytest.raises(UserError, match=r"give a list of the names of packages: trust=\['mypackage'\]"):
        program.load(run_of("graphs"), trust=trust)


@pytest.mark.parametrize("name", ["events", "images", "graphs", "numbers", "stays", "clips"])
def test_checkpoints_of_before_make_their_model_by_the_data(run_of, name, tmp_path):
    saved = load(run_of(name) / "checkpoints/checkpoint_best.pth")
    del saved["shape"]
    saved["data"].pop("centred", None)
    torch.save(saved, tmp_path / "old.pth")
    old, new = program.load(run_of(name), tmp_path / "old.pth"), program.load(run_of(name))
    assert_same(old.model.state_dict(), new.model.state_dict())
    batch = inputs_alone(name, new.data.view("test").__getitems__([(0, 0), (0, 1)]))
    assert np.array_equal(old.predict(batch).predicted, new.predict(batch).predicted)


def test_vectors_of_names_are_kept_by_their_shape(snnexp, tmp_path):
    (tmp_path / "vectors.csv").write_text("".join(f"{name},{k},{k % 3},1,{k * k}\n" for k, name in enumerate(VARIABLES)))
    snnexp("train", *STAYS, "epochs=1", f"dataset.embeddings={tmp_path / 'vectors.csv'}", "exp_name=run", cwd=tmp_path)
    path = tmp_path / "outputs/run"
    batch = program.load(path).data.view("test").__getitems__([(0, 0), (0, 1)])
    assert load(path / "checkpoints/checkpoint_best.pth")["shape"]["embeddings"].untyped_storage().nbytes() == 4
    (tmp_path / "vectors.csv").unlink()
    run = program.load(path)
    assert run.model.set_vae.embeddings[2].tolist() == [2, 2, 1, 4]
    assert run.predict(batch).predicted.tolist() == np.load(path / "test_y_pred.npy")[:2].tolist()
    with pytest.raises(MissingData, match="vectors.csv: no such file"):
        run.data  # noqa: B018  the property is what raises


VARIABLES = "Age Gender HR SysABP RespRate Temp SaO2 GCS Urine Lactate Creatinine WBC pH Glucose".split()


def test_other_samples_are_warned_of(run_of, tmp_path):
    path = run_of("events")
    settings = json.loads((path / "config.json").read_text())
    twin = tmp_path / "twin"
    (twin / "checkpoints").mkdir(parents=True)
    (twin / "checkpoints/checkpoint_best.pth").symlink_to(path / "checkpoints/checkpoint_best.pth")
    (twin / "config.json").write_text(json.dumps(settings | {"dataset": settings["dataset"] | {"split_seed": 5}}))
    run = program.load(twin)
    with pytest.warns(UserWarning, match="twin: these are not the samples"):
        run.predict("test")


def test_data_that_lie_elsewhere(run_of, data_dir, tmp_path):
    run = run_of("events")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/digits_dvs").symlink_to(data_dir / "digits_dvs")
    moved = program.load(run, data_dir=tmp_path / "moved")
    assert moved.loaded.settings["dataset"]["root"] == str(tmp_path / "moved/digits_dvs")
    assert moved.loaded.settings["data_dir"] == str(tmp_path / "moved")
    found = moved.predict("test")
    assert np.array_equal(found.predicted, np.load(run / "test_y_pred.npy"))
    assert moved.config == program.load(run).config, "the run itself stays as it is"
    pruned = program.load(run_of("pruned"), data_dir=str(tmp_path / "moved"))
    assert np.array_equal(pruned.predict("test").predicted, np.load(run_of("pruned") / "test_y_pred.npy"))
    with pytest.raises(UserError, match="data_dir=.*nowhere: no such directory"):
        program.load(run, data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="this run's data lie in .*chains; snnexp evaluate RUN dataset.root=ELSEWHERE"):
        program.load(run_of("numbers"), data_dir=tmp_path)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(2, 3, 2, 9, 9), r"got \[2, 3, 2, 9, 9\]"),
        (torch.zeros(3, 16, 16), r"cannot take float32 \[3, 16, 16\]"),
        ((np.zeros((2, 3, 5, 16, 16), dtype=np.uint8), 7), r"cannot take \(uint8 \[2, 3, 5, 16, 16\], int\)"),
        ({"x": 1}, "cannot take dict"),
        ([[0] * 16] * 64, r"\(int, int, int, int, \.\.\. 12 more\), \.\.\. 60 more\)"),
        (torch.full((2, 3, 2, 16, 16), torch.nan), "input 0 has NaN or infinity in 3072 of 3072 places"),
        ("tset", "split is 'tset'; allowed are train, val, test and all"),
    ],
)
def test_wrong_inputs(run_of, inputs, words):
    run = program.load(run_of("events"))
    with pytest.raises(UserError, match=words):
        run.predict(inputs)
    right = run.predict(np.zeros((2, 3, 2, 16, 16), dtype=np.uint8))  # nothing is left of what failed
    assert right.output.shape == (2, 3, 10) and np.array_equal(right.output, run.predict(torch.zeros(2, 3, 2, 16, 16)).output)


def test_what_its_files_say(run_of):
    run = program.load(run_of("events"))
    assert run.config["T"] == 2 and run.config["choices"]["model"] == "vggsnn" and run.name == "events"
    assert run.state == "finished" and run.status["epoch"] == 1 and run.result["best"]["metric"] == "Val/Acc1"
    columns = run.metrics()
    assert columns["epoch"] == [1] and columns["Val/Acc1"] == [run.result["best"]["value"]] and len(columns["LR"]) == 1
    with pytest.raises(UserError, match="device=gpu: not one of auto, cpu, cuda, cuda:N"):
        program.load(run.path, device="gpu")


def test_one_row_an_epoch(tmp_path):
    (tmp_path / "logs").mkdir()
    whole = [{"epoch": 1, "Train/Loss": 2.0, "Val/Loss": 1.0, "Spikes/a": [1, 2]}, {"epoch": 2, "Train/Loss": 1.5}]
    rows = [{"epoch": 0.5, "Val/Loss": 3.0}, *whole]
    (tmp_path / "logs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 3, "Tr')
    columns = Run(tmp_path, "run").metrics()
    assert columns == {"epoch": [1, 2], "Train/Loss": [2.0, 1.5], "Val/Loss": [1.0, None], "Spikes/a": [[1, 2], None]}


def test_a_table_of_pandas(run_of, monkeypatch):
    columns = program.load(run_of("events")).metrics()
    if "pandas" not in sys.modules:
        pandas = pytest.importorskip("pandas")
        table = columns.to_pandas()
        assert isinstance(table, pandas.DataFrame) and table["Val/Acc1"].tolist() == columns["Val/Acc1"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        columns.to_pandas()


def test_runs_read_files_only(run_of, tmp_path):
    path = run_of("events")
    code = (
        f"import sys, snnexp\nfor run in snnexp.runs({str(path.parents[1])!r}): print(run.name, run.state, run.result['test'])\n"
        "assert run.metrics()['epoch'] and run.config['T'] > 0\n"
        "assert not {'torch', 'numpy', 'hydra', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"outputs/events finished {program.load(path).result['test']}" in done.stdout
    with pytest.raises(UserError, match="no such directory"):
        program.runs(tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("[1]")
    (tmp_path / "odd/status.json").write_text("[]")
    (run,) = program.runs(tmp_path)
    assert (run.name, run.state) == ("odd", "unreadable")
    for ask in (lambda: run.config, lambda: run.status, lambda: run.model):
        with pytest.raises(UserError, match="config.json|status.json"):
            ask()


EVIL = """
from torch import nn
open("ran", "w").close()


class Net(nn.Module):
    def __init__(self, *, num_classes: int, T: int) -> None:
        super().__init__()
        self.layer, self.T = nn.Linear(16 * 16, num_classes), T

    def forward(self, x):
        return self.layer(x[:, :, 0].flatten(2).float())
"""


def test_code_of_a_stranger_runs_only_if_it_is_trusted(snnexp, tmp_path, monkeypatch):
    (tmp_path / "strangers.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for word in TINY if not word.startswith("model.")]
    node = ["~model", "+model._target_=strangers.Net", "+model.T=2"]
    run = program.train([*words, *node, "epochs=1", "exp_name=run"])
    assert run.predict("test").predicted.tolist() == np.load(run.path / "test_y_pred.npy").tolist()  # whoever trains it trusts it
    del sys.modules["strangers"]
    (tmp_path / "ran").unlink()
    for ask in (lambda: program.load(run.path), lambda: program.runs()[0].model, lambda: program.train([f"from={run.path}"])):
        with pytest.raises(UserError, match=r"names code outside snnexp.*trust=\[strangers\]"):
            ask()
    assert not (tmp_path / "ran").exists() and "strangers" not in sys.modules
    assert program.load(run.path, trust=["strangers"]).predict("test").predicted.tolist() == run.predict("test").predicted.tolist()
    assert program.train([f"from={run.path}", "trust=[strangers]", "exp_name=again"]).state == "finished"
