"""The first pass through a user's own model and task: what they return wrongly is told with what is right and where, before the run."""

import random

import numpy as np
import pytest
import torch

from conftest import TINY
from own_parts import OwnModel, OwnTask
from snnexp import check, first_pass
from snnexp.tasks.classification import Classification

OWN_TASK = ["task._target_=own_parts.OwnTask", "~task.loss", "~task.means", "~task.lamb", "~task.label_smoothing"]
OWN_MODEL = ["~model", "+model._target_=own_parts.OwnModel", "+model.num_classes=null"]
WORDS = [word for word in TINY if not word.startswith("model")]
HERE = "(own_parts.py:"


def train(said, tmp_path, *words, code=2):
    message = said("train", *WORDS, "dataset=digits_dvs", *words, "epochs=1", "exp_name=run", code=code)
    assert code == 0 or not (tmp_path / "outputs").exists()
    return message


def test_what_is_right_is_trained(said, tmp_path):
    train(said, tmp_path, *OWN_MODEL, *OWN_TASK, code=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda o: o.transpose(0, 1),
            "gave float32 [3, 2, 10], where [2, 3, 10] was expected: [T, N, K], time first, then 3 ",
        ),
        (lambda o: o.mean(0), "gave float32 [3, 10], where [2, 3, 10] was expected"),
        (lambda o: o[..., :7], "gave float32 [2, 3, 7], where [2, 3, 10] was expected"),
        (lambda o: (o, o), "gave (tuple), where [2, 3, 10] was expected"),
        (lambda o: o @ torch.zeros(3, 3), "failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_a_wrong_output_of_a_model_is_told(change, expected, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnModel, "change", staticmethod(change))
    message = train(said, tmp_path, *OWN_MODEL)
    assert f"own_parts.OwnModel: forward() of x float32 [2, 3, 2, 16, 16] {expected}" in message and HERE in message


@pytest.mark.parametrize(
    ("verb", "change", "expected"),
    [
        ("pair", lambda p: p[0], "loss() gave float32 [], where a pair (loss, output) was expected"),
        ("pair", lambda p: (each for each in p), "loss() gave (generator), where a pair (loss, output) was expected"),
        ("pair", lambda p: (p[0].expand(3), p[1]), "loss() gave float32 [3] as the first, where a scalar, the mean over the batch"),
        ("pair", lambda p: (p[0].item(), p[1]), "loss() gave (float) as the first, where a scalar"),
        ("pair", lambda p: (p[0], {"o": p[1]}), "loss() gave {'o'} as the second, where the model's output, a tensor or an object with"),
        ("pair", lambda p: p[0].nothing, "loss(model, batch, step) failed: AttributeError"),
        ("sums", lambda c: list(c), "counts() gave ((str), (str)), where a dict of sums over the batch"),
        ("sums", lambda c: c | {"n": 3}, "counts() gave (int) as 'n', where a tensor without axes, as torch.tensor(3.0)"),
        ("sums", lambda c: c | {"n": torch.ones(3)}, "counts() gave float32 [3] as 'n', where a tensor without axes"),
        ("columns", lambda c: c[0], "predict() gave int64 [3], where a tuple of tensors (predicted, true)"),
        ("columns", lambda c: (c[0].numpy(), c[1]), "predict() gave ((ndarray), int64 [3]), where a tuple of tensors"),
        ("columns", lambda c: (c[0][:1], c[1]), "predict() gave (int64 [1], int64 [3]), where tensors of 3 rows each"),
        ("values", lambda m: {"Loss": str(m)}, "metrics() gave {'Loss'}, where a dict of numbers"),
        (
            "values",
            lambda m: {"Los": 1.0},
            "metrics() gave {'Los'}, where 'Loss', which chooses the best epoch",
        ),
    ],
)
def test_a_wrong_result_of_a_task_is_told(verb, change, expected, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTask, verb, staticmethod(change))
    message = train(said, tmp_path, *OWN_TASK, "model.width=0.125")
    assert f"own_parts.OwnTask: {expected}" in message and HERE in message


def test_what_so_few_samples_leave_undefined_is_no_fault(said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTask, "values", staticmethod(lambda m: m if m["Loss"] != tested["Loss"] else 1 / 0))
    tested = {"Loss": None}
    monkeypatch.setattr(OwnTask, "sums", staticmethod(lambda c: tested.update(Loss=c["Loss"].item() / 3) or c if c["n"] == 3 else c))
    train(said, tmp_path, *OWN_TASK, "model.width=0.125", code=0)


def test_random_numbers_are_drawn_as_without_it(said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnModel, "change", staticmethod(lambda o: o + torch.rand(1) + np.random.rand() + random.random()))
    seen = []
    whole = check.check_first_pass

    def watched(*arguments):
        seen.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[2]))
        whole(*arguments)
        seen.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[2]))

    monkeypatch.setattr(check, "check_first_pass", watched)
    train(said, tmp_path, *OWN_MODEL, code=0)
    before, after = seen
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_what_fails_on_the_cpu_is_left_to_another_device(monkeypatch):
    def fail(*arguments):
        raise first_pass.PassFailed("no kernel for this device")

    monkeypatch.setattr(first_pass, "check_pass", fail)
    monkeypatch.setattr(first_pass, "make_model", lambda *arguments: OwnModel(2))
    monkeypatch.setattr(first_pass, "make_task", lambda settings: Classification())
    settings = {"model": {"_target_": "own_parts.OwnModel"}, "task": {"_target_": "snnexp.tasks.classification.Classification"}}
    first_pass.check_first_pass(settings, None, None, torch.device("cuda"))
    with pytest.raises(first_pass.PassFailed, match="no kernel"):
        first_pass.check_first_pass(settings, None, None, torch.device("cpu"))
