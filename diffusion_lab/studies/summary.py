"""A study in one row for each run: what varies, the recommended stop, the metrics there, and the costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import stop_of
from diffusion_lab.studies.table import Table


@dataclass(frozen=True, slots=True)
class ByName:
    """A study by its name, for `read_table`."""

    name: str


ALWAYS = ("run", "status", "subject", "n_images", "method", "model", "seed")
KNOWN = ("data.subject", "data.n_images", "method.name", "model.path", "seed")  # in ALWAYS already
UNTOLD = ("tracker.", "job.", "resume", "as_typed")  # settings that affect no result


def rows_of(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows; None for a value that a run does not have.

    Columns: the run, every setting that differs between the runs, `stop/step`, `stop/score`, `stop/METRIC` (at the
    recommended step, by the run's own rule), and `cost/NAME`.
    """
    settings = _varying(table.runs)
    metrics = sorted(table.metrics)
    costs = list(dict.fromkeys(name for run in table.runs for name in run.costs))
    columns = [
        *ALWAYS, *settings, "stop/step", "stop/score", *(f"stop/{name}" for name in metrics),
        *(f"cost/{name}" for name in costs),
    ]  # fmt: skip
    return columns, [_row(run, table, settings, metrics, costs) for run in table.runs]


def _row(
    run: StudyRun, table: Table, settings: Sequence[str], metrics: Sequence[str], costs: Sequence[str]
) -> list[Any]:
    stop = stop_of(run, table.metrics)
    known = [run.name, run.status, run.subject, run.n_images, run.method, run.model, run.seed]
    at_stop = [None if stop is None or m not in run.values else run.values[m][stop.index] for m in metrics]
    return [
        *known,
        *(_plain(run.settings.get(key)) for key in settings),
        None if stop is None else stop.step,
        None if stop is None else stop.score,
        *(float(value) if value is not None and np.isfinite(value) else None for value in at_stop),
        *(run.costs.get(name) for name in costs),
    ]


def _varying(runs: Sequence[StudyRun]) -> list[str]:
    """Keys with several values over the runs, in the order of the configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [
        key
        for key in keys
        if key not in KNOWN
        and not key.startswith(UNTOLD)
        and len({repr(run.settings.get(key)) for run in runs}) > 1
    ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
