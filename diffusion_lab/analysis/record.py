"""Reading what a run left behind. Nothing here needs the process that made it, nor torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.analysis.stop import Recommendation, recommend
from diffusion_lab.interfaces import Summary, UserError

NO_RECORD = "no record"  # composed by Hydra and ended before its record began


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric as the record describes it."""

    name: str
    version: str
    label: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One run's record; parts that a run never reached are empty."""

    folder: Path
    status: str  # interfaces.Status, "running" (or killed while it ran), or "no record"
    error: str | None
    config: Mapping[str, Any]
    config_text: str  # config.yaml as it is
    provenance: Mapping[str, Any]
    cost: Mapping[str, Any]  # "training" and "evaluation": "seconds", "peak_memory_bytes"
    metrics: Mapping[str, MetricInfo]
    encoders: Mapping[str, Any]  # by role, its identity
    summaries: Mapping[int, Mapping[str, Summary]]  # by step, ascending
    seconds: Mapping[int, Mapping[str, float]]  # by step: "sampling", "encoding", "metrics"
    references: Mapping[str, Mapping[str, Summary | None]]  # metric -> "ceiling", "impostor"
    recommendation: Recommendation | None  # by the rule, from the recorded weights and ranges
    reason: str  # as recorded
    started: str
    finished: str
    steps_done: int | None
    several_faces: Mapping[int, int]  # by step: images with more than one face, where faces were looked for

    @property
    def steps(self) -> list[int]:
        return list(self.summaries)


def is_run(folder: Path) -> bool:
    """True for a folder with a run's `result.json`, or with Hydra's notes of a job that never wrote one."""
    if is_scored(folder):
        return False
    return (folder / "result.json").is_file() or _fine_tuning(_hydra_config(folder))


def is_scored(folder: Path) -> bool:
    """True for the folder of a job=score: a record too, but of no training."""
    return (folder / "result.json").is_file() and (folder / "scores.csv").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Folders of runs at or below `folder`, in natural order (2 before 10); hidden folders are not looked into."""
    from diffusion_lab.data.pictures import natural_key

    found: list[Path] = []
    for where, folders, _ in os.walk(folder):
        if is_run(Path(where)):
            found.append(Path(where))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=lambda path: [natural_key(part) for part in path.parts])


def _hydra_config(folder: Path) -> dict[str, Any]:
    path = folder / ".hydra" / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _fine_tuning(config: Mapping[str, Any]) -> bool:
    job = config.get("job")
    return isinstance(job, Mapping) and job.get("name") == "finetune" and not job.get("dry_run")


def read_run(folder: Path) -> Run:
    """Reads `result.json` and `config.yaml`.

    Raises:
        UserError: (job.runs) where there is no run, or where `result.json` cannot be read.
    """
    folder = Path(folder)
    if not is_run(folder) and not is_scored(folder):
        raise UserError(f"job.runs: {folder} is no run's folder: it has no result.json")
    path = folder / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(result, dict):
            raise ValueError("it is not a JSON object")
        return _run(folder, result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"job.runs: {path} cannot be read as a run's result: {error!r}") from error


def _run(folder: Path, result: Mapping[str, Any]) -> Run:
    evaluations = sorted(result.get("evaluations") or [], key=lambda e: int(e["step"]))
    summaries = {
        int(e["step"]): {name: summary(values) for name, values in e["metrics"].items()} for e in evaluations
    }
    names = {name: None for metrics in summaries.values() for name in metrics}
    described = result.get("metrics") or {}
    metrics = {name: _info(name, described.get(name) or {}) for name in {**described, **names}}
    references = {
        name: {kind: None if values is None else summary(values) for kind, values in kinds.items()}
        for name, kinds in (result.get("references") or {}).items()
    }
    config = result.get("config") or _hydra_config(folder)
    recorded = result.get("recommendation") or {}
    wanted = config.get("metrics") or {}
    config_path = folder / "config.yaml"
    data = config.get("data") or {}
    return Run(
        folder=folder,
        status=str(result.get("status") or NO_RECORD),
        error=result.get("error"),
        config=config,
        config_text=config_path.read_text(encoding="utf-8", errors="replace")
        if config_path.is_file()
        else "",
        provenance=result.get("provenance") or {},
        cost=result.get("cost") or {},
        metrics=metrics,
        encoders=result.get("encoders") or {},
        summaries=summaries,
        seconds={int(e["step"]): e.get("seconds") or {} for e in evaluations},
        references=references,
        recommendation=recommend(
            summaries,
            recorded.get("weights")
            or {k: v for k, v in (wanted.get("weights") or {}).items() if k in metrics},
            recorded.get("ranges") or wanted.get("ranges") or {},
            metrics.values(),
            references=references,
            n_images=data.get("n_images"),
            class_noun=data.get("class_noun"),
        ),
        reason=str(recorded.get("reason") or ""),
        started=str(result.get("started") or ""),
        finished=str(result.get("finished") or ""),
        steps_done=result.get("steps_done"),
        several_faces={
            int(e["step"]): int(n) for e in evaluations if (n := e.get("several_faces")) is not None
        },
    )


def summary(values: Mapping[str, Any]) -> Summary:
    """A `Summary` from its JSON form; keys of newer records are passed over."""
    known = {f.name for f in fields(Summary)}
    absent: dict[str, Any] = {
        "mean": None,
        "n": 0,
        "missing": 0,
        "standard_error": None,
        "low": None,
        "high": None,
    }
    return Summary(**{**absent, **{k: v for k, v in values.items() if k in known}})


def _info(name: str, described: Mapping[str, Any]) -> MetricInfo:
    return MetricInfo(
        name=name,
        version=str(described.get("version", "")),
        label=str(described.get("label") or name),
        unit=str(described.get("unit", "")),
        higher_is_better=bool(described.get("higher_is_better", True)),
    )


def read_scalars(folder: Path) -> Iterator[dict[str, float]]:
    """Training's scalars from `events.jsonl` in order, the step among them as "step".

    A line that was cut off by a kill is passed over.
    """
    path = folder / "events.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "scalars":
                yield {"step": event["step"], **event.get("values", {})}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"n_images": 4}} -> {"data.n_images": 4}; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
