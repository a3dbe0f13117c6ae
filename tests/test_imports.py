"""Imports follow the flow of data: conf -> config -> run directory -> worker: build -> loop -> run directory -> analysis."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import snnexp

PACKAGE = Path(snnexp.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, top: bool = False) -> set[str]:
    """Modules that a file imports, anywhere or (`top`) when it is itself imported; `from a import b` counts as a.b."""
    tree = ast.parse(path.read_text())
    inside = {n for d in ast.walk(tree) if isinstance(d, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(d)} if top else set()
    for_checkers = {n for d in ast.walk(tree) if isinstance(d, ast.If) and "TYPE_CHECKING" in ast.dump(d.test) for n in ast.walk(d)}
    names = set()
    for node in ast.walk(tree):
        if node in inside or node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def breaches(paths: list[Path], forbidden: tuple[str, ...], top: bool = False, allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in paths
        for name in sorted(imported(path, top))
        if any(name == f or name.startswith(f + ".") for f in forbidden) and not any(name == a or name.startswith(a + ".") for a in allowed)
    ]


def modules_after(statement: str) -> set[str]:
    """The modules of a fresh interpreter after `statement`."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def roots(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_command_line_imports_the_standard_library_only():
    added = roots(modules_after("import snnexp.cli")) - roots(modules_after("pass"))
    assert {name for name in added if name not in sys.stdlib_module_names} == {"snnexp"}


def test_help_answers_in_a_blink():
    times = []
    for _ in range(5):
        began = time.perf_counter()
        shown = subprocess.run([sys.executable, "-m", "snnexp.cli", "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
    assert "snnexp train" in shown.stdout
    assert min(times) < 0.5  # alone on a machine it is under 0.15


@pytest.mark.parametrize("module", ["snnexp.config", "snnexp.analysis.runs", "snnexp.rundir", "snnexp.app", "snnexp.commands.runs"])
def test_no_torch_before_there_is_something_to_compute(module):
    assert "torch" not in roots(modules_after(f"import {module}"))


def test_the_worker_never_imports_hydra():
    assert "hydra" not in roots(modules_after("import snnexp.worker, snnexp.engine.loop, snnexp.build"))
    assert not breaches([PACKAGE / "worker.py", PACKAGE / "build.py", *of("engine")], ("hydra", "snnexp.app", "snnexp.commands"))


def test_rooms_know_torch_and_themselves():
    rooms = [path for room in ("models", "data", "tasks", "trackers", "pruning") for path in of(room)]
    assert len(rooms) > 15
    ours = ("hydra", "omegaconf", "snnexp.rundir", "snnexp.config", "snnexp.app", "snnexp.build", "snnexp.commands", "snnexp.worker")
    assert breaches(rooms, (*ours, "snnexp.engine", "snnexp.loggers")) == []
    for room in ("models", "tasks"):
        assert breaches(of(room), ("snnexp.data", "snnexp.engine")) == []
    assert breaches(of("data"), ("snnexp.models", "snnexp.tasks")) == []


def test_the_loop_makes_no_objects_and_analysis_draws_from_files():
    assert breaches(of("analysis"), ("torch", "hydra", "omegaconf", "snnexp.build", "snnexp.engine", "snnexp.models", "snnexp.data")) == []
    assert breaches(of("loggers"), ("hydra", "omegaconf", "snnexp.config", "snnexp.build", "snnexp.engine")) == []
    know_models = ("models", "data", "tasks", "trackers", "pruning")
    knows_all = [path for path in SOURCES if path.name != "build.py" and path.relative_to(PACKAGE).parts[0] not in know_models]
    assert breaches(knows_all, ("snnexp.models", "snnexp.tasks"), allowed=()) == []


def test_no_import_of_a_package_that_is_not_declared():
    declared = {
        "torch", "torchvision", "spikingjelly", "hydra", "omegaconf", "numpy", "bitsandbytes", "sklearn", "PIL", "tensorboard", "rich",
        "torch_geometric", "matplotlib", "rdkit", "safetensors", "timm", "umap", "pyarrow", "torchmetrics", "lpips",
        "yaml",  # Hydra's own
        "wandb", "snnexp",
    }  # fmt: skip
    used = {name.partition(".")[0] for path in SOURCES for name in imported(path)}
    assert used - declared - set(sys.stdlib_module_names) == set()


def test_every_module_imports_without_torchaudio():
    # Its releases follow torch's late or not at all, and a build for another torch does not load; SpikingJelly's data sets import it.
    code = (
        "import importlib, pkgutil, sys; sys.modules |= {'torchaudio': None, 'spikingjelly.datasets': None}; import snnexp\n"
        "for module in pkgutil.walk_packages(snnexp.__path__, 'snnexp.'):\n"
        "    if module.name != 'snnexp.__main__': importlib.import_module(module.name); print(module.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr  # nor does any of them, or what it needs, warn
    assert len(done.stdout.split()) == len(SOURCES) - 2  # all but snnexp itself and __main__
    root = PACKAGE.parents[1]
    everything = [*SOURCES, *(root / "tests").rglob("*.py"), *(root / "scripts").rglob("*.py")]
    assert not [path for path in everything for name in imported(path) if name.startswith(("torchaudio", "spikingjelly.datasets"))]


def test_sources_name_no_place_of_one_machine():
    conf = [*(PACKAGE.parents[1] / "conf").rglob("*.yaml")]
    for path in [*SOURCES, *conf]:
        text = path.read_text()
        for place in ("shared/", "/work", "/home/", "/root", "/tmp/"):
            assert place not in text, f"{path}: {place}"
    assert len(SOURCES) > 40 and os.path.isabs(PACKAGE)
