"""A run with the whole recipe, killed in mid-epoch and resumed, ends as one that was not, bit for bit."""

import pytest

from conftest import TINY
from whole.test_resume import assert_same_run, kill_in_mid_epoch

RECIPE = [
    "dataset=digits", "dataset.rand_augment=rand-m9-n1-mstd0.4-inc1", "dataset.mixup=0.5", "dataset.mixup_epochs=2", "dataset.erasing=0.25",
    "task.loss=ce", "task.label_smoothing=0.1", "scheduler.warmup_epochs=1", "scheduler.cooldown_epochs=1", "scheduler.min_factor=0.02",
]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [pytest.param(["workers=0"], marks=pytest.mark.slow), ["workers=2", "accumulate=2"]],
    ids=["in the process", "workers, accumulated"],
)
def test_sigkill_in_mid_epoch(more, snnexp, start, tmp_path):
    settings = [*TINY, *RECIPE, *more, "save_minutes=0.00001", "batch_size=8"]
    snnexp("train", *settings, "exp_name=whole", cwd=tmp_path)
    process = start("train", *settings, "exp_name=killed", cwd=tmp_path)
    kill_in_mid_epoch(process, tmp_path / "outputs/killed", epoch=1)
    snnexp("resume", "outputs/killed", cwd=tmp_path)
    assert_same_run(tmp_path / "outputs/whole", tmp_path / "outputs/killed")
