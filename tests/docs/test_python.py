"""The pages for programs, run as they stand."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def here(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """A working directory, and one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNEXP_DATA", str(data_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_code_of_the_page(here, capsys):
    text = (DOCS / "python.md").read_text()
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) >= 7
    names: dict[str, object] = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(DOCS / "python.md"), "exec"), names)
    output = capsys.readouterr().out
    assert "small finished {'Loss':" in output and "There is: checkpoint_best.pth" in output and output.count("finished 0 {") == 1
    assert names["columns"]["epoch"] == [1, 2] and names["prediction"].output.shape[::2] == (2, 10)


def test_the_notebook(here):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    path = DOCS / "notebooks/first_run.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(here)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert re.search(r"\d+ test digits, \d+\.\d % right", printed)
    assert len(pictures) == 2 and "taken for a" in printed
    assert (here / "outputs").is_dir()
