"""Whether the samples of a data set are those that a run was trained on."""

import copy
from pathlib import Path
from typing import Any

from snnexp import config
from snnexp.engine.fitting.content import part
from snnexp.errors import UserError

OTHER_SAMPLES = (
    "the samples or their split are not those that this run was trained on; to go on would be to train on test samples. "
    "Restore the data, or start a new run with init_from=RUN."
)


def check_split(data: Any, saved: dict[str, Any], path: Path) -> None:
    """Check that samples and split of a data set are those of a checkpoint.

    Raises: UserError.
    """
    with part(path, "data"):
        if not data.same_samples(saved["data"]):
            raise UserError(f"{path}: {OTHER_SAMPLES}")


def check_digest(settings: dict[str, Any], digest: str | None, saved: dict[str, Any] | None) -> None:
    """Check that the prepared samples are those that a run expects by its settings, or else by its checkpoint.

    A run made before there were digests expects none, nor does one whose data set has just been given other settings, which is said.
    Raises: UserError that names the key with which a run goes on all the same.
    """
    wanted = settings["samples_digest"]
    if wanted is None and saved is not None and not dataset_changes(saved["args"], settings):
        wanted = saved.get("samples_digest")
    if None in (wanted, digest) or wanted == digest:
        return
    raise UserError(
        f"the prepared samples have the digest {digest}, but the run expects {wanted}: they are not, bit for bit, those that it was "
        "trained on, although they were made from the same files. Another version of a package, another machine or a hand may have made "
        f"them. Put the folder cache of the data set back, or go on with the samples that are there: samples_digest={digest}"
    )


def dataset_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the settings of the data set, other than its place, in which two configurations differ."""
    before = copy.deepcopy(before)
    config.fill_in_earlier(before)
    nodes = ({"T": settings["T"], "dataset": settings["dataset"]} for settings in (before, after))
    return config.differences(*nodes, ignoring={"dataset.root"})
