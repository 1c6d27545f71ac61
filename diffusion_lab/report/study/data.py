"""What the script of a study's page reads: runs, metrics, keys, replicates. Plain JSON values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.reason import RULES_OF_THUMB, display_name
from diffusion_lab.report import charts
from diffusion_lab.report.study import resampling
from diffusion_lab.report.study.keys import BALANCED, Key, keys_of, metrics_of, split_of, starting_colour
from diffusion_lab.report.study.palette import HUES, ORDERED
from diffusion_lab.report.study.thumbnails import Layout, Thumbnails, sheet_of
from diffusion_lab.studies.costs import COSTS
from diffusion_lab.studies.measures import plane_metrics
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.table import Table
from diffusion_lab.values.bounds import NARROWEST

DIGITS = 5  # after the point, of values


def page_data(
    name: str, table: Table, page: Path, layout: Layout, thumbs: Mapping[str, Thumbnails]
) -> dict[str, Any]:
    """`page`: the file to be written; links are relative to its folder."""
    runs = table.runs
    replicates = resampling.replicates_for(runs)
    keys = keys_of(runs)
    return {
        "name": name,
        "metrics": [_metric(table, metric) for metric in metrics_of(table)],
        "costs": [
            {"name": n, "label": label, "unit": unit}
            for n, (label, unit) in COSTS.items()
            if any(run.costs.get(n) is not None for run in runs)
        ],
        "keys": [_key(key) for key in keys],
        "columns": [
            k.name for k in keys if k.name not in ("status", "settings", BALANCED) and len(set(k.values)) > 1
        ],
        "split": split_of(keys),
        "colour": starting_colour(keys),
        "runs": [
            _run(run, {key.name: key.values[i] for key in keys}, page, thumbs.get(run.id))
            | _noise(resampling.noise_of(run, replicates))
            for i, run in enumerate(runs)
        ],
        "replicates": {"count": replicates},
        "student": {"table": resampling.student_table()},
        "thumbnails": {"images": layout.images, "side": layout.side},
        "plane": plane_metrics(table) or [],
        "rules": dict(RULES_OF_THUMB),
        "narrowest": NARROWEST,
        "base": charts.as_json(charts.empty_figure()),
        "figures": {},
        "hues": list(HUES),
        "ordered": list(ORDERED),
        "ink": charts.INK,
        "muted": charts.MUTED,
        "dark": {**charts.DARK, **HUES, **ORDERED},
    }


def _metric(table: Table, name: str) -> dict[str, Any]:
    info = table.metrics[name]
    return {
        "name": name,
        "label": info.label,
        "spoken": display_name(name),
        "unit": info.unit,
        "up": info.higher_is_better,
        "hue": charts.hue(name),
        "weight": table.weights.get(name, 0.0),
        "range": [round(end, 6) for end in table.ranges[name]],
    }


def _key(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "label": key.label,
        "ordered": key.ordered,
        "setting": key.setting,
        "extra": key.extra,
        "averages": key.averages,
        "hidden": ["no"] if key.averages and "yes" in key.values else [],
    }


def _run(run: StudyRun, keys: Mapping[str, Any], page: Path, thumbs: Thumbnails | None) -> dict[str, Any]:
    link = Path(os.path.relpath(run.folder.resolve(), page.parent.resolve())).as_posix()
    return {
        "name": run.name,
        "link": quote(link),
        "report": (run.folder / "report.html").is_file(),
        "status": run.status,
        "subject": run.subject,
        "n": run.n_images or None,
        "keys": keys,
        "prompts": len(run.prompts),
        "steps": list(run.steps),
        "values": {name: plain(values) for name, values in run.values.items()},
        "low": {name: plain(values) for name, values in run.low.items()},
        "high": {name: plain(values) for name, values in run.high.items()},
        "references": {
            name: [kinds.get(kind) for kind in ("floor", "ceiling", "impostor")]
            for name, kinds in run.references.items()
        },
        "costs": dict(run.costs),
        "sheets": [step for step in run.steps if sheet_of(run, step).is_file()],
        "thumbs": None if thumbs is None else {"steps": list(thumbs.steps), "source": thumbs.source},
    }


def _noise(noise: resampling.Noise) -> dict[str, Any]:
    return {"scales": [[name, scale] for name, scale in noise.scales.items()], "deltas": noise.text()}


def plain(values: NDArray[np.float64]) -> list[float | None]:
    """Rounded for the page; None for NaN."""
    return [round(float(value), DIGITS) if math.isfinite(value) else None for value in values]
