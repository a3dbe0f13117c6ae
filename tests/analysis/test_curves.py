"""The metrics log read and drawn."""

import json

from matplotlib import image

from analysis.run_files import make
from snnexp.analysis import curves
from snnexp.analysis.panels import add_panels


def test_the_log_is_read_whole_lines_only(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(
        b'{"epoch": 2, "Val/Loss": 0.5}\n{"epoch": 1, "Val/Loss": 0.9}\n[1]\n{"other": 1}\n\xff\n{"epoch": null}\n'
        b'{"epoch": 2, "Val/Loss": 0.4}\n' + b'{"a":' * 100_000 + b'\n{"epoch": 3, "Val'
    )
    assert curves.read_log(log) == [{"epoch": 1, "Val/Loss": 0.9}, {"epoch": 2, "Val/Loss": 0.4}]


def test_a_panel_for_each_metric():
    rows = [
        {
            "epoch": 1,
            "step": 9,
            "LR": 0.1,
            "Train/MAE": 1.0,
            "Val/R2": 0.1,
            "Train/Loss": 2.0,
            "Val/Loss": None,
            "Spikes/a": [0.1],
            "x": True,
        },
        {"epoch": 2, "step": 18, "LR": 0.1, "Val/AUROC": float("nan"), "KL": 0.5, "nonfinite": {"Val/Loss": "nan"}},
    ]
    assert curves.metric_names(rows) == ["Loss", "MAE", "R2", "LR", "KL"]
    assert curves.series(rows, "Train/Loss") == ([1], [2.0]) and curves.series(rows, "Val/Loss") == ([], [])


def test_what_a_metric_is_compared_with_is_a_line_in_its_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "add_panels", lambda drawing, count: drawn.extend(add_panels(drawing, count)) or drawn)
    values = {"Val/PSNR": 30.0, "Val/PSNR_Y": 31.0, "Val/PSNR_blur": 24.5, "Val/PSNR_TFP": 27.25, "Val/SSIM": 0.9, "Val/SSIM_blur": 0.7}
    rows = [{"epoch": epoch, **values} for epoch in (1, 2)]
    assert curves.metric_names(rows) == ["PSNR", "PSNR_Y", "SSIM"] and curves.metric_names([{"epoch": 1, "Val/PSNR_blur": 1.0}]) == [
        "PSNR_blur"
    ]
    assert curves.draw(rows, None, "a run", tmp_path / "curves.png")
    lines = {line.get_label(): line.get_ydata()[0] for line in drawn[0].get_lines()}
    assert lines == {"Val": 30.0, "blur, 24.5": 24.5, "TFP, 27.25": 27.25}


def test_what_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "add_panels", lambda drawing, count: drawn.extend(add_panels(drawing, count)) or drawn)
    run = make(tmp_path / "a", epochs=30)
    rows = curves.read_log(run / "logs/metrics.jsonl")
    best = {"epoch": 12, "metric": "Val/MAE", "value": rows[11]["Val/MAE"]}
    assert curves.draw(rows, best, "a $name$ with_signs", tmp_path / "curves.png")
    assert image.imread(tmp_path / "curves.png").std() > 0.05
    assert [axes.get_title("left") for axes in drawn] == ["Loss", "MAE (monitored)", "LR"]
    loss, mae, rate = drawn
    train, val, marked = loss.get_lines()
    assert list(val.get_xdata()) == list(range(1, 31)) and val.get_ydata()[4] == rows[4]["Val/Loss"]
    assert (train.get_label(), val.get_label(), marked.get_xdata()[0]) == ("Train", "Val", 12)
    assert mae.get_lines()[-1].get_ydata()[0] == best["value"]
    assert rate.get_lines()[0].get_ydata()[0] == rows[0]["LR"]
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_validation_and_of_one_epoch(tmp_path):
    assert curves.draw([{"epoch": 1, "Train/Loss": 2.0}], None, "a", tmp_path / "curves.png")
    assert not curves.draw([], None, "a", tmp_path / "none.png")
    assert not curves.draw([{"epoch": 1, "Spikes/a": [0.1]}], None, "a", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_huge_and_tiny_numbers(tmp_path):
    rows = [{"epoch": n, "Train/Loss": 1e30 / 10**n, "LR": 1e-12} for n in range(1, 40)]
    assert curves.draw(json.loads(json.dumps(rows)), None, "n" * 300, tmp_path / "curves.png")
