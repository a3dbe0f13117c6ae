"""What the report says of a run."""

import json

import numpy as np
import pytest

from analysis.run_files import GNN, activity, add_units, make
from snnexp.analysis import formatting, reading, report, runs, spikes
from snnexp.analysis.curves import read_log
from snnexp.analysis.posterior.collapse import Summary


def text_of(run, files=("report.txt",)):
    rows = read_log(run / "logs/metrics.jsonl")
    record, problems = spikes.read(run, rows), []
    result = reading.read_object(run / "result.json", problems)
    found, source = report.find_activity(run, result, problems)
    record.problems += problems
    return report.report_text(report.ReportData(runs.load(run), rows, record, result, found, source, list(files)))


def change_log(run, change):
    rows = read_log(run / "logs/metrics.jsonl")
    (run / "logs/metrics.jsonl").write_text("".join(json.dumps(change(n, row)) + "\n" for n, row in enumerate(rows)))


def test_a_finished_run(tmp_path):
    run = make(tmp_path / "a run", activity=activity())
    add_units(run)
    lines = text_of(run).splitlines()
    assert lines[:7] == [
        f"run       {run}",
        "state     finished, epoch 5 of 5",
        "settings  model spiking_gnn, dataset zinc, T 4, lr 0.001, batch_size 128, seed 0",
        "protocol  80/10/10",
        "best      Val/MAE 0.3679 at epoch 5",
        "test      Loss 0.4  MAE 0.3679",
        "training  134,401 parameters, 61 s, 941.2 samples/s, fp32",
    ]
    table = lines[lines.index("Firing rates (training forwards of epoch 5, metrics.jsonl)") + 1 :]
    assert table[0].split() == ["layer", "rate", "T0", "T1", "T2", "T3", "units", "dead", "saturated"]
    assert table[2].split() == ["gnn_model.lif2", "0.095", "0.084", "0.091", "0.098", "0.105", "100", "83", "0"]
    assert len({len(line) for line in table[:4]}) == 1
    energy = [line.split("  ")[-1].strip() and " ".join(line.split()) for line in lines if line.startswith("  ")]
    assert "synaptic operations 554 M AC" in energy and "multiply-accumulates 10.62 M MAC" in energy
    assert "energy 547.4 µJ" in energy and "without sparsity 5.447 G MAC, 25.05 mJ" in energy and "sums over graphs 4.16 k AC" in energy
    assert any(line.startswith("SpikingJelly counts 204.3 M AC, 1.709 G MAC, 8.047 mJ") for line in energy)
    assert any("45 nm: 4.6 pJ a MAC, 0.9 pJ an AC" in line and "estimate" in line and "256 samples of test" in line for line in lines)


def findings(run):
    lines = text_of(run).splitlines()
    start = lines.index("Findings") + 1
    return [line.removeprefix("  - ") for line in lines[start : lines.index("", start)]]


def test_findings_of_units(tmp_path):
    run = make(tmp_path / "a")
    units = add_units(run)
    assert "gnn_model.lif2: 83 % of units never fire (83 of 100)." in findings(run)
    assert "output_mlp.0: 20 % of units fire at every step (20 of 100)." in findings(run)
    np.savez(run / "test_spikes.npz", **(units | {GNN[1]: units[GNN[1]] * 0}))
    assert any(line.startswith("gnn_model.lif2 fires at 0.095 in training and never on these samples") for line in findings(run))


def test_a_silent_layer_is_named_once(tmp_path):
    run = make(tmp_path / "a")
    units = add_units(run)
    np.savez(run / "test_spikes.npz", **(units | {GNN[1]: units[GNN[1]] * 0}))
    change_log(run, lambda n, row: row | {f"Spikes/{GNN[1]}": [0.0] * 4})
    about = [line for line in findings(run) if line.startswith(GNN[1])]
    assert about == [f"{GNN[1]} is silent: none of its 100 units ever fires, so what follows it sees nothing."]


def test_findings_of_rates(tmp_path):
    run = make(tmp_path / "a")

    def change(n, row):
        row["Spikes/gnn_model.lif1"] = [0.0, 0.0, 0.1, 0.2]
        row["Spikes/gnn_model.lif2"] = [0.0005] * 4
        row["Spikes/output_mlp.0"] = [0.2 + 0.2 * n] * 4
        return row

    change_log(run, change)
    assert findings(run)[:4] == [
        "gnn_model.lif2 fires at 0.05 % of its outputs only.",
        "output_mlp.0 fires at 100 % of its outputs: little is spared by sparsity there.",
        "silent before T2: gnn_model.lif1.",
        "output_mlp.0: the rate rose from 0.200 to 1.000 over training.",
    ]


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (
            {"PSNR": 24.0, "PSNR_blur": 26.5, "PSNR_TFP": 23.0, "PSNR_TFI": "x"},
            ["what was restored (PSNR 24.00 dB) is worse than the blurry input (26.50 dB)."],
        ),
        ({"PSNR": 27.0, "PSNR_blur": 26.5}, []),
        ({"Acc1": 3}, []),
        ("gone", []),
    ],
)
def test_a_restoration_worse_than_what_it_was_given_is_found(test, expected, tmp_path):
    assert [line for line in findings(make(tmp_path / "a", test=test)) if "restored" in line] == expected


