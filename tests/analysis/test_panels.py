"""The frame that all figures share."""

import warnings

from matplotlib import image

from snnexp.analysis.panels import figure


def test_letters_without_a_glyph_reach_no_terminal(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with figure(tmp_path / "a.png", 3, 2, "a\x1b[31mname, \u540d") as drawing:
            drawing.subplots().set_title("\x07")
    assert [str(warning.message) for warning in caught] == [] and image.imread(tmp_path / "a.png").shape[2] == 4
