"""Evaluation of a saved run on data of the same kind that lie in another directory."""

import os
from pathlib import Path
from typing import Any

from snnexp import config
from snnexp.composing.compose import saved_config
from snnexp.errors import UserError
from snnexp.rundir import RunDir


def settings_with_data_dir(run: RunDir, before: dict[str, Any], data_dir: str | Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, `before` as they were saved, with another `data_dir` and further `changes` of top-level keys.

    Raises: UserError if there is no such directory, or the run's data do not lie in its data_dir.
    """
    changes = changes | {"data_dir": os.path.abspath(os.path.expanduser(data_dir))}
    settings = config.finish(saved_config(run, config.TrainConfig, changes), before["choices"], saved=True)
    check_data_dir(settings, before, "snnexp evaluate RUN dataset.root=ELSEWHERE evaluates the run on other data.")
    return settings


def check_data_dir(settings: dict[str, Any], before: dict[str, Any], root_hint: str) -> None:
    """Check that a changed `data_dir` exists and leads to other data than those of the settings `before`.

    Raises: UserError, which ends with `root_hint` if the root of the data does not depend on `data_dir`.
    """
    data_dir, dataset = settings["data_dir"], settings["dataset"]
    if data_dir == before["data_dir"]:
        return
    if not Path(data_dir).is_dir():
        raise UserError(f"data_dir={data_dir}: no such directory.")
    if (table := dataset.get("file")) is not None and table == before["dataset"].get("file"):
        raise UserError(f"data_dir={data_dir}: this run's molecules are those of {table}; give dataset.file=OTHER.")
    if (root := dataset.get("root")) == before["dataset"].get("root"):
        raise UserError(f"data_dir={data_dir}: this run's data lie in {root}; {root_hint}")
