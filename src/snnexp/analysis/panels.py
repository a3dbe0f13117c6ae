"""Figures of several panels in one style, drawn without a screen and written completely or not at all."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.analysis.formatting import shorten
from snnexp.files import explaining, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may contain a dollar sign
    "figure.dpi": 150,
}


@contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator["Figure"]:
    """Give a figure of `width` x `height` inches to draw on; write it to `path` (PNG) at the end, unless drawing failed.

    Raises: RunFailed if the disk refuses.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The warning shows the letter as it is, which may be a control character of a stranger's name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        drawing = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawing)
        drawing.suptitle(shorten(title, int(width * 13)), fontsize=9, fontweight="bold", x=0.01, ha="left")
        yield drawing
        with explaining(path, ""), replacing(path, "wb", shared=True) as file:
            drawing.savefig(file, format="png")


def grid_size(count: int) -> tuple[int, int]:
    """Return rows and columns of a grid for `count` panels."""
    columns = count if count < 3 else 2 if count == 4 else 3 if count < 13 else 4
    return math.ceil(count / columns), columns


def add_panels(drawing: "Figure", count: int) -> list["Axes"]:
    """Add `count` panels in a grid to a figure; remaining places stay empty."""
    rows, columns = grid_size(count)
    return [drawing.add_subplot(rows, columns, place + 1) for place in range(count)]


def point_markers(positions: Sequence[float]) -> dict[str, Any]:
    """Return options that mark each point of a line which may be too short to be seen."""
    return {"marker": "o", "markersize": 3} if len(positions) < 3 else {}


def set_integer_axis(axes: "Axes", positions: Sequence[float]) -> None:
    """Set an x axis of epochs or forwards, with ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    first, last = float(min(positions)), float(max(positions))
    margin = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    if len(positions) < 7:
        axes.set_xticks(positions)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def axis_unit(most: float) -> tuple[float, str]:
    """Return the unit in which counts up to `most` are drawn, and its name for an axis."""
    return next((entry for entry in ((1e6, " (millions)"), (1e3, " (thousands)")) if most >= entry[0]), (1.0, ""))
