"""What is timed, how it is kept, and that nothing kept wrong is believed; nothing here measures this machine."""

import json
import math
import os
import stat
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from snnexp import machine
from snnexp.engine.arithmetic import layer_speed
from snnexp.engine.arithmetic.layer_speed import (
    FRAMES,
    KINDS,
    ROUNDS,
    SECONDS,
    STAGES,
    TOKENS,
    case,
    cases,
    least_seconds,
    load_or_measure,
    passes,
)
from snnexp.profile.steps import count_flops

measure_speeds = layer_speed.measure_speeds  # the real one, before the tests put a made one in its place


class Clock:
    """Stands still but for what a pass takes."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float):
        """A pass of these seconds, the last of them for ever after."""
        left = list(seconds)

        def run() -> None:
            self.done.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_passes_take_turns_and_the_best_of_each_counts():
    clock = Clock()
    tries = {"slow": clock.taking("slow", 9.0, 0.5, 0.25, 0.5), "fast": clock.taking("fast", 0.001, 5.0, 0.125)}
    assert least_seconds(tries, clock) == {"slow": 0.25, "fast": 0.125}  # the first of each only gets it ready
    assert clock.done == ["slow", "fast"] * (1 + ROUNDS)


def test_quick_passes_have_more_rounds():
    clock = Clock()
    assert least_seconds({"quick": clock.taking("quick", 2**-7)}, clock) == {"quick": 2**-7}
    assert len(clock.done) == 1 + math.ceil(SECONDS / 2**-7)


def test_bf16_is_tried_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert cases("convolution") == [("fp32", False), ("fp32", True)] and cases("matmul") == [("fp32", False)]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [case(*one) for one in cases("convolution")] == ["fp32", "fp32 channels_last", "bf16", "bf16 channels_last"]
    assert cases("matmul") == [("fp32", False), ("bf16", False)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_as_a_training_step_has_them(precision, channels_last):
    gradients = passes("convolution", precision, channels_last)()
    assert len(gradients) == len(STAGES)
    for (channels, side), (g_x, g_weight) in zip(STAGES, gradients, strict=True):
        assert g_x.shape == (FRAMES, channels, side, side) and g_weight.shape == (channels, channels, 3, 3)
        assert g_x.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32) and g_weight.dtype == torch.float32
        assert g_x.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert g_x[0, 0, 5, 5].item() == pytest.approx(channels * 9 * 0.01, rel=0.01)  # a sum of weights
        assert g_weight[0, 0, 1, 1].item() == pytest.approx(FRAMES * side**2 * 0.5, rel=0.01)  # a sum of inputs
    assert len({channels * side for channels, side in STAGES}) == 1  # all cost the same


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_matrix_product_as_a_training_step_has_it(precision):
    [(g_x, g_weight)] = passes("matmul", precision, False)()
    assert g_x.shape == (TOKENS, 384) and g_x[0, 0].item() == pytest.approx(384 * 0.01, rel=0.01)
    assert g_weight[0, 0].item() == pytest.approx(TOKENS * 0.5, rel=0.01) and g_weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_speeds_are_operations_by_seconds(kind, monkeypatch):
    monkeypatch.setattr(layer_speed, "least_seconds", lambda tries: dict.fromkeys(tries, 0.5))
    flops, left_out = count_flops(passes(kind, "fp32", False))
    assert left_out == []
    assert measure_speeds(kind) == {case(*one): pytest.approx(flops / 0.5 / 1e9) for one in cases(kind)}


def test_measuring_has_one_thread_and_draws_no_random_number(monkeypatch):
    threads, seen = torch.get_num_threads(), set()

    def once(tries):
        seen.add(torch.get_num_threads())
        return {name: run() and 1.0 for name, run in tries.items()}

    monkeypatch.setattr(layer_speed, "least_seconds", once)
    before = torch.random.get_rng_state()
    try:
        torch.set_num_threads(2)
        for kind in KINDS:
            measure_speeds(kind)
        assert seen == {1} and torch.get_num_threads() == 2
        monkeypatch.setattr(layer_speed, "least_seconds", lambda tries: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_speeds("matmul")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(before, torch.random.get_rng_state())


MADE = {
    "convolution": {"fp32": 1.0, "fp32 channels_last": 2.0, "bf16": 3.0, "bf16 channels_last": 4.0},
    "matmul": {"fp32": 5.0, "bf16": 6.0},
}


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Counter:
    """An empty cache, a processor with bf16, and how often each kind was measured."""
    counts: Counter = Counter()

    def count(kind: str) -> dict[str, float]:
        counts[kind] += 1
        return MADE[kind]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(layer_speed, "measure_speeds", count)
    return counts


def test_a_kind_is_measured_once(measured, tmp_path):
    first = load_or_measure("convolution")
    assert first.gflops == MADE["convolution"] and load_or_measure("convolution") == first and measured == {"convolution": 1}
    assert load_or_measure("matmul").gflops == MADE["matmul"] and measured == {"convolution": 1, "matmul": 1}
    names = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "snnexp").iterdir()}
    assert names == {"speed-convolution", "speed-matmul"}
    (path,) = (tmp_path / "snnexp").glob("speed-matmul-*.json")
    content = json.loads(path.read_text())
    assert content["gflops"] == MADE["matmul"] and content["torch"] == torch.__version__
    assert stat.S_IMODE((tmp_path / "snnexp").stat().st_mode) == 0o700


def test_those_that_start_together_take_one_measurement(measured, monkeypatch):
    rates = iter((100.0, 200.0))

    def measure(kind: str) -> dict[str, float]:
        time.sleep(0.2)
        return dict.fromkeys(MADE[kind], next(rates))

    monkeypatch.setattr(layer_speed, "measure_speeds", measure)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load_or_measure, ["matmul", "matmul"])
    assert one == other == load_or_measure("matmul")


def test_a_lock_that_cannot_be_had_is_no_end(measured, tmp_path):
    layer_speed.path_of("matmul").with_suffix(".lock").mkdir(parents=True)
    assert load_or_measure("matmul").gflops == MADE["matmul"]


def other_processor(patch):
    patch.setattr(layer_speed, "processor", lambda: "model name : another")


def other_torch(patch):
    patch.setattr(torch, "__version__", "99.0")


def other_kernels(patch):
    patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize("change", [other_processor, other_torch, other_kernels])
def test_what_the_speed_depends_on_is_measured_for_itself(change, measured, monkeypatch):
    load_or_measure("matmul")
    with monkeypatch.context() as patch:
        change(patch)
        load_or_measure("matmul")
        load_or_measure("matmul")
    load_or_measure("matmul")
    assert measured == {"matmul": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b'"fp32"', b"{}", b'{"gflops": {}, "when": "x"}', b'{"gflops": [5, 6], "when": "x"}',
        b'{"gflops": {"fp32": 5.0}, "when": "x"}', b'{"gflops": {"fp32": 5.0, "bf16": "fast"}, "when": "x"}',
        b'{"gflops": {"fp32": 5.0, "bf16": NaN}, "when": "x"}', b'{"gflops": {"fp32": 5.0, "bf16": 0}, "when": "x"}',
        b'{"gflops": {"fp32": 5.0, "bf16": 6.0}}', b'{"gflops": {"fp32": 5.0, "bf16": null}, "when": "x"}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew_and_mended(content, measured, tmp_path):
    load_or_measure("matmul")
    (path,) = (tmp_path / "snnexp").glob("*.json")
    path.write_bytes(content)
    assert load_or_measure("matmul").gflops == MADE["matmul"] and measured["matmul"] == 2
    assert load_or_measure("matmul").gflops == MADE["matmul"] and measured["matmul"] == 2
    assert {one.name for one in (tmp_path / "snnexp").iterdir()} == {path.name, path.with_suffix(".lock").name}


def test_a_folder_in_the_way_of_the_file_is_no_end(measured, tmp_path):
    path = layer_speed.path_of("matmul")
    (path / "full").mkdir(parents=True)
    assert [load_or_measure("matmul").gflops for _ in range(2)] == [MADE["matmul"]] * 2 and measured["matmul"] == 2


def no_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    patch.setenv("XDG_CACHE_HOME", str(folder / "file"))


def of_others(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "snnexp").mkdir(exist_ok=True)
    (folder / "snnexp").chmod(0o777)


def of_another(folder: Path, patch: pytest.MonkeyPatch) -> None:
    someone = os.geteuid() + 1
    patch.setattr(machine.os, "geteuid", lambda: someone)


def without_a_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("XDG_CACHE_HOME")
    patch.setattr(Path, "home", nowhere)


@pytest.mark.parametrize("spoil", [no_folder, of_others, of_another, without_a_home])
def test_a_cache_that_cannot_be_used_costs_only_time(spoil, measured, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(tmp_path, patch)
        for _ in range(2):
            assert load_or_measure("convolution").gflops == MADE["convolution"]
    assert measured == {"convolution": 2} and not list(tmp_path.rglob("speed-*"))


def test_a_full_disk_costs_only_time(measured, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert [load_or_measure("matmul").gflops for _ in range(2)] == [MADE["matmul"]] * 2 and measured["matmul"] == 2


def test_a_matrix_product_knows_no_layout(measured):
    product, convolution = load_or_measure("matmul"), load_or_measure("convolution")
    assert product.of("bf16", True) == product.of("bf16", False) == 6.0
    assert convolution.of("fp32", True) == 2.0 and convolution.of("fp16", True) is None
