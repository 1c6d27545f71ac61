"""The tables and static charts of a study, written beside its page: `tables/*.csv` and `charts/*.svg`.

They show what the page shows when it is opened: the table's weights and ranges, no filters.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_lab.report.study import figures, rows
from diffusion_lab.report.study.keys import BALANCED, Key, keys_of, metrics_of, split_of, starting_colour
from diffusion_lab.report.study.rows import Measured, Row
from diffusion_lab.studies.costs import COSTS
from diffusion_lab.studies.measures import plane_metrics
from diffusion_lab.studies.table import Table
from diffusion_lab.system import atomic

STEPS, PHOTOS = "optimizer steps", "training photos"
Titles = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Material:
    """What the sections are made of."""

    table: Table
    keys: Sequence[Key]
    everything: Sequence[Measured]
    averaged: Sequence[Measured]  # the balanced part
    titles: Titles  # metric -> label, unit

    def several(self, name: str) -> bool:
        return any(key.name == name and len(set(key.values)) > 1 for key in self.keys)

    def of_usual_number(self) -> Sequence[Measured]:
        """The runs with the most frequent number of photos, the greatest of equally frequent ones."""
        counts = Counter(one.run.n_images for one in self.everything)
        usual = max(counts, key=lambda n: (counts[n], n))
        return [one for one in self.averaged if one.run.n_images == usual]


@dataclass(frozen=True, slots=True)
class Made:
    tables: Mapping[str, Sequence[Row]]
    charts: Mapping[str, str]


def write_files(place: Path, table: Table, sections: Sequence[str]) -> None:
    """Writes the tables and charts of the sections, and deletes those of sections that are not there any more."""
    tables: dict[str, str] = {}
    charts: dict[str, str] = {}
    if sections:
        material = material_of(table)
        for section in sections:
            made = SECTIONS[section](material)
            tables |= {name: csv_text(content) for name, content in made.tables.items() if content}
            charts |= {name: content for name, content in made.charts.items() if content}
    for kind, suffix, texts in (("tables", "csv", tables), ("charts", "svg", charts)):
        for name, text in texts.items():
            atomic.write_bytes(place / kind / f"{name}.{suffix}", text.encode())
        for path in (place / kind).glob(f"*.{suffix}"):
            if path.stem not in texts:
                path.unlink(missing_ok=True)


def material_of(table: Table) -> Material:
    everything = rows.measured(table)
    return Material(
        table=table,
        keys=keys_of(table.runs),
        everything=everything,
        averaged=[one for one in everything if one.keys[BALANCED] == "yes"],
        titles={name: (table.metrics[name].label, table.metrics[name].unit) for name in metrics_of(table)},
    )


def csv_text(content: Sequence[Row]) -> str:
    """RFC 4180: a header, commas, CRLF; six digits; an unknown value is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    if content:
        writer.writerow(content[0])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in content)
    return buffer.getvalue()


def _joined(found: Mapping[str, Sequence[Row]]) -> list[Row]:
    return [row for some in found.values() for row in some]


def dynamics(of: Material) -> Made:
    found = {name: rows.dynamics(of.everything, name) for name in of.titles}
    by = starting_colour(of.keys)
    return Made(
        {"dynamics": _joined(found)}, {"dynamics": figures.runs(of.titles, found, by, _label(of, by))}
    )


def stop(of: Material) -> Made:
    by = split_of(of.keys) or ("gender" if of.several("gender") else "")
    found, slopes = rows.stops(of.averaged, by), rows.slopes(of.averaged, by)
    last = max((one.run.steps[-1] for one in of.averaged), default=1)
    return Made({"stop": found, "slopes": slopes}, {"stop": figures.stop(found, slopes, max(1, last))})


def counts(of: Material) -> Made:
    some = of.averaged
    if split := split_of(of.keys):
        sizes = Counter(one.keys[split] for one in of.everything)
        usual = max(rows.by_key(of.everything, split), key=lambda value: sizes[value])
        some = [one for one in some if one.keys[split] == usual]
    found = {name: rows.curves(some, name, "n") for name in of.titles}
    chart = figures.lines(of.titles, found, "n", "step", STEPS, PHOTOS, band=True)
    return Made({"counts": _joined(found)}, {"counts": chart})


