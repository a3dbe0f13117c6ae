"""What made a run: code, packages, machine, command line, written as provenance.json with diff.patch beside it."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snnexp
from snnexp.rundir import now, read_json, write_json

PATCH_BYTES = 1 << 20
"""A longer diff is cut, and says so."""
UNTRACKED_NAMES = 200
"""Names of untracked files that are listed, at most."""
GIT_SECONDS = 5.0
"""Patience with one git command; a repository on a slow disk costs a run no more than this."""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
"""Variables that point git at a repository of their own choice."""
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
    "NCCL_P2P_DISABLE",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_PARTITION",
    "SLURM_PROCID",
    "SLURM_RESTART_COUNT",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "WORLD_SIZE",
)
"""The variables that are recorded: named one by one, because others of the same families hold secrets (SLURM_JWT)."""


def write(run_dir: Path, argv: list[str], seed: int) -> None:
    """Write `<run_dir>/provenance.json`, and `diff.patch` beside it if the code has changes that no commit holds.

    Whatever cannot be found out is recorded as null with a reason. Raises: RunFailed if the disk refuses the record.
    """
    run_dir = Path(run_dir).resolve()
    record, repositories = _record(argv, seed, None, run_dir)
    dirty = [repository for repository in repositories if repository.record["dirty"]]
    if dirty:
        try:
            (run_dir / "diff.patch").write_bytes(b"\n".join(repository.section() for repository in dirty))
        except OSError as error:
            record["diff"] = {"file": None, "reason": f"diff.patch: {error.strerror}"}
        else:
            record["diff"] = {"file": "diff.patch", "cut": any(repository.cut for repository in dirty)}
    write_json(run_dir / "provenance.json", record)


def collect(argv: list[str], seed: int, source_dir: Path | None = None) -> dict[str, Any]:
    """The record that `write` writes, without the diff; `source_dir`: where snnexp's own code lies (default: found)."""
    return _record(argv, seed, source_dir, None)[0]


def add(run_dir: Path, name: str, value: Any) -> None:
    """Add to the record of a run what only its work brings to light.

    Raises: RunFailed if the disk refuses.
    """
    path = Path(run_dir) / "provenance.json"
    write_json(path, (read_json(path) if path.exists() else {}) | {name: value})


def added(run_dir: Path, name: str) -> Any:
    """What was added to the record of a run under a name, or None."""
    path = Path(run_dir) / "provenance.json"
    return read_json(path).get(name) if path.exists() else None


@dataclass
class _Repository:
    """State of one git working tree."""

    title: str
    record: dict[str, Any]
    patch: bytes = b""
    cut: bool = False

    def section(self) -> bytes:
        """Its part of diff.patch; `git apply` passes over the lines in front of the first diff."""
        lines = [f"# {self.title}: changes against {self.record['commit'] or 'the empty tree'}"]
        if self.cut:
            lines.append(f"# CUT: only the first {len(self.patch)} bytes of a longer diff follow")
        if self.record["untracked"]:
            number = self.record["untracked_count"]
            lines.append(f"# {number} untracked, not contained here:")
            lines += [f"#   {name}" for name in self.record["untracked"]]
            if number > len(self.record["untracked"]):
                lines.append(f"#   ... and {number - len(self.record['untracked'])} more")
        return "\n".join(lines).encode(errors="surrogateescape") + b"\n" + self.patch


def _record(argv: list[str], seed: int, source_dir: Path | None, run_dir: Path | None) -> tuple[dict[str, Any], list[_Repository]]:
    reasons: dict[str, str] = {}

    def found(name: str, look: Callable[[], Any]) -> Any:
        # A run must not fail for want of a record of it: what cannot be found out is null, and says why.
        try:
            return look()
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {error}"
            return None

    source_dir = source_dir or _source_checkout()
    here = found("directory", Path.cwd)
    ours = _repository("snnexp", source_dir, run_dir) if source_dir else None
    theirs = (
        _repository("working directory", here, run_dir)
        if here
        else _Repository("working directory", _no_repository("the working directory is gone"))
    )
    words = _words(argv)
    record = {
        "command": shlex.join(["snnexp", *words]),
        "argv": words,
        "directory": _without_home(str(here)) if here else None,
        "seed": seed,
        "started": now(),
        "hostname": found("hostname", platform.node),
        "os": found("os", platform.platform),
        "snnexp": {
            "version": snnexp.__version__,
            "source": _without_home(str(source_dir)) if source_dir else None,
            "git": ours.record if ours else _no_repository("installed as a package, not from a checkout"),
        },
        "git": theirs.record,
        "diff": None,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "hardware": {
            "cpu": found("cpu", cpu),
            "memory_gib": found("memory", _memory_gib),
            "gpus": found("gpus", _gpus),
        },
        "torch": found("torch", _torch),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "packages": found("packages", _packages),
        "reasons": reasons,
    }
    repositories = [repository for repository in (ours, theirs) if repository is not None]
    if ours is not None and ours.record["root"] == theirs.record["root"]:
        repositories = [ours]
    return record, repositories


def _words(argv: list[str]) -> list[str]:
    """The words after `snnexp`, the same whoever ran it: neither the program's own path nor a home directory."""
    program, *verb = Path(argv[0]).name.split(" ") if argv else [""]
    words = [*verb, *argv[1:]] if program in ("snnexp", "snnexp.exe", "__main__.py") else argv
    return [_without_home(word) for word in words]


def _without_home(text: str) -> str:
    home = os.path.expanduser("~").rstrip(os.sep)
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?=/|$)", "~", text) if home else text


