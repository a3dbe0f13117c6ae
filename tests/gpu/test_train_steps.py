"""What a training step asks of a GPU, on one that is only pretended: the right device, few waits, kernels and bytes within budgets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu import train_steps
from gpu.pretended_device import Device, lacking
from gpu.recipe_grids import RECIPES
from snnexp.composing.conf import conf_dir
from snnexp.models.svrt.attention_batches import GRID_LIMIT

BUDGETS = yaml.safe_load(train_steps.BUDGETS.read_text())
RENEW = "If it is meant: python tests/gpu/train_steps.py --write"
needs_device = pytest.mark.skipif(lacking() != "", reason=f"no GPU can be pretended here: {lacking()}")


def excesses(name: str, figures: dict, budget: dict, tolerance: float) -> list[str]:
    """What is wrong with the figures of a step: which model, which figure, measured and budget."""
    if "failed" in figures:
        return [f"{name}: {figures['failed']}"]
    told, value = [], train_steps.numbers(figures)
    for figure in train_steps.FIGURES:
        if value[figure] > budget[figure] * (1 if figure == "waits" else 1 + tolerance):
            places = "".join(f"\n    {wait}" for wait in figures["waits"]) if figure == "waits" else ""
            told.append(f"{name}: {figure} is {value[figure]}, the budget is {budget[figure]}. {RENEW}{places}")
    return told


@pytest.fixture(scope="module")
def found(data_dir: Path) -> dict:
    video = [name for name, words in train_steps.STEPS.items() if train_steps.VIDEO in words]
    parts = [(video, "--grids"), ([name for name in train_steps.STEPS if name not in video],)]  # of about the same time
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda part: train_steps.in_new_process(part[0], data_dir, *part[1:]), parts))
    return {"steps": done[1]["steps"] | done[0]["steps"], "grids": done[0]["grids"]}


@needs_device
def test_a_step_of_each_model_keeps_to_its_budget(found):
    told = [line for name, row in found["steps"].items() for line in excesses(name, row, BUDGETS["steps"][name], BUDGETS["tolerance"])]
    assert not told, "\n".join(told)
    assert found["steps"].keys() == train_steps.STEPS.keys() == BUDGETS["steps"].keys()
    assert all(row["kernels"] > 100 and row["traffic_mb"] > row["saved_mb"] > 10 for row in found["steps"].values())


@needs_device
def test_no_recipe_and_no_validation_exceeds_the_grid_of_a_gpu(found):
    assert found["grids"].keys() == RECIPES.keys()
    rows = found["grids"] | {name: row.get("grids", row) for name, row in found["steps"].items()}
    assert not (failed := {name: row["failed"] for name, row in rows.items() if "failed" in row}), failed
    assert all(row["attention"] <= GRID_LIMIT and row["lif"] < 2**31 for row in rows.values()), rows
    large = rows["vrt_spike_baseline"]["attention"], rows["svrt, shallow"]["attention"], rows["tet_cifar10"]["lif"]
    assert min(large) > GRID_LIMIT // 2, large  # it has seen what is large: crops and tiles of 256 x 256, validation on photo_pan


@pytest.mark.parametrize("name", train_steps.SMALL_STEPS)
def test_a_step_on_the_cpu_reads_no_more_tensors_than_its_budget(name, data_dir):
    reads, budget = train_steps.on_cpu(train_steps.SMALL_STEPS[name], data_dir), BUDGETS["reads"][name]
    assert len(reads) <= budget, f"{name}: {len(reads)} reads, the budget is {budget}. {RENEW}\n" + "\n".join(reads)
    assert reads or budget == 0


def test_every_model_and_every_recipe_is_measured():
    models = {path.stem for path in (conf_dir() / "model").glob("*.yaml")}
    for steps in (train_steps.STEPS, train_steps.SMALL_STEPS):
        assert models == {words.split()[0].removeprefix("model=") for words in steps.values()}
    assert RECIPES.keys() == {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}


def test_the_instrument_counts_kernels_waits_and_what_is_kept():
    with FakeTensorMode(allow_non_fake_inputs=True) as tensors:
        linear = torch.nn.Linear(4, 5, device="cuda")
        device, x = Device(tensors), torch.empty(3, 4, device="cuda")
        with device.counting(linear):
            linear(x.view(3, 4)).relu()
            assert (device.kernels, device.waits) == (2, []) and sum(device.saved.values()) == 4 * (3 * 4 + 3 * 5)  # not the weights
            assert device.traffic == 4 * (3 * 4 + 4 * 5 + 5 + 3 * 5) + 4 * (3 * 5 + 3 * 5)
            x.new_tensor([1.0]), x[x > 0], x.sum().item(), torch.ones(3).to("cuda", non_blocking=True)
            assert [wait.partition(" (")[0] for wait in device.waits] == [
                "a copy between host and device",
                "a selection by a condition",
                "a number is read",
            ]
            with pytest.raises(RuntimeError, match="devices"):
                x + torch.ones(3, 4)
            device.reset()
            rows, columns = torch.empty(4, dtype=torch.int64, device="cuda"), torch.empty(3, dtype=torch.int64, device="cuda")
            product = torch.sparse_csr_tensor(rows, columns, columns.float(), (3, 3), check_invariants=False) @ x
            assert product.device.type == "cuda" and product.shape == x.shape and device.kernels == 2 and not device.waits


def test_reads_past_the_dispatcher_are_seen_and_those_of_an_optimizer_are_not():
    reads = train_steps.Reads()
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with train_steps.mock.patch.object(torch.Tensor, "tolist", reads.noting("tolist")), reads:
        bool(weight.sum() > 0), weight.tolist(), weight[weight > 0]
        torch.optim.Adam([weight], foreach=False).step()
    assert [read.partition(" (")[0] for read in reads.found] == ["_local_scalar_dense", "tolist", "index"]


def test_an_excess_tells_model_figure_and_how_to_renew_the_budget():
    budget = {"kernels": 100, "waits": 1, "saved_mb": 10.0, "traffic_mb": 90.0}
    figures = {"kernels": 103, "waits": ["a copy (loop.py:1)"], "saved_mb": 9.0, "traffic_mb": 90.0}
    assert excesses("net", figures, budget, 0.03) == []
    (told,) = excesses("net", figures | {"kernels": 104}, budget, 0.03)
    assert told == f"net: kernels is 104, the budget is 100. {RENEW}"
    (told,) = excesses("net", figures | {"waits": ["a copy (loop.py:1)", "nonzero (net.py:2)"]}, budget, 0.03)
    assert told == f"net: waits is 2, the budget is 1. {RENEW}\n    a copy (loop.py:1)\n    nonzero (net.py:2)"
    assert excesses("net", {"failed": "no"}, budget, 0.03) == ["net: no"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vgg"], "'vgg' is neither settings nor a step; the steps are: vggsnn; "),
        (["--write", "vggsnn"], "name none"),
        (["--before", "."], "no src/snnexp in it"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_before_anything_is_measured(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_steps.py", *words])
    with pytest.raises(SystemExit, match="2"):
        train_steps.main()
    assert told in capsys.readouterr().err


def test_budgets_and_tables_are_written_from_the_figures():
    figures = {name: budget | {"waits": ["x"] * budget["waits"]} for name, budget in BUDGETS["steps"].items()}
    text = train_steps.written(figures, {name: ["x"] * count for name, count in BUDGETS["reads"].items()})
    assert text == train_steps.BUDGETS.read_text()
    rows = {"net": {"kernels": 1200, "waits": ["x"], "saved_mb": 3.5, "traffic_mb": 9.0}}
    assert train_steps.table(rows, None).splitlines()[-1] == "| net | 1,200 | 1 | 3.5 | 9.0 |"
    before = {"net": {"failed": "no"}}
    assert train_steps.table(rows, before).splitlines()[-1] == "| net | - → 1,200 | - → 1 | - → 3.5 | - → 9.0 |"
