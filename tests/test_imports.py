"""Imports follow the flow of data: conf -> config -> run directory -> worker: build -> loop -> run directory -> analysis."""

import ast
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import snnexp

PACKAGE = Path(snnexp.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, checkers: bool = False) -> set[str]:
    """Modules that a file imports, those for type `checkers` only if asked for; `from a import b` counts as a.b."""
    tree = ast.parse(path.read_text())
    for_checkers = {n for d in ast.walk(tree) if isinstance(d, ast.If) and "TYPE_CHECKING" in ast.dump(d.test) for n in ast.walk(d)}
    names = set()
    for node in ast.walk(tree):
        if node in for_checkers and not checkers:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(name: str) -> str | None:
    """The module of ours that an imported name is, or lies in."""
    return name if name in MODULES else parent if (parent := name.rpartition(".")[0]) in MODULES and parent != "snnexp" else None


def of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def breaches(paths: list[Path], forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in paths
        for name in sorted(imported(path))
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


def test_the_door_for_programs_opens_at_once():
    added = roots(modules_after("import snnexp")) - roots(modules_after("pass"))
    assert {name for name in added if name not in sys.stdlib_module_names} == {"snnexp"}
    code = "import time; began = time.process_time(); import snnexp; print(time.process_time() - began)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(seconds) < 0.1  # of the processor; alone on a machine it is under 0.03
    assert modules_after("import snnexp; snnexp.runs; snnexp.load; dir(snnexp)") & {"torch", "numpy", "hydra"} == set()
    assert "torch" not in modules_after("import snnexp; snnexp.train")


def test_help_answers_in_a_blink():
    times = []
    for _ in range(5):
        began = time.perf_counter()
        shown = subprocess.run([sys.executable, "-m", "snnexp.cli", "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
    assert "snnexp train" in shown.stdout
    assert min(times) < 0.5  # alone on a machine it is under 0.15


LIGHT = (
    "snnexp.config",
    "snnexp.analysis.runs",
    "snnexp.rundir",
    "snnexp.composing.compose",
    "snnexp.commands.runs",
    "snnexp.api.loaded_run",
)


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_before_there_is_something_to_compute(module):
    assert "torch" not in roots(modules_after(f"import {module}"))


FLOORS = (
    {"errors", "fp32", "processes"},
    {"files", "untrusted"},
    {"contracts", "machine", "published"},
    {"conformance"},
    {"rundir", "targets"},
    {"config", "provenance"},
    {"loggers"},
    {"data"},
    {"models"},
    {"tasks", "pruning"},
    {"trackers"},
    {"parts"},
    {"engine"},
    {"first_pass"},
    {"build", "check"},
    {"worker"},
    {"profile"},
    {"launch"},
    {"analysis"},
    {"composing"},
    {"commands"},
    {"api"},
    {"__main__", "cli"},
)
"""The rooms and modules of the package, from the ground up: a module imports from its own floor and from those below."""
MODULES = {".".join(("snnexp", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path for path in SOURCES}
ARROWS = {name: {found for full in imported(path, checkers=True) if (found := ours(full))} - {name} for name, path in MODULES.items()}
"""The modules of ours that each imports, inside of functions and for type checkers too."""


def test_no_import_runs_up():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    inside = {name: floor[name.split(".")[1]] for name in MODULES if name != "snnexp"}
    assert [f"{a} imports {b}" for a in inside for b in ARROWS[a] if inside.get(b, 0) > inside[a]] == []


def test_no_imports_run_in_a_circle():
    left = dict(ARROWS)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("root", [PACKAGE, PACKAGE.parents[1] / "tests"])
def test_no_room_is_crowded_and_no_file_long(root):
    files = [path for path in root.rglob("*.py") if "__pycache__" not in path.parts]
    rooms = Counter(path.parent for path in files if path.name != "__init__.py")
    assert {str(room): count for room, count in rooms.items() if count > 20} == {}
    assert {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > 450} == {}


def test_the_worker_never_imports_hydra():
    assert "hydra" not in roots(modules_after("import snnexp.worker, snnexp.engine.loop, snnexp.build"))
    assert not breaches([PACKAGE / "worker.py", PACKAGE / "build.py", *of("engine")], ("hydra",))


def test_rooms_know_torch_and_themselves():
    rooms = [path for room in ("models", "data", "tasks", "trackers", "pruning") for path in of(room)]
    assert len(rooms) > 15
    assert breaches(rooms, ("hydra", "omegaconf", "snnexp.rundir", "snnexp.config", "snnexp.loggers")) == []
    for room in ("models", "tasks"):
        assert breaches(of(room), ("snnexp.data",)) == []


def test_the_loop_makes_no_objects_and_analysis_draws_from_files():
    assert breaches(of("analysis"), ("torch", "hydra", "omegaconf", "snnexp.build", "snnexp.engine", "snnexp.models", "snnexp.data")) == []
    assert breaches(of("loggers"), ("hydra", "omegaconf", "snnexp.config")) == []
    know_models = ("models", "data", "tasks", "trackers", "pruning")
    others = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] not in know_models]
    assert breaches(others, ("snnexp.models", "snnexp.tasks"), allowed=("snnexp.models.neurons.lif_implementation",)) == []


def test_no_import_of_a_package_that_is_not_declared():
    declared = {
        "torch", "torchvision", "spikingjelly", "hydra", "omegaconf", "numpy", "bitsandbytes", "sklearn", "PIL", "tensorboard", "rich",
        "torch_geometric", "matplotlib", "rdkit", "safetensors", "timm", "umap", "pyarrow", "torchmetrics", "lpips",
        "yaml",  # Hydra's own
        "triton",  # torch's own, where it is
        "wandb", "snnexp",
        "pandas",  # where it is there
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
