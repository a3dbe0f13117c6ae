"""What a profile says, from its numbers."""

import pytest

from snnexp.profile import report

ROWS = [
    {"name": "step", "depth": 0, "inclusive_ms": 100.0, "exclusive_ms": 5.0, "p95_ms": 120.0, "share": 1.0},
    {"name": "data", "depth": 0, "inclusive_ms": 35.0, "exclusive_ms": 35.0, "p95_ms": 40.0, "share": 0.35},
    {"name": "forward", "depth": 0, "inclusive_ms": 60.0, "exclusive_ms": 10.0, "p95_ms": 70.0, "share": 0.6},
    {"name": "forward/stage1", "depth": 1, "inclusive_ms": 50.0, "exclusive_ms": 50.0, "p95_ms": 55.0, "share": 0.5},
]


def rung(**changes):
    row = {
        "changed": {}, "batch_size": 8, "accumulate": 2, "state": "ok", "reason": "", "memory": 3 * 2**29, "gain": 1.0,
        "over_baseline": 1.0, "kept": True, "step_ms": {"median": 12.34}, "samples_per_s": {"median": 1296.6},
    }  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**29, "1.50 GiB"), (None, "-")]
)
def test_sizes(count, text):
    assert report.format_bytes(count) == text


def test_the_tree_is_indented_and_names_the_loader():
    text = report.tree({"tree": ROWS, "workers": 0}).splitlines()
    assert text[1].split() == ["step", "100.00", "5.00", "120.00", "100.0%"]
    assert text[3].startswith("  forward ") and text[4].startswith("    stage1 ") and text[4].split()[-1] == "50.0%"
    assert "The loader is a bottleneck: 35.0%" in text[-1] and "workers=1" in text[-1]
    assert "raise workers" in report.loader(ROWS, workers=2)
    assert "no bottleneck: 9.0%" in report.loader([ROWS[0], ROWS[1] | {"share": 0.09}], 0)
    assert report.tree({"tree": [], "workers": 0}) == ""


def test_memory_has_what_is_measured_beside_the_formula():
    measured = {"parameters": 100, "gradients": 100, "optimizer": 200, "buffers": 0, "activations": 600}
    found = {
        "measured": measured,
        "formula": {"parameters": {"bytes": 100, "rule": "4 B x 25"}},
        "peak": {"of": "process", "bytes": 2**30, "before": 2**29},
    }
    lines = report.memory(found).splitlines()
    assert lines[1].split() == ["parameters", "100", "B", "10.0%", "100", "B", "4", "B", "x", "25"]
    assert lines[5].split() == ["activations", "600", "B", "60.0%"] and lines[6].split() == ["together", "1000", "B"]
    assert "1.00 GiB, of which 512.0 MiB before" in lines[7]
    found["peak"] = {"of": "device", "bytes": 2**30, "reserved": 2**31}
    assert "1.00 GiB allocated, 2.00 GiB reserved" in report.memory(found)


def test_the_share_of_the_hardware():
    peak = {"flops_per_s": 2e12, "products": 7, "size": 2048, "precision": "bf16"}
    found = {"peak": peak, "flops": 5e10, "flops_per_s": 5e11, "share": 0.25, "not_counted": ["torchvision.deform_conv2d"]}
    text = report.hardware(found)
    assert "25.0% (50.00 GFLOP a step, 500 GFLOP/s" in text and "2,000 GFLOP/s" in text and "torchvision.deform_conv2d." in text
    assert "not counted (Error: no)" in report.hardware({"peak": peak, "flops": None, "reason": "Error: no", "not_counted": []})


def test_the_speeds_of_layers_and_what_auto_takes():
    convolution = {"fp32": 123.4, "fp32 channels_last": 145.0, "bf16": 386.0, "bf16 channels_last": 1644.0}
    kinds = {"convolution": {"share": 0.25, "gflops": convolution}, "matmul": {"share": 0.75, "gflops": {"fp32": 113.0, "bf16": 457.0}}}
    lines = report.layers({"kinds": kinds, "precision": "bf16", "channels_last": True}).splitlines()
    assert lines[0].split() == ["layers,", "GFLOP/s", "weights", "fp32", "fp32", "channels_last", "bf16", "bf16", "channels_last"]
    assert lines[1].split() == ["convolution", "25%", "123", "145", "386", "1644"] and lines[2].split() == ["matmul", "75%", "113", "457"]
    for name in ("bf16", "fp32"):  # each number ends below the end of its case
        end = lines[0].index(f"  {name}  ") + 2 + len(name)
        assert lines[2][:end].endswith({"fp32": "113", "bf16": "457"}[name])
    assert "precision=auto takes bf16, channels_last=auto takes true" in lines[-1]
    assert report.layers(None) == "" == report.layers({"kinds": {}, "precision": "fp32", "channels_last": False})


def test_the_ladder_is_aligned_and_marks_what_changes_training():
    rows = [
        rung(),
        rung(changed={"precision": "bf16"}, gain=1.503, over_baseline=1.503),
        rung(changed={"compile": True}, kept=False, gain=0.9, over_baseline=1.35),
        rung(changed={"batch_size": 16}, batch_size=16, state="out of memory", reason="more than it may", kept=False, memory=None),
    ]
    lines = report.ladder(rows, ("precision", "batch_size")).splitlines()
    assert lines[0].split() == ["setting", "batch", "memory", "step", "ms", "samples/s", "gain", "over", "baseline"]
    assert lines[1].split() == ["baseline", "kept", "16", "1.50", "GiB", "12.3", "1297"]
    assert lines[2].split() == ["precision=bf16*", "kept", "16", "1.50", "GiB", "12.3", "1297", "x1.50", "x1.50"]
    assert lines[3].split()[0] == "compile=true" and "kept" not in lines[3]
    assert lines[4].split()[:2] == ["batch_size=16*", "32"] and lines[4].endswith("out of memory: more than it may")
    assert len({line.index("16", 18) for line in lines[1:4]}) == 1


def test_the_verdict_says_what_it_means_for_the_training():
    final = {"ratio": 2.5, "baseline_samples_per_s": 100.0, "tuned_samples_per_s": 250.0}
    found = {
        "tuned": {"batch_size": 16, "precision": "bf16"}, "baseline": {"batch_size": 4, "accumulate": 2}, "precision": "fp32",
        "final": final, "broken": None, "stopped": "", "rows": [rung()],
    }  # fmt: skip
    text = report.verdict(found)
    assert "batch_size=16 precision=bf16" in text and "baseline 100 -> tuned 250 samples/s, measured in turn: x2.50" in text
    assert "now sees 32 samples instead of 8" in text and "4 times fewer" in text and "lr is as it was" in text
    assert "batch_size=4 accumulate=2" in text and "rounds otherwise than fp32" in text
    found["tuned"] = {"batch_size": 8, "accumulate": 1}
    assert "still sees 8 samples" in report.verdict(found)
    assert report.verdict(found | {"tuned": {}, "final": final | {"ratio": 0.9}}).endswith(
        "x0.90: no faster after all, so the baseline stays as it is."
    )
    broken = {"which": "baseline", "setting": {}, "state": "failed", "reason": "no"}
    assert report.outcome(found | {"final": None, "broken": broken}) == (
        "tuned 1297 samples/s; the baseline did not run again beside it (failed: no), so it is not compared."
    )
    assert report.verdict(found | {"tuned": {}, "final": None, "stopped": "no time"}).splitlines() == [
        "Not everything was tried: no time.",
        "Nothing was faster than the baseline, beyond the noise: it stays as it is.",
    ]
