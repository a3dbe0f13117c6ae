"""What is said of a posterior: verdicts, numbers, alarms and since when, and the notes on the inverted statistics."""

import json
import re

import numpy as np
import pytest

from analysis.posterior.vae_files import history, posterior
from snnexp.analysis.panels import add_panels
from snnexp.analysis.posterior import collapse, collapse_plots, latent
from snnexp.analysis.posterior.collapse import Evidence
from snnexp.analysis.posterior.curves import Curves, make_curve


def evidence(*collapsed, **more):
    """Evidence from a made posterior with one level for each fraction that is collapsed."""
    mu, logvar = posterior(400, 20, levels=len(collapsed), collapsed=collapsed)
    joint = latent.mutual_information(np.concatenate(list(mu), 1), np.concatenate(list(logvar), 1))[0]
    levels = [latent.measure_level(*one) for one in zip(mu, logvar, strict=True)]
    return Evidence("run", "400 sets", levels, mutual_information=joint, legacy=collapse.legacy_statistics(logvar), **more)


def unwrapped(evidence):
    return " ".join(collapse.analysis_text(evidence).split())


@pytest.fixture(scope="module")
def half():
    return evidence(0.25, 0.5)


def test_the_three_are_told_apart_and_the_legacy_statistics_have_it_the_wrong_way():
    found = {fraction: evidence(fraction) for fraction in (0.0, 0.5, 1.0)}
    assert [collapse.verdict(one) for one in found.values()] == ["healthy", "partly collapsed", "collapsed"]
    assert found[1.0].legacy == (1.0, pytest.approx(1, abs=1e-3)) and found[1.0].active == 0 and found[1.0].kl < 1e-3
    text = unwrapped(found[1.0])
    assert "0 of 20 units are active (0.0 %); 20 are not: their means hardly vary" in text
    assert "20 (100.0 %) are (ε,δ)-collapsed: the prior for (nearly) every set." in text
    assert "the old monitor would not raise its" in text and "inverted" in text and "What usually helps" in text
    assert "What usually helps" not in collapse.analysis_text(found[0.0])


def test_the_numbers_of_each_level(half):
    text = collapse.analysis_text(half)
    assert text.startswith("Posterior collapse: run\nVerdict: partly collapsed. 25 of 40 units are active (62.5 %)")
    row = {line[2:28].strip(): line[28:].split() for line in text.splitlines() if line.startswith("  ")}
    assert row["KL, nats per set"] == [f"{level.kl.sum():.4g}" for level in half.levels]
    assert re.search(r"active units +15 of 20 +10 of 20\n", text) and re.search(r"\(ε,δ\)-collapsed units +25.0 % +50.0 %\n", text)
    joint = float(re.search(r"all levels together: ≥ (\S+) nats", text)[1])
    assert 0.95 * np.log(400) < joint <= np.log(400) + 1e-9  # which it cannot exceed
    assert "lower bound near it (≥)" in unwrapped(half) and "ε = 0.01 nats for at least 1 - δ = 95 % of the sets" in text
    assert max(map(len, text.splitlines())) <= 110


def test_units_with_a_constant_code_are_not_active_and_not_collapsed():
    level = latent.measure_level(np.full((50, 4), 2.0, np.float32), np.zeros((50, 4), np.float32))
    text = unwrapped(Evidence("run", "50 sets", [level]))
    assert "0 of 4 units are active (0.0 %); 4 are not: their means hardly vary" in text
    assert "they hold 8 of 8 nats of KL. 0 (0.0 %) are (ε,δ)-collapsed" in text


def test_history_and_alarms(tmp_path, half):
    rows = history(tmp_path, dims=20)
    path = tmp_path / "posterior_metrics/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 9}\n[1]\n{"step": 1200, "held_out"')
    half.history = collapse.read_history(path)
    assert half.history == rows
    text = collapse.analysis_text(half)
    assert "Over training (tracker=posterior, 5 updates, the fixed held-out subset)" in text
    last = rows[-1]["held_out"]
    assert re.search(rf"  KL, nats per set +\S+ at step 200, {last['kl']:.4g} at step 1,000\n", text)
    assert "verdict of the tracker     partly collapsed, since step 600" in text
    assert re.search(r"active_units: since step 200, and ceased after step 400: \S+ against the threshold 0.1", text)
    only = Evidence("run", "x", collapse.levels_of_last_update(rows), history=rows)
    assert [level.active.sum() for level in only.levels] == [12, 12] and only.levels[0].variance is None
    assert "62.5 %" not in collapse.analysis_text(only) and "24 of 40 units are active (60.0 %)" in collapse.analysis_text(only)
    half.history = []


@pytest.mark.parametrize("row", [{"levels": [{}]}, {"levels": [3]}, {"levels": 4}, {"levels": [{"kl_per_dim": [[1]]}]}])
def test_a_history_of_another_form(tmp_path, row):
    (tmp_path / "a").write_text(json.dumps({"step": 1, "held_out": None, "window": row, "alarms": [1, {}], "verdict": 3}) + "\n")
    rows = collapse.read_history(tmp_path / "a")
    assert collapse.levels_of_last_update(rows) == []
    assert "not known" in collapse.analysis_text(Evidence("run", history=rows))


