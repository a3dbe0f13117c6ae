"""Curves of a variational run: read from the log, drawn, with units and the best epoch."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.posterior.vae_files import make, row_of
from snnexp.analysis.curves import read_log
from snnexp.analysis.panels import add_panels
from snnexp.analysis.posterior import curves as vae_curves


@pytest.fixture(scope="module")
def rows():
    return [row_of(n / 2, 4, 250) for n in range(1, 9)]


@pytest.fixture(scope="module")
def figures(rows, tmp_path_factory):
    """The three figures of a run, drawn once, by the name of their file."""
    figures, save = {}, Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure,
            "savefig",
            lambda self, path, **k: (figures.update({Path(path.name).name[1:].rsplit(".", 2)[0]: self}), save(self, path, **k)),
        )
        best = {"epoch": 3.5, "metric": "Val/AUROC", "value": rows[6]["Val/AUROC"]}
        names = vae_curves.draw(vae_curves.from_log(rows, best, 1.0), "a $run", tmp_path_factory.mktemp("plots"))
    assert names == ["loss_curves.png", "performance_metrics.png", "training_dynamics.png"] == list(figures)
    return figures


def test_the_log_is_read_over_steps(rows, tmp_path):
    run = make(tmp_path / "run", rows=rows)
    curves = vae_curves.from_log(read_log(run / "logs/metrics.jsonl"), {"epoch": 2, "metric": "Val/AUROC", "value": 0.7}, weight=0.5)
    assert curves.unit == "optimizer step" and curves.best == (500, "best epoch, 2") and curves.from_snnexp
    assert curves.by_name["Val/KL"][0].tolist() == [125 * n for n in range(1, 9)]
    assert curves.by_name["Train/KL"][0].tolist() == [250, 500, 750, 1000]  # no Train in the middle of an epoch
    assert curves.by_name["Beta"][1].tolist() == [row["Train/Beta"] for row in rows if "Train/Beta" in row]
    assert curves.by_name["Val/Accuracy"][1][-1] == 87 and curves.by_name["Weight/CE"][1].tolist() == [0.5]
    assert curves.parts("KL") == ["Train", "Val"] and curves.parts("AUROC") == ["Val"]


def test_without_steps_it_is_over_epochs():
    curves = vae_curves.from_log([{"epoch": 1, "Train/KL": 1.0}, {"epoch": 2, "Train/KL": None}], {"epoch": 2, "metric": "x"})
    assert curves.unit == "epoch" and curves.best == (2, "best epoch, 2") and curves.by_name["Train/KL"][1].tolist() == [1.0]


def test_losses(figures, rows):
    panels = figures["loss_curves.png"].axes
    assert [axes.get_ylabel() for axes in panels] == [
        "loss (sum of its terms)", "reconstruction (per set)", "KL (nats per set)", "prediction loss (cross-entropy, nats)",
    ]  # fmt: skip
    train, val, best = panels[2].get_lines()
    assert train.get_ydata().tolist() == [row["Train/KL"] for row in rows if "Train/KL" in row]
    assert val.get_ydata().tolist() == [row["Val/KL"] for row in rows] and val.get_linestyle() != train.get_linestyle()
    assert best.get_xdata()[0] == 875 and best.get_label() == "best epoch, 3.5"
    assert panels[0].get_xlabel() == "optimizer step" and panels[0].xaxis.get_major_formatter()(12500, 0) == "12,500"


def test_performance(figures, rows):
    auroc, auprc, accuracy = figures["performance_metrics.png"].axes
    assert auroc.get_lines()[0].get_ydata().tolist() == [row["Val/AUROC"] for row in rows]
    assert auprc.get_ylabel() == "area under precision-recall (fraction)" and accuracy.get_ylabel() == "accuracy (%)"


def test_the_title_of_performance_says_how_many(tmp_path, monkeypatch):
    titles, figure = [], vae_curves.figure
    monkeypatch.setattr(vae_curves, "figure", lambda path, width, height, title: titles.append(title) or figure(path, width, height, title))
    for count in (None, 1800):
        curves = vae_curves.Curves({"Val/AUROC": curve_of_one}, validation_samples=count)
        assert vae_curves.draw_performance(curves, "a", tmp_path / "a.png")
    assert titles == ["a: performance", "a: performance (n = 1,800 in validation)"]


curve_of_one = vae_curves.make_curve([(1, 0.5)])


def test_dynamics(figures, rows):
    beta, shares, path = figures["training_dynamics.png"].axes
    last = rows[-1]
    assert beta.get_lines()[0].get_ydata()[-1] == last["Train/Beta"]
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["reconstruction", "β·KL", "prediction loss"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in shares.collections]
    least = [area.get_paths()[0].vertices[:, 1].min() for area in shares.collections]
    assert tops[-1] == pytest.approx(100) and least[0] == 0 and all(area.get_hatch() for area in shares.collections[1:])
    lines = {line.get_label(): line for line in path.get_lines()}
    assert lines["val"].get_xdata().tolist() == [row["Val/Recon"] for row in rows]
    assert lines["val"].get_ydata().tolist() == [row["Val/KL"] for row in rows]


def test_terms_are_weighted_at_the_same_steps():
    rows = [{"epoch": 1, "step": 10, "Train/Recon": 4.0, "Train/KL": 20.0, "Train/Beta": 0.1, "Train/CE": 0.5}]
    terms = vae_curves.weighted_terms(vae_curves.from_log(rows, None, 2.0))
    assert {name: values.tolist() for name, (_, values) in terms.items()} == {"reconstruction": [4], "β·KL": [2], "prediction loss": [1]}
    del rows[0]["Train/Beta"]
    assert "KL, its β not logged" in vae_curves.weighted_terms(vae_curves.from_log(rows, None))


def test_smoothing_keeps_a_constant_and_follows_a_step():
    means, span = vae_curves.smooth(np.full(1000, 3.0))
    assert span == 20 and np.allclose(means, 3)
    means, _ = vae_curves.smooth(np.repeat([0.0, 1.0], 500))
    assert means[499] == 0 and 0 < means[505] < 1 and means[-1] == pytest.approx(1)


def test_a_dense_curve_is_smoothed_over_the_raw_one(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(vae_curves, "add_panels", lambda drawing, count: drawn.extend(add_panels(drawing, count)) or drawn)
    steps = np.arange(20_000) * 50.0
    curves = vae_curves.Curves({"Train/Loss": (steps, np.exp(-steps / 1e4) * 1e3 + 1)}, from_snnexp=False)
    assert vae_curves.draw_losses(curves, "a", tmp_path / "loss.png") and not vae_curves.draw_performance(curves, "a", tmp_path / "p.png")
    raw, smooth = drawn[0].get_lines()
    assert smooth.get_label() == "train, EMA of 400 points" and len(raw.get_xdata()) == vae_curves.MAX_DRAWN_POINTS and raw.get_alpha() < 1
    assert drawn[0].get_yscale() == "log" and drawn[0].get_ylabel() == "loss (as logged), log scale"


def test_one_epoch_and_no_numbers(tmp_path):
    row = {"epoch": 1, "step": 12, "Train/KL": 0.002, "Train/Recon": 3.0, "Val/KL": None, "Val/AUROC": None, "Val/Acc1": 100.0}
    curves = vae_curves.from_log([json.loads(json.dumps(row))], None)
    assert vae_curves.draw(curves, "n" * 300, tmp_path) == ["loss_curves.png", "performance_metrics.png", "training_dynamics.png"]
    assert vae_curves.draw(vae_curves.from_log([], None), "a", tmp_path / "none") == []
