"""Settings as their user typed them: what Hydra would misread or refuse gets quotes, and text stays text."""

import sys

import pytest
from omegaconf import OmegaConf

from snnexp.composing import typed_text
from snnexp.composing.typed_text import parsed, with_quotes


@pytest.mark.parametrize(
    "text",
    ["2025_01_14", "1e5", "1_000", "1.10", "true", "False", "nan", "-5", "a=b", "~x", "a#b", "été", "日本", "a b", "it's", "a;b\\", "a[b"],
)
def test_a_text_key_keeps_the_text_as_typed(text):
    assert parsed(with_quotes(f"exp_name={text}")).value() == text


@pytest.mark.parametrize(
    "word",
    [
        "exp_name=null",
        "exp_name='1e5'",
        "lr=1e5",
        "epochs=1_000",
        "compile=true",
        "model.T=${T}",
        "channels_last=true",
        "lr=1,2",
        "~dataset",
    ],
)
def test_what_hydra_reads_rightly_is_left_alone(word):
    assert with_quotes(word) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("dataset.root=~/data", "~/data"),
        ("dataset.root=/data/Größe (neu)", "/data/Größe (neu)"),
        ("+extra.note=a=b#c", "a=b#c"),
        ("dataset.test_clips=[é,b]", ["é", "b"]),
        ("trust=[1e5,a]", ["1e5", "a"]),
    ],
)
def test_plain_text_needs_no_quotes(word, value):
    assert parsed(with_quotes(word)).value() == value


def test_each_value_of_a_sweep_is_quoted_by_itself():
    swept = parsed(with_quotes("data_dir=/a,/é,~/b,1e5"))
    assert swept.is_sweep_override() and list(swept.sweep_string_iterator()) == ["/a", "'/é'", "'~/b'", "'1e5'"]


def test_an_existing_path_may_have_commas(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert parsed(with_quotes(f"data_dir={tmp_path}/a,b")).value() == f"{tmp_path}/a,b"


@pytest.mark.parametrize("word", ["lr=[1,", "seed='1", "lr=tag(log,interval(1,2)", "+x={a: é}"])
def test_what_is_broken_stays_broken(word):
    assert parsed(with_quotes(word)) is None


def test_the_class_of_an_argument_says_that_it_is_text(tmp_path, monkeypatch):
    (tmp_path / "own_text.py").write_text(
        "from pathlib import Path\nclass Data:\n"
        "    def __init__(self, name: str, file: str | Path | None, clips: list[str], size: int, rate: float, "
        "either: str | int, any=0): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["dataset.name=2025_01_14", "dataset.file=1e5", "dataset.clips=[1_0,true,x,10]", "dataset.size=1_000", "dataset.rate=1e-1"]
    typed = typed_text.typed_numbers([*words, "dataset.either=1_0", "dataset.any=1_0"])
    node = {"name": 20250114, "file": 1e5, "clips": [10, True, "x", 10], "size": 1000, "rate": 0.1, "either": 10, "any": 10}
    cfg = OmegaConf.create({"trust": [], "dataset": {"_target_": "own_text.Data"} | node})
    typed_text.restore_text(strange := cfg.copy(), typed, saved=True)
    assert strange == cfg and "own_text" not in sys.modules  # a stranger's class is not imported for it
    typed_text.restore_text(cfg, typed, saved=False)
    text = {"name": "2025_01_14", "file": "1e5", "clips": ["1_0", "true", "x", "10"]}
    assert OmegaConf.to_container(cfg.dataset) == {"_target_": "own_text.Data"} | node | text
    sys.modules.pop("own_text", None)