def _source_checkout() -> Path | None:
    """Directory of snnexp's own code, if it is used from a checkout and not from site-packages."""
    package = Path(snnexp.__file__).resolve().parent
    return None if {"site-packages", "dist-packages"} & set(package.parts) else package


# ---- git


def _no_repository(reason: str) -> dict[str, Any]:
    return {"root": None, "commit": None, "branch": None, "dirty": None, "reason": reason}


def _repository(title: str, directory: Path, run_dir: Path | None) -> _Repository:
    try:
        root = Path(os.fsdecode(_git(directory, "rev-parse", "--show-toplevel")).rstrip("\n"))
        status = _git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal", "-z")
    except _NoGit as error:
        return _Repository(title, _no_repository(str(error)))

    commit = branch = reason = None
    changed, untracked = 0, []
    entries = iter(os.fsdecode(status).split("\0"))
    for entry in entries:
        kind, _, rest = entry.partition(" ")
        if entry.startswith("# branch.oid "):
            commit = entry.removeprefix("# branch.oid ")
        elif entry.startswith("# branch.head "):
            branch = entry.removeprefix("# branch.head ")
        elif kind in ("1", "2", "u"):
            changed += 1
            if kind == "2":
                next(entries)  # the name it had before, an entry of its own
        elif kind == "?" and not _is_output(root / rest, root, run_dir):
            untracked.append(rest)
    if commit == "(initial)":
        commit, reason = None, "the repository has no commit yet"
    if branch == "(detached)":
        branch = None

    patch, cut = b"", False
    if changed:
        try:
            patch, cut = _diff(root, commit)
        except _NoGit as error:
            reason = f"no diff: {error}"
    return _Repository(
        title,
        {
            "root": _without_home(str(root)),
            "commit": commit,
            "branch": branch,
            "dirty": bool(changed or untracked),
            "changed": changed,
            "untracked": untracked[:UNTRACKED_NAMES],
            "untracked_count": len(untracked),
            "reason": reason,
        },
        patch,
        cut,
    )


def _is_output(entry: Path, root: Path, run_dir: Path | None) -> bool:
    # The runs themselves (outputs/) are no change of the code that made them.
    if run_dir is None:
        return False
    beside = root in run_dir.parent.parents and entry.is_relative_to(run_dir.parent)
    return beside or run_dir.is_relative_to(entry)


def _diff(root: Path, commit: str | None) -> tuple[bytes, bool]:
    """Changes of tracked files against HEAD, cut at a line's end when longer than PATCH_BYTES."""
    against = "HEAD" if commit else os.fsdecode(_git(root, "hash-object", "-t", "tree", "/dev/null")).strip()
    style = ("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")
    patch = _git(root, *style, "diff", "--no-color", "--no-ext-diff", "--no-textconv", against, limit=PATCH_BYTES + 1)
    if len(patch) <= PATCH_BYTES:
        return patch, False
    return patch[: patch.rfind(b"\n", 0, PATCH_BYTES) + 1], True


class _NoGit(Exception):
    """Why git gave no answer."""


def _git(directory: Path, *arguments: str, limit: int = -1) -> bytes:
    """Output of a git command, its first `limit` bytes; nothing in the repository is changed by it, locks included."""
    # GIT_DIR and its kin, set in a git hook, would answer for another repository than that of `directory`.
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=GIT_SECONDS,
            )
        except FileNotFoundError:
            raise _NoGit("git is not installed") from None
        except subprocess.TimeoutExpired:
            raise _NoGit(f"git {arguments[0]} took more than {GIT_SECONDS:g} s") from None
        except OSError as error:
            raise _NoGit(f"git cannot be run: {error}") from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise _NoGit(words[0] if words else f"git ended with code {done.returncode}")
        output.seek(0)
        return output.read(limit)


# ---- machine


def cpu() -> dict[str, Any]:
    """The processor's name, its cores, and the threads it has and this process may use."""
    model, physical = platform.processor() or platform.machine(), None
    with contextlib.suppress(FileNotFoundError):  # not Linux: the names above must do
        fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        pairs = [(key.strip(), value.strip()) for key, _, value in fields]
        model = next((value for key, value in pairs if key == "model name"), model)
        sockets = len({value for key, value in pairs if key == "physical id"})
        physical = next((int(value) * max(sockets, 1) for key, value in pairs if key == "cpu cores"), None)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "cores": physical, "threads": os.cpu_count(), "usable_threads": usable}


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)


def _gpus() -> list[dict[str, Any]]:
    """GPUs of this machine, asked of the driver: asking torch would open a context on the first of them."""
    driver = Path("/proc/driver/nvidia")
    if (driver / "gpus").is_dir():
        words = (driver / "version").read_text().split()
        version = next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
        names = []
        for information in sorted((driver / "gpus").glob("*/information")):
            pairs = [line.partition(":") for line in information.read_text().splitlines()]
            names.append(next((value.strip() for key, _, value in pairs if key.strip() == "Model"), None))
        return [{"name": name, "driver": version} for name in names]
    if Path("/dev/nvidiactl").exists() and shutil.which("nvidia-smi"):  # a container that hides /proc/driver
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
        rows = [line.rpartition(", ") for line in done.stdout.splitlines()]
        return [{"name": name, "driver": version} for name, _, version in rows]
    return []


def _torch() -> dict[str, Any] | None:
    """What only an imported torch can tell; null in a process that has not imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
    }


def _packages() -> dict[str, str]:
    """Installed distributions and their versions, as the interpreter would import them."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # The first on the path is the one that is imported.
            versions.setdefault(name, distribution.version)
    return dict(sorted(versions.items(), key=lambda pair: pair[0].lower()))
