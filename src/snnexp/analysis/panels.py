"""Figures of panels in one style, drawn without a screen and written whole."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "text.parse_math": False,  # a name may hold a dollar
    "figure.dpi": 150,
}


@contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator["Figure"]:
    """A figure of `width` x `height` inches to draw on; at the end it is written to `path` (PNG), or nothing if drawing failed.

    Raises: RunFailed if the disk refuses.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawing)
        drawing.suptitle(fit(title, int(width * 13)), fontsize=9, fontweight="bold", x=0.01, ha="left")
        yield drawing
        with explaining(path, ""), replacing(path, "wb", shared=True) as file:
            drawing.savefig(file, format="png")


def grid(count: int) -> tuple[int, int]:
    """Rows and columns for `count` panels."""
    columns = count if count < 3 else 2 if count == 4 else 3 if count < 13 else 4
    return math.ceil(count / columns), columns


def panels(drawing: "Figure", count: int) -> list["Axes"]:
    """`count` panels in a grid; the places that are left over stay white."""
    rows, columns = grid(count)
    return [drawing.add_subplot(rows, columns, number + 1) for number in range(count)]


def lone(positions: Sequence[float]) -> dict[str, Any]:
    """How a line is drawn that might be too short to be seen: with a marker at each point."""
    return {"marker": "o", "markersize": 3} if len(positions) < 3 else {}


def whole_numbers(axes: "Axes", positions: Sequence[float]) -> None:
    """An x axis of epochs or forwards, which has no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    first, last = float(min(positions)), float(max(positions))
    margin = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    if len(positions) < 7:
        axes.set_xticks(positions)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def fit(text: str, letters: int) -> str:
    """A name cut in its middle to so many letters."""
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[-(letters - 1 - head) :]}"


def amount(value: float, unit: str = "") -> str:
    """A number in three or four figures with its prefix: 554 M, 547 µJ."""
    prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p")]
    if not unit:
        prefixes = prefixes[:5]
    size, prefix = next((entry for entry in prefixes if abs(value) >= entry[0]), (1.0, ""))
    return f"{value / size:.4g} {prefix}{unit}".rstrip()


def scale(most: float) -> tuple[float, str]:
    """The unit in which counts up to `most` are drawn, and its word for an axis."""
    return next((entry for entry in ((1e6, " (millions)"), (1e3, " (thousands)")) if most >= entry[0]), (1.0, ""))
