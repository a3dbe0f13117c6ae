"""What every test may use: the command line in a process of its own, a tiny experiment, and real data where they are."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

import forked
from data.video import layouts
from snnexp import build, cli, config
from snnexp.composing import conf, hydra_releases
from snnexp.composing.hydra_isolation import isolated_hydra
from snnexp.engine.arithmetic import layer_speed
from snnexp.engine.distributed import Ranks
from snnexp.engine.experiment import Experiment
from snnexp.engine.signals import STOP_SIGNALS
from snnexp.engine.terminal import Terminal
from snnexp.rundir import claim, write_json

TINY = [
    "model.width=0.125", "dataset.size=16", "T=2", "batch_size=16", "limit_train=64", "limit_val=32", "epochs=3", "precision=fp32",
    "logger=none", "device=cpu",
]  # fmt: skip
"""A VGGSNN of an eighth of the width on 64 small digits: about a second of training."""

EVENTS = [word for word in TINY if not word.startswith(("limit_", "logger", "epochs"))] + ["dataset=cifar10_dvs", "logger=tensorboard"]
"""The same on event recordings."""

GRAPHS = [
    "model=spiking_gnn", "model.width=16", "T=2", "batch_size=16", "limit_train=64", "limit_val=32", "epochs=3", "logger=none",
    "device=cpu",
]  # fmt: skip
"""A spiking GCN of a sixteenth of the width on 64 pixel graphs."""

STAYS = [
    "model=seqset_vae", "model.width=16", "model.levels=2", "dataset.stays=80", "batch_size=8", "epochs=3", "logger=none", "device=cpu",
]  # fmt: skip
"""A SeqSetVAE of a quarter of the width on 80 made stays."""

CLIPS = [
    "model=svrt_small", "model.width=8", "model.last_width=8", "dataset.clips=16", "dataset.size=32", "dataset.crop=16",
    "dataset.crops=1", "dataset.window=9", "epochs=3", "logger=none", "device=cpu",
]  # fmt: skip
"""An S-VRT of half the small width on 16 clips of small frames."""


MADE = {
    "convolution": {"fp32": 100.0, "fp32 channels_last": 150.0, "bf16": 100.0, "bf16 channels_last": 150.0},
    "matmul": {"fp32": 100.0, "bf16": 100.0},
}
"""GFLOP/s of layers that nobody measured, by which precision=auto is fp32 and channels_last=auto is true on any machine."""


@pytest.fixture(scope="session", autouse=True)
def made_speeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, with made speeds: no test measures a layer, in this process or another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(layer_speed, "measure_speeds", MADE.__getitem__)
        for kind in layer_speed.KINDS:
            layer_speed.measure_anew(kind)
        yield
        kept = [json.loads(path.read_text()) for path in (Path(os.environ["XDG_CACHE_HOME"]) / "snnexp").glob("speed-*.json")]
        assert kept and all(one["gflops"] == MADE[one["kind"]] for one in kept), "a test has measured this machine"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' prepared data lie, made once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def environment(data_dir: Path) -> dict[str, str]:
    """The environment of a process under test."""
    return os.environ | {"SNNEXP_DATA": str(data_dir), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def heed_signals() -> None:
    """Be a process that no signal was ignored for: one that nohup or a shell's & has started hands that down to its children."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """Start `snnexp ARGS` in a directory."""

    def start(*args: object, cwd: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "snnexp.cli", *map(str, args)]
        return subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_signals
        )

    return start


@pytest.fixture(scope="session")
def snnexp(start: Callable, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run `snnexp ARGS` in a directory to its end; its output, after checking its exit code.

    `fresh`: in an interpreter of its own. `hidden`: packages that shall seem to be missing.
    """
    context = forked.server(environment)
    file = tmp_path_factory.mktemp("output") / "output"

    def snnexp(*args: object, cwd: Path, code: int = 0, timeout: float = 240, fresh: bool = False, hidden: Sequence[str] = ()) -> str:
        if fresh:
            process = start(*args, cwd=cwd)
            output, _ = process.communicate(timeout=timeout)
            found = process.returncode
        else:
            process = context.Process(target=forked.command, args=([*map(str, args)], cwd, environment, file, hidden))
            process.start()
            process.join(timeout)
            output, found = file.read_text(), process.exitcode
            process.kill()
        assert found == code, f"exit code {found}, not {code}:\n{output}"
        assert "Traceback" not in output and "Warning: " not in output, output
        return output

    return snnexp


def composed(*overrides: str, command: str = "train") -> dict:
    """The checked configuration that `snnexp COMMAND OVERRIDES` composes, in this process."""
    ConfigStore.instance().store("schema", config.TrainConfig, **hydra_releases.STORE)
    GlobalHydra.instance().clear()
    with conf.initialize_hydra():
        cfg = hydra.compose(command, overrides=list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        cfg.pop("hydra")
    return config.finish(cfg, choices)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 240) -> None:
    """Wait until `condition` holds while `process` runs."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the process ended early:\n{process.stdout.read()}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("it did not come to that in time")
        time.sleep(0.005)


def load(path: Path) -> dict:
    """A checkpoint."""
    return torch.load(path, weights_only=True)


def last_path(output: str) -> Path:
    """The path in the last line of an output, which a shell can read."""
    return Path(*shlex.split(output.strip().splitlines()[-1]))


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal bit for bit, through dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture
def said(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `snnexp ARGS` in this process, in `tmp_path`; what it said, after checking its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNEXP_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", sys.argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def said(*args: object, code: int | None = 0) -> str:
        capfd.readouterr()
        try:
            with isolated_hydra():  # what a command registers there ends with its process
                found = cli.run([str(word) for word in args])
        except SystemExit as leaving:
            found = leaving.code
        output = "".join(capfd.readouterr())
        assert code in (found, None), f"exit code {found}, not {code}:\n{output}"
        assert "Traceback" not in output
        return output

    yield said
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def events(tmp_path_factory) -> Path:
    """A data directory with CIFAR10-DVS in its published layout, 100 small recordings."""
    root = tmp_path_factory.mktemp("events")
    layouts.cifar10_dvs(root / "cifar10_dvs", per_class=10, number=300)
    return root


@pytest.fixture(scope="session")
def trained(snnexp, events, tmp_path_factory) -> tuple[Path, str]:
    """A finished run with a difficult name, in a repository with uncommitted changes; and what its training said."""
    cwd = tmp_path_factory.mktemp("trained")
    git = ["git", "-C", str(cwd), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (cwd / "notes.txt").write_text("one\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    (cwd / "notes.txt").write_text("two\n")
    words = [*EVENTS, f"data_dir={events}", "batch_size=4", "epochs=2", "save_freq=1", "exp_name='odd, T=2 lr=1'"]
    output = snnexp("train", *words, cwd=cwd, fresh=True)
    return cwd / "outputs/odd, T=2 lr=1", output


@pytest.fixture
def make(data_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """Build the experiment of `base` and more settings; called again with the same name it is the same run, started anew."""
    made: list[Experiment] = []

    def make(*overrides: str, name: str = "run", rank: int = 0, world: int = 1, base: Sequence[str] = TINY) -> Experiment:
        settings = composed(*base, f"data_dir={data_dir}", *overrides)
        run = claim(tmp_path, name, exclusive=True) if not (tmp_path / name).exists() else type(made[0].run)(tmp_path / name)
        write_json(run.config, settings)
        x = build.make_experiment(run, settings, Ranks(rank, world, torch.device("cpu")), Terminal(run.train_log, main=rank == 0))
        made.append(x)
        return x

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)
    for x in made:
        x.close()
        x.terminal.close()
