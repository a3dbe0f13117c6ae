"""The text report of a run: results, firing rates, dead units, energy, and findings that deserve attention."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.curves import series
from snnexp.analysis.formatting import align_columns, format_amount, shorten
from snnexp.analysis.posterior.collapse import Summary
from snnexp.analysis.pruning import record as pruning
from snnexp.analysis.reading import finite_number, read_object
from snnexp.analysis.runs import MAIN, Run, setting_text, smaller_is_better
from snnexp.analysis.spikes import DEAD, SATURATED, SpikeRecord, count_units, evenly_spaced
from snnexp.files import pastable

MANY = 0.1
"""Share of a layer's units from which on dead or saturated units are reported."""
SILENT, BUSY = 0.001, 0.5
"""Rates below and above which a layer is reported."""
OVERFIT = 1.1
"""Ratio of the final to the lowest validation loss above which overfitting is reported."""


@dataclass(frozen=True)
class ReportData:
    """The data of a report."""

    run: Run
    rows: list[dict[str, Any]]
    record: SpikeRecord
    result: dict[str, Any]  # of result.json, empty if there is none
    activity: dict[str, Any]  # written by Activity.summary(), empty if there is none
    activity_source: str
    files: list[str]
    pruned: pruning.PruningRecord | None = None
    folder: Path | None = None  # of the written files; None: RUN/plots
    posterior: Summary | None = None  # of a variational run


def find_activity(run: Path, result: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], str]:
    """Return the measured activity of a run and the name of its file: its result, else its latest evaluation."""
    if isinstance(result.get("activity"), dict):
        return result["activity"], "result.json"
    for path in sorted(run.glob("evaluations/*/*.json"), reverse=True):
        activity = read_object(path, problems).get("activity")
        if isinstance(activity, dict):
            return activity, str(path.relative_to(run))
    return {}, ""


