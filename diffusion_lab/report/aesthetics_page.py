"""The report of job=train_aesthetics: predicted and human ratings, with and without balancing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from diffusion_lab.report import charts
from diffusion_lab.report.page import save

EDGES = np.linspace(0, 10, 21)  # half points
FEWEST = 5  # minimum number of images for a bin whose mean is drawn
ROWS = {
    "mean_absolute_error": "mean absolute error, points",
    "root_mean_squared_error": "root mean squared error, points",
    "spearman": "rank correlation (Spearman)",
    "pearson": "correlation (Pearson)",
    "worst_rated_error": "mean absolute error of the 5 % rated lowest",
    "best_rated_error": "mean absolute error of the 5 % rated highest",
    "worst_rated_bias": "overestimation of the 5 % rated lowest",
    "best_rated_bias": "overestimation of the 5 % rated highest",
    "spread": "standard deviation of predictions over that of ratings",
    "slope": "slope of ratings on predictions",
}


def write_page(
    path: Path,
    result: Mapping[str, Any],
    ratings: NDArray[np.float64],
    rated: NDArray[np.float64],
    predicted: Mapping[str, NDArray[np.float64]],
    verdict: str,
) -> Path:
    """``ratings``: of all images; ``rated`` and ``said`` (by balance): of the test images."""
    names = {kind: "not balanced" if kind == "none" else f"balanced by {kind}" for kind in predicted}
    figures = {
        "distribution": _distribution(rated, predicted, names),
        "calibration": _by_bin(rated, predicted, names, lambda told, truth: told.mean(), "said, mean"),
        "error": _by_bin(
            rated, predicted, names, lambda told, truth: np.abs(told - truth).mean(), "mean absolute error"
        ),
    }
    figures["calibration"].add_scatter(
        x=[rated.min(), rated.max()], y=[rated.min(), rated.max()], mode="lines", hoverinfo="skip",
        line={"color": charts.MUTED, "width": 1, "dash": "dot"},
    )  # fmt: skip
    return save(
        path,
        "aesthetics",
        {
            "title": "Aesthetics head",
            "facts": [
                f"{result['pictures']} rated images", f"{result['trained_on']} used for training",
                f"{len(rated)} used for testing", f"ratings {ratings.mean():.2f} ± {ratings.std():.2f}",
            ],
            "verdict": verdict,
            "names": names,
            "hues": {kind: charts.SPARE_HUES[i] for i, kind in enumerate(predicted)},
            "rows": [(label, [f"{result['test'][kind][key]:.3f}" for kind in predicted]) for key, label in ROWS.items()],
            "details": [(key.replace("_", " "), str(result[key])) for key in ("clip", "balance", "exponent", "absent", "unreadable")],
            "data": {
                "figures": {name: charts.as_json(figure) for name, figure in figures.items()},
                "dark": dict(charts.DARK),
            },
        },
    )  # fmt: skip


def _distribution(
    rated: NDArray[np.float64], predicted: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]
) -> go.Figure:
    figure = charts.empty_figure()
    for name, values, colour in (
        ("ratings", rated, charts.MUTED),
        *((names[kind], predicted[kind], charts.SPARE_HUES[i]) for i, kind in enumerate(predicted)),
    ):
        share = np.histogram(values, EDGES)[0] / len(values)
        figure.add_scatter(
            x=(EDGES[:-1] + EDGES[1:]) / 2, y=share, mode="lines", line={"color": colour, "width": 2, "shape": "hvh"},
            hovertemplate=f"{name}, %{{x:.2f}}: %{{y:.1%}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="grade")
    figure.update_yaxes(title_text="fraction of images", tickformat=".0%")
    return figure


def _by_bin(
    rated: NDArray[np.float64],
    predicted: Mapping[str, NDArray[np.float64]],
    names: Mapping[str, str],
    of: Any,
    title: str,
) -> go.Figure:
    """``of(said, rated)`` of the images in each half point of the rating."""
    figure = charts.empty_figure()
    at = np.clip(np.digitize(rated, EDGES) - 1, 0, len(EDGES) - 2)
    bins = [i for i in range(len(EDGES) - 1) if (at == i).sum() >= FEWEST]
    for i, (kind, values) in enumerate(predicted.items()):
        figure.add_scatter(
            x=[float(rated[at == b].mean()) for b in bins],
            y=[float(of(values[at == b], rated[at == b])) for b in bins],
            customdata=[int((at == b).sum()) for b in bins],
            mode="lines+markers", line={"color": charts.SPARE_HUES[i], "width": 2},
            hovertemplate=f"{names[kind]}<br>rated %{{x:.2f}}: <b>%{{y:.2f}}</b>, %{{customdata}} images<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="rated")
    figure.update_yaxes(title_text=title)
    return figure
