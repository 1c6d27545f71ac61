"""One self-contained page that compares a folder of runs: their settings, results and costs.

Without images, so that thousands of runs fit. Each run's own report is linked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffusion_lab.analysis.intervals import BOUNDS
from diffusion_lab.analysis.limits import limits_of, value_of
from diffusion_lab.records import UserError
from diffusion_lab.report import charts, texts
from diffusion_lab.report.groups import Mean, at_stop, grouped, telling
from diffusion_lab.report.page import save
from diffusion_lab.runs.reading import MetricInfo, Run, find_runs, read_run
from diffusion_lab.studies.copies import distinct
from diffusion_lab.studies.costs import COSTS, run_costs
from diffusion_lab.values.mappings import flatten

# Settings of where and how a run was tracked, which do not affect its results.
UNTOLD = ("job.", "tracker.")


def write_comparison(runs_folder: Path) -> Path:
    """Writes `comparison.html` into a folder of runs, at any depth below it, and returns its path.

    A record that cannot be read is listed with the reason.

    Raises:
        UserError: (job.runs) if it contains no run, or cannot be written.
    """
    folder = Path(runs_folder)
    folders = find_runs(folder)
    if not folders:
        raise UserError(f"job.runs: there is no run in {folder} (no folder in it has a result.json)")
    runs: list[Run] = []
    unreadable: list[tuple[str, str]] = []
    for path in folders:
        try:
            runs.append(read_run(path))
        except UserError as error:
            unreadable.append((name_of(path, folder), str(error)))
    return save(folder / "comparison.html", "comparison", view(folder, runs, unreadable))


def view(folder: Path, runs: Sequence[Run], unreadable: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values for the template. Copies of a run are shown and counted once."""
    runs, repeated = distinct(runs)
    keys = telling([run.config for run in runs], differing_keys([run.config for run in runs]))
    settings = [{key: _shown(flatten(run.config), key) for key in keys} for run in runs]
    infos: dict[str, MetricInfo] = {}
    for run in runs:
        infos |= {name: info for name, info in run.metrics.items() if name not in infos}
    rows = [_row(folder, run, values, infos) for run, values in zip(runs, settings, strict=True)]
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    return {
        "title": folder.resolve().name,
        "counts": counts,
        "unreadable": unreadable,
        "repeated": [(name_of(run.folder, folder), name_of(kept.folder, folder)) for run, kept in repeated],
        "keys": keys,
        "metrics": [{"name": i.name, "label": i.label, "unit": i.unit} for i in infos.values()],
        "rows": rows,
        "groups": _groups(runs, keys, infos),
        "common": common([run.config for run in runs]),
        "data": {
            "keys": keys,
            "metrics": [
                {"name": i.name, "label": i.label, "unit": i.unit, "up": i.higher_is_better}
                for i in infos.values()
            ],
            "costs": [{"name": n, "label": label, "unit": unit} for n, (label, unit) in COSTS.items()],
            "runs": [
                {
                    "name": name_of(run.folder, folder),
                    "settings": values,
                    "stop": None if run.recommendation is None else run.recommendation.step,
                    "steps": run.steps,
                    "values": {n: [_mean(at.get(n)) for at in run.summaries.values()] for n in run.metrics},
                    "at_stop": at_stop(run),
                }
                for run, values in zip(runs, settings, strict=True)
                if run.summaries
            ],
            "hues": list(charts.SPARE_HUES),
            "figures": {
                "overlay": charts.as_json(charts.empty_figure()),
                "plane": charts.as_json(charts.empty_figure()),
            },
            "dark": dict(charts.DARK),
        },
    }


def differing_keys(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Dotted keys whose values differ among the runs, in the order of the first config that has them.

    A key that some configs lack (of another method, or of a run that failed early) differs only if the others do.
    """
    flat = [flatten(config) for config in configs if config]
    keys = {key: None for config in flat for key in config if not key.startswith(UNTOLD)}
    return [key for key in keys if len({json.dumps(c[key], default=str) for c in flat if key in c}) > 1]


def common(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Dotted keys and values that all runs share."""
    flat = [flatten(config) for config in configs if config]
    if not flat:
        return []
    varied = set(differing_keys(configs))
    shared = {key: config for config in reversed(flat) for key in config if not key.startswith(UNTOLD)}
    return [(key, _shown(config, key)) for key, config in shared.items() if key not in varied]


def name_of(run: Path, folder: Path) -> str:
    """The run's folder, relative to the folder of runs."""
    return run.relative_to(folder).as_posix()


def _row(
    folder: Path, run: Run, settings: Mapping[str, str], infos: Mapping[str, MetricInfo]
) -> dict[str, Any]:
    name = name_of(run.folder, folder)
    stop = None if run.recommendation is None else run.recommendation.step
    at = {} if stop is None else run.summaries[stop]
    cells = []
    for metric in infos:
        s = at.get(metric)
        value, limits = (None, None) if s is None else (value_of(s), limits_of(s))
        cells.append(
            {
                "sort": "" if value is None else repr(value),
                "value": "-" if value is None else f"{value:.3f}",
                "half": "" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}",
                "missing": "" if s is None or not s.missing else f"{s.missing} of {s.n + s.missing} missing",
            }
        )
    return {
        "name": name,
        "link": f"{quote(name)}/report.html" if (run.folder / "report.html").is_file() else "",
        "status": run.status,
        "error": run.error or "",
        "settings": [settings[key] for key in settings],
        "stop": stop,
        "cells": cells,
        "costs": [
            {"sort": "" if value is None else repr(value), "value": _cost(cost, value)}
            for cost, value in run_costs(run.folder, run.cost).items()
        ],
    }


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return texts.format_seconds(value) if COSTS[name][1] == "s" else texts.format_bytes(value * 2**20)


def _groups(runs: Sequence[Run], keys: Sequence[str], infos: Mapping[str, MetricInfo]) -> dict[str, Any]:
    """The table of means over runs; empty if no two runs differ only by their seed."""
    groups = grouped(runs, keys)
    if all(group.runs == 1 for group in groups):
        return {"keys": [], "rows": []}
    names = list(groups[0].settings)

    def cell(name: str, found: Mean | None) -> dict[str, str]:
        if found is None:
            return {"value": "-", "half": ""}
        if name in COSTS:
            return {"value": _cost(name, found.mean), "half": ""}
        return {"value": f"{found.mean:.3f}", "half": _between(found, infos[name].unit)}

    return {
        "keys": names,
        "rows": [
            {
                "settings": [_shown(group.settings, key) for key in names],
                "runs": group.runs,
                "cells": [cell(name, group.values.get(name)) for name in (*infos, *COSTS)],
            }
            for group in groups
        ],
    }


def _between(found: Mean, unit: str) -> str:
    """The interval between runs, within the metric's range; "" if there is none."""
    if found.half is None:
        return ""
    least, most = BOUNDS.get(unit, (None, None))
    low, high = found.mean - found.half, found.mean + found.half
    return (
        f"{low if least is None else max(low, least):.3f} to {high if most is None else min(high, most):.3f}"
    )


def _mean(summary: Any) -> float | None:
    return None if summary is None else value_of(summary)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "-"
    value = flat[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
