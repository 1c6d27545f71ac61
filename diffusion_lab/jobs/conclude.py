"""The end of a fine-tuning run, however it came: where to stop, that step's artefact, the report."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config import Config
from diffusion_lab.costs import keeps_best_only, planned
from diffusion_lab.interfaces import Status, Summary
from diffusion_lab.models.artefacts import annotate
from diffusion_lab.quoting import pasted
from diffusion_lab.tracking.atomic import dumps, replace_folder

if TYPE_CHECKING:
    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.tracking import Fanout
    from diffusion_lab.tracking.files import FileTracker
    from diffusion_lab.training.meter import Meter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Findings:
    """What a run has measured so far; enough to conclude at any moment."""

    summaries: dict[int, Mapping[str, Summary]] = field(default_factory=dict)  # by step
    ceilings: dict[str, Summary | None] = field(default_factory=dict)  # by metric
    steps_done: int = 0
    measuring: bool = False  # an evaluation is under way, in which the main process is alone
    meter: Meter | None = None
    pipe: Any = None  # once the method is attached


def adapter_folder(run_folder: Path, step: int) -> Path:
    """Where the artefact of an evaluated step lies."""
    return run_folder / "adapters" / f"step-{step:06d}"


def conclude(
    config: Config, run_folder: Path, findings: Findings, tracker: Fanout, files: FileTracker, status: Status
) -> None:
    """Says where to stop, puts that step's artefact in its place, closes the record and writes the report.

    Runs after a failure too, so nothing in here may hide the reason why.
    """
    summary: dict[str, Any] = {"steps_done": findings.steps_done, "cost": _cost(findings.meter)}
    summary["cost"]["estimate"] = planned(config)
    stop = None
    try:
        stop = recommendation(config, findings)
        if stop is not None:
            plain = dataclasses.asdict(stop)
            files.recommendation(plain)
            summary["recommendation"] = plain
            means = {name: found.mean for name, found in findings.summaries[stop.step].items()}
            _place_artefact(config, run_folder, stop.step, findings.pipe, means)
    except Exception:
        log.exception("no recommendation could be made")
    tracker.finish(status, summary)
    try:
        from diffusion_lab.analysis.report import write_report

        report = write_report(run_folder)
    except Exception:
        again = pasted("job=report", f"job.runs={run_folder}")
        log.exception("the report could not be written; %s makes it again", again)
    else:
        if stop is not None:
            log.info("stop at step %d: %s", stop.step, stop.reason)
        log.info("report: %s", report)
    if status == "interrupted":
        log.info("to go on: python -m diffusion_lab %s", pasted(f"resume={run_folder.absolute()}"))


def recommendation(config: Config, findings: Findings) -> Recommendation | None:
    """Where to stop, by what has been measured so far."""
    from diffusion_lab.analysis.stop import recommend
    from diffusion_lab.metrics import select

    if not findings.summaries:
        return None
    return recommend(
        findings.summaries,
        config.metrics.weights,
        config.metrics.ranges,
        select(config.metrics.names),
        references={name: {"ceiling": ceiling} for name, ceiling in findings.ceilings.items()},
        n_images=config.data.n_images,
        class_noun=config.data.class_noun,
    )


def prune_adapters(config: Config, run_folder: Path, findings: Findings, now: int) -> None:
    """After the evaluation at step `now`, by `steps.keep_adapters`: goes what can no longer be recommended."""
    from diffusion_lab.analysis.stop import contenders
    from diffusion_lab.metrics import select

    if not keeps_best_only(config):
        return
    metrics = select(config.metrics.names)
    kept = contenders(findings.summaries, config.metrics.weights, config.metrics.ranges, metrics) | {now}
    for step in findings.summaries:
        if step not in kept and step < now:
            shutil.rmtree(adapter_folder(run_folder, step), ignore_errors=True)


def _place_artefact(
    config: Config, run_folder: Path, step: int, pipe: Any, scores: Mapping[str, float | None]
) -> None:
    """artefact/ holds the recommended step's adapter, whole or not there at all.

    A method that trains whole parts of the model adds the parts that it left alone. The adapter's files are linked,
    not copied, where the disk can: nobody writes into them, they are replaced.
    """
    complete = getattr(config.method, "complete", None)
    if not adapter_folder(run_folder, step).is_dir():  # the run fell back behind the one that took its place
        log.warning("the adapter of step %d is gone; artefact/ comes when the run goes on to its end", step)
        return
    with replace_folder(run_folder / "artefact") as beside:
        if complete is not None and pipe is not None:
            complete(pipe, beside)
        shutil.copytree(adapter_folder(run_folder, step), beside, dirs_exist_ok=True, copy_function=_link)
        annotate(beside, {"recommended_step": str(step), "scores": dumps(scores)})


def _link(source: str, target: str) -> str:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copy2(source, target)
    return target


def _cost(meter: Meter | None) -> dict[str, dict[str, float]]:
    if meter is None:
        return {}
    return {
        name: {"seconds": meter.seconds.get(name, 0.0), "peak_memory_bytes": meter.peak(name)}
        for name in ("training", "evaluation")
    }
