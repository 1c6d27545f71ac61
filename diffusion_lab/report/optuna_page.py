"""The results of an Optuna study: the best trial, a table of all, and Optuna's own charts on one page."""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from diffusion_lab.system import atomic

log = logging.getLogger(__name__)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
table {{ border-collapse: collapse; font-size: .85rem }} td, th {{ padding: .2rem .6rem; text-align: left;
border-bottom: 1px solid #ccc }}</style>
<h1>{title}</h1>
<p>{best}</p>
<p>The value of a trial is the weighted score at its recommended stop. A pruned trial was ended because its best
score was below the median of earlier trials at the same step; it has no value.</p>
{charts}
<h2>Trials</h2>
{table}
</html>
"""


def write_results(storage: Any, name: str, folder: Path, runs_folder: Path) -> Path:
    """Writes `best.json`, `trials.csv` and `index.html` into `folder`; returns the page's path.

    Args:
        storage: Optuna's.
        name: of the study.
        runs_folder: the folder with the runs, to which the page links.
    """
    import optuna

    study = optuna.load_study(study_name=name, storage=storage)
    rows = list(_rows(study))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(folder / "trials.csv", text.getvalue())
    best = _best(study)
    atomic.write_json(folder / "best.json", best)
    page = PAGE.format(
        title=escape(f"Optuna study {name}"),
        best=escape(_told(best, study)),
        charts="\n".join(_charts(study)),
        table=_table(columns, rows, Path("..") if folder.parent == runs_folder else runs_folder.absolute()),
    )
    atomic.write_text(folder / "index.html", page)
    return folder / "index.html"


def _rows(study: Any) -> Iterator[dict[str, Any]]:
    """One row a trial: number, state, value, steps evaluated, the run, and every value of the search space."""
    for trial in study.trials:
        yield {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "score": trial.value,
            "last_step": max(trial.intermediate_values, default=None),
            "run": trial.user_attrs.get("run"),
            **trial.params,
        }


def _best(study: Any) -> dict[str, Any]:
    """The best trial; empty while none is completed."""
    completed = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not completed:
        return {}
    best = study.best_trial
    return {
        "trial": best.number,
        "score": best.value,
        "run": best.user_attrs.get("run"),
        "params": best.params,
    }


def _told(best: dict[str, Any], study: Any) -> str:
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if not best:
        return f"No trial is completed yet ({counts})."
    values = ", ".join(f"{key}={value}" for key, value in best["params"].items())
    return f"Best: {values} with a score of {best['score']:.3f} (trial {best['trial']}; {counts})."


def _charts(study: Any) -> Iterator[str]:
    """Optuna's charts as HTML; one that cannot be drawn yet, for example from a single trial, is left out."""
    from optuna import visualization
    from optuna.importance import PedAnovaImportanceEvaluator

    def importances(study: Any) -> Any:
        return visualization.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())

    kinds: list[Callable[[Any], Any]] = [
        visualization.plot_optimization_history,
        visualization.plot_intermediate_values,
        visualization.plot_parallel_coordinate,
        visualization.plot_slice,
        importances,
    ]
    first = True
    for kind in kinds:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of importances, while there are few trials
                figure = kind(study)
            if not figure.data:
                continue
            yield figure.to_html(full_html=False, include_plotlyjs=first)
            first = False
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            log.debug("%s: %s", getattr(kind, "__name__", kind), error)


def _table(columns: list[str], rows: list[dict[str, Any]], runs_folder: Path) -> str:
    def cell(row: dict[str, Any], column: str) -> str:
        value = row.get(column)
        shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        if column == "run" and value:
            return f'<td><a href="{escape(f"{runs_folder}/{value}/report.html")}">{escape(shown)}</a></td>'
        return f"<td>{escape(shown)}</td>"

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(cell(row, column) for column in columns)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