def test_a_kl_alone(half):
    from_snnexp = Curves({"Train/KL": make_curve([(1, 2.0), (2, 1e-4)])})
    assert collapse.verdict(Evidence("run", curves=from_snnexp)) == "collapsed"
    assert "KL: 2 at optimizer step 1, lowest 0.0001 at 2" in collapse.analysis_text(Evidence("run", curves=from_snnexp))
    theirs = Curves({"Train/KL": make_curve([(n, max(25.6, 40 - n)) for n in range(40)])}, from_snnexp=False)
    text = unwrapped(Evidence("events", curves=theirs))
    assert "Verdict: not known" in text and "rests at 25.6" in text and "neither can show collapse" in text
    assert collapse.floor_of(np.arange(10.0) + 1) is None and collapse.floor_of(np.full(4, 3.0)) == 3


def test_what_the_tracker_logged():
    logged = {"ActiveUnits": 0.5, "CollapsedUnits": 0.5, "MutualInformation": 4.0, "ActiveUnits_level0": 0.5, "CollapsedUnits_level0": 0.5}
    curves = Curves({f"Posterior/{name}": make_curve([(200, 1.0), (400, value)]) for name, value in logged.items()})
    text = unwrapped(Evidence("events", curves=curves))
    assert "Verdict: partly collapsed. So say active units" in text and "Posterior/ActiveUnits: 1 at step 200, 0.5 at step 400" in text


def test_a_number_stands_under_the_one_step_it_was_measured_at(tmp_path, half):
    half.history = history(tmp_path, dims=20)
    half.curves = Curves({"Posterior/KL": make_curve([(250, 1.0)]), "Val/KL": make_curve([(250, 2.0)])})
    text = collapse.analysis_text(half)
    assert "Posterior/KL" not in text and "Val/KL: 2 at optimizer step 250" in text
    half.history, half.curves = [], Curves()


@pytest.mark.parametrize(
    ("epoch", "words"),
    [
        (3.0, "these are different weights, of the end of training there, of epoch 3 here."),
        (5.0, "both are of the end of training, measured on other sets."),
        (None, "the tracker measured the weights of the end of training, the latents are of those that were judged."),
    ],
)
def test_a_tracker_that_says_otherwise(tmp_path, epoch, words):
    found = evidence(1.0, history=history(tmp_path, dims=20), of_latents=True, epoch=epoch)
    contrast = f"tracker=posterior says partly collapsed at step 1,000, the latents collapsed: {words}"
    assert collapse.summary(found).findings == ["the posterior is collapsed: units 0 of 20 active (0.0 %), on 400 sets.", contrast]
    assert contrast in unwrapped(found)
    found.history[-1]["verdict"] = "collapsed"
    assert len(collapse.summary(found).findings) == 1 and "tracker=posterior says" not in collapse.analysis_text(found)


def test_findings(tmp_path):
    assert collapse.summary(evidence(0.0)).findings == []
    rows = history(tmp_path, dims=20)
    rows[-1]["alarms"] = [{"condition": f"level {n}", "since": 200} for n in range(5)]
    found = evidence(0.5, history=rows)
    assert collapse.summary(found).findings[1:] == [
        "alarms of the posterior still hold at the last update (step 1,000): level 0, level 1, level 2 and 2 more."
    ]


def test_the_figure(tmp_path, half, monkeypatch):
    drawn = []
    monkeypatch.setattr(collapse_plots, "add_panels", lambda drawing, count: drawn.extend(add_panels(drawing, count)) or drawn)
    half.history = history(tmp_path, dims=20)
    assert collapse_plots.draw(half, "a $run", tmp_path / "collapse.png")
    kl, units, spread, active, over, variance = drawn
    lines = kl.get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), np.maximum(np.sort(half.levels[0].kl)[::-1], collapse_plots.SMALLEST_DRAWN))
    assert len(lines[1].get_xdata()) == 5 and lines[-1].get_ydata()[0] == latent.EPSILON  # of 20 five are not active
    assert units.get_lines()[1].get_xdata().tolist() == half.levels[1].spread.tolist()
    assert {"not active\nmean hardly varies", "active\nmean tells sets apart"} < {text.get_text() for text in units.texts}
    assert spread.get_legend().get_texts()[1].get_text() == "level 1: 10 of 20 active"
    assert sum(spread.patches[0].get_data().values) == 20
    assert active.get_lines()[0].get_ydata()[-1] == pytest.approx(100 * half.history[-1]["held_out"]["active_units"])
    assert (
        over.get_lines()[1].get_label() == "mutual information" and variance.get_xlabel() == "optimizer step, on the fixed held-out subset"
    )
    drawn.clear()
    assert collapse_plots.draw(Evidence("run", history=half.history), "a", tmp_path / "b.png") and len(drawn) == 3
    assert not collapse_plots.draw(Evidence("run"), "a", tmp_path / "c.png")
    half.history = []
