"""Steps by the clock, operations by hand, and the share of the hardware."""

import signal

import pytest
import torch
from torch import nn

from conftest import MADE
from snnexp.profile import steps as profiling
from snnexp.profile.steps import Meter, count_flops, matmul_peak, profile, run_steps, summary


def test_the_operations_of_a_linear_layer():
    layer, x = nn.Linear(30, 20), torch.randn(7, 30)
    forward = 2 * 7 * 30 * 20
    assert count_flops(lambda: layer(x)) == (forward, [])
    assert count_flops(lambda: layer(x).sum().backward())[0] == 2 * forward  # the weight's gradient; the input needs none
    x.requires_grad_(True)
    assert count_flops(lambda: layer(x).sum().backward())[0] == 3 * forward


def test_what_cannot_be_counted_is_named():
    from torchvision.ops import deform_conv2d

    x, offset, weight = torch.randn(1, 2, 5, 5), torch.zeros(1, 18, 5, 5), torch.randn(3, 2, 3, 3)
    flops, left_out = count_flops(lambda: deform_conv2d(x, offset, weight, padding=1))
    assert flops == 0 and left_out == ["torchvision.deform_conv2d"]
    assert count_flops(lambda: torch.zeros(4, 2).scatter_add(0, torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2)).relu())[1] == [
        "aten.scatter_add"
    ]


def test_a_summary_by_hand():
    found = summary([0.1, 0.2, 0.4, 0.1], [8, 8, 8, 4])
    assert found["steps"] == 4
    assert found["step_ms"] == pytest.approx({"median": 150, "min": 100, "p95": 400, "mean": 200})
    assert found["samples_per_s"] == pytest.approx({"median": 40, "best": 80, "mean": 35})
    assert summary([0.001 * n for n in range(1, 21)], [1] * 20)["step_ms"]["p95"] == pytest.approx(19)


class Clock:
    """Goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2 + 5), ({"least": 8.0}, 2 + 9), ({"patience": 2.0}, 2 + 3), ({"least": 8.0, "patience": 4.0}, 2 + 5)],
)
def test_the_meter_ends_a_training_after_enough_steps(options, expected):
    meter, warm = Meter(2, 5, clock=Clock(), on_warmup_end=lambda: warm.append(len(meter.seconds)), **options), []
    meter.begin_epoch()
    for done in range(1, 30):
        last = meter.signum == signal.SIGTERM
        meter.state.samples += 4
        meter.stepped(done)
        if last:
            break
    assert done == expected and warm == [2]
    seconds, samples = meter.results()
    assert seconds == [1.0] * (expected - 2) and samples == [4] * (expected - 2)


def test_steps_are_those_of_the_loop_over_the_ends_of_epochs(make):
    x, y = make("val_every=0.5"), make("val_every=0.5", name="other")
    meter = Meter(2, 7)
    state = run_steps(x, meter)  # 4 batches an epoch
    assert state.step == 9 and state.epoch == 2 and state.batch == 1 and state.samples == 9 * 16
    assert len(meter.seconds) == 9 and meter.samples == [16] * 9 and "snnexp profile" not in x.trackers
    other = Meter(1, 8)
    assert run_steps(y, other).last_loss == state.last_loss  # a real training, whatever is measured of it
    assert not x.run.checkpoint("latest").exists()


def test_a_profile_of_a_tiny_network(make, monkeypatch):
    monkeypatch.setattr(profiling, "PEAK_SECONDS", 0.1)
    x = make("ema=0.9", "optimizer=sgd", "accumulate=2")
    found = profile(x, 1, 3)
    measured, rules = found["memory"]["measured"], found["memory"]["formula"]
    count = x.parameters
    assert measured["parameters"] == measured["gradients"] == measured["optimizer"] == 4 * count
    assert rules["parameters"]["bytes"] == rules["optimizer"]["bytes"] == 4 * count
    buffers = sum(b.numel() * b.element_size() for b in x.model.buffers())
    assert measured["buffers"] == buffers + 4 * count + buffers  # and the moving average of both
    assert rules["activations"]["bytes"] == pytest.approx(measured["activations"], rel=0.05)
    assert measured["activations"] > 16 * 2 * 4 * 16 * 16 * 4  # more than the input
    rows = {row["name"]: row for row in found["tree"]}
    assert {"step", "data", "forward", "backward", "optimizer"} <= rows.keys() and "forward/features" in rows
    assert rows["step"]["inclusive_ms"] == pytest.approx(found["step_ms"]["mean"], rel=0.1)
    assert found["steps"] == 3 and found["batch_size"] == 16 and found["training_samples"] == 64
    kinds = {"convolution": {"share": pytest.approx(1, abs=0.02), "gflops": MADE["convolution"]}}
    assert found["layers"] == {"kinds": kinds, "precision": "fp32", "channels_last": True}
    assert (found["precision"], found["channels_last"]) == ("fp32", True)
    share = found["hardware"]
    convolutions = [m for m in x.model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 8 and share["flops"] > 0 and 0 < share["share"] < 1.5
    assert share["share"] == pytest.approx(share["flops"] / (found["step_ms"]["median"] / 1e3) / share["peak"]["flops_per_s"])


def test_the_flops_of_a_step_are_those_of_all_its_batches(make, monkeypatch):
    monkeypatch.setattr(profiling, "matmul_peak", lambda device, precision: {"flops_per_s": 1e9})
    found = [profiling.hardware_share(x, profiling.State(), 10.0) for x in (make(), make("accumulate=2", name="two"))]
    assert found[1]["flops"] == 2 * found[0]["flops"] > 0
    assert found[0]["share"] == pytest.approx(found[0]["flops"] / 0.01 / 1e9)


def test_an_operation_that_refuses_to_be_watched_is_a_reason(make, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("not of sparse tensors\nand more")

    monkeypatch.setattr(profiling, "forward_backward", refuse)
    monkeypatch.setattr(profiling, "matmul_peak", lambda device, precision: {"flops_per_s": 1e9})
    found = profiling.hardware_share(make(), profiling.State(), 10.0)
    assert found["flops"] is None and found["reason"] == "NotImplementedError: not of sparse tensors" and "share" not in found


def test_the_measured_peak_is_that_of_a_product():
    peak = matmul_peak(torch.device("cpu"), "fp32", seconds=0.05)
    assert peak["size"] >= 512 and peak["products"] >= 1 and 1e8 < peak["median"] <= peak["flops_per_s"] < 1e14
