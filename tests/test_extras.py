"""Packages that are optional: without one, what needs it says in one message which extra brings it."""

from pathlib import Path

import pytest

from conftest import CLIPS, GRAPHS, TINY

MOLECULES = [word for word in GRAPHS if word != "model.width=16"] + ["dataset=smiles_csv", "dataset.file=molecules.csv", "dataset.target=y"]


@pytest.mark.parametrize(
    ("extra", "packages", "words"),
    [
        ("slurm", ["hydra_plugins", "submitit"], ["-m", *TINY, "seed=0,1", "hydra=slurm"]),
        ("slurm", ["hydra_plugins", "submitit"], ["-m", *TINY, "seed=0,1", "hydra/launcher=submitit_local"]),
        ("optuna", ["hydra_plugins", "optuna"], ["-m", *TINY, "lr=interval(1e-4,1e-1)", "hydra=optuna"]),
        ("wandb", ["wandb"], [*TINY, "logger=wandb"]),
        ("chem", ["rdkit"], MOLECULES),
        ("lpips", ["lpips"], [*CLIPS, "task.lpips=alex"]),
    ],
)
def test_a_missing_package_is_named_with_its_extra(extra, packages, words, snnexp, tmp_path: Path):
    (tmp_path / "molecules.csv").write_text("smiles,y\nC,1.0\nCC,2.0\n")
    output = snnexp("train", *words, cwd=tmp_path, code=2, hidden=packages)
    said = [line for line in output.splitlines() if line.startswith("snnexp: ")]
    assert len(said) == 1 and f"snnexp[{extra}]" in output, output