def optimum(of: Material) -> Made:
    by = split_of(of.keys)
    found = {name: rows.optimum(of.averaged, name, by) for name in of.titles}
    chart = figures.lines(of.titles, found, "by", "n", PHOTOS, "", band=False)
    return Made({"optimum": _joined(found)}, {"optimum": chart})


def models(of: Material) -> Made:
    some = of.of_usual_number()
    found = {name: rows.curves(some, name, "model") for name in of.titles}
    weighted = [name for name in of.titles if of.table.weights.get(name, 0) > 0]
    at = {"stop": rows.side_by_side(some, "model", Measured.stop_steps)}
    at |= {name: rows.side_by_side(some, "model", lambda one, m=name: one.at_stop(m)) for name in weighted}  # type: ignore[misc]
    titles = {"stop": ("Recommended stop", "steps")} | {name: of.titles[name] for name in weighted}
    return Made(
        {"models": _joined(found), "models_stop": [{"of": name, **row} for name, some in at.items() for row in some]},
        {
            "models": figures.lines(of.titles, found, "model", "step", STEPS, "", band=True),
            "models_stop": figures.bars(titles, at),
        },
    )  # fmt: skip


def methods(of: Material) -> Made:
    some = of.of_usual_number()
    by = split_of(of.keys) or "method"
    spent = rows.costs(some, by)
    costs: list[Row] = [
        {"cost": name, "unit": COSTS[name][1], **row} for name, some in spent.items() for row in some
    ]
    made = {"methods_costs": figures.bars(COSTS, spent)}
    axes = plane_axes(of.table)
    if axes is None:
        return Made({"methods_costs": costs}, made)
    across, up = axes
    found = rows.plane(some, across, up, by)
    lines = {"x": _baselines(of, across), "y": _baselines(of, up)}
    made["methods"] = figures.plane(found, of.titles[across][0], of.titles[up][0], lines)
    return Made({"methods": found, "methods_costs": costs}, made)


def plane_axes(table: Table) -> tuple[str, str] | None:
    """The metrics across and up: prompt similarity and image similarity, or the nearest ones."""
    found = plane_metrics(table)
    return None if found is None else (found[1], found[0])


def _baselines(of: Material, metric: str) -> dict[str, float]:
    """Mean over runs of the floor (untouched model) and of the ceiling (real photos)."""
    found = {}
    for kind in ("floor", "ceiling"):
        known = [v for one in of.averaged if (v := one.run.references.get(metric, {}).get(kind)) is not None]
        if known:
            found[kind] = float(np.mean(known))
    return found


def values(of: Material) -> Made:
    """Every other setting in one table; a chart for each."""
    some = of.of_usual_number()
    table: list[Row] = []
    charts = {}
    for key in of.keys:
        if not key.extra or len(set(key.values)) < 2:
            continue
        known = [one for one in some if one.keys[key.name] != ""]
        found = {"stop": rows.side_by_side(known, key.name, Measured.stop_steps)}
        found |= {m: rows.side_by_side(known, key.name, lambda one, m=m: one.at_stop(m)) for m in of.titles}  # type: ignore[misc]
        table += [{"setting": key.name, "of": name, **row} for name, part in found.items() for row in part]
        charts[f"values_{key.name}"] = figures.bars(
            {"stop": ("Recommended stop", "steps"), **of.titles}, found
        )
    return Made({"values": table}, charts)


def _label(of: Material, name: str) -> str:
    return next(key.label for key in of.keys if key.name == name)


SECTIONS: Mapping[str, Callable[[Material], Made]] = {
    "dynamics": dynamics, "stop": stop, "counts": counts, "optimum": optimum, "models": models, "methods": methods,
    "values": values,
}  # fmt: skip
