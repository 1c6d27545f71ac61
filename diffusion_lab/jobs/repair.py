"""Repairs the folder of a fully trained run: missing files are created again from the existing ones.

A folder is incomplete if the run was killed or the disk was full while the record was being closed, or if a
file was lost or damaged. Nothing is trained; the model is loaded only if an adapter is rebuilt from a
checkpoint, or if the artefact is a complete pipeline.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import kohya
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs.conclude import Findings, adapter_folder, conclude, rebuild_adapter, recommendation
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import Status, UserError
from diffusion_lab.runs import backup, checksums
from diffusion_lab.runs.files import FileTracker
from diffusion_lab.runs.folder_record import CHECKPOINTS, ENDED, missing_files
from diffusion_lab.runs.recovery import recover_record
from diffusion_lab.runs.resume import find_record, run_id
from diffusion_lab.trackers import Fanout

if TYPE_CHECKING:
    import torch

    from diffusion_lab.training.state import TrainingState

log = logging.getLogger(__name__)

ADAPTERS, ARTEFACT, SAMPLES = "adapters", "artefact", "samples"


def repair(config: Config, run_folder: Path, device: torch.device) -> tuple[Status, str | None]:
    """Completes the folder of a run that has nothing left to train; returns its status and error.

    A completed or diverged run keeps its status; a run that was stopped while it was being closed becomes
    completed. Raises UserError, with the files and a remedy, if results are lost that no other file contains.
    """
    found = find_record(config, run_folder)
    assert found is not None
    status: Status = found.result["status"] if found.result.get("status") in ENDED else "completed"
    lost = missing_files(run_folder, found.result) if found.result.get("status") in ENDED else []
    lost += [] if found.problem is None else [backup.RESULT]
    files = FileTracker(run_folder, device=str(device), keep_images=config.tracker.keep_images)
    total = config.steps.total or 0
    due = [entry["step"] for entry in found.result.get("evaluations") or []]
    run = str(found.result.get("run") or run_id(as_plain_dict(config)))
    before = recover_record(run_folder, total, run=run, due=due)
    files.reopen(before)
    try:
        _restore_record(config, run_folder, files, lost)
        findings = _findings(files)
        stop = recommendation(config, findings)
        wanted = None if stop is None else stop.step
        _restore_adapters(config, run_folder, files, findings, lost, wanted, device)
        _restore_pictures(config, run_folder, files, lost, device)
        if status == "completed" and config.method.traits.whole_networks and _artefact_lost(run_folder, lost):
            findings.pipe = _pipe(config, device, findings)
        error = files.result["error"] if status == "diverged" else None
        conclude(config, run_folder, findings, Fanout([files]), files, status)
    except BaseException:
        files.close()
        raise
    left = missing_files(run_folder, files.result)
    log.info("%s is trained to its end and is not trained again; %s", run_folder, _outcome(lost, left))
    return status, error


def _outcome(lost: Sequence[str], left: Sequence[str]) -> str:
    """Describes which of the `lost` files have been created again, and which are `left` unrepaired."""
    made = [name for name in lost if name not in left]
    said = [f"created again: {_listed(made)}"] if made else []
    if left:
        said.append(f"still missing or damaged: {_listed(left)}")
    return "; ".join(said) or "created again: the end of its record"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _findings(files: FileTracker) -> Findings:
    """The findings of the run, read from its record."""
    from diffusion_lab.runs.reading import summary

    ceilings = {
        name: None if kinds.get("ceiling") is None else summary(kinds["ceiling"])
        for name, kinds in files.result["references"].items()
    }
    return Findings(
        summaries=dict(files.measured()), ceilings=ceilings, steps_done=files.result["steps_done"]
    )


def _restore_record(config: Config, run_folder: Path, files: FileTracker, lost: Collection[str]) -> None:
    """Restores config.yaml, prompts.json, the scores, the events and the features of the base model."""
    files.restore(files.result["config"])
    prompts = run_folder / backup.PROMPTS
    if backup.PROMPTS in lost and backup.PROMPTS not in files.copies:
        from diffusion_lab.data.prompts import load_prompts
        from diffusion_lab.data.subjects import check_subject

        noun = check_subject(config.data)
        files.prompts(load_prompts(config.prompts, identifier=config.data.identifier, class_noun=noun))
        log.warning("%s: written again", prompts)
    if backup.BASE in lost and backup.BASE not in files.copies:
        log.warning("%s: it is missing or damaged, and no other file holds it", run_folder / backup.BASE)


def _restore_adapters(
    config: Config,
    run_folder: Path,
    files: FileTracker,
    findings: Findings,
    lost: Collection[str],
    wanted: int | None,
    device: torch.device,
) -> None:
    """Restores lost adapter files from their step's checkpoint, and kohya's file from the adapter."""
    damaged = checksums.damaged(
        run_folder, {n: v for n, v in files.result["files"].items() if n.startswith(f"{ADAPTERS}/")}
    )
    steps: dict[int, list[str]] = {}
    for name in damaged:
        steps.setdefault(int(name.split("/")[1].removeprefix("step-")), []).append(name)
    if (
        wanted is not None
        and not adapter_folder(run_folder, wanted).is_dir()
        and _artefact_lost(run_folder, lost)
    ):
        steps[wanted] = [f"{ADAPTERS}/step-{wanted:06d}"]
    for step, names in list(steps.items()):
        folder = adapter_folder(run_folder, step)
        if all(name.endswith(f"/{kohya.FILE_NAME}") for name in names):
            files.record_checksums(
                *(path.relative_to(run_folder).as_posix() for path in _exported(config, folder))
            )
            del steps[step]
    state: TrainingState | None = None
    for step, names in sorted(steps.items()):
        if not (run_folder / CHECKPOINTS / f"step-{step:06d}").is_dir():
            _cannot(run_folder, names, step == wanted and _artefact_lost(run_folder, lost))
            continue
        means = {name: found.mean for name, found in findings.summaries[step].items()}
        state = state or _state(config, files, device)
        rebuild_adapter(state, run_folder, step, means)
        files.record_checksums(f"{ADAPTERS}/step-{step:06d}")


def _exported(config: Config, folder: Path) -> list[Path]:
    return kohya.export(which_family(config.model), folder / kohya.SOURCE_NAME, folder / kohya.FILE_NAME)


def _cannot(run_folder: Path, names: Sequence[str], needed: bool) -> None:
    if needed:
        raise UserError(
            f"{run_folder}: {_listed(names)} is missing or damaged, and so is the artefact that is made from it; no "
            "other file holds it. Put it back from a copy, or begin again in another folder with hydra.run.dir=FOLDER"
        )
    log.warning("%s: %s is missing or damaged, and no other file holds it", run_folder, _listed(names))


def _artefact_lost(run_folder: Path, lost: Collection[str]) -> bool:
    return not (run_folder / ARTEFACT).is_dir() or any(name.split("/")[0] == ARTEFACT for name in lost)


def _state(config: Config, files: FileTracker, device: torch.device) -> TrainingState:
    from diffusion_lab.jobs.assist import build, load_parts
    from diffusion_lab.system.rng import seeded

    with seeded(config.seed):
        subject, prompts, pipe = load_parts(config, device)
        return build(config, pipe, subject, prompts, None, files.result.get("extended") or ())


def _pipe(config: Config, device: torch.device, findings: Findings) -> Any:
    """The base pipeline, which provides the frozen parts if the artefact is a complete pipeline."""
    from diffusion_lab.jobs.assist import load_parts
    from diffusion_lab.system.rng import seeded

    with seeded(config.seed):
        _, _, pipe = load_parts(config, device)
        config.method.attach(pipe)
    return pipe


def _restore_pictures(
    config: Config, run_folder: Path, files: FileTracker, lost: Collection[str], device: torch.device
) -> None:
    """Restores the sheet of training photos; generated images cannot be restored without the model."""
    taught = f"{SAMPLES}/training.png"
    if taught in lost:
        from diffusion_lab.data.subjects import load_subject
        from diffusion_lab.evaluation.encoders.bank import EncoderBank
        from diffusion_lab.evaluation.metrics import select
        from diffusion_lab.jobs.photographs import record_photographs

        metrics, side = select(config.metrics.names), config.model.resolution or 512
        record_photographs(
            load_subject(config.data), EncoderBank(config.metrics, device), side, metrics, files
        )
    drawn = [name for name in lost if name.startswith(f"{SAMPLES}/") and name != taught]
    if drawn:
        log.warning(
            "%s: %s is missing or damaged, and no other file holds the pictures; the report is without them",
            run_folder, _listed(drawn),
        )  # fmt: skip


__all__ = ["repair"]
