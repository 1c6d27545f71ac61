"""The report of the study: the table, and the curves behind the means."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from diffusion_lab.recipes.trust.answers import Answer, Point
from diffusion_lab.report import charts
from diffusion_lab.report.page import save


def write_page(path: Path, answers: Sequence[Answer]) -> Path:
    """A self-contained page: one chart per question, or per group of similar questions, and the table."""
    figures = {
        name: (title, small, figure)
        for name, title, small, figure in (
            ("identity", "Similarity and identity", "dotted: hair, beard and eye colour stay", _lines(answers, "similarity")),
            ("scene", "Similarity and the scene", "likeness lost; with interval: a slot's worst phrase", _scene(answers)),
            ("quality", "Aesthetics and merit", "rises", _lines(answers, "aesthetics")),
            ("variety", "Diversity and variety", "rises", _lines(answers, "diversity")),
            ("copies", "Memorisation and planted copies", "copies lie above new pictures", _copies(answers)),
            ("faces", "Face rate and quality", "share of faces found", _dots(answers, "face_rate", "quality: ", "share of faces found")),
            ("words", "Faithfulness to the prompt", "one phrase told wrongly; a half is chance", _dots(answers, "clip_text", "follows ", "share noticed")),
        )
        if figure is not None
    }  # fmt: skip
    return save(
        path,
        "trust",
        {
            "title": "Can the metrics be trusted?",
            "facts": [
                f"{max(one.n for one in answers)} people or sets a question",
                "means with 95 % intervals",
            ],
            "charts": [(name, title, small) for name, (title, small, _) in figures.items()],
            "answers": answers,
            "data": {
                "figures": {name: charts.as_json(figure) for name, (_, _, figure) in figures.items()},
                "dark": dict(charts.DARK),
            },
        },
    )


def _lines(answers: Sequence[Answer], metric: str) -> go.Figure | None:
    """The metric's curves over numbers, each with its band; the second one dotted."""
    asked = [a for a in answers if a.metric == metric and a.curve and isinstance(a.curve[0].at, float)]
    if not asked:
        return None
    figure, colour = charts.empty_figure(), charts.hue(metric)
    for number, answer in enumerate(asked):
        points, banded = answer.curve, [p for p in answer.curve if p.low is not None]
        figure.add_scatter(
            x=[p.at for p in [*banded, *banded[::-1]]], y=[p.high for p in banded] + [p.low for p in banded[::-1]],
            fill="toself", fillcolor=colour, opacity=0.16, line_width=0, mode="lines", hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=[p.at for p in points], y=[p.mean for p in points], mode="lines+markers",
            line={"color": colour, "width": 2.2, "dash": "dot" if number else "solid"}, marker={"size": 7},
            customdata=[[_interval(p), escape(answer.question)] for p in points],
            hovertemplate="%{x:.3g}: <b>%{y:.3f}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text=asked[0].axes[0])
    figure.update_yaxes(title_text=asked[0].axes[1])
    return figure


def _scene(answers: Sequence[Answer]) -> go.Figure | None:
    """One row per slot: every phrase's mean, and the worst one's interval."""
    asked = [a for a in answers if a.metric == "similarity" and a.curve and isinstance(a.curve[0].at, str)]
    if not asked:
        return None
    figure, colour = _rows([a.axes[0] for a in asked]), charts.hue("similarity")
    spread = [(a.axes[0], p) for a in asked for p in a.curve]
    figure.add_scatter(
        x=[p.mean for _, p in spread], y=[slot for slot, _ in spread], mode="markers",
        marker={"color": charts.MUTED, "size": 6, "opacity": 0.7}, customdata=[str(p.at) for _, p in spread],
        hovertemplate="%{customdata}: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    _with_intervals(figure, [a.axes[0] for a in asked], asked, colour)
    figure.update_xaxes(title_text="share of the way to another person", tickformat=".0%")
    return figure


def _copies(answers: Sequence[Answer]) -> go.Figure | None:
    """One row per kind of copy: the means of new images and of copies."""
    asked = [a for a in answers if a.metric == "memorisation" and len(a.curve) == 2]
    if not asked:
        return None
    figure = _rows([a.axes[0] for a in asked])
    for at, colour in ((0, charts.MUTED), (1, charts.hue("memorisation"))):
        points = [a.curve[at] for a in asked]
        figure.add_scatter(
            x=[p.mean for p in points], y=[a.axes[0] for a in asked], mode="markers",
            marker={"color": colour, "size": 9}, error_x=_bars(points, colour),
            customdata=[[str(p.at), _interval(p)] for p in points],
            hovertemplate="%{customdata[0]}: <b>%{x:.3f}</b><br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=points[0].mean, y=asked[0].axes[0], yshift=14, showarrow=False, text=str(points[0].at),
            font={"size": 12, "color": colour},
        )  # fmt: skip
    figure.update_xaxes(title_text="memorisation, mean")
    return figure


def _dots(answers: Sequence[Answer], metric: str, prefix: str, title: str) -> go.Figure | None:
    """One row per question about ``metric``: its mean and interval, a fraction."""
    asked = [a for a in answers if a.metric == metric]
    if not asked:
        return None
    labels = [a.question.removeprefix(prefix).replace("_", " ") for a in asked]
    figure = _rows(labels)
    _with_intervals(figure, labels, asked, charts.hue(metric))
    figure.update_xaxes(title_text=title, tickformat=".0%", range=[-0.03, 1.03])
    return figure


def _rows(labels: Sequence[str]) -> go.Figure:
    figure = charts.empty_figure()
    figure.update_xaxes(showgrid=True)
    figure.update_yaxes(
        title_text="", type="category", categoryorder="array", categoryarray=list(reversed(labels)),
        tickmode="array", tickvals=list(labels), range=[-0.6, len(labels) - 0.4],
    )  # fmt: skip
    return figure


def _with_intervals(figure: go.Figure, labels: Sequence[str], asked: Sequence[Answer], colour: str) -> None:
    points = [Point(label, a.mean, a.low, a.high) for label, a in zip(labels, asked, strict=True)]
    figure.add_scatter(
        x=[p.mean for p in points], y=list(labels), mode="markers", marker={"color": colour, "size": 9},
        error_x=_bars(points, colour), customdata=[_interval(p) for p in points],
        hovertemplate="%{y}: <b>%{x:.3f}</b><br>%{customdata}<extra></extra>",
    )  # fmt: skip


def _bars(points: Sequence[Point], colour: str) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": colour,
        "array": [0.0 if p.high is None else p.high - p.mean for p in points],
        "arrayminus": [0.0 if p.low is None else p.mean - p.low for p in points],
    }  # fmt: skip


def _interval(point: Point) -> str:
    if point.low is None or point.high is None:
        return "no interval"
    return f"95 %: {point.low:.3f} to {point.high:.3f}"
