"""What a run came to, in plain text: results, rates, dead units, energy, and what of it deserves a look."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.curves import number, series
from snnexp.analysis.panels import amount, fit
from snnexp.analysis.posterior.collapse import Summary
from snnexp.analysis.pruning import record as pruning
from snnexp.analysis.runs import MAIN, Run, shown, smaller_is_better
from snnexp.analysis.spikes import DEAD, SATURATED, Record, count_units, some

MANY = 0.1
"""Share of a layer's units from which dead or saturated ones are worth a word."""
SILENT, BUSY = 0.001, 0.5
"""Rates below and above which a layer is worth a word."""
OVERFIT = 1.1
"""How many times its lowest value the validation loss must be at the end."""


@dataclass(frozen=True)
class Facts:
    """What the report is made of."""

    run: Run
    rows: list[dict[str, Any]]
    record: Record
    result: dict[str, Any]  # of result.json, empty if there is none
    activity: dict[str, Any]  # as Activity.summary() wrote it, empty if nothing did
    activity_source: str
    files: list[str]
    pruned: pruning.Pruning | None = None
    folder: Path | None = None  # where the files lie; None: RUN/plots
    posterior: Summary | None = None  # of a variational run


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object of a JSON file; empty, with a word among the problems, if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
        return {}
    if isinstance(content, dict):
        return content
    problems.append(f"{path.name} holds a {type(content).__name__}, not an object.")
    return {}


def find_activity(run: Path, result: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], str]:
    """The measured activity of a run and the file it stands in: of its result, else of its latest evaluation."""
    if isinstance(result.get("activity"), dict):
        return result["activity"], "result.json"
    for path in sorted(run.glob("evaluations/*/*.json"), reverse=True):
        found = read_object(path, problems).get("activity")
        if isinstance(found, dict):
            return found, str(path.relative_to(run))
    return {}, ""


