"""The end of any fine-tuning run: the recommended step, its artefact, and the report."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts.notes import annotate
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs import ignore_sigterm, reason
from diffusion_lab.methods.method import SavesNetworks
from diffusion_lab.plan.costs import keeps_best_only, phases
from diffusion_lab.plan.numbers import PlannedEvaluations, planned
from diffusion_lab.records import Ended, Status, Summary, UserError
from diffusion_lab.runs.checksums import damaged
from diffusion_lab.runs.files import CHECKSUMMED, FileTracker
from diffusion_lab.runs.folder_record import CHECKPOINTS
from diffusion_lab.system import failures
from diffusion_lab.system.folders import replace_folder
from diffusion_lab.values.jsonable import dumps
from diffusion_lab.values.quoting import pasted

if TYPE_CHECKING:
    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.trackers import Fanout
    from diffusion_lab.training.meter import Meter
    from diffusion_lab.training.state import TrainingState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Findings:
    """What a run has measured so far; sufficient to conclude it at any time."""

    summaries: dict[int, Mapping[str, Summary]] = field(default_factory=dict)  # by step
    ceilings: dict[str, Summary | None] = field(default_factory=dict)  # by metric
    steps_done: int = 0
    ended: Ended | None = None  # why training ended before its last planned step
    planned: PlannedEvaluations | None = None  # set once the prompts are known
    measuring: bool = False  # an evaluation is running, in the main process only
    meter: Meter | None = None
    pipe: Any = None  # set once the method is attached
    state: TrainingState | None = None

    @property
    def references(self) -> dict[str, dict[str, Summary | None]]:
        """The scores of the reference photos, as the stop rule takes them."""
        return {name: {"ceiling": ceiling} for name, ceiling in self.ceilings.items()}


def adapter_folder(run_folder: Path, step: int) -> Path:
    """The folder of an evaluated step's artefact."""
    return run_folder / "adapters" / f"step-{step:06d}"


def conclude(
    config: Config, run_folder: Path, findings: Findings, tracker: Fanout, files: FileTracker, status: Status
) -> None:
    """Recommends a step, saves that step's artefact, writes the report and closes the record.

    The status is written last: the record says "completed" only if all files are in the folder. If training
    was completed but the artefact or the report cannot be written, the run has failed and the error is
    raised. This function also runs after a failure, and then must not hide the original error.
    """
    summary: dict[str, Any] = {"steps_done": findings.steps_done}
    if findings.meter is not None or not files.result["cost"]:
        summary["cost"] = {**_cost(findings.meter), **_estimate(config, findings)}
    if findings.ended is not None:
        summary["ended"] = dataclasses.asdict(findings.ended)
    whole = status == "completed"
    problems: list[BaseException] = []
    try:
        stop = _place(config, run_folder, findings, files, summary, ended=whole)
        if stop is not None:
            log.info("%s", stop.reason)
    except BaseException as error:
        problems.append(error)
        status = _after(status, error, files, "the artefact")
    try:
        log.info("report: %s", _report(run_folder, files, status, summary))
    except BaseException as error:
        problems.append(error)
        status = _after(status, error, files, "the report")
    tracker.finish(status, summary)
    if status == "interrupted":
        log.info("to resume it: python -m diffusion_lab %s", pasted(f"resume={run_folder.absolute()}"))
    elif problems:
        again = pasted(f"resume={run_folder.absolute()}")
        log.error("the same command, or %s, writes what is missing", again)
    for problem in problems:
        if whole or not isinstance(problem, Exception):
            raise problem


def _after(status: Status, error: BaseException, files: FileTracker, part: str) -> Status:
    """The status after an error while concluding a run. A run that had failed before keeps its status."""
    if isinstance(error, Exception):
        # A completed run raises the error; for a run that had failed before, only the first error matters.
        log.error("%s could not be written: %s", part, failures.failure_message(error) or error)
        log.debug("%s could not be written", part, exc_info=error)
    if status != "completed":
        return status
    if isinstance(error, KeyboardInterrupt | SystemExit):
        ignore_sigterm()
        files.result["error"] = reason(error)
        return "interrupted"
    files.result["error"] = f"{type(error).__name__}: {error}"
    return "failed"


def _place(
    config: Config,
    run_folder: Path,
    findings: Findings,
    files: FileTracker,
    summary: dict[str, Any],
    *,
    ended: bool,
) -> Recommendation | None:
    """Saves the recommendation, which marks training and evaluation as done, and then its artefact."""
    stop = recommendation(config, findings, run_folder / "scores.parquet")
    plain = None if stop is None else dataclasses.asdict(stop)
    files.conclusion(plain, {**files.result["cost"], **summary.get("cost", {})}, findings.steps_done)
    if stop is None:
        return None
    summary["recommendation"] = plain
    means = {name: found.mean for name, found in findings.summaries[stop.step].items()}
    place = adapter_folder(run_folder, stop.step)
    name = place.relative_to(run_folder).as_posix()
    known = {file: value for file, value in files.result["files"].items() if file.startswith(f"{name}/")}
    if findings.state is not None and ended and (not place.is_dir() or damaged(run_folder, known)):
        rebuild_adapter(findings.state, run_folder, stop.step, means)
        files.record_checksums(name)
    _place_artefact(config, run_folder, stop.step, findings.pipe, means, needed=ended)
    return stop


