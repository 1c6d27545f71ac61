"""job=finetune: fine-tune on photos of a subject, evaluate throughout, and recommend where to stop and why.

This module contains the sequence of a run; the individual parts are implemented in other packages.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import ending, ignore_sigterm, reason
from diffusion_lab.jobs.assist import assist, build, load_parts
from diffusion_lab.jobs.conclude import (
    Findings,
    adapter_folder,
    conclude,
    prune_adapters,
    recommendation,
)  # fmt: skip
from diffusion_lab.jobs.resumption import adapt_extended, find_checkpoint
from diffusion_lab.plan.finetune import check as check
from diffusion_lab.plan.numbers import planned
from diffusion_lab.records import Evaluation, References, Status, Subject, TrainingDiverged
from diffusion_lab.runs.folder_record import CHECKPOINTS
from diffusion_lab.runs.resume import FolderStatus, find_record, folder_status, locked
from diffusion_lab.system import processes
from diffusion_lab.system.disk_errors import guarded_folder
from diffusion_lab.system.folders import clear_leftovers, replace_folder
from diffusion_lab.values.jsonable import dumps

if TYPE_CHECKING:
    import torch

    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.runs.files import FileTracker
    from diffusion_lab.trackers import Fanout
    from diffusion_lab.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def run(config: Config, run_folder: Path) -> None:
    """Fine-tunes as configured and leaves a record in `run_folder` in any case.

    Raises UserError, TrainingDiverged or KeyboardInterrupt after the record is closed with its status.
    """
    from diffusion_lab.models.load import resolve_device

    device = processes.join(resolve_device(config.model.device))
    if not processes.is_main():
        assist(config, device)
        return
    stands = folder_status(config, run_folder)
    if stands not in ("empty", "unfinished", "extended"):
        processes.shared(None)
        _leave(config, run_folder, device, stands)
        return
    with locked(run_folder), guarded_folder(run_folder):
        _run(config, run_folder, device, stands)


def _leave(config: Config, run_folder: Path, device: torch.device, stands: FolderStatus) -> None:
    """Repairs a run that was fully trained: missing files are created again, and its status is unchanged.

    Raises TrainingDiverged if the run has diverged, because it would diverge again.
    """
    if stands == "incomplete":
        from diffusion_lab.jobs.repair import repair

        with locked(run_folder):
            clear_leftovers(run_folder)
            status, error = repair(config, run_folder, device)
    else:
        found = find_record(config, run_folder)
        assert found is not None
        status, error = found.result["status"], found.result.get("error")
        if status == "completed":
            log.info("%s holds a finished run, which is left alone", run_folder)
    if status == "diverged":
        raise TrainingDiverged(
            f"{error or 'training diverged'} (the run in {run_folder}, which is left alone)"
        )


def _run(config: Config, run_folder: Path, device: torch.device, stands: FolderStatus) -> None:
    from diffusion_lab.runs.files import FileTracker
    from diffusion_lab.system.rng import seeded
    from diffusion_lab.trackers import Fanout, build_trackers

    newest, resume_step = None, None
    extended: list[dict[str, Any]] = []
    if stands in ("unfinished", "extended"):
        clear_leftovers(run_folder)
        newest, extended = find_checkpoint(config, run_folder, stands)
        resume_step = newest.step if newest is not None else -1
    elif (run_folder / "result.json").exists():  # from a job that ended before its run began
        resume_step = -1
    processes.shared((newest.folder if newest else run_folder, extended))
    tags = [config.method.name, config.data.subject, f"n={config.data.n_images}"]
    trackers = build_trackers(
        config.tracker, run_folder, device=str(device), tags=tags, group=_sweep(run_folder),
        resume_step=resume_step,
    )  # fmt: skip
    files = next(tracker for tracker in trackers if isinstance(tracker, FileTracker))
    tracker = Fanout(trackers)
    findings = Findings()
    status: Status = "failed"
    tracker.start(as_plain_dict(config))
    try:
        with seeded(config.seed):
            _finetune(config, run_folder, device, findings, tracker, files, newest)
        status = "completed"
    except (KeyboardInterrupt, SystemExit) as stopped:
        ignore_sigterm()
        status = "interrupted"
        files.error(reason(stopped))
        raise
    except TrainingDiverged as error:
        status = "diverged"
        files.error(str(error))
        raise
    except BaseException as error:
        files.error(f"{type(error).__name__}: {error}")
        raise
    finally:
        conclude(config, run_folder, findings, tracker, files, status)
        # All processes end in the same way, except for non-finite images: only this process generates images,
        # and the others wait for its share of the next step. The launcher ends them when this process has
        # ended.
        if status == "completed" or (status == "diverged" and not findings.measuring):
            processes.wait()


def _finetune(
    config: Config,
    run_folder: Path,
    device: torch.device,
    findings: Findings,
    tracker: Fanout,
    files: FileTracker,
    newest: Checkpoint | None,
) -> None:
    from diffusion_lab.data.tokens import check_texts, token_report
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.evaluate import evaluate
    from diffusion_lab.evaluation.shared import open_shared
    from diffusion_lab.models.load import resolution_of
    from diffusion_lab.plan.calibrate import tell
    from diffusion_lab.sampling.embeddings import PromptEmbeddings
    from diffusion_lab.system.progress import Progress
    from diffusion_lab.training import checkpoint
    from diffusion_lab.training.loop import train
    from diffusion_lab.training.memory import awake, compile_blocks, rest
    from diffusion_lab.training.meter import reset_peak

    started = time.perf_counter()
    reset_peak(device)
    subject, prompts, pipe = load_parts(config, device)
    files.prompts(prompts)
    findings.planned = planned(config, prompts)
    tell(config, findings.planned, device)
    resolution = resolution_of(pipe, config.model)
    bank = EncoderBank(config.metrics, device)
    shared = open_shared(config, pipe, device)
    with bank.caching(None if shared is None else shared.blocks):
        references = _measure_photographs(config, subject, bank, resolution, findings, files)
    state = build(config, pipe, subject, prompts, newest, files.result.get("extended") or ())
    adapt_extended(config, run_folder, files, state)
    state.meter.began("start", time.perf_counter() - started)
    if newest is not None:
        if state.step in files.measured():  # evaluated after the checkpoint was written
            state.meter.add("evaluation", files.evaluation_seconds(state.step))
        findings.summaries |= files.measured()
        findings.steps_done = state.step
        newest = None  # frees its memory
    findings.meter, findings.pipe, findings.state = state.meter, pipe, state
    log.info("%s", token_report(pipe.tokenizer, subject, prompts))
    check_texts(pipe, prompts, subject.instance_prompt)  # a learnt word may be several tokens
    rest(state, bank, config.memory)  # a resumed run may train before it evaluates
    compile_blocks(state, config.memory)
    embeddings = PromptEmbeddings()

    to_come = {step for step in findings.planned.evaluations if step >= state.step}
    measured = frozenset(findings.summaries)
    with (
        Progress(config.tracker.progress) as progress,
        progress.task("training", state.total - state.step, breaks=len(to_come - measured)) as bar,
    ):

        def measure(step: int) -> None:
            findings.measuring = True
            with bar.pause(), awake(state, bank, config.memory):
                evaluation = evaluate(
                    pipe, prompts, references, bank, config.prompts, step,
                    progress=progress, cache=embeddings, resolution=resolution,
                    base=run_folder / "base_features.safetensors", shared=shared if step == 0 else None,
                )  # fmt: skip
            means = {name: found.mean for name, found in evaluation.summaries.items()}
            with replace_folder(adapter_folder(run_folder, step)) as beside:
                state.save(beside, {"scores": dumps(means)})
            tracker.evaluation(evaluation, prompts)
            findings.summaries[step] = evaluation.summaries
            prune_adapters(config, run_folder, findings, step)
            log.info("%s", _line(evaluation))
            findings.measuring = False

        def advance(step: int) -> None:
            findings.steps_done = step
            bar.advance()

        def keep(step: int) -> None:
            root = run_folder / CHECKPOINTS
            state.kept = (step, checkpoint.write(checkpoint.capture(state), root))
            files.back_up()
            best = recommendation(config, findings)
            checkpoint.prune(
                root, step, keep=config.steps.keep_checkpoints, best=None if best is None else best.step
            )

        def ends(step: int) -> bool:
            found = ending.ended(ending.SoFar(config, run_folder, step, findings))
            if found is None or step == state.total:
                return False
            findings.ended = found
            files.ended(found)
            log.info("training ends at step %d of %d: %s", step, state.total, found.reason)
            return True

        train(
            state, steps=config.steps, evaluate=measure, on_log=tracker.scalars, on_step=advance,
            checkpoint=keep, measured=measured, ends=ends,
        )  # fmt: skip


def _measure_photographs(
    config: Config,
    subject: Subject,
    bank: EncoderBank,
    resolution: int,
    findings: Findings,
    files: FileTracker,
) -> References:
    """The reference lines for all scores: those of the subject's own photos and of other subjects' photos."""
    from diffusion_lab.evaluation.evaluate import reference_features, reference_scores, without_face
    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.jobs.photographs import record_photographs

    metrics = select(config.metrics.names)
    faces = record_photographs(subject, bank, resolution, metrics, files)
    references = reference_features(subject, bank, resolution, faces)
    scores = reference_scores(references, metrics)
    findings.ceilings = {name: pair["ceiling"] for name, pair in scores.items()}
    files.metrics(metrics)
    files.encoders(bank.identities())
    files.references(findings.ceilings, {name: pair["impostor"] for name, pair in scores.items()})
    for group, (missing, total) in without_face(references).items():
        if missing:
            log.warning("no face found in %d of %d %s photos: they have no similarity", missing, total, group)
    return references


def _line(evaluation: Evaluation) -> str:
    """A line for the log: step and means."""
    means = (
        f"{name} {'none' if item.mean is None else format(item.mean, '.3f')}"
        for name, item in evaluation.summaries.items()
    )
    return f"step {evaluation.step}: " + ", ".join(means)


def _sweep(run_folder: Path) -> str | None:
    """The sweep's name, from outputs/sweeps/NAME/JOB; None for a single run."""
    parent = run_folder.absolute().parent
    return parent.name if parent.parent.name == "sweeps" else None
