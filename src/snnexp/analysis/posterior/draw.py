"""All that is drawn and said of a variational run, from what its directory holds."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.curves import number
from snnexp.analysis.posterior import collapse, collapse_plots, curves, latent, latent_plots
from snnexp.analysis.posterior.collapse import Evidence
from snnexp.analysis.posterior.latent import Latents
from snnexp.analysis.runs import Run
from snnexp.rundir import RunDir


@dataclass
class Variational:
    """A variational run: what it recorded, and its latents if there are any."""

    evidence: Evidence
    latents: Latents | None = None
    problems: list[str] = field(default_factory=list)


def is_variational(run: Path, rows: list[dict[str, Any]]) -> bool:
    """True if a run has logged a KL, or has a record of its posterior."""
    logged = any(key in row for row in rows for key in ("Train/KL", "Val/KL"))
    return logged or (run / "posterior_metrics/metrics.jsonl").is_file() or RunDir(run).arrays("latents") is not None


def read(run: Run, rows: list[dict[str, Any]], given: Path | None = None) -> Variational:
    """The records of a run whose metrics log has `rows`; of the latents `given`, else of the newest of the run itself."""
    weight = number(run.settings.get("task.weight"))
    found = Variational(Evidence(run.path.resolve().name, curves=curves.from_log(rows, run.best, weight)))
    evidence = found.evidence
    if run.settings.get("limit_val") is None and (told := re.search(r"\b([\d,]*\d) val\b", run.protocol or "")):
        evidence.curves.validated = int(told[1].replace(",", ""))
    path = run.path / "posterior_metrics/metrics.jsonl"
    try:
        evidence.history = collapse.read_history(path) if path.is_file() else []
        if path.is_file() and not evidence.history:
            found.problems.append(f"{path.name} of posterior_metrics holds no update of the documented form.")
    except OSError as error:
        found.problems.append(f"{path.name} of posterior_metrics cannot be read: {error.strerror or error}.")
    path = given or RunDir(run.path).arrays("latents")
    try:
        found.latents = latent.read(path) if path is not None else None
    except OSError as error:
        found.problems.append(f"{path.name} cannot be read: {error.strerror or error}.")
    except (ValueError, TypeError, MemoryError) as error:  # files of strangers may hold anything
        found.problems.append(f"{path.name} is damaged or not of the documented form: {error}.")
    if found.latents is not None:
        sets, where = found.latents.mu.shape[1], path.relative_to(run.path) if path.is_relative_to(run.path) else path
        evidence.source = f"{sets:,} sets of {where}{found.latents.weights}"
        evidence.of_latents, evidence.epoch = True, found.latents.epoch
        evidence.levels = latent.levels(found.latents)
        evidence.mutual_information = latent.joint_information(found.latents)
        evidence.legacy = collapse.legacy(found.latents.logvar)
        if found.latents.dropped:
            evidence.notes.append(f"{found.latents.dropped:,} sets were left out: their posterior is not finite.")
        if sets < 100:
            evidence.notes.append(f"{sets} sets are few: variances over the data, and with them active units, are rough.")
    elif evidence.history:
        evidence.levels = collapse.last_levels(evidence.history)
        evidence.mutual_information = number(collapse.block(evidence.history[-1]).get("mutual_information"))
        evidence.source = f"{collapse.where(evidence.history[-1])} at step {evidence.history[-1]['step']:,.0f}"
    return found


def draw(found: Variational, title: str, folder: Path) -> list[str]:
    """Draw what there is into `folder`; the names of the files. The text is for the caller to write."""
    drawn = curves.draw(found.evidence.curves, title, folder)
    if collapse_plots.draw(found.evidence, title, folder / "posterior_collapse_analysis.png"):
        drawn.append("posterior_collapse_analysis.png")
    if found.latents is not None:
        drawn += latent_plots.draw(found.latents, found.evidence.levels, title, folder)
    return drawn
