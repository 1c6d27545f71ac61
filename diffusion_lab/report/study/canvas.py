"""Panels, lines and legends of static charts; see `figures`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lab.report.study.palette import HUES, ORDERED
from diffusion_lab.report.study.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "diffusion_lab", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True,
    "grid.color": "#e6e8ec", "grid.linewidth": 0.7, "legend.frameon": False, "figure.constrained_layout.use": True,
    "font.family": "sans-serif", "axes.axisbelow": True,
}  # fmt: skip
DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (8, 2, 2, 2, 2, 2)))
MARKS = ("o", "s", "D", "^", "X", "*", "p", "v")
WIDTH, HEIGHT, COLUMNS = 3.4, 2.6, 3  # inches of a panel; panels in a row
Look = dict[str, Any]


def look(i: int, count: int, *, ordered: bool) -> Look:
    """Colour, dashes and mark of the i-th of `count` groups; see `palette`."""
    colours = list(ORDERED if ordered else HUES)
    at = round(i * (len(colours) - 1) / (count - 1)) if ordered and count > 1 else i % len(colours)
    return {
        "color": colours[min(at, len(colours) - 1)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKS[i % len(MARKS)],
    }


def looks(groups: Sequence[Any]) -> dict[Any, Look]:
    """By group; numbers are ordered."""
    ordered = all(isinstance(group, int | float) for group in groups)
    return {group: look(i, len(groups), ordered=ordered) for i, group in enumerate(groups)}


def svg(draw: Callable[[Figure], None], panels: int = 1, *, width: float = 1.0) -> str:
    """The SVG of a figure with room for some panels. `width`: of a panel, in usual ones."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = min(COLUMNS, panels)
    with mpl.rc_context(rc=STYLE):
        figure = Figure(
            figsize=(columns * WIDTH * width, -(-panels // columns) * HEIGHT * max(1.0, width * 0.75))
        )
        canvas: Any = FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": "diffusion_lab"})
    return buffer.getvalue()


def panels(figure: Figure, titles: Sequence[tuple[str, str, str]]) -> list[Axes]:
    """One axes for each (title, x label, y label)."""
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    found = []
    for i, (title, x, y) in enumerate(titles):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set(title=literal(title), xlabel=literal(x), ylabel=literal(y))
        found.append(axes)
    return found


def literal(text: object) -> str:
    """Text without matplotlib's mathematics between dollar signs."""
    return str(text).replace("$", r"\$")


def line(
    axes: Axes, rows: Sequence[Row], x: str, style: Look, *, band: bool, label: str = "", shift: float = 0.0
) -> None:
    """A line through the rows' values, with a band or bars for their intervals."""
    good = [row for row in rows if row["value"] is not None]
    at: list[Any] = [number(row[x]) + shift for row in good]
    values = [number(row["value"]) for row in good]
    kept = [
        (a, number(r["low"]), number(r["high"]), v)
        for a, r, v in zip(at, good, values, strict=True)
        if r["low"] is not None
    ]
    if band and kept:
        axes.fill_between(
            [k[0] for k in kept],
            [k[1] for k in kept],
            [k[2] for k in kept],
            color=style["color"],
            alpha=0.14,
            linewidth=0,
        )
    axes.plot(at, values, markersize=4.5, linewidth=1.5, label=literal(label), **style)
    if not band and kept:
        axes.errorbar([k[0] for k in kept], [k[3] for k in kept], yerr=[[k[3] - k[1] for k in kept], [k[2] - k[3] for k in kept]],
                      fmt="none", ecolor=style["color"], elinewidth=1.1, capsize=2.5)  # fmt: skip


def legend(figure: Figure, axes: Axes, title: str) -> None:
    """Below the panels, if there are several groups."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(6, len(handles)),
            title=literal(title),
            handlelength=3,
        )


def number(value: Any) -> float:
    return float(value)
