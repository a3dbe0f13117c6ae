"""snnexp.train in a process of somebody else's: what it does, what it leaves as it was, and how it is stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import snnexp as program
from conftest import GRAPHS, assert_same, heed_signals, load, wait_for
from snnexp.composing import hydra_releases
from snnexp.errors import RunFailed, UserError

QUICK = [*GRAPHS, "epochs=1"]


@pytest.fixture
def here(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """A working directory, and one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNEXP_DATA", str(data_dir))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_twice_and_as_the_command_does(here, snnexp):
    runs = [program.train([*QUICK, "tracker=lif"]) for _ in range(2)]
    assert runs[0].path != runs[1].path and {run.state for run in runs} == {"finished"}
    snnexp("train", *QUICK, "tracker=lif", "exp_name=command", cwd=here)
    command = program.load("outputs/command")
    for run in runs:
        assert run.metrics() == command.metrics() and run.result["test"] == command.result["test"]
        assert run.config == command.config | {"exp_name": None}
        assert_same(run.model.state_dict(), command.model.state_dict())
    record = json.loads((runs[0].path / "provenance.json").read_text())
    assert record["command"].startswith("snnexp train model=spiking_gnn") and runs[0].device == "cpu"
    again = program.train([f"from={runs[0].path}", "seed=1"])
    assert again.config["seed"] == 1 and again.metrics() != command.metrics()


def test_the_process_is_as_it_was(here):
    def heard(number, frame):
        raise AssertionError

    ConfigStore.instance().store("theirs", {"a": "${twice:2}"}, **hydra_releases.STORE)
    hydra_releases.register_resolver("twice", lambda x: 2 * x, replace=True)
    GlobalHydra.instance().clear()
    handler, of_sigint = signal.signal(signal.SIGTERM, heard), signal.getsignal(signal.SIGINT)
    try:
        with hydra.initialize(config_path=None, **hydra_releases.COMPOSE):
            theirs, store, plugins = GlobalHydra.instance().hydra, ConfigStore.instance(), Plugins.instance()
            stored, resolvers = set(store.repo), set(BaseContainer._resolvers)
            named = {kind: list(found) for kind, found in plugins.plugin_type_to_subclass_list.items()}
            argv, environment, flags = list(sys.argv), dict(os.environ), torch.are_deterministic_algorithms_enabled()
            states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
            program.train([*QUICK, "deterministic=true"])
            assert GlobalHydra.instance().hydra is theirs and ConfigStore.instance() is store and Plugins.instance() is plugins
            assert (
                set(store.repo) == stored
                and set(BaseContainer._resolvers) == resolvers
                and named == dict(plugins.plugin_type_to_subclass_list)
            )
            assert hydra.compose("theirs").a == 4
        assert signal.getsignal(signal.SIGTERM) is heard and signal.getsignal(signal.SIGINT) is of_sigint
        assert sys.argv == argv and dict(os.environ) == environment and torch.are_deterministic_algorithms_enabled() == flags
        assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
        assert states[2] == np.random.get_state()[1].tolist()
    finally:
        signal.signal(signal.SIGTERM, handler)
        OmegaConf.clear_resolver("twice")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["-m", "lr=1,2"], "-m is for the command line"),
        (["--multirun"], "-m is for the command line"),
        (["--cfg", "job"], "--cfg shows something and trains nothing"),
        (["--help"], "--help shows something"),
        (["--frobnicate"], "there is no such flag"),
        (["modle=vggsnn"], "there is no key 'modle'.*Did you mean 'model'"),
        (["lr=1,2"], "several values are a sweep"),
        (["T=0"], "T=0: must be at least 1"),
        (["from=nowhere"], "nowhere: no such run directory"),
        (["dataset=cifar10", "data_dir=nowhere"], "cifar10"),
        ("model=vggsnn", "give a list of settings"),
        ([3], "give a list of settings"),
        (3, "give a list of settings"),
        (None, "give a list of settings"),
        ({"T": 2}, "give a list of settings"),
        ((word for word in ["T=0"]), "T=0: must be at least 1"),
        (["T=2", ""], "'' is not a setting"),
        (["--config-dir"], "--config-dir which directory"),
    ],
)
def test_mistakes_are_exceptions_and_leave_nothing(here, settings, words):
    with pytest.raises(UserError, match=f"(?s){words}"):
        program.train(settings)
    assert list(here.glob("outputs/*")) == [] and not GlobalHydra.instance().is_initialized()


def test_a_run_that_fails_says_why(here):
    with pytest.raises(RunFailed, match="is not finite|is nan|is inf"):
        program.train([*QUICK, "lr=1e38", "optimizer=sgd", "exp_name=bad", "scheduler=none", "limit_train=200"])
    (run,) = program.runs()
    assert run.state == "failed" and run.status["error"]


SCRIPT = """
import signal, sys
import snnexp

before = signal.getsignal(signal.SIGINT)
try:
    snnexp.train(sys.argv[1:])
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    (run,) = snnexp.runs()
    print("INTERRUPTED", run.state, run.status["step"] > 0)
except SystemExit as leaving:
    print("LEAVING", leaving.code)
"""


@pytest.mark.parametrize(
    ("number", "words", "printed"),
    [
        (signal.SIGINT, [], "INTERRUPTED interrupted True"),
        (signal.SIGTERM, [], "LEAVING 143"),
        (signal.SIGINT, ["devices=2"], "INTERRUPTED interrupted True"),
    ],
)
def test_an_interrupt_saves_and_is_then_heard(number, words, printed, here, environment):
    command = [sys.executable, "-c", SCRIPT, *GRAPHS, "epochs=100000", "exp_name=run", "save_minutes=0.0001", *words]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=here, env=environment, preexec_fn=heed_signals, **pipe)
    wait_for((here / "outputs/run/checkpoints/checkpoint_latest.pth").exists, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert printed in output and "Traceback" not in output, output
    assert load(here / "outputs/run/checkpoints/checkpoint_interrupted.pth")["step"] > 0


def test_two_workers_and_a_thread(here):
    alone = program.train([*QUICK, "batch_size=16", "devices=2", "exp_name=two"])
    assert alone.state == "finished" and alone.predict("test").predicted.tolist() == np.load(alone.path / "test_y_pred.npy").tolist()
    found: list[object] = []

    def work(*words: str) -> None:
        try:
            found.append(program.train([*QUICK, *words]))
        except UserError as error:
            found.append(error)

    for words in ([], ["devices=2"]):
        thread = threading.Thread(target=work, args=words)
        thread.start()
        thread.join()
    assert found[0].state == "finished" and "started from the main thread" in str(found[1])


def test_a_run_whose_configuration_is_cut_off_is_told_in_words(here):
    run = program.train([*QUICK, "start=false"])
    (run.path / ".hydra/config.yaml").write_text("T: 2\n")
    with pytest.raises(UserError, match=r"config.yaml is no whole configuration of a run: it lacks .*model"):
        program.train([f"from={run.path}"])
