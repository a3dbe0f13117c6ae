"""No script, and no option of one, is without a test here."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_script_has_a_test(name):
    assert (HERE / f"test_{name}.py").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if "ArgumentParser" in (SCRIPTS / f"{name}.py").read_text()])
def test_every_option_is_tried(name, script, capsys):
    with pytest.raises(SystemExit) as ended:
        script(name, "--help")
    assert ended.value.code == 0
    options = re.findall(r"^  (--[a-z-]+|--T)\b", capsys.readouterr().out, re.MULTILINE)
    tried = (HERE / f"test_{name}.py").read_text()
    assert options and [option for option in options if f'"{option}"' not in tried] == []
