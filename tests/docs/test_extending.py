"""docs/extending.md: each of its files is complete, and its commands run as they stand in the page."""

import json
import re
import tomllib
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^```bash\n(snnexp .*?)\n```", PAGE, re.MULTILINE)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A directory with all files of the page; of the package also what pip leaves, in which Python looks for its entry points."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    installed = tmp_path / "mynets-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in project["entry-points"].items()]
    (installed / "entry_points.txt").write_text("".join(lines))
    return tmp_path


def test_the_page_shows_each_of_them_once():
    assert len(COMMANDS) == 6 and len(FILES) == 15
    code = [line for line in FILES["mydata.py"].splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(code) <= 25


@pytest.mark.parametrize("command", COMMANDS, ids=["model", "dataset", "task", "tracker", "logger", "package"])
def test_a_command_of_the_page_runs_as_it_stands(command, written, snnexp):
    words = command.split()[1:]
    output = snnexp(*words, "exp_name=run", cwd=written)
    run = written / "outputs/run"
    settings = json.loads((run / "config.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["Acc1"] > (60 if "dataset=halves" in words else 15)
    if "dataset=halves" in words:
        assert settings["choices"]["model"] == "two_layers"  # as its header asks for
        assert result["protocol"].startswith("halves: ")
    if "task=margin" in words:
        assert set(result["test"]) == {"Acc1", "Loss"}
    if "logger=csv_file" in words:
        assert (run / "curves.csv").read_text().startswith("1,Train/Loss,")
        snnexp("resume", run, "epochs=3", "trust=[mydata,mymodels,myloggers]", cwd=written)
        assert [line[:2] for line in (run / "curves.csv").read_text().splitlines() if "Val/Acc1" in line] == ["1,", "2,", "3,"]
    if "tracker" in command:
        epoch = json.loads((run / "logs/metrics.jsonl").read_text().splitlines()[0])
        assert epoch["Weights/Norm"] > 0 and "weight norm" in output
    if "model=one_layer" in words:
        assert settings["trust"] == []
        snnexp("evaluate", run, cwd=written)  # a package that declares itself is trusted
