"""The origin of a run: code, packages, machine and command line, written to provenance.json with diff.patch beside it."""

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
from snnexp import machine
from snnexp.files import replacing
from snnexp.rundir import now, read_record, write_json

PATCH_BYTES = 1 << 20
"""Largest diff in bytes that is written whole; a longer one is cut and marked as cut."""
UNTRACKED_NAMES = 200
"""Largest number of untracked files that are listed by name."""
GIT_SECONDS = 5.0
"""Time limit of one git command in seconds, so that a repository on a slow disk does not hold up a run."""
GIT_REDIRECTS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
"""Variables that would make git answer for another repository."""
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
"""The environment variables that are recorded: listed one by one, because others with the same prefix hold secrets (SLURM_JWT)."""


def write(run_dir: Path, argv: list[str], seed: int) -> None:
    """Write `<run_dir>/provenance.json`, and `diff.patch` beside it if the code has uncommitted changes.

    What cannot be determined is recorded as null with a reason. Raises: RunFailed if the record cannot be written.
    """
    run_dir = Path(run_dir).resolve()
    record, repositories = _record(argv, seed, None, run_dir)
    dirty = [repository for repository in repositories if repository.record["dirty"]]
    if dirty:
        try:
            with replacing(run_dir / "diff.patch", "wb") as file:
                file.write(b"\n".join(repository.section() for repository in dirty))
        except OSError as error:
            record["diff"] = {"file": None, "reason": f"diff.patch: {error.strerror}"}
        else:
            record["diff"] = {"file": "diff.patch", "cut": any(repository.cut for repository in dirty)}
    write_json(run_dir / "provenance.json", record)


def collect(argv: list[str], seed: int, source_dir: Path | None = None) -> dict[str, Any]:
    """Return the record that `write` writes, without the diff; `source_dir`: the directory of snnexp's own code (default: found)."""
    return _record(argv, seed, source_dir, None)[0]


def add(run_dir: Path, name: str, value: Any) -> None:
    """Add an entry that becomes known only during the run to its record.

    Raises: RunFailed if the record cannot be written.
    """
    path = Path(run_dir) / "provenance.json"
    write_json(path, read_record(path) | {name: value})


def read_added(run_dir: Path, name: str) -> Any:
    """Return the entry that `add` wrote under a name, or None."""
    path = Path(run_dir) / "provenance.json"
    return read_record(path).get(name)


@dataclass
class _Repository:
    """The state of one git working tree."""

    title: str
    record: dict[str, Any]
    patch: bytes = b""
    cut: bool = False

    def section(self) -> bytes:
        """Return its part of diff.patch; `git apply` ignores the lines before the first diff."""
        lines = [f"# {self.title}: changes against {self.record['commit'] or 'the empty tree'}"]
        if self.cut:
            lines.append(f"# CUT: only the first {len(self.patch)} bytes of a longer diff follow")
        if self.record["untracked"]:
            count = self.record["untracked_count"]
            lines.append(f"# {count} untracked, not contained here:")
            lines += [f"#   {name}" for name in self.record["untracked"]]
            if count > len(self.record["untracked"]):
                lines.append(f"#   ... and {count - len(self.record['untracked'])} more")
        return "\n".join(lines).encode(errors="surrogateescape") + b"\n" + self.patch


def _record(argv: list[str], seed: int, source_dir: Path | None, run_dir: Path | None) -> tuple[dict[str, Any], list[_Repository]]:
    reasons: dict[str, str] = {}

    def look_up(name: str, function: Callable[[], Any]) -> Any:
        # A run must not fail because its origin cannot be recorded: what cannot be determined is null, with a reason.
        try:
            return function()
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {error}"
            return None

    source_dir = source_dir or _source_checkout()
    directory = look_up("directory", Path.cwd)
    source = _repository("snnexp", source_dir, run_dir) if source_dir else None
    working = (
        _repository("working directory", directory, run_dir)
        if directory
        else _Repository("working directory", _no_repository("the working directory is gone"))
    )
    words = _words(argv)
    record = {
        "command": shlex.join(["snnexp", *words]),
        "argv": words,
        "directory": _without_home(str(directory)) if directory else None,
        "seed": seed,
        "started": now(),
        "hostname": look_up("hostname", platform.node),
        "os": look_up("os", platform.platform),
        "snnexp": {
            "version": snnexp.__version__,
            "source": _without_home(str(source_dir)) if source_dir else None,
            "git": source.record if source else _no_repository("installed as a package, not from a checkout"),
        },
        "git": working.record,
        "diff": None,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "hardware": {
            "cpu": look_up("cpu", cpu),
            "memory_gib": look_up("memory", _memory_gib),
            "gpus": look_up("gpus", _gpus),
        },
        "torch": look_up("torch", _torch),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "packages": look_up("packages", _packages),
        "reasons": reasons,
    }
    if source is None:
        return record, [working]
    return record, [source] if source.record["root"] == working.record["root"] else [source, working]


