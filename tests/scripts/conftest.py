"""Scripts as their users run them, but at a tiny size and, to import torch once, in this process."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from snnexp.engine import allocator

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Callable[[str], ModuleType]:
    """Import a script; processes that it starts have the environment of the tests."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(allocator, "keep_memory", lambda: True)  # this process has other tests to run

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def script(load: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run `python scripts/NAME.py ARGS`; what it printed."""

    def script(name: str, *args: object) -> str:
        module = load(name)
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return script


@pytest.fixture(scope="session")
def stays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty stays in each set of physionet2012, in its form: half of the patients die, and their hearts beat faster."""
    root, random = tmp_path_factory.mktemp("physionet2012"), np.random.default_rng(0)
    for letter, first in (("a", 132539), ("b", 142675), ("c", 152871)):
        (root / f"set-{letter}").mkdir()
        outcomes = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
        for number in range(first, first + 20):
            died = number % 2
            body = f"Time,Parameter,Value\n00:00,RecordID,{number}\n00:00,Age,{random.integers(40, 90)}\n"
            for hour in range(random.integers(3, 9)):
                body += f"{hour:02d}:10,HR,{80 + 30 * died + random.integers(10)}\n{hour:02d}:10,Temp,{36 + random.random():.1f}\n"
            (root / f"set-{letter}" / f"{number}.txt").write_text(body)
            outcomes += f"{number},6,1,5,-1,{died}\n"
        (root / f"Outcomes-{letter}.txt").write_text(outcomes)
    return root
