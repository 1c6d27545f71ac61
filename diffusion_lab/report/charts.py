"""Plotly figures of one run. Complete in the light scheme; `DARK` maps each colour to the dark scheme.

Hues are close to those of Okabe and Ito (2008), which are distinguishable with all common colour vision
deficiencies. A metric has the same hue in every chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from diffusion_lab.analysis.scoring import StepScore
from diffusion_lab.records import Summary
from diffusion_lab.runs.reading import MetricInfo

INK, MUTED, GRID, STOP, VIEWED = "#1f2328", "#5f6875", "#e6e8ec", "#1f2329", "#9aa3af"
HUES: Mapping[str, str] = {
    "similarity": "#0072b2",
    "similarity_heldout": "#2b93c9",
    "aesthetics": "#c77700",
    "diversity": "#008a64",
    "face_rate": "#b0568c",
    "clip_text": "#c44e00",
    "clip_image": "#6f58b5",
    "memorisation": "#7a6a58",
}
SPARE_HUES = ("#0072b2", "#c77700", "#008a64", "#b0568c", "#c44e00", "#6f58b5", "#2b93c9", "#7a6a58")
DARK: Mapping[str, str] = {
    INK: "#e6e9ee",
    MUTED: "#a0a9b6",
    GRID: "#2b313a",
    STOP: "#e6e9ef",
    VIEWED: "#6b7480",
    "#0072b2": "#4aa8e0",
    "#2b93c9": "#7cc4ee",
    "#c77700": "#efa63c",
    "#008a64": "#35c298",
    "#b0568c": "#e08fbf",
    "#c44e00": "#f0803c",
    "#6f58b5": "#a795e6",
    "#7a6a58": "#c0ab92",
}
MAX_POINTS = 2000  # of a training curve; more are thinned
REFERENCE_DASHES: Mapping[str, str] = {"ceiling": "dash", "floor": "dot", "impostor": "dashdot"}


def hue(name: str) -> str:
    """A metric's colour; an unknown metric gets a fixed one of the same set."""
    return HUES.get(name) or SPARE_HUES[sum(map(ord, name)) % len(SPARE_HUES)]