def test_findings_of_training(tmp_path):
    run = make(tmp_path / "a", epochs=10)
    assert findings(run) == [f"the last epoch is the best, so Val/MAE may still be falling: snnexp resume {run} epochs=..."]
    change_log(run, lambda n, row: row | {"Val/Loss": 0.5 + 0.1 * abs(n - 3)})
    assert findings(run)[0].startswith("it overfits: Val/Loss was lowest at epoch 4 (0.5) and is 1.1 at the end")
    (run / "result.json").unlink()
    change_log(run, lambda n, row: {name: value for name, value in row.items() if not name.startswith("Val/")})
    assert findings(run) == ["there is no validation, so no epoch is the best."]


def test_nothing_to_remark(tmp_path):
    run = make(tmp_path / "a", best={"epoch": 3, "metric": "Val/MAE", "value": 0.5})
    assert findings(run) == ["nothing out of the ordinary."]


def test_without_a_record_of_spikes(tmp_path):
    run = make(tmp_path / "a", spikes=False)
    text = text_of(run)
    assert "train with tracker=lif" in text and "tracker=lif_full" in text and f"snnexp evaluate {run}" in text
    assert "Energy" not in text
    add_units(run)
    assert "No record over training: train with tracker=lif" in text_of(run)


def test_a_model_without_spikes(tmp_path):
    run = make(tmp_path / "a", spikes=False, activity=activity(layers=[]))
    text = text_of(run)
    assert "no spiking layer" in text and "tracker=lif" not in text and "Energy per sample" in text


def test_energy_without_neurons_has_no_lines_of_spikes(tmp_path):
    run = make(tmp_path / "a", spikes=False, activity=activity(layers=[]))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"neuron": "none"}))
    text = text_of(run)
    assert "multiply-accumulates" in text and "  energy  " in text
    assert not any(words in text for words in ("synaptic operations", "sums over graphs", "SpikingJelly", "without sparsity"))


def test_a_posterior_that_deserves_a_look(tmp_path):
    run = make(tmp_path / "a", best={"epoch": 3, "metric": "Val/MAE", "value": 0.5})
    rows = read_log(run / "logs/metrics.jsonl")
    summary = Summary(["verdict   collapsed (9 sets)"], ["the posterior is collapsed."])
    facts = report.ReportData(runs.load(run), rows, spikes.read(run, rows), {}, {}, "", [], posterior=summary)
    text = report.report_text(facts)
    assert "Posterior\n  verdict   collapsed (9 sets)\n" in text and "Findings\n  - the posterior is collapsed.\n" in text


def test_units_of_the_activity_where_there_is_no_array(tmp_path):
    lines = text_of(make(tmp_path / "a", activity=activity())).splitlines()
    assert [line.split()[-3:] for line in lines if line.startswith("  gnn_model.lif1")] == [["8", "1", "0"]]


def test_activity_of_the_latest_evaluation(tmp_path):
    run = make(tmp_path / "a", state="interrupted")
    for stamp, samples in (("20260101_000000", 1), ("20260102_000000", 77)):
        (run / "evaluations" / stamp).mkdir(parents=True)
        (run / "evaluations" / stamp / "test.json").write_text(json.dumps({"activity": activity() | {"samples": samples}}))
    text = text_of(run)
    assert "77 samples of test, evaluations/20260102_000000/test.json" in text
    assert "best      Val/MAE 0.3679 at epoch 5, so far" in text and "state     interrupted, epoch 5 of 5" in text


@pytest.mark.parametrize("content", ["", "[]", "3", '{"activity": 3}', '{"activity": {"energy": {"macs": "many"}, "layers": [1]}}'])
def test_a_damaged_result(tmp_path, content):
    run = make(tmp_path / "a")
    (run / "result.json").write_text(content)
    assert "Findings" in text_of(run)


def test_a_failed_run_says_why(tmp_path):
    run = make(tmp_path / "a", state="failed")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"error": "the loss is nan at step 7\nmore"}))
    assert "error     the loss is nan at step 7\n" in text_of(run)
    (run / "config.json").write_text("{")
    assert "problem   config.json: not JSON" in text_of(run)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (1234.5, "", "1.234 k"),
        (5.447e9, "", "5.447 G"),
        (0.4, "", "0.4"),
        (5.474e-4, "J", "547.4 µJ"),
        (0.0, "J", "0 J"),
    ],
)
def test_amounts(value, unit, text):
    assert formatting.format_amount(value, unit) == text
