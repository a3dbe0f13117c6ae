"""The wandb logger against a stand-in of the package that records what it is told."""

import sys
from types import ModuleType

import pytest

from snnexp.errors import UserError
from snnexp.loggers.wandb import Wandb


class Config(dict):
    def update(self, values, allow_val_change=False):
        assert allow_val_change or not {key for key in values if key in self and self[key] != values[key]}
        super().update(values)


class Run:
    def __init__(self, options):
        self.options, self.step, self.history, self.config, self.summary, self.ended = options, 0, {}, Config(), {}, 0
        self.files = []

    def log(self, values, step, commit):
        assert step >= self.step and commit
        self.history[step], self.step = values, step + 1

    def save(self, glob_str, base_path, policy):
        self.files.append((glob_str, base_path, policy))

    def finish(self):
        self.ended += 1


@pytest.fixture
def service(monkeypatch):
    """A fake package `wandb`; its runs by id."""
    runs = {}
    package = ModuleType("wandb")
    package.Error = type("Error", (Exception,), {})

    def init(**options):
        if options["project"] == "forbidden":
            raise package.Error("permission denied")
        if options["id"] not in runs:
            runs[options["id"]] = Run(options)
        else:
            assert options["resume"] in ("allow", "must")
        return runs[options["id"]]

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return runs


def test_a_run_and_its_resume_are_one_run_there(tmp_path, service):
    run_dir = tmp_path / "vggsnn_T4"
    run_dir.mkdir()
    logger = Wandb(run_dir=run_dir, first_epoch=0, project="p", entity="e", mode="offline")
    logger.hparams({"lr": 0.1, "T": 4})
    for epoch in range(3):
        logger.scalars({"Val/Acc1": float(epoch)}, epoch)

    resumed = Wandb(run_dir=run_dir, first_epoch=1, project="p", entity="e", mode="offline")
    resumed.hparams({"lr": 0.1, "T": 4, "epochs": 9})
    for epoch in range(1, 5):
        resumed.scalars({"Val/Acc1": float(epoch)}, epoch)
    resumed.finish({"best": {"epoch": 3, "metric": "Val/Acc1", "value": 4.0}, "test": {"Acc1": 3.5}})
    resumed.close()

    (run,) = service.values()
    assert run.options["id"] == (run_dir / "wandb_run_id").read_text().strip()
    assert run.options["name"] == "vggsnn_T4"
    assert run.options["dir"] == str(run_dir)
    assert (run.options["project"], run.options["entity"], run.options["mode"]) == ("p", "e", "offline")
    assert run.history == {epoch: {"Val/Acc1": float(epoch)} for epoch in range(5)}
    assert run.config == {"lr": 0.1, "T": 4, "epochs": 9}
    assert run.summary == {"Best/Val/Acc1": 4.0, "Test/Acc1": 3.5}
    assert run.ended == 1


def test_a_file_of_the_run_goes_along_at_once(tmp_path, service):
    logger = Wandb(run_dir=tmp_path)
    logger.upload(tmp_path / "lif_activation_stats.json")
    (run,) = service.values()
    assert run.files == [(str(tmp_path / "lif_activation_stats.json"), str(tmp_path), "now")]


def test_two_runs_are_two_runs_there(tmp_path, service):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Wandb(run_dir=tmp_path / name, name="own name").close()
    assert len(service) == 2
    assert {run.options["name"] for run in service.values()} == {"own name"}


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "snnexp\[wandb\]"'):
        Wandb(run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_mode_is_refused(tmp_path, service):
    with pytest.raises(UserError, match="logger.mode=onlin: choose one of online, offline, disabled"):
        Wandb(run_dir=tmp_path, mode="onlin")


def test_what_the_service_refuses_is_one_message(tmp_path, service):
    with pytest.raises(UserError, match="permission denied"):
        Wandb(run_dir=tmp_path, project="forbidden")
