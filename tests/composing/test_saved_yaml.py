"""The unresolved configuration of a saved run, as a stranger may have written it."""

import time

import pytest
from omegaconf import OmegaConf

from snnexp.composing import saved_yaml
from snnexp.errors import UserError


def test_what_a_run_writes_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    config = OmegaConf.create({"T": 4, "lr": 1e-3, "model": {"T": "${T}"}, "tracker": {"a": {"b": [1, "${..c}"], "c": "${lr}"}}, "ü": "ö"})
    OmegaConf.save(config, path)
    assert saved_yaml.read(path) == config
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # an editor's mark
    assert saved_yaml.read(path) == config


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]" for n in range(40))])
DOUBLED = "\n".join(["a0: xx", *(f"a{n + 1}: ${{a{n}}}${{a{n}}}" for n in range(40))])
DOUBLED_NODES = "\n".join(["a0: {k: x}", *(f'a{n + 1}: ["${{a{n}}}", "${{a{n}}}"]' for n in range(40))])
RELATIVE = "a:\n  b0: xx\n" + "\n".join(f"  b{n + 1}: ${{.b{n}}}${{..a.b{n}}}" for n in range(40))
THROUGH = "\n".join(["n0: {k: xx}", *(f'm{n}: ${{n{n}}}\nn{n + 1}: {{k: "${{m{n}.k}}${{m{n}.k}}"}}' for n in range(40))])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "line 2 has an alias"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "line 3 has an alias"),
        ("a: &a [*a]", "alias"),
        ("[" * 200_000, "nested deeper than 64 levels at line 1"),
        ("a: " + "{b: " * 5_000, "nested deeper"),
        ("\n".join(" " * depth + f"k{depth}:" for depth in range(1, 900)), "nested deeper"),
        (DOUBLED, "more than .* characters once its interpolations are resolved"),
        (DOUBLED_NODES, "more than .* characters once"),
        (RELATIVE, "more than .* characters once"),
        (THROUGH, "more than .* characters once"),
        ("a: ${b}\nb: ${a}", "names itself"),
        ("a: ${b.c}\nb: ${a}", "without an end|names itself"),
        ("- 1\n- 2", "holds a list"),
        ("a: 1\na: 2", "cannot read"),
        ("a: !!python/object/apply:os.system [true]", "cannot read"),
        ("a: \x00", "cannot read"),
        ("a: '" + "x" * 2_000_000 + "'", "larger than 1 MiB"),
    ],
)
def test_what_no_run_writes_is_refused_at_once(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        saved_yaml.read(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 700
    assert time.process_time() - began < 5


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "config.yaml"
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes("model: größe".encode(encoding))
        with pytest.raises(UserError, match="it is not UTF-8"):
            saved_yaml.read(path)
