"""README and docs: links lead somewhere, commands compose, names of code exist, every option of a group is listed."""

import re
import shlex
from dataclasses import fields
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from conftest import composed
from snnexp.commands import COMMANDS
from snnexp.composing import conf
from snnexp.config import GROUPS, ProfileConfig, TrainConfig

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted(conf.conf_dir().rglob("*.yaml"))
OF_PROFILE = {field.name for field in fields(ProfileConfig)} - {field.name for field in fields(TrainConfig)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(page: Path) -> list[str]:
    """The lines of a page's code blocks."""
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)).splitlines()


def commands(path: Path) -> list[list[str]]:
    """The words of every `snnexp` command in code blocks of a page, or in the comments at the head of a config file, without ..."""
    lines = code(path) if path.suffix == ".md" else [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        for start in re.finditer(r"(?:^|&& |; |do )\s*(snnexp [a-z]+(?: .*)?)", line):
            for part in re.split(r" && |; done", start[1].replace("$k", "0")):
                words = shlex.split(part, comments=True) if part.startswith("snnexp ") else []
                if words and words[1] in COMMANDS and "..." not in words:
                    found.append([word for word in words[1:] if word not in (">", "watch.log")])
    return found


composes = cache(composed)  # pages share commands


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short_and_sets_up_in_two_lines():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if ".venv/bin/pip" in line] == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/snnexp train",
        'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/pytest',
    ]
    assert sum(".venv/bin/pytest" in line for line in lines) == 1  # .ci/run takes it from here


@pytest.mark.parametrize("group", GROUPS)
def test_readme_lists_every_option(group):
    options = {path.stem for path in (conf.conf_dir() / group).glob("*.yaml")}
    assert [option for option in sorted(options) if f"`{option}`" not in README.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in slugs(linked), target


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in index] == []


@pytest.mark.parametrize("path", [page for page in (*PAGES, *CONFIGS) if page.name != "extending.md"], ids=name)  # which is run whole
def test_commands_compose(path):
    """Those that begin from the configs: a command on a run composes with what the run has."""
    for command, *words in commands(path):
        if command not in ("train", "profile", "data", "prune") or any("=" not in word and word[0] != "-" for word in words):
            continue
        if not words or "--config-dir" in words or "--help" in words or any(word.startswith("from=") for word in words):
            continue
        words = [word for word in words if word not in ("-m", "--cfg") and not word.startswith("hydra=") and "(" not in word]
        words = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in words if word.partition("=")[0] not in OF_PROFILE | {"stages"}]
        composes(*words)


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS], ids=name)
def test_code_that_is_named_exists(path):
    text = path.read_text()
    for module in set(re.findall(r"\bsnnexp/[\w/]+\.py\b", text)):
        assert (ROOT / "src" / module).exists(), module
    for dotted in set(re.findall(r"\bsnnexp(?:\.\w+)+", text)) - {"snnexp.conf"}:
        parts = dotted.split(".")
        found = None
        for size in range(len(parts), 0, -1):
            try:
                found = import_module(".".join(parts[:size]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[size:]:
                found = getattr(found, attribute, None)
            break
        assert found is not None, dotted


def test_there_is_something_to_check():
    every = list(chain.from_iterable(map(commands, [*PAGES, *CONFIGS])))
    assert len(every) > 100 and {command for command, *_ in every} == set(COMMANDS)