def _words(argv: list[str]) -> list[str]:
    """Return the words after `snnexp`, without the path of the program and of the home directory, so that they work for any user."""
    program, *verb = Path(argv[0]).name.split(" ") if argv else [""]
    words = [*verb, *argv[1:]] if program in ("snnexp", "snnexp.exe", "__main__.py") else argv
    return [_without_home(word) for word in words]


def _without_home(text: str) -> str:
    home = os.path.expanduser("~").rstrip(os.sep)
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?=/|$)", "~", text) if home else text


def _source_checkout() -> Path | None:
    """Return the directory of snnexp's own code if it runs from a checkout, None if from site-packages."""
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
                next(entries)  # the old name of a renamed file, which is an entry of its own
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
    # The runs themselves (outputs/) do not count as changes of the code.
    if run_dir is None:
        return False
    is_sibling = root in run_dir.parent.parents and entry.is_relative_to(run_dir.parent)
    return is_sibling or run_dir.is_relative_to(entry)


def _diff(root: Path, commit: str | None) -> tuple[bytes, bool]:
    """Return the changes of tracked files against HEAD, cut at the end of a line if longer than PATCH_BYTES, and whether they are cut."""
    against = "HEAD" if commit else os.fsdecode(_git(root, "hash-object", "-t", "tree", "/dev/null")).strip()
    style = ("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")
    patch = _git(root, *style, "diff", "--no-color", "--no-ext-diff", "--no-textconv", against, limit=PATCH_BYTES + 1)
    if len(patch) <= PATCH_BYTES:
        return patch, False
    return patch[: patch.rfind(b"\n", 0, PATCH_BYTES) + 1], True


class _NoGit(Exception):
    """The reason why git gave no answer."""


def _git(directory: Path, *arguments: str, limit: int = -1) -> bytes:
    """Return the first `limit` bytes of a git command's output; nothing in the repository is changed, not even a lock."""
    # GIT_DIR and the like, which are set in a git hook, would select another repository than that of `directory`.
    environment = {name: value for name, value in os.environ.items() if name not in GIT_REDIRECTS}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
    with tempfile.TemporaryFile() as output:
        try:
            finished = subprocess.run(
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
        if finished.returncode:
            lines = finished.stderr.decode(errors="replace").strip().splitlines()
            raise _NoGit(lines[0] if lines else f"git ended with code {finished.returncode}")
        output.seek(0)
        return output.read(limit)


# ---- machine


def cpu() -> dict[str, Any]:
    """Return the processor's name, its number of cores and of threads, and the number of threads that this process may use."""
    model, physical = platform.processor() or platform.machine(), None
    with contextlib.suppress(FileNotFoundError):  # not Linux: the names above are all there is
        fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        pairs = [(key.strip(), value.strip()) for key, _, value in fields]
        model = next((value for key, value in pairs if key == "model name"), model)
        sockets = len({value for key, value in pairs if key == "physical id"})
        physical = next((int(value) * max(sockets, 1) for key, value in pairs if key == "cpu cores"), None)
    usable = machine.cores()
    return {"model": model, "cores": physical, "threads": os.cpu_count(), "usable_threads": usable}


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs of this machine as the driver lists them; torch would open a context on the first one."""
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
        finished = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
        rows = [line.rpartition(", ") for line in finished.stdout.splitlines()]
        return [{"name": name, "driver": version} for name, _, version in rows]
    return []


def _torch() -> dict[str, Any] | None:
    """Return what only an imported torch can tell; None in a process that has not imported it."""
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
    """Return the installed distributions and their versions, as the interpreter would import them."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # The first on the path is the one that is imported.
            versions.setdefault(name, distribution.version)
    return dict(sorted(versions.items(), key=lambda pair: pair[0].lower()))
