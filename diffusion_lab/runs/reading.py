"""Reads the files of a run. Needs neither the process that wrote them nor torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.analysis.stop import Recommendation, recommend
from diffusion_lab.records import Summary, UserError
from diffusion_lab.runs.backup import EVENTS, RESULT, SCORES
from diffusion_lab.runs.backup import NAME as COPY
from diffusion_lab.runs.checksums import damaged

NO_RECORD = "no record"  # composed by Hydra, but ended before its record was started


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric as described in the record."""

    name: str
    version: str
    label: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one run; parts that the run did not reach are empty."""

    folder: Path
    status: str  # interfaces.Status, "running" (or killed while running), or "no record"
    error: str | None
    config: Mapping[str, Any]
    config_text: str  # content of config.yaml
    provenance: Mapping[str, Any]
    cost: Mapping[str, Any]  # "training" and "evaluation": "seconds", "peak_memory_bytes"
    metrics: Mapping[str, MetricInfo]
    encoders: Mapping[str, Any]  # identity by role
    summaries: Mapping[int, Mapping[str, Summary]]  # by step, ascending
    seconds: Mapping[int, Mapping[str, float]]  # by step: "sampling", "encoding", "metrics"
    references: Mapping[str, Mapping[str, Summary | None]]  # metric -> "ceiling", "impostor"
    recommendation: Recommendation | None  # by the stop rule, from the recorded weights and ranges
    reason: str  # as recorded
    started: str
    finished: str
    steps_done: int | None
    photographs: Mapping[
        str, Sequence[Mapping[str, Any]]
    ]  # by group, those with several faces or an unlike one
    several_faces: Mapping[int, int]  # by step: images with more than one face, if faces were detected
    id: str = ""  # resume.run_id of its configuration
    ended: Mapping[str, Any] | None = None  # why it ended before its last planned step: step, kind, reason
    damaged_files: tuple[str, ...] = ()  # files of the record that are missing or damaged, if checked

    @property
    def steps(self) -> list[int]:
        return list(self.summaries)


def is_run(folder: Path) -> bool:
    """True for a folder with a run's record or parts of one, or with Hydra's files of a job without a record."""
    if is_score_run(folder):
        return False
    return (folder / RESULT).is_file() or _begun(folder) or _fine_tuning(_hydra_config(folder))


def _begun(folder: Path) -> bool:
    """Whether the folder has a run's files, even without result.json."""
    return any((folder / name).is_file() for name in (SCORES, EVENTS, COPY))


def is_score_run(folder: Path) -> bool:
    """True for the folder of job=score: it has a record too, but without training."""
    return (folder / "result.json").is_file() and (folder / "scores.csv").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Folders of runs at or below `folder`, in natural order (2 before 10); hidden folders are skipped."""
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


def read_run(folder: Path, result: Mapping[str, Any] | None = None) -> Run:
    """Reads `result.json` and `config.yaml`; `result`, if given, replaces the former.

    Raises:
        UserError: (job.runs) if there is no run, or `result.json` is missing or cannot be read.
    """
    with readable(folder):
        return _run(Path(folder), record_of(folder) if result is None else result)


def record_of(folder: Path) -> dict[str, Any]:
    """The content of `result.json`; empty for a job that ended before its record began.

    Raises:
        UserError: (job.runs) as `read_run`.
    """
    folder = Path(folder)
    if not is_run(folder) and not is_score_run(folder):
        raise UserError(f"job.runs: {folder} is not the folder of a run: it has no {RESULT}")
    path = folder / RESULT
    with readable(folder):
        if not path.is_file() and _begun(folder):
            raise ValueError("it is missing")
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(result, dict):
            raise ValueError("it is not a JSON object")
        return result


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Errors of a record's content as a UserError that names the file and the remedy."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"job.runs: {folder / RESULT} cannot be read as a run's result ({error}); resume={folder} restores it from "
            f"{COPY} if possible"
        ) from error


def _run(folder: Path, result: Mapping[str, Any]) -> Run:
    evaluations = sorted(result.get("evaluations") or [], key=lambda e: int(e["step"]))
    summaries = {
        int(e["step"]): {name: summary(values) for name, values in e["metrics"].items()} for e in evaluations
    }
    names = {name: None for metrics in summaries.values() for name in metrics}
    metrics = metrics_of(result, names)
    references = {
        name: {kind: None if values is None else summary(values) for kind, values in kinds.items()}
        for name, kinds in (result.get("references") or {}).items()
    }
    config = config_of(folder, result)
    recorded = result.get("recommendation") or {}
    wanted = config.get("metrics") or {}
    data = config.get("data") or {}
    return Run(
        folder=folder,
        status=str(result.get("status") or NO_RECORD),
        error=result.get("error"),
        config=config,
        config_text=_config_text(folder / "config.yaml", config),
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
        id=str(result.get("run") or ""),
        ended=result.get("ended") or None,
        photographs=result.get("photographs") or {},
        several_faces={
            int(e["step"]): int(n) for e in evaluations if (n := e.get("several_faces")) is not None
        },
    )


def _config_text(path: Path, config: Mapping[str, Any]) -> str:
    """The content of config.yaml, or the configuration of result.json as YAML if they differ."""
    try:
        text = path.read_text(encoding="utf-8")
        if not config or yaml.safe_load(text) == config:
            return text
    except (OSError, ValueError, yaml.YAMLError):
        pass
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)) if config else ""


def damaged_files(folder: Path, result: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Files that the record vouches for and that are missing or not what they were. `result`: as in `read_run`."""

    if result is None:
        path = folder / RESULT
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    files = result.get("files")
    return tuple(damaged(folder, files)) if isinstance(files, Mapping) else ()


def summary(values: Mapping[str, Any]) -> Summary:
    """A `Summary` from its JSON form; keys of newer records are ignored."""
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


def config_of(folder: Path, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration in the record, or the one that Hydra composed; empty if there is none."""
    config: Mapping[str, Any] = result.get("config") or _hydra_config(folder)
    return config


def metrics_of(result: Mapping[str, Any], names: Iterable[str]) -> dict[str, MetricInfo]:
    """The metrics that the record describes, and those of `names` that it does not."""
    described = result.get("metrics") or {}
    return {name: _info(name, described.get(name) or {}) for name in {**described, **dict.fromkeys(names)}}


def _info(name: str, described: Mapping[str, Any]) -> MetricInfo:
    return MetricInfo(
        name=name,
        version=str(described.get("version", "")),
        label=str(described.get("label") or name),
        unit=str(described.get("unit", "")),
        higher_is_better=bool(described.get("higher_is_better", True)),
    )


def read_scalars(folder: Path, run: str = "") -> Iterator[dict[str, float]]:
    """Training scalars from `events.jsonl` in order, including "step"; none from the log of another run.

    Unreadable lines, which an interruption may leave, are skipped. `run`: the run's id.
    """
    from diffusion_lab.runs.recovery import parse_events

    try:
        events, _ = parse_events((folder / EVENTS).read_bytes(), run)
    except (OSError, ValueError):
        return
    for event in events:
        if event["event"] == "scalars":
            yield {"step": event["step"], **event.get("values", {})}