def report_text(data: ReportData) -> str:
    """Return the report."""
    parts = [_heading(data), _pruning(data), _posterior(data), _layers(data), _energy(data), _findings(data), _files(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(data: ReportData) -> str:
    run, result = data.run, data.result
    epoch = f", epoch {run.epoch}{f' of {run.epochs}' if run.epochs is not None else ''}" if run.epoch is not None else ""
    setting = ", ".join(f"{key} {setting_text(run.settings[key])}" for key in MAIN if key in run.settings)
    lines = [("run", str(run.path.resolve())), ("state", run.state + epoch)]
    lines += [("problem", run.problem)] if run.problem else []
    lines += [("error", run.error.splitlines()[0])] if run.error else []
    lines += [("settings", setting)] if setting else []
    lines += [("protocol", run.protocol)] if run.protocol else []
    if run.best:
        at = f" at epoch {run.best['epoch']}" if run.best.get("epoch") is not None else ""
        lines.append(("best", f"{run.best['metric']} {run.best['value']:.4g}{at}{'' if result else ', so far'}"))
    if run.test:
        lines.append((f"{result.get('split', 'test')}", "  ".join(f"{name} {value:.4g}" for name, value in run.test.items())))
    training = [
        f"{finite_number(result.get('parameters')):,.0f} parameters" if finite_number(result.get("parameters")) is not None else None,
        f"{run.wall_time_s:.0f} s" if run.wall_time_s is not None else None,
        f"{run.samples_per_s:.4g} samples/s" if run.samples_per_s is not None else None,
        result.get("precision") if isinstance(result.get("precision"), str) else None,
    ]
    if any(training):
        lines.append(("training", ", ".join(fact for fact in training if fact)))
    return "\n".join(f"{name:<9} {value}" for name, value in lines)


def _pruning(data: ReportData) -> str:
    if data.pruned:
        return pruning.pruning_text(data.pruned)
    chosen = data.run.settings.get("pruner")
    return (
        f"Pruning (pruner={chosen}): nothing was pruned here, or not yet; there is no pruning.json."
        if isinstance(chosen, str) and chosen != "none"
        else ""
    )


def _posterior(data: ReportData) -> str:
    if data.posterior is None:
        return ""
    return "\n".join(["Posterior", *(f"  {line}" for line in data.posterior.lines), "  in full   collapse_analysis.txt"])


def _layers(data: ReportData) -> str:
    record = data.record
    counts = _unit_counts(data)
    layers = list(dict.fromkeys([*record.table, *counts]))
    if not layers and data.posterior is not None:
        return ""  # a variational model need not have spikes
    if not layers:
        if data.activity:
            return "This model has no spiking layer, so there are no rates to show."
        return (
            "No record of spikes: train with tracker=lif (the rates of each epoch) or tracker=lif_full (every forward).\n"
            f"Rates of units, and energy: snnexp evaluate {pastable(data.run.path)}"
        )
    steps = max((len(rates) for rates in record.table.values()), default=0)
    shown_steps = evenly_spaced(steps, 12)
    rows = [["layer", "rate", *(f"T{t}" for t in shown_steps), *(["units", DEAD, SATURATED] if counts else [])]]
    for layer in layers:
        rates = record.table.get(layer, np.zeros(0))
        cells = [shorten(layer, 48), f"{np.nanmean(rates):.3f}" if np.isfinite(rates).any() else "-"]
        cells += [f"{rates[t]:.3f}" if t < len(rates) and np.isfinite(rates[t]) else "-" for t in shown_steps]
        cells += [str(counts[layer][name]) if layer in counts else "-" for name in ("units", DEAD, SATURATED)] if counts else []
        rows.append(cells)
    lines = [f"Firing rates ({record.table_source})" if record.table else "Firing rates", *(f"  {line}" for line in align_columns(rows))]
    if counts:
        lines.append(
            f"  units: {record.units_source or data.activity_source}; dead never fire, saturated fire at 99 % of the steps or more."
        )
    if not record.over_training:
        lines.append("  No record over training: train with tracker=lif (each epoch) or tracker=lif_full (every forward).")
    return "\n".join(lines)


def _unit_counts(data: ReportData) -> dict[str, dict[str, int]]:
    """Return the numbers of all, dead and saturated units of each layer, from the rates of units or from the measured activity."""
    if data.record.units:
        return {layer: count_units(rates) for layer, rates in data.record.units.items()}
    layers, names = data.activity.get("layers"), ("units", DEAD, SATURATED)
    counts = {
        layer: {name: int(content[name]) for name in names}
        for layer, content in (layers.items() if isinstance(layers, dict) else ())
        if isinstance(content, dict) and all(finite_number(content.get(name)) is not None for name in names)
    }
    return {layer: of_layer for layer, of_layer in counts.items() if of_layer["units"] > 0}


def _energy(data: ReportData) -> str:
    energy = data.activity.get("energy")
    needed = ("synaptic_operations", "additions", "macs", "dense_macs", "energy_uJ")
    if not isinstance(energy, dict) or any(finite_number(energy.get(name)) is None for name in needed):
        return ""
    synops, additions, macs, dense, joule = (float(energy[name]) for name in needed)
    of = f"{data.activity.get('samples')} samples of {data.activity.get('split')}, {data.activity_source}"
    spiking = data.result.get("neuron") != "none"  # without neurons spikes save nothing, and values of 0 and 1 are inputs
    lines = [
        f"Energy per sample (an estimate at 45 nm: 4.6 pJ a MAC, 0.9 pJ an AC; arithmetic only; {of})",
        *([f"  {'synaptic operations':<22} {format_amount(synops):>9}  AC"] if spiking else []),
        f"  {'multiply-accumulates':<22} {format_amount(macs):>9}  MAC",
        *([f"  {'sums over graphs':<22} {format_amount(additions):>9}  AC"] if spiking and additions else []),
        f"  {'energy':<22} {format_amount(joule * 1e-6, 'J'):>9}",
        *([f"  {'without sparsity':<22} {format_amount(dense):>9}  MAC, {format_amount(dense * 4.6e-12, 'J')}"] if spiking else []),
    ]
    other = energy.get("spikingjelly") if spiking else None
    if isinstance(other, dict) and all(finite_number(other.get(name)) is not None for name in ("synaptic_operations", "macs", "energy_uJ")):
        lines.append(
            f"  {'SpikingJelly counts':<22} {format_amount(other['synaptic_operations']):>9}  AC, {format_amount(other['macs'])} MAC, "
            f"{format_amount(other['energy_uJ'] * 1e-6, 'J')}: to it only operands of 0 and 1 throughout are spikes"
        )
    if energy.get("not_counted"):
        lines.append(f"  not counted: {', '.join(map(str, energy['not_counted']))}")
    lines.append(f"  The convention in full: {data.activity_source}, activity.energy.convention.")
    return "\n".join(lines)


def _findings(data: ReportData) -> str:
    findings = [
        *(pruning.findings(data.pruned) if data.pruned else []),
        *(data.posterior.findings if data.posterior else []),
        *_unit_findings(data),
        *_rate_findings(data.record, {layer for layer, counts in _unit_counts(data).items() if counts[DEAD] == counts["units"]}),
        *_change_findings(data.record),
        *_training_findings(data),
        *_restoration_findings(data.result),
    ]
    return "Findings\n" + "\n".join(f"  - {line}" for line in findings or ["nothing out of the ordinary."])


def _restoration_findings(result: dict[str, Any]) -> list[str]:
    plain = {
        "blur": "the blurry input", "TFP": "the mean rate of its spikes", "TFI": "their inverse interval", "TFI_middle": "their middle TFI",
    }  # fmt: skip
    test = result.get("test")
    test = test if isinstance(test, dict) else {}
    psnr = finite_number(test.get("PSNR"))
    baselines = {words: finite_number(test.get(f"PSNR_{name}")) for name, words in plain.items()}
    better = {words: value for words, value in baselines.items() if None not in (psnr, value) and value > psnr}
    return [f"what was restored (PSNR {psnr:.2f} dB) is worse than {words} ({value:.2f} dB)." for words, value in better.items()]


def _unit_findings(data: ReportData) -> list[str]:
    lines = []
    for layer, counts in _unit_counts(data).items():
        units = counts["units"]
        if counts[DEAD] == units:
            seen = data.record.over_training.get(layer)
            trained = 0.0 if seen is None else float(np.nanmean(seen[-1]))
            lines.append(
                f"{layer} fires at {trained:.3f} in training and never on these samples: are the running statistics of its norm settled?"
                if trained
                else f"{layer} is silent: none of its {units} units ever fires, so what follows it sees nothing."
            )
        elif counts[DEAD] >= MANY * units:
            lines.append(f"{layer}: {counts[DEAD] / units:.0%} of units never fire ({counts[DEAD]} of {units}).")
        if counts[SATURATED] >= MANY * units:
            lines.append(f"{layer}: {counts[SATURATED] / units:.0%} of units fire at every step ({counts[SATURATED]} of {units}).")
    return [line.replace("%", " %") for line in lines]


def _rate_findings(record: SpikeRecord, silent: Collection[str]) -> list[str]:
    """Return the findings of firing rates; that a layer of `silent`, of which another finding says so, never fires is not said again."""
    lines, late = [], {}
    for layer, rates in record.table.items():
        mean = float(np.nanmean(rates)) if np.isfinite(rates).any() else 0.0
        if mean < SILENT:
            if mean or layer not in silent:
                lines.append(f"{layer} fires at {100 * mean:.2g} % of its outputs only.")
            continue
        if mean > BUSY:
            lines.append(f"{layer} fires at {100 * mean:.0f} % of its outputs: little is spared by sparsity there.")
        if first := int(np.argmax(rates >= SILENT)):
            late.setdefault(first, []).append(layer)
    for first, layers in sorted(late.items()):
        names = f"{', '.join(layers[:3])}{f' and {len(layers) - 3} more' if len(layers) > 3 else ''}"
        lines.append(f"silent before T{first}: {names}.")
    return lines


def _change_findings(record: SpikeRecord) -> list[str]:
    lines = []
    for layer, rates in record.over_training.items():
        part = max(1, len(rates) // 20)
        if len(rates) < 2 or not np.isfinite(rates).any():
            continue
        first, last = (float(np.nanmean(piece)) if np.isfinite(piece).any() else 0.0 for piece in (rates[:part], rates[-part:]))
        if max(first, last) > 0.01 and (last < first / 2 or last > 2 * first):
            lines.append(f"{layer}: the rate {'fell' if last < first else 'rose'} from {first:.3f} to {last:.3f} over training.")
    return lines


def _training_findings(data: ReportData) -> list[str]:
    lines, run = [], data.run
    if run.state == "killed":
        lines.append(f"the process is gone without a word; snnexp resume {pastable(run.path)} goes on from the last checkpoint.")
    epochs, losses = series(data.rows, "Val/Loss")
    _, training = series(data.rows, "Train/Loss")
    if data.rows and not any(key.startswith("Val/") for row in data.rows for key in row):
        lines.append("there is no validation, so no epoch is the best.")
    if len(losses) > 2 and len(training) == len(losses):
        lowest = losses.index(min(losses))
        if losses[-1] > OVERFIT * losses[lowest] > 0 and training[-1] < training[lowest]:
            lines.append(
                f"it overfits: Val/Loss was lowest at epoch {epochs[lowest]:g} ({losses[lowest]:.4g}) and is {losses[-1]:.4g} at the end, "
                "while Train/Loss fell on."
            )
    cut = max((step.epoch for step in data.pruned.steps), default=0) if data.pruned else 0  # the best epoch is chosen after it
    since = [row for row in data.rows if row["epoch"] > cut]
    if run.best and run.state == "finished" and len(since) > 2 and run.best.get("epoch") == since[-1]["epoch"]:
        better = "falling" if smaller_is_better(run.best["metric"]) else "rising"
        lines.append(
            f"the last epoch is the best, so {run.best['metric']} may still be {better}: snnexp resume {pastable(run.path)} epochs=..."
        )
    return lines


def _files(data: ReportData) -> str:
    lines = [f"Written to {data.folder or data.run.path / 'plots'}", *(f"  {name}" for name in data.files)]
    if not data.rows and not data.record.table:
        lines.append("  Nothing to draw: there is neither a metrics log nor a record of spikes yet.")
    if data.record.problems:
        lines += ["Left out", *(f"  {problem}" for problem in data.record.problems)]
    return "\n".join(lines)
