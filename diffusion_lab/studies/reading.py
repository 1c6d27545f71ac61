"""One run's files as a record of a study: its curves from `result.json`, its scores by prompt from `scores.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_lab.analysis.limits import limits_of, value_of
from diffusion_lab.records import Summary, UserError
from diffusion_lab.runs.backup import SCORES
from diffusion_lab.runs.reading import (
    NO_RECORD,
    MetricInfo,
    config_of,
    metrics_of,
    readable,
    record_of,
    summary,
)
from diffusion_lab.runs.resume import bound_flat, run_id
from diffusion_lab.studies.by_prompt import ByPrompt, read_by_prompt
from diffusion_lab.studies.costs import run_costs
from diffusion_lab.studies.labels import gender_of, method_of, model_of
from diffusion_lab.studies.run import Floats, StudyRun
from diffusion_lab.values.mappings import flatten

Evaluations = Mapping[int, Mapping[str, Summary]]  # by step, ascending


@dataclass(frozen=True, slots=True)
class Record:
    """What `result.json` says; `by_prompt` is empty for a run that is not wanted, or without evaluations."""

    id: str
    folder: Path
    config: Mapping[str, Any]
    status: str
    error: str | None
    started: str
    finished: str
    evaluations: Evaluations
    metrics: Mapping[str, MetricInfo]
    by_prompt: ByPrompt
    content: Mapping[str, Any]  # of result.json

    @property
    def summaries(self) -> Evaluations:
        return self.evaluations

    def run(self, name: str) -> StudyRun:
        return _study_run(self, name)


def read_record(folder: Path, wanted: Set[str] | None = None) -> Record:
    """The record of a run. ``wanted``: ids of the runs whose scores are read as well; None for all.

    Raises:
        UserError: (job.runs) if `result.json` or `scores.parquet` cannot be read.
    """
    content = record_of(folder)
    with readable(folder):
        config = config_of(folder, content)
        evaluations = {
            int(e["step"]): {name: summary(values) for name, values in e["metrics"].items()}
            for e in sorted(content.get("evaluations") or [], key=lambda e: int(e["step"]))
        }
        metrics = metrics_of(content, [name for metrics in evaluations.values() for name in metrics])
        id_ = run_id(config) if config else str(folder)
    by_prompt = ByPrompt((), {})
    if evaluations and (wanted is None or id_ in wanted):
        try:
            by_prompt = read_by_prompt(folder / SCORES, evaluations)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"job.runs: {folder / SCORES} cannot be read ({' '.join(str(error).split())[:100]}); "
                f"resume={folder} restores it if possible"
            ) from error
    return Record(
        id=id_,
        folder=folder,
        config=config,
        status=str(content.get("status") or NO_RECORD),
        error=content.get("error"),
        started=str(content.get("started") or ""),
        finished=str(content.get("finished") or ""),
        evaluations=evaluations,
        metrics=metrics,
        by_prompt=by_prompt,
        content=content,
    )


def _study_run(record: Record, name: str) -> StudyRun:
    flat = flatten(record.config)
    negative = (record.content.get("prompts") or {}).get("negative")
    if negative is not None:
        flat["prompts.negative"] = negative
    rule = record.content.get("recommendation") or {}
    ranges = rule.get("ranges") or (record.config.get("metrics") or {}).get("ranges") or {}
    weights = rule.get("weights") or (record.config.get("metrics") or {}).get("weights") or {}
    noun = str(flat.get("data.class_noun") or "")
    values, low, high = _curves(record.evaluations)
    return StudyRun(
        id=record.id,
        name=name,
        folder=record.folder,
        status=record.status,
        subject=str(flat.get("data.subject") or flat.get("data.folder") or ""),
        class_noun=noun,
        gender=gender_of(noun),
        n_images=int(flat.get("data.n_images") or 0),
        method=method_of(flat),
        model=model_of(flat),
        seed=int(flat.get("seed") or 0),
        settings=flat,
        steps=tuple(record.evaluations),
        values=values,
        low=low,
        high=high,
        by_prompt=record.by_prompt.values,
        prompts=record.by_prompt.prompts,
        references=_references(record, values),
        costs=run_costs(record.folder, record.content.get("cost") or {}),
        weights={m: float(w) for m, w in weights.items() if m in values and w is not None},
        ranges={m: (float(ends[0]), float(ends[1])) for m, ends in ranges.items()},
        chosen=tuple((key, str(value)) for key, value in bound_flat(flat).items()),
        encoders=record.content.get("encoders") or {},
    )


def _curves(
    evaluations: Evaluations,
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, Floats]]:
    """Value, low and high by metric, [steps]. A metric without a mean at any step has no values, as for the stop rule."""
    names = dict.fromkeys(name for metrics in evaluations.values() for name in metrics)
    middle, low, high = ({name: np.full(len(evaluations), np.nan) for name in names} for _ in range(3))
    for name in names:
        along = [metrics.get(name) for metrics in evaluations.values()]
        if all(s is None or s.mean is None for s in along):
            continue
        for i, s in enumerate(along):
            value = None if s is None else value_of(s)
            limits = None if s is None else limits_of(s)
            if value is not None:
                middle[name][i] = value
            if limits is not None:
                low[name][i], high[name][i] = limits
    return middle, low, high


def _references(record: Record, values: Mapping[str, Floats]) -> dict[str, dict[str, float | None]]:
    first = next(iter(record.evaluations)) == 0
    found: dict[str, dict[str, float | None]] = {}
    recorded = record.content.get("references") or {}
    for name, curve in values.items():
        floor = float(curve[0]) if first and np.isfinite(curve[0]) else None
        kinds = recorded.get(name) or {}
        known = {kind: None if s is None else value_of(summary(s)) for kind, s in kinds.items()}
        found[name] = {"floor": floor, "ceiling": known.get("ceiling"), "impostor": known.get("impostor")}
    return found
