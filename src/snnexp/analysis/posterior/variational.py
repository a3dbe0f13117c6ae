"""A variational run: its records, latents and figures, from the files of its directory."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.posterior import collapse, collapse_plots, curves, latent, latent_plots
from snnexp.analysis.posterior.collapse import Evidence
from snnexp.analysis.posterior.latent import Latents
from snnexp.analysis.reading import finite_number
from snnexp.analysis.runs import Run
from snnexp.rundir import RunDir


@dataclass
class VariationalRun:
    """The records of a variational run, and its latents if there are any."""

    evidence: Evidence
    latents: Latents | None = None
    problems: list[str] = field(default_factory=list)


def is_variational(run: Path, rows: list[dict[str, Any]]) -> bool:
    """Return whether a run has logged a KL, or has a record of its posterior."""
    logged = any(key in row for row in rows for key in ("Train/KL", "Val/KL"))
    return logged or (run / "posterior_metrics/metrics.jsonl").is_file() or RunDir(run).arrays("latents") is not None


def read(run: Run, rows: list[dict[str, Any]], given: Path | None = None) -> VariationalRun:
    """Read the records of a run whose metrics log has `rows`, and the latents of the file `given`, else the newest latents of the run."""
    weight = finite_number(run.settings.get("task.weight"))
    variational = VariationalRun(Evidence(run.path.resolve().name, curves=curves.from_log(rows, run.best, weight)))
    evidence = variational.evidence
    if run.settings.get("limit_val") is None and (match := re.search(r"\b([\d,]*\d) val\b", run.protocol or "")):
        evidence.curves.validation_samples = int(match[1].replace(",", ""))
    path = run.path / "posterior_metrics/metrics.jsonl"
    try:
        evidence.history = collapse.read_history(path) if path.is_file() else []
        if path.is_file() and not evidence.history:
            variational.problems.append(f"{path.name} of posterior_metrics holds no update of the documented form.")
    except OSError as error:
        variational.problems.append(f"{path.name} of posterior_metrics cannot be read: {error.strerror or error}.")
    path = given or RunDir(run.path).arrays("latents")
    try:
        variational.latents = latent.read(path) if path is not None else None
    except OSError as error:
        variational.problems.append(f"{path.name} cannot be read: {error.strerror or error}.")
    except (ValueError, TypeError, MemoryError) as error:  # files of others may contain anything
        variational.problems.append(f"{path.name} is damaged or not of the documented form: {error}.")
    if variational.latents is not None:
        sets, where = variational.latents.mu.shape[1], path.relative_to(run.path) if path.is_relative_to(run.path) else path
        evidence.source = f"{sets:,} sets of {where}{variational.latents.weights}"
        evidence.of_latents, evidence.epoch = True, variational.latents.epoch
        evidence.levels = latent.measure_levels(variational.latents)
        evidence.mutual_information = latent.joint_information(variational.latents)
        evidence.legacy = collapse.legacy_statistics(variational.latents.logvar)
        if variational.latents.dropped:
            evidence.notes.append(f"{variational.latents.dropped:,} sets were left out: their posterior is not finite.")
        if sets < 100:
            evidence.notes.append(f"{sets} sets are few: variances over the data, and with them active units, are rough.")
    elif evidence.history:
        evidence.levels = collapse.levels_of_last_update(evidence.history)
        evidence.mutual_information = finite_number(collapse.measured_block(evidence.history[-1]).get("mutual_information"))
        evidence.source = f"{collapse.measured_on(evidence.history[-1])} at step {evidence.history[-1]['step']:,.0f}"
    return variational


def draw(variational: VariationalRun, title: str, folder: Path) -> list[str]:
    """Draw all figures for which there are data into `folder`; return the names of the files."""
    drawn = curves.draw(variational.evidence.curves, title, folder)
    if collapse_plots.draw(variational.evidence, title, folder / "posterior_collapse_analysis.png"):
        drawn.append("posterior_collapse_analysis.png")
    if variational.latents is not None:
        drawn += latent_plots.draw(variational.latents, variational.evidence.levels, title, folder)
    return drawn