def _report(run_folder: Path, files: FileTracker, status: Status, summary: Mapping[str, Any]) -> Path:
    from diffusion_lab.report.page import write_report

    files.record_checksums(*CHECKSUMMED)
    return write_report(run_folder, files.closing(status, summary))


def rebuild_adapter(
    state: TrainingState, run_folder: Path, step: int, means: Mapping[str, float | None]
) -> None:
    """Rebuilds the adapter of an evaluated step from that step's checkpoint. UserError if there is none.

    `state` is reset to the checkpoint and must not be used for training afterwards.
    """
    from diffusion_lab.training import checkpoint
    from diffusion_lab.training.loop import evaluated_weights

    place = adapter_folder(run_folder, step)
    try:
        found = checkpoint.read(run_folder / CHECKPOINTS / place.name)
    except ValueError as error:
        raise UserError(
            f"{place}: the adapter of the recommended step is missing, and there is no whole checkpoint of that step "
            "to make it from; put it back from a copy, or begin again in another folder with hydra.run.dir=FOLDER"
        ) from error
    log.warning("%s is missing or damaged, and is restored from the checkpoint of that step", place)
    checkpoint.restore(state, found)
    with replace_folder(place) as beside, evaluated_weights(state):
        state.save(beside, {"scores": dumps(means)})


def recommendation(config: Config, findings: Findings, scores: Path | None = None) -> Recommendation | None:
    """The recommended step, based on what has been measured so far.

    ``scores``: the values of all images, used in the explanation to compare the same images at two steps; the
    recommended step does not depend on them.
    """
    from diffusion_lab.analysis.differences import values_by_step
    from diffusion_lab.analysis.stop import recommend
    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.runs.scores import read

    if not findings.summaries:
        return None
    return recommend(
        findings.summaries,
        config.metrics.weights,
        config.metrics.ranges,
        select(config.metrics.names),
        references=findings.references,
        n_images=config.data.n_images,
        class_noun=config.data.class_noun,
        paired=values_by_step(read(scores)) if scores is not None and scores.is_file() else None,
    )


def prune_adapters(config: Config, run_folder: Path, findings: Findings, now: int) -> None:
    """Deletes adapters that can no longer be recommended after step `now` (`steps.keep_adapters`)."""
    from diffusion_lab.analysis.stop import contenders
    from diffusion_lab.evaluation.metrics import select

    if not keeps_best_only(config):
        return
    metrics = select(config.metrics.names)
    kept = contenders(findings.summaries, config.metrics.weights, config.metrics.ranges, metrics) | {now}
    for step in findings.summaries:
        if step not in kept and step < now:
            shutil.rmtree(adapter_folder(run_folder, step), ignore_errors=True)


def _place_artefact(
    config: Config,
    run_folder: Path,
    step: int,
    pipe: Any,
    scores: Mapping[str, float | None],
    *,
    needed: bool = False,
) -> None:
    """Writes the recommended step's adapter to artefact/, atomically.

    A method that trains entire parts of the model adds the frozen parts. The adapter's files are hard-linked
    instead of copied if the file system supports it: files are only replaced, never modified. `needed`:
    UserError if the adapter is missing.
    """
    method = config.method
    if not adapter_folder(run_folder, step).is_dir():  # resumed from before the step that replaced it
        if needed:
            raise UserError(
                f"{adapter_folder(run_folder, step)}: the adapter of the recommended step is missing; put it back from "
                "a copy, or begin again in another folder with hydra.run.dir=FOLDER"
            )
        log.warning(
            "the adapter of step %d is gone; artefact/ comes when the run is resumed to its end", step
        )
        return
    with replace_folder(run_folder / "artefact") as beside:
        _link_all(adapter_folder(run_folder, step), beside)
        if isinstance(method, SavesNetworks) and pipe is not None:
            method.complete(pipe, beside)  # the missing parts
        annotate(beside, {"recommended_step": str(step), "scores": dumps(scores)})


def _link_all(source: Path, target: Path) -> None:
    """Links everything in `source` into `target`. (shutil.copytree hides errors such as a full disk.)"""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
            continue
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError:  # a file system without hard links
            shutil.copy2(path, place)


def _estimate(config: Config, findings: Findings) -> dict[str, Any]:
    """The estimates of the plan; empty if the run ended because its prompts cannot be read."""
    from diffusion_lab.data.prompts import load_prompts

    data, numbers = config.data, findings.planned
    if numbers is None:
        try:
            noun = data.class_noun or "person"
            prompts = load_prompts(config.prompts, identifier=data.identifier, class_noun=noun)
        except UserError:
            return {}
        numbers = planned(config, prompts)
    return {"estimate": phases(config, numbers)}


def _cost(meter: Meter | None) -> dict[str, dict[str, float]]:
    if meter is None:
        return {}
    return {
        name: {"seconds": meter.seconds.get(name, 0.0), "peak_memory_bytes": meter.peak(name)}
        for name in ("start", "training", "evaluation")
    }
