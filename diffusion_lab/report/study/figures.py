"""Static charts as SVG, for papers: matplotlib on the rows of the tables.

The page's own charts are drawn by plotly.js, whose static export (kaleido) needs a Chrome on the machine. matplotlib needs
none, and its SVG has text as text. The files are the same bytes for the same rows: no date, fixed ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffusion_lab.analysis.reason import RULES_OF_THUMB
from diffusion_lab.report.study.canvas import legend, line, literal, looks, number, panels, svg
from diffusion_lab.report.study.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lines(
    titles: Mapping[str, tuple[str, str]],
    rows: Mapping[str, Sequence[Row]],
    by: str,
    x: str,
    x_label: str,
    name: str,
    *,
    band: bool,
) -> str:
    """One panel for each metric: rows by group against `x`. `titles`: metric -> (label, unit)."""
    groups = list(dict.fromkeys(row[by] for some in rows.values() for row in some))
    styles = looks(groups)

    def draw(figure: Figure) -> None:
        placed = panels(figure, [(label, x_label, unit) for label, unit in titles.values()])
        for axes, metric in zip(placed, titles, strict=True):
            for group in groups:
                some = [row for row in rows[metric] if row[by] == group]
                line(axes, some, x, styles[group], band=band, label=str(group))
        if placed:
            legend(figure, placed[0], name)

    return svg(draw, len(titles))


def runs(titles: Mapping[str, tuple[str, str]], rows: Mapping[str, Sequence[Row]], by: str, name: str) -> str:
    """One thin line for each run."""
    groups = sorted(
        {row[by] for some in rows.values() for row in some}, key=lambda v: (isinstance(v, str), v)
    )
    styles = looks(groups)

    def draw(figure: Figure) -> None:
        placed = panels(figure, [(label, "optimizer steps", unit) for label, unit in titles.values()])
        for axes, metric in zip(placed, titles, strict=True):
            for group in groups:
                some = [row for row in rows[metric] if row[by] == group]
                x, y = _gapped(some)
                axes.plot(
                    x,
                    y,
                    linewidth=0.7,
                    alpha=0.6,
                    label=literal(group),
                    color=styles[group]["color"],
                    linestyle=styles[group]["linestyle"],
                )
        if placed:
            legend(figure, placed[0], name)

    return svg(draw, len(titles))


def _gapped(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Points of several runs as one line with gaps."""
    x: list[float] = []
    y: list[float] = []
    before = None
    for row in rows:
        if before is not None and row["run"] != before:
            x, y = [*x, float("nan")], [*y, float("nan")]
        before = row["run"]
        x.append(number(row["step"]))
        y.append(float("nan") if row["value"] is None else number(row["value"]))
    return x, y


def stop(rows: Sequence[Row], slopes: Sequence[Row], last: float) -> str:
    """The recommended stop against the number of photos. `last`: the greatest number of steps."""
    groups = list(dict.fromkeys(row["by"] for row in rows))
    styles = looks(groups)
    most = max((number(row["n"]) for row in rows), default=1.0) * 1.06
    top = last * 1.08

    def draw(figure: Figure) -> None:
        axes = panels(figure, [("", "training photos", "recommended stop, optimizer steps")])[0]
        for i, group in enumerate(groups):
            shift = (i - (len(groups) - 1) / 2) * most / 120
            style = {**styles[group], "linestyle": "none"}
            line(
                axes,
                [row for row in rows if row["by"] == group],
                "n",
                style,
                band=False,
                label=str(group),
                shift=shift,
            )
        for row in slopes:
            style = styles[row["by"]]
            axes.plot(
                [0, most],
                [0, number(row["slope"]) * most],
                linewidth=1.3,
                color=style["color"],
                linestyle=style["linestyle"],
            )
        place = 0.0
        for rule in sorted(RULES_OF_THUMB.values(), reverse=True):  # the steepest leaves first, at the left
            leaves = min(most, top / rule)
            axes.plot([0, leaves], [0, rule * leaves], linewidth=0.9, linestyle=":", color="#5f6875")
            place = max(leaves, place + most * 0.07)  # names do not overlap
            at = (place, rule * leaves)
            axes.annotate(
                f"{rule}n", at, color="#5f6875", fontsize=7, ha="center", va="bottom", annotation_clip=False
            )
        axes.set_xticks(sorted({0.0, *(number(row["n"]) for row in rows)}))
        axes.set(xlim=(0, most), ylim=(0, top))
        legend(figure, axes, "")

    return svg(draw, width=1.6)


def bars(titles: Mapping[str, tuple[str, str]], rows: Mapping[str, Sequence[Row]]) -> str:
    """One panel for each table with rows: groups below each other, as points with bars. "" if none has rows."""
    titles = {name: title for name, title in titles.items() if rows[name]}
    if not titles:
        return ""

    def draw(figure: Figure) -> None:
        placed = panels(figure, [(label, unit, "") for label, unit in titles.values()])
        for axes, name in zip(placed, titles, strict=True):
            groups = [str(row["by"]) for row in rows[name]]
            for i, (row, style) in enumerate(zip(rows[name], looks(groups).values(), strict=True)):
                known = {**row, "x": row["value"], "x_low": row["low"], "x_high": row["high"]}
                axes.errorbar(
                    number(row["value"]),
                    i,
                    xerr=_error(known, "x"),
                    fmt=style["marker"],
                    color=style["color"],
                    markersize=5,
                    capsize=2.5,
                )
            axes.set_yticks(range(len(groups)), [literal(group) for group in groups])
            axes.set_ylim(len(groups) - 0.5, -0.5)

    return svg(draw, len(titles))


def plane(
    rows: Sequence[Row], x_label: str, y_label: str, baselines: Mapping[str, Mapping[str, float]]
) -> str:
    """Two metrics against each other: paths over the steps, and large marks at the recommended stop.

    `baselines`: "x" and "y" -> name -> value.
    """
    groups = list(dict.fromkeys(row["by"] for row in rows))
    styles = looks([str(group) for group in groups])

    def draw(figure: Figure) -> None:
        axes = panels(figure, [("", x_label, y_label)])[0]
        for group in groups:
            style = styles[str(group)]
            path = [row for row in rows if row["by"] == group and row["at"] != "stop"]
            axes.plot(
                [number(r["x"]) for r in path],
                [number(r["y"]) for r in path],
                linewidth=1,
                alpha=0.6,
                markersize=2,
                **style,
            )
            for row in rows:
                if row["by"] == group and row["at"] == "stop":
                    axes.errorbar(number(row["x"]), number(row["y"]), xerr=_error(row, "x"), yerr=_error(row, "y"), markersize=8, capsize=2.5,
                                  linestyle="none", color=style["color"], marker=style["marker"], label=literal(group))  # fmt: skip
        for name, value in baselines["x"].items():
            axes.axvline(value, color="#5f6875", linewidth=0.9, linestyle="--" if name == "ceiling" else ":")
        for name, value in baselines["y"].items():
            axes.axhline(value, color="#5f6875", linewidth=0.9, linestyle="--" if name == "ceiling" else ":")
        legend(figure, axes, "")

    return svg(draw, width=1.6)


def _error(row: Row, axis: str) -> list[list[float]] | None:
    low, high = row[f"{axis}_low"], row[f"{axis}_high"]
    if low is None or high is None:
        return None
    value = number(row[axis])
    return [[value - number(low)], [number(high) - value]]