def metric_figure(
    info: MetricInfo,
    summaries: Mapping[int, Summary],
    references: Mapping[str, Summary | None],
    stop: int | None,
) -> go.Figure:
    """One metric against steps: mean, 95 % band, floor (step 0), ceiling, impostors, recommended stop.

    Shape 0 is the stop and shape 1 the step whose images are shown, so that the page can move them.
    """
    colour = hue(info.name)
    known = {step: s for step, s in summaries.items() if s.mean is not None}
    figure = go.Figure()
    banded = [(step, s.low, s.high) for step, s in known.items() if s.low is not None and s.high is not None]
    if banded:
        steps = [b[0] for b in banded]
        figure.add_scatter(
            x=steps + steps[::-1],
            y=[b[2] for b in banded] + [b[1] for b in banded][::-1],
            fill="toself", fillcolor=colour, opacity=0.2, line_width=0, mode="lines", hoverinfo="skip",
            name="95 % interval",
        )  # fmt: skip
    missing = any(s.missing and s.penalised is not None for s in summaries.values())
    if missing and known:
        figure.add_scatter(
            x=list(summaries), y=[s.penalised for s in summaries.values()],
            mode="lines", line={"color": colour, "width": 1.4, "dash": "dot"}, name="missing images counted",
            customdata=[0.0 if s.imputed is None else s.imputed for s in summaries.values()],
            hovertemplate="missing images counted as %{customdata:.2f}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=list(known), y=[s.mean for s in known.values()],
        mode="lines+markers", line={"color": colour, "width": 2.2}, marker={"size": 7},
        name=escape(info.label),
        customdata=[[_interval(s), _count(s)] for s in known.values()],
        hovertemplate="step %{x}: <b>%{y:.3f}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    lines = _reference_lines(summaries, references)
    everything = [v for s in known.values() for v in (s.mean, s.low, s.high) if v is not None] + list(
        lines.values()
    )
    if missing:
        everything += [s.penalised for s in summaries.values() if s.penalised is not None]
    low, high = _padded(everything)
    _layout(
        figure, x_title="optimizer steps", y_title=escape(info.unit or "value"), right=92 if lines else 16
    )
    figure.update_yaxes(range=[low, high])
    _steps_axis(figure, list(summaries))
    _stop_lines(figure, stop)
    for name, value in lines.items():
        figure.add_shape(
            type="line", xref="paper", x0=0, x1=1, y0=value, y1=value, layer="below",
            line={"color": MUTED, "width": 1.3, "dash": REFERENCE_DASHES[name]},
        )  # fmt: skip
    for name, at in _apart(lines, (high - low) * 0.085).items():
        figure.add_annotation(
            xref="paper", x=1, xanchor="left", xshift=5, y=at, showarrow=False,
            text=f"{name} {lines[name]:.2f}", font={"size": 12, "color": MUTED},
        )  # fmt: skip
    return figure


def score_figure(scores: Sequence[StepScore], stop: int | None) -> go.Figure:
    """The weighted sum of the scaled metrics against steps. Trace 0 is the band, trace 1 the curve."""
    known = [(s.step, s.score) for s in scores if s.score is not None]
    banded = [(s.step, *limits) for s in scores if (limits := band(s)) is not None]
    figure = go.Figure()
    figure.add_scatter(
        x=[b[0] for b in banded] + [b[0] for b in banded][::-1],
        y=[b[2] for b in banded] + [b[1] for b in banded][::-1],
        fill="toself", fillcolor=INK, opacity=0.12, line_width=0, mode="lines", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[k[0] for k in known], y=[k[1] for k in known], mode="lines+markers",
        line={"color": INK, "width": 2.4}, marker={"size": 8},
        hovertemplate="step %{x}: weighted score <b>%{y:.3f}</b><extra></extra>",
    )  # fmt: skip
    _layout(figure, x_title="optimizer steps", y_title="weighted score", right=16)
    _steps_axis(figure, [s.step for s in scores])
    _stop_lines(figure, stop)
    return figure


def band(score: StepScore) -> tuple[float, float] | None:
    """The score's 95 % interval, None if it cannot be estimated."""
    if score.low is not None and score.high is not None:
        return score.low, score.high
    if score.score is None or score.half_width is None:
        return None
    return score.score - score.half_width, score.score + score.half_width


def training_figure(
    events: Sequence[Mapping[str, Any]], key: str, *, title: str, colour: str, smooth: bool
) -> go.Figure | None:
    """A training curve of `key`, with a running mean over it when `smooth`; None without values."""
    points = [(e["step"], e[key]) for e in events if isinstance(e.get(key), (int, float))]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return None
    figure = go.Figure()
    every = -(-len(points) // MAX_POINTS)
    smoothed = _running_mean([p[1] for p in points], max(1, len(points) // 15))
    figure.add_scatter(
        x=[p[0] for p in points][::every], y=[p[1] for p in points][::every], mode="lines",
        line={"color": colour, "width": 1.2 if smooth else 2}, opacity=0.4 if smooth else 1,
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    if smooth:
        figure.add_scatter(
            x=[p[0] for p in points][::every], y=smoothed[::every], mode="lines",
            line={"color": colour, "width": 2.4}, hovertemplate="running mean %{y:.4g}<extra></extra>",
        )  # fmt: skip
    _layout(figure, x_title="optimizer steps", y_title=title, right=16)
    figure.update_yaxes(rangemode="tozero")
    return figure


def as_json(figure: go.Figure) -> dict[str, Any]:
    """The figure as plain JSON values, with NaN as null."""
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def _layout(figure: go.Figure, *, x_title: str, y_title: str, right: int) -> None:
    axis = {
        "gridcolor": GRID, "linecolor": GRID, "zeroline": False, "ticks": "", "fixedrange": True,
        "tickfont": {"size": 12, "color": MUTED}, "automargin": True, "exponentformat": "e",
    }  # fmt: skip
    title = {"font": {"size": 12, "color": MUTED}, "standoff": 8}
    figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", showlegend=False,
        margin={"l": 52, "r": right, "t": 12, "b": 44}, hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        xaxis={**axis, "showgrid": False, "showline": True, "title": {"text": x_title, **title}},
        yaxis={**axis, "nticks": 5, "title": {"text": y_title, **title}},
    )  # fmt: skip


def _stop_lines(figure: go.Figure, stop: int | None) -> None:
    at = 0 if stop is None else stop
    for colour, width, dash, shown in ((STOP, 1.6, "solid", stop is not None), (VIEWED, 1.2, "dot", False)):
        figure.add_shape(
            type="line", x0=at, x1=at, yref="paper", y0=0, y1=1, visible=shown, layer="below",
            line={"color": colour, "width": width, "dash": dash},
        )  # fmt: skip


def _reference_lines(
    summaries: Mapping[int, Summary], references: Mapping[str, Summary | None]
) -> dict[str, float]:
    floor = summaries.get(0)
    found = {"ceiling": references.get("ceiling"), "impostor": references.get("impostor"), "floor": floor}
    return {name: s.mean for name, s in found.items() if s is not None and s.mean is not None}


def _apart(wanted: Mapping[str, float], gap: float) -> dict[str, float]:
    """Positions for labels: in the order of their values, at least `gap` apart, near the values."""
    names = sorted(wanted, key=lambda name: wanted[name])
    placed = [wanted[name] for name in names]
    for _ in range(20):  # moves every pair that is too close apart, evenly; three labels converge quickly
        for i in range(len(placed) - 1):
            lack = gap - (placed[i + 1] - placed[i])
            if lack > 1e-12:
                placed[i] -= lack / 2
                placed[i + 1] += lack / 2
    return dict(zip(names, placed, strict=True))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    spare = (high - low) * 0.1 or 0.05
    return low - spare, high + spare


def _steps_axis(figure: go.Figure, steps: Sequence[int]) -> None:
    low, high = (min(steps), max(steps)) if steps else (0, 1)
    spare = (high - low) * 0.03 or 1
    figure.update_xaxes(range=[low - spare, high + spare])
    if low == high:
        figure.update_xaxes(tickvals=[low])
    elif high - low <= 8:
        figure.update_xaxes(dtick=1)  # steps are whole numbers


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values; over fewer at the start."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _interval(s: Summary) -> str:
    if s.low is None or s.high is None:
        return "no interval"
    said = f"95 %: {s.low:.3f} to {s.high:.3f}"
    return f"{said}, for the noise of one prompt only" if s.within_one_prompt else said


def _count(s: Summary) -> str:
    return f"{s.n} images" + (f", {s.missing} without a value" if s.missing else "")


def empty_figure() -> go.Figure:
    """Axes only; the comparison page adds the curves that the reader selects."""
    figure = go.Figure()
    _layout(figure, x_title="optimizer steps", y_title="value", right=16)
    return figure