def write(facts: Facts) -> str:
    """The report."""
    parts = [_head(facts), _pruning(facts), _posterior(facts), _layers(facts), _energy(facts), _findings(facts), _files(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(facts: Facts) -> str:
    run, result = facts.run, facts.result
    epoch = f", epoch {run.epoch}{f' of {run.epochs}' if run.epochs is not None else ''}" if run.epoch is not None else ""
    setting = ", ".join(f"{key} {shown(run.settings[key])}" for key in MAIN if key in run.settings)
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
    facts_of_result = [
        f"{number(result.get('parameters')):,.0f} parameters" if number(result.get("parameters")) is not None else None,
        f"{run.wall_time_s:.0f} s" if run.wall_time_s is not None else None,
        f"{run.samples_per_s:.4g} samples/s" if run.samples_per_s is not None else None,
        result.get("precision") if isinstance(result.get("precision"), str) else None,
    ]
    if any(facts_of_result):
        lines.append(("training", ", ".join(fact for fact in facts_of_result if fact)))
    return "\n".join(f"{name:<9} {value}" for name, value in lines)


def _pruning(facts: Facts) -> str:
    if facts.pruned:
        return pruning.text(facts.pruned)
    chosen = facts.run.settings.get("pruner")
    return (
        f"Pruning (pruner={chosen}): nothing was pruned here, or not yet; there is no pruning.json."
        if isinstance(chosen, str) and chosen != "none"
        else ""
    )


def _posterior(facts: Facts) -> str:
    if facts.posterior is None:
        return ""
    return "\n".join(["Posterior", *(f"  {line}" for line in facts.posterior.lines), "  in full   collapse_analysis.txt"])


def _layers(facts: Facts) -> str:
    record = facts.record
    counts = _unit_counts(facts)
    layers = list(dict.fromkeys([*record.table, *counts]))
    if not layers and facts.posterior is not None:
        return ""  # a variational model without spikes is as it should be
    if not layers:
        if facts.activity:
            return "This model has no spiking layer, so there are no rates to show."
        return (
            "No record of spikes: train with tracker=lif (the rates of each epoch) or tracker=lif_full (every forward).\n"
            f"Rates of units, and energy: snnexp evaluate {facts.run.path}"
        )
    steps = max((len(rates) for rates in record.table.values()), default=0)
    named = some(steps, 12)
    rows = [["layer", "rate", *(f"T{t}" for t in named), *(["units", DEAD, SATURATED] if counts else [])]]
    for layer in layers:
        rates = record.table.get(layer, np.zeros(0))
        cells = [fit(layer, 48), f"{np.nanmean(rates):.3f}" if np.isfinite(rates).any() else "-"]
        cells += [f"{rates[t]:.3f}" if t < len(rates) and np.isfinite(rates[t]) else "-" for t in named]
        cells += [str(counts[layer][name]) if layer in counts else "-" for name in ("units", DEAD, SATURATED)] if counts else []
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    said = [f"Firing rates ({record.table_source})" if record.table else "Firing rates", *(f"  {line}" for line in lines)]
    if counts:
        said.append(
            f"  units: {record.units_source or facts.activity_source}; dead never fire, saturated fire at 99 % of the steps or more."
        )
    if not record.over_training:
        said.append("  No record over training: train with tracker=lif (each epoch) or tracker=lif_full (every forward).")
    return "\n".join(said)


def _unit_counts(facts: Facts) -> dict[str, dict[str, int]]:
    """Units, dead and saturated of each layer, from the rates of units or from what the activity says of them."""
    if facts.record.units:
        return {layer: count_units(rates) for layer, rates in facts.record.units.items()}
    told, named = facts.activity.get("layers"), ("units", DEAD, SATURATED)
    whole = {
        layer: {name: int(of[name]) for name in named}
        for layer, of in (told.items() if isinstance(told, dict) else ())
        if isinstance(of, dict) and all(number(of.get(name)) is not None for name in named)
    }
    return {layer: counts for layer, counts in whole.items() if counts["units"] > 0}


def _energy(facts: Facts) -> str:
    energy = facts.activity.get("energy")
    needed = ("synaptic_operations", "additions", "macs", "dense_macs", "energy_uJ")
    if not isinstance(energy, dict) or any(number(energy.get(name)) is None for name in needed):
        return ""
    synops, additions, macs, dense, joule = (float(energy[name]) for name in needed)
    of = f"{facts.activity.get('samples')} samples of {facts.activity.get('split')}, {facts.activity_source}"
    spiking = facts.result.get("neuron") != "none"  # without neurons nothing is spared by spikes, and what is 0 or 1 is an input
    lines = [
        f"Energy per sample (an estimate at 45 nm: 4.6 pJ a MAC, 0.9 pJ an AC; arithmetic only; {of})",
        *([f"  {'synaptic operations':<22} {amount(synops):>9}  AC"] if spiking else []),
        f"  {'multiply-accumulates':<22} {amount(macs):>9}  MAC",
        *([f"  {'sums over graphs':<22} {amount(additions):>9}  AC"] if spiking and additions else []),
        f"  {'energy':<22} {amount(joule * 1e-6, 'J'):>9}",
        *([f"  {'without sparsity':<22} {amount(dense):>9}  MAC, {amount(dense * 4.6e-12, 'J')}"] if spiking else []),
    ]
    theirs = energy.get("spikingjelly") if spiking else None
    if isinstance(theirs, dict) and all(number(theirs.get(name)) is not None for name in ("synaptic_operations", "macs", "energy_uJ")):
        lines.append(
            f"  {'SpikingJelly counts':<22} {amount(theirs['synaptic_operations']):>9}  AC, {amount(theirs['macs'])} MAC, "
            f"{amount(theirs['energy_uJ'] * 1e-6, 'J')}: to it only operands of 0 and 1 throughout are spikes"
        )
    if energy.get("not_counted"):
        lines.append(f"  not counted: {', '.join(map(str, energy['not_counted']))}")
    lines.append(f"  The convention in full: {facts.activity_source}, activity.energy.convention.")
    return "\n".join(lines)


def _findings(facts: Facts) -> str:
    found = [
        *(pruning.findings(facts.pruned) if facts.pruned else []),
        *(facts.posterior.findings if facts.posterior else []),
        *_of_units(facts),
        *_of_rates(facts.record),
        *_of_change(facts.record),
        *_of_training(facts),
        *_of_restoring(facts.result),
    ]
    return "Findings\n" + "\n".join(f"  - {line}" for line in found or ["nothing out of the ordinary."])


def _of_restoring(result: dict[str, Any]) -> list[str]:
    plain = {
        "blur": "the blurry input", "TFP": "the mean rate of its spikes", "TFI": "their inverse interval", "TFI_middle": "their middle TFI",
    }  # fmt: skip
    test = result.get("test")
    test = test if isinstance(test, dict) else {}
    own, others = number(test.get("PSNR")), {said: number(test.get(f"PSNR_{name}")) for name, said in plain.items()}
    better = {said: value for said, value in others.items() if None not in (own, value) and value > own}
    return [f"what was restored (PSNR {own:.2f} dB) is worse than {said} ({value:.2f} dB)." for said, value in better.items()]


def _of_units(facts: Facts) -> list[str]:
    said = []
    for layer, counts in _unit_counts(facts).items():
        units = counts["units"]
        if counts[DEAD] == units:
            seen = facts.record.over_training.get(layer)
            trained = 0.0 if seen is None else float(np.nanmean(seen[-1]))
            said.append(
                f"{layer} fires at {trained:.3f} in training and never on these samples: are the running statistics of its norm settled?"
                if trained
                else f"{layer} is silent: none of its {units} units ever fires, so what follows it sees nothing."
            )
        elif counts[DEAD] >= MANY * units:
            said.append(f"{layer}: {counts[DEAD] / units:.0%} of units never fire ({counts[DEAD]} of {units}).")
        if counts[SATURATED] >= MANY * units:
            said.append(f"{layer}: {counts[SATURATED] / units:.0%} of units fire at every step ({counts[SATURATED]} of {units}).")
    return [line.replace("%", " %") for line in said]


def _of_rates(record: Record) -> list[str]:
    said, late = [], {}
    for layer, rates in record.table.items():
        mean = float(np.nanmean(rates)) if np.isfinite(rates).any() else 0.0
        if mean < SILENT:
            said.append(f"{layer} fires at {100 * mean:.2g} % of its outputs only.")
            continue
        if mean > BUSY:
            said.append(f"{layer} fires at {100 * mean:.0f} % of its outputs: little is spared by sparsity there.")
        if first := int(np.argmax(rates >= SILENT)):
            late.setdefault(first, []).append(layer)
    for first, layers in sorted(late.items()):
        named = f"{', '.join(layers[:3])}{f' and {len(layers) - 3} more' if len(layers) > 3 else ''}"
        said.append(f"silent before T{first}: {named}.")
    return said


def _of_change(record: Record) -> list[str]:
    said = []
    for layer, rates in record.over_training.items():
        part = max(1, len(rates) // 20)
        if len(rates) < 2 or not np.isfinite(rates).any():
            continue
        first, last = (float(np.nanmean(piece)) if np.isfinite(piece).any() else 0.0 for piece in (rates[:part], rates[-part:]))
        if max(first, last) > 0.01 and (last < first / 2 or last > 2 * first):
            said.append(f"{layer}: the rate {'fell' if last < first else 'rose'} from {first:.3f} to {last:.3f} over training.")
    return said


def _of_training(facts: Facts) -> list[str]:
    said, run = [], facts.run
    if run.state == "killed":
        said.append(f"the process is gone without a word; snnexp resume {run.path} goes on from the last checkpoint.")
    epochs, losses = series(facts.rows, "Val/Loss")
    _, training = series(facts.rows, "Train/Loss")
    if facts.rows and not any(key.startswith("Val/") for row in facts.rows for key in row):
        said.append("there is no validation, so no epoch is the best.")
    if len(losses) > 2 and len(training) == len(losses):
        lowest = losses.index(min(losses))
        if losses[-1] > OVERFIT * losses[lowest] > 0 and training[-1] < training[lowest]:
            said.append(
                f"it overfits: Val/Loss was lowest at epoch {epochs[lowest]:g} ({losses[lowest]:.4g}) and is {losses[-1]:.4g} at the end, "
                "while Train/Loss fell on."
            )
    cut = max((step.epoch for step in facts.pruned.steps), default=0) if facts.pruned else 0  # the best is chosen anew after it
    since = [row for row in facts.rows if row["epoch"] > cut]
    if run.best and run.state == "finished" and len(since) > 2 and run.best.get("epoch") == since[-1]["epoch"]:
        better = "falling" if smaller_is_better(run.best["metric"]) else "rising"
        said.append(f"the last epoch is the best, so {run.best['metric']} may still be {better}: snnexp resume {run.path} epochs=...")
    return said


def _files(facts: Facts) -> str:
    lines = [f"Written to {facts.folder or facts.run.path / 'plots'}", *(f"  {name}" for name in facts.files)]
    if not facts.rows and not facts.record.table:
        lines.append("  Nothing to draw: there is neither a metrics log nor a record of spikes yet.")
    if facts.record.problems:
        lines += ["Left out", *(f"  {problem}" for problem in facts.record.problems)]
    return "\n".join(lines)
