"""job=finetune: tune on a subject's pictures, measure all the way, say where to stop and why.

The order of a run, top to bottom; what each part does stands in its own room.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config import Config, as_plain_dict
from diffusion_lab.interfaces import (
    Evaluation,
    PromptSet,
    References,
    Status,
    Subject,
    Summary,
    TrainingDiverged,
)
from diffusion_lab.tracking.atomic import replace_folder, write_json

if TYPE_CHECKING:
    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.encoders.bank import EncoderBank
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
    meter: Meter | None = None
    pipe: Any = None  # once the method is attached


def run(config: Config, run_folder: Path) -> None:
    """Fine-tunes as configured and leaves the record in `run_folder`, whatever happens on the way.

    Raises UserError, TrainingDiverged or KeyboardInterrupt after the record is closed with its status.
    """
    from diffusion_lab.models.load import resolve_device
    from diffusion_lab.tracking import Fanout, build_trackers
    from diffusion_lab.tracking.files import FileTracker
    from diffusion_lab.training.rng import seeded

    device = resolve_device(config.model.device)
    tags = [config.method.name, config.data.subject, f"n={config.data.n_images}"]
    trackers = build_trackers(
        config.tracker, run_folder, device=str(device), tags=tags, group=_sweep(run_folder)
    )
    files = next(tracker for tracker in trackers if isinstance(tracker, FileTracker))
    tracker = Fanout(trackers)
    findings = Findings()
    status: Status = "failed"
    tracker.start(as_plain_dict(config))
    try:
        with seeded(config.seed):
            _finetune(config, run_folder, findings, tracker, files)
        status = "completed"
    except KeyboardInterrupt:
        status = "interrupted"
        files.error("stopped by the user (Ctrl-C)")
        raise
    except TrainingDiverged as error:
        status = "diverged"
        files.error(str(error))
        raise
    except BaseException as error:
        files.error(f"{type(error).__name__}: {error}")
        raise
    finally:
        _conclude(config, run_folder, findings, tracker, files, status)


def _finetune(
    config: Config, run_folder: Path, findings: Findings, tracker: Fanout, files: FileTracker
) -> None:
    from diffusion_lab.data.prompts import load_prompts
    from diffusion_lab.data.subjects import load_subject
    from diffusion_lab.data.tokens import check_lengths, token_report
    from diffusion_lab.encoders.bank import EncoderBank
    from diffusion_lab.metrics.evaluate import evaluate
    from diffusion_lab.models.load import load_pipeline, resolution_of, resolve_device
    from diffusion_lab.sampling.embeddings import PromptEmbeddings
    from diffusion_lab.tracking.progress import Progress
    from diffusion_lab.training.loop import train
    from diffusion_lab.training.state import build_state

    device = resolve_device(config.model.device)
    subject = load_subject(config.data)
    prompts = load_prompts(config.prompts, identifier=subject.identifier, class_noun=subject.class_noun)
    write_json(run_folder / "prompts.json", dataclasses.asdict(prompts))
    pipe = load_pipeline(config.model, device)
    check_lengths(pipe.tokenizer, subject.instance_prompt, prompts)
    log.info("%s", token_report(pipe.tokenizer, subject, prompts))
    resolution = resolution_of(pipe, config.model)
    bank = EncoderBank(config.metrics, device)
    references = _measure_photographs(config, subject, bank, resolution, findings, files)
    state = build_state(config, pipe, subject)
    findings.meter, findings.pipe = state.meter, pipe
    check_lengths(pipe.tokenizer, *_written_out(pipe, subject.instance_prompt, prompts))
    embeddings = PromptEmbeddings()

    total, every = config.steps.total or 0, config.steps.every or 1
    evaluations = len({*range(0, total, every), total})
    with (
        Progress(config.tracker.progress) as progress,
        progress.task("training", total, breaks=evaluations) as bar,
    ):

        def measure(step: int) -> None:
            with bar.pause():
                evaluation = evaluate(
                    pipe, prompts, references, bank, config.prompts, step,
                    progress=progress, cache=embeddings, resolution=resolution,
                    base=run_folder / "base_features.safetensors",
                )  # fmt: skip
            state.save(adapter_folder(run_folder, step))
            tracker.evaluation(evaluation, prompts)
            findings.summaries[step] = evaluation.summaries
            log.info("%s", _line(evaluation))

        def advance(step: int) -> None:
            findings.steps_done = step
            bar.advance()

        train(state, steps=config.steps, evaluate=measure, on_log=tracker.scalars, on_step=advance)


def _measure_photographs(
    config: Config,
    subject: Subject,
    bank: EncoderBank,
    resolution: int,
    findings: Findings,
    files: FileTracker,
) -> References:
    """The lines every score is read against: what the subject's own pictures and other people's score."""
    from diffusion_lab.data.pictures import fit
    from diffusion_lab.metrics import select
    from diffusion_lab.metrics.evaluate import reference_features, reference_scores, without_face

    metrics = select(config.metrics.names)
    files.training_pictures(
        [fit(picture.pixels, resolution) for picture in subject.train],
        [picture.path.name for picture in subject.train],
    )
    references = reference_features(subject, bank, resolution)
    scores = reference_scores(references, metrics)
    findings.ceilings = {name: pair["ceiling"] for name, pair in scores.items()}
    files.metrics(metrics)
    files.encoders(bank.identities())
    files.references(findings.ceilings, {name: pair["impostor"] for name, pair in scores.items()})
    for group, (missing, total) in without_face(references).items():
        if missing:
            log.warning(
                "no face found in %d of %d %s photographs: they have no similarity", missing, total, group
            )
    return references


def _written_out(pipe: Any, instance_prompt: str, prompts: PromptSet) -> tuple[str, PromptSet]:
    """As the text encoder reads them once the method is attached: a learned word may be several tokens."""

    def written(text: str) -> str:
        return str(pipe.maybe_convert_prompt(text, pipe.tokenizer))

    read = tuple(dataclasses.replace(prompt, text=written(prompt.text)) for prompt in prompts)
    return written(instance_prompt), dataclasses.replace(prompts, prompts=read)


def adapter_folder(run_folder: Path, step: int) -> Path:
    """Where the artefact of an evaluated step lies."""
    return run_folder / "adapters" / f"step-{step:06d}"


def _conclude(
    config: Config, run_folder: Path, findings: Findings, tracker: Fanout, files: FileTracker, status: Status
) -> None:
    """Says where to stop, puts that step's artefact in its place, closes the record and writes the report.

    Runs after a failure too, so nothing in here may hide the reason why.
    """
    summary: dict[str, Any] = {"steps_done": findings.steps_done, "cost": _cost(findings.meter)}
    recommendation = None
    try:
        recommendation = _recommend(config, findings)
        if recommendation is not None:
            plain = dataclasses.asdict(recommendation)
            files.recommendation(plain)
            summary["recommendation"] = plain
            _place_artefact(config, run_folder, recommendation.step, findings.pipe)
    except Exception:
        log.exception("no recommendation could be made")
    tracker.finish(status, summary)
    try:
        from diffusion_lab.analysis.report import write_report

        report = write_report(run_folder)
    except Exception:
        log.exception("the report could not be written; job=report job.runs=%s makes it again", run_folder)
    else:
        if recommendation is not None:
            log.info("stop at step %d: %s", recommendation.step, recommendation.reason)
        log.info("report: %s", report)


def _recommend(config: Config, findings: Findings) -> Recommendation | None:
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


def _place_artefact(config: Config, run_folder: Path, step: int, pipe: Any) -> None:
    """artefact/ is a copy of the recommended step's adapter, whole or not there at all.

    A method that trains whole parts of the model adds the parts that it left alone.
    """
    complete = getattr(config.method, "complete", None)
    with replace_folder(run_folder / "artefact") as beside:
        if complete is not None and pipe is not None:
            complete(pipe, beside)
        shutil.copytree(adapter_folder(run_folder, step), beside, dirs_exist_ok=True)


def _cost(meter: Meter | None) -> dict[str, dict[str, float]]:
    if meter is None:
        return {}
    return {
        name: {"seconds": meter.seconds.get(name, 0.0), "peak_memory_bytes": meter.peak(name)}
        for name in ("training", "evaluation")
    }


def _line(evaluation: Evaluation) -> str:
    """One line for the log: step and means."""
    means = (
        f"{name} {'none' if item.mean is None else format(item.mean, '.3f')}"
        for name, item in evaluation.summaries.items()
    )
    return f"step {evaluation.step}: " + ", ".join(means)


def _sweep(run_folder: Path) -> str | None:
    """A sweep's name, outputs/sweeps/NAME/JOB, or None for a single run."""
    parent = run_folder.absolute().parent
    return parent.name if parent.parent.name == "sweeps" else None
