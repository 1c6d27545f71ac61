"""The table of a study: every run with its curves, the scores behind them by prompt, and its costs.

Read from `result.json` and `scores.parquet` only. It needs neither torch nor the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion_lab.analysis.stop import DEFAULT_WEIGHTED
from diffusion_lab.records import UserError
from diffusion_lab.runs.reading import MetricInfo, find_runs
from diffusion_lab.studies.copies import distinct
from diffusion_lab.studies.reading import Record, read_record
from diffusion_lab.studies.record import NAME, read_study, study_folder
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.values.bounds import NARROWEST


@dataclass(frozen=True, slots=True)
class Table:
    """The runs of a study that have evaluations, and what is missing."""

    runs: tuple[StudyRun, ...]
    metrics: Mapping[str, MetricInfo]
    ranges: Mapping[str, tuple[float, float]]  # low, high of every metric, for one common scale
    weights: Mapping[str, float]  # of the stop rule, by default: the recorded ones, or equal; they sum to 1
    unreadable: tuple[tuple[str, str], ...] = ()  # name, reason
    pending: tuple[
        tuple[str, str], ...
    ] = ()  # name, why: points without evaluations ("not begun", "failed: ...")
    repeated: tuple[tuple[str, str], ...] = ()  # copy, the run that is used instead

    @property
    def unfinished(self) -> tuple[StudyRun, ...]:
        """Runs with evaluations that have not ended normally. They are used."""
        return tuple(run for run in self.runs if not run.finished)


class Named(Protocol):
    """A study; `studies.definition.Study` is one."""

    @property
    def name(self) -> str: ...


def read_table(folder: Path, study: Named | None = None) -> Table:
    """The runs at or below `folder`; with `study`, only those of its points (`_NAME/study.json`).

    Raises:
        UserError: (job.runs) if there are no runs in the folder; if the study's `study.json` cannot be read.
    """
    return read_tables(folder, [study])[0]


def read_tables(folder: Path, studies: Sequence[Named | None]) -> list[Table]:
    """A table for each study, and for None one of all runs; see `read_table`. Each run is read once."""
    folder = Path(folder)
    points = [None if study is None else points_of(folder, study.name) for study in studies]
    everything = None in points
    ids = None if everything else {id_ for members in points for id_ in members or ()}
    records: list[Record] = []
    unreadable: list[tuple[str, str]] = []
    found = find_runs(folder)
    if not found and everything:
        raise UserError(f"job.runs: there is no run in {folder} (no folder in it has a result.json)")
    for path in found:
        try:
            records.append(read_record(path, ids))
        except UserError as error:
            unreadable.append((_name(path, folder), str(error)))
    return [_table(folder, records, unreadable, members) for members in points]


def _table(
    folder: Path,
    records: Sequence[Record],
    unreadable: Sequence[tuple[str, str]],
    members: Mapping[str, str] | None,
) -> Table:
    wanted = [record for record in records if members is None or record.id in members]
    kept, repeated = distinct(wanted)
    runs = tuple(record.run(_name(record.folder, folder)) for record in kept if record.evaluations)
    pending = [
        (_name(record.folder, folder), f"{record.status}: {record.error}" if record.error else record.status)
        for record in kept
        if not record.evaluations
    ]
    if members is not None:  # damaged runs of other studies do not matter; those of this one have begun
        unreadable = [(name, why) for name, why in unreadable if name in members.values()]
        begun = {record.id for record in kept}
        known = {name for name, _ in unreadable}
        pending += [
            (name, "not begun") for id_, name in members.items() if id_ not in begun and name not in known
        ]
    return Table(
        runs=runs,
        metrics=_metrics(kept),
        ranges=common_ranges(runs),
        weights=common_weights(runs),
        unreadable=tuple(unreadable),
        pending=tuple(pending),
        repeated=tuple((_name(a.folder, folder), _name(b.folder, folder)) for a, b in repeated),
    )


def points_of(folder: Path, name: str) -> dict[str, str]:
    """Run id -> folder name of each point of a study, from `_NAME/study.json`. UserError if it cannot be read."""
    study = read_study(study_folder(folder, name) / NAME)
    return {point.run: point.folder or " ".join(point.overrides) for point in study.points if point.run}


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name


def _metrics(records: Sequence[Record]) -> dict[str, MetricInfo]:
    infos: dict[str, MetricInfo] = {}
    for record in records:
        infos |= {name: info for name, info in record.metrics.items() if name not in infos}
    return infos


def common_ranges(runs: Sequence[StudyRun]) -> dict[str, tuple[float, float]]:
    """Of each metric the range that most runs are configured with, else the hull of all values and ceilings."""
    configured: dict[str, Counter[tuple[float, float]]] = {}
    ends: dict[str, list[float]] = {}
    for run in runs:
        for name, values in run.values.items():
            given = run.settings.get(f"metrics.ranges.{name}")
            if given is not None:
                configured.setdefault(name, Counter())[float(given[0]), float(given[1])] += 1
            known = values[np.isfinite(values)]
            ceiling = run.references.get(name, {}).get("ceiling")
            some = ends.setdefault(name, [])
            some += [float(known.min()), float(known.max())] if len(known) else []
            some += [] if ceiling is None else [ceiling]
    return {
        name: configured[name].most_common(1)[0][0]
        if name in configured
        else (min(some), max(max(some), min(some) + 2 * NARROWEST))
        for name, some in ends.items()
        if some
    }


def common_weights(runs: Sequence[StudyRun]) -> dict[str, float]:
    """The recorded weights of most runs, else equal ones of the metrics of the stop rule."""
    counted = Counter(tuple(sorted(run.weights.items())) for run in runs if run.weights)
    if counted:
        return dict(counted.most_common(1)[0][0])
    there = {name for run in runs for name, values in run.values.items() if np.isfinite(values).any()}
    names = [name for name in DEFAULT_WEIGHTED if name in there] or sorted(there)
    return {name: 1 / len(names) for name in names}
