"""What can be known before anything slow is loaded: is the input usable, and what will the run cost?"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.checks import one_of
from diffusion_lab.costs import Cost, estimate, memory_row, memory_warnings, time_rows
from diffusion_lab.encoders.check import check_encoders, encoder_warnings, needed
from diffusion_lab.encoders.files import check_files
from diffusion_lab.interfaces import PromptSet, UserError
from diffusion_lab.models.devices import precision_row, precision_warnings
from diffusion_lab.models.downloads import Wanted, of_model, rows, wanted
from diffusion_lab.models.folder import check_model
from diffusion_lab.models.shipped import MINIATURES
from diffusion_lab.resume import Standing, folder_size, standing
from diffusion_lab.shown import counted, shortened
from diffusion_lab.shown import duration as duration
from diffusion_lab.shown import room as room
from diffusion_lab.shown import show as show

if TYPE_CHECKING:
    from diffusion_lab.config import Config

WORDS: dict[Standing, str] = {
    "empty": "no run",
    "unfinished": "an unfinished run, which is resumed",
    "incomplete": "a run that is trained to its end; what is missing in its folder is made again",
    "finished": "a finished run, which is left alone",
    "diverged": "a run that diverged, which is left alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job will do. `rows` is what a person reads; the numbers are there for fine-tuning only."""

    rows: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    images: int = 0  # trained on
    prompts: int = 0
    steps: int = 0
    evaluations: tuple[int, ...] = ()  # the steps at which the model is evaluated
    images_sampled: int = 0  # in all evaluations
    unet_forwards: int = 0  # images through the U-Net while sampling, guidance counted twice
    cost: Cost | None = None
    downloads: tuple[Wanted, ...] = ()  # files from elsewhere, those that are here too
    standing: Standing = "empty"  # of the run folder
    needed_bytes: int = 0  # of disk, beside what the folder has already

    def summary(self) -> str:
        """One line for the log."""
        if self.cost is None:
            return "; ".join(f"{name}: {value}" for name, value in self.rows)
        return (
            f"{self.steps} steps on {self.images} pictures, {len(self.evaluations)} evaluations of "
            f"{self.images_sampled // len(self.evaluations)} images, about {duration(self.cost.seconds)}"
        )


def check(config: Config, run_folder: Path) -> Plan:
    """Refuses what cannot work and says what will happen. Writes nothing; `config` has its defaults filled.

    Raises UserError naming the key: unknown subject, too few pictures, a model folder without one of its
    parts, an unknown prompt set or one over the tokenizer's limit, an unwritable folder, too little disk.
    """
    if config.job.name == "report":
        runs = Path(config.job.runs).expanduser()
        if not runs.is_dir():
            raise UserError(f"job.runs={config.job.runs}: there is no such folder")
        return Plan(rows=(("job", "report"), ("of", str(runs))))
    if config.job.name == "train_aesthetics":
        for key, there in (("images", Path.is_dir), ("ratings", Path.is_file)):
            given = getattr(config.job, key)
            if not there(Path(given).expanduser()):
                raise UserError(
                    f"job.{key}={given}: there is no such {'folder' if key == 'images' else 'file'}"
                )
    if (
        config.job.name == "pretrain"
        and config.job.start
        and not Path(config.job.start).expanduser().is_dir()
    ):
        raise UserError(f"job.start={config.job.start}: there is no such folder (of a U-Net)")
    if config.job.name in ("pretrain", "subjects", "train_aesthetics"):
        output = Path(config.job.output).expanduser()
        _check_place(output, 0, "job.output")
        files = _downloads(wanted(config))
        return Plan(rows=(("job", config.job.name), ("into", str(output)), *rows(files)), downloads=files)
    if config.job.name == "generate":
        return _check_generate(config)
    if config.job.name == "score":
        from diffusion_lab.jobs.origin import as_measured
        from diffusion_lab.jobs.score import check_images
        from diffusion_lab.models.fits import check_device

        config, taken = as_measured(config)
        check_device(config.model)
        _check_impostors(config)
        _check_metrics(config)
        told, warnings = check_images(config)
        _check_new(run_folder)
        _check_place(run_folder, 0, "hydra.run.dir")
        files = _downloads(wanted(config))
        warnings += encoder_warnings(config.metrics)
        measured = [("measured with", taken)] if taken else []
        return Plan(rows=(*told, *measured, *rows(files)), warnings=tuple(warnings), downloads=files)
    return _check_finetune(config, run_folder)


def _check_generate(config: Config) -> Plan:
    from diffusion_lab.data.prompts import images_per_prompt
    from diffusion_lab.jobs.generate import order, unsaid
    from diffusion_lab.models.artefact_fits import check_fit
    from diffusion_lab.models.fits import check_device
    from diffusion_lab.sampling.checks import ignored_negative

    ordered = order(config)
    check_device(ordered.model)
    warnings = [
        *ignored_negative(ordered.settings, ordered.prompts),
        *unsaid(ordered),
        *precision_warnings(ordered.model),
    ]
    configs = check_model(ordered.model, warnings)
    if configs is not None:
        check_fit(ordered.artefacts, configs, ordered.model.path)
    images = len(ordered.prompts) * images_per_prompt(ordered.settings, ordered.prompts)
    _check_place(ordered.folder, images * 1_000_000, "job.output")
    files = _downloads(of_model(ordered.model))
    told = (
        ("job", "generate"),
        ("model", ordered.model.path),
        ("precision", precision_row(ordered.model)),
        ("with", ", ".join(f"{piece.kind} {piece.path}" for piece in ordered.artefacts) or "nothing"),
        ("images", f"{images}, prompts {ordered.prompts.name}"),
        *([("drawn with", ordered.taken)] if ordered.taken else []),
        ("into", str(ordered.folder)),
    )
    return Plan(rows=(*told, *rows(files)), warnings=tuple(warnings), downloads=files)


def _downloads(files: list[Wanted]) -> tuple[Wanted, ...]:
    """The files, once there is room for those that have to be fetched."""
    needed = sum(file.size or 0 for file in files if file.path is None and file.repo)
    if needed:
        from huggingface_hub import constants

        _check_place(Path(constants.HF_HUB_CACHE), int(needed), "HF_HOME")
    return tuple(files)


def _check_finetune(config: Config, run_folder: Path) -> Plan:
    from diffusion_lab.config import check_evaluations
    from diffusion_lab.data.captions import caption_warnings
    from diffusion_lab.data.identifiers import check_identifier, check_tokens
    from diffusion_lab.data.look import look_at_subject
    from diffusion_lab.data.nouns import faces_warnings, prompts_warnings
    from diffusion_lab.data.subjects import check_subject, passed_over, subject_folder, training_captions
    from diffusion_lab.models.fits import check_device, check_method
    from diffusion_lab.sampling.checks import enough_images, ignored_negative
    from diffusion_lab.unlikely import unlikely

    noun = check_subject(config.data)
    assert config.steps.total is not None
    assert config.steps.every is not None
    check_evaluations(config.steps.total, config.steps.every)  # the defaults too
    check_device(config.model)
    _check_impostors(config)
    _check_metrics(config)
    _check_optimizer(config)
    prompts = _check_prompts(config, noun)
    captions = training_captions(config.data)
    warnings = _warnings(config) + unlikely(config) + caption_warnings(captions, config.data.identifier)
    if config.data.source == "folder":
        warnings += passed_over(subject_folder(config.data, None)[0], captions=config.data.captions)
    warnings += look_at_subject(config.data, config.model.resolution or 512)
    warnings += enough_images(config, prompts) + ignored_negative(config.prompts, prompts)
    warnings += prompts_warnings(config.prompts.name, noun)
    warnings += faces_warnings(config.metrics.encoders, config.metrics.names, noun)
    warnings += precision_warnings(config.model)
    configs = check_model(config.model, warnings)
    warnings += check_method(config, configs)
    warnings += check_identifier(config, noun, prompts)
    if configs is not None:
        warnings += check_tokens(config, configs, prompts, noun, captions)
    stands = standing(config, run_folder)
    return _plan(config, run_folder, prompts, noun, warnings, stands)


def _plan(
    config: Config, run_folder: Path, prompts: PromptSet, noun: str, warnings: list[str], stands: Standing
) -> Plan:
    from diffusion_lab.data.prompts import images_per_prompt

    steps, sampling = config.steps, config.prompts
    assert steps.total is not None
    assert steps.every is not None
    evaluations = tuple(sorted({*range(0, steps.total, steps.every), steps.total}))
    per_evaluation = len(prompts) * images_per_prompt(sampling, prompts)
    sampled = per_evaluation * len(evaluations)
    forwards = sampled * sampling.sampling_steps * (2 if sampling.guidance_scale > 1 else 1)
    cost = estimate(config, forwards=forwards, sampled=sampled, evaluations=len(evaluations))
    fewer = "steps.keep_checkpoints=1" if steps.keep_checkpoints > 1 else ""
    needed = cost.disk_bytes if stands == "empty" else 0
    if stands == "unfinished":  # what it has written already it need not write again
        needed = max(0, cost.disk_bytes - folder_size(run_folder))
    _check_place(run_folder, needed, "hydra.run.dir", fewer)
    warnings += memory_warnings(config, cost)
    files = _downloads(wanted(config))
    data, resolution = config.data, config.model.resolution
    every = f"every {steps.every} steps: " + ", ".join(map(str, shortened(evaluations)))
    told = (
        ("model", config.model.path + (f", {resolution} pixels" if resolution else "")),
        ("precision", precision_row(config.model)),
        ("method", config.method.name),
        ("subject", f"{data.subject}, '{data.identifier} {noun}', {counted(data.n_images, 'picture')}"),
        ("prompts", f"{prompts.name}: {len(prompts)}, {sampling.sampling_steps} steps, "
                    f"guidance {sampling.guidance_scale:g}"),
        ("steps", f"{steps.total} of {counted(steps.batch_size * steps.gradient_accumulation, 'picture')}"),
        ("evaluations", f"{len(evaluations)}, {every}"),
        ("images sampled", f"{sampled:,} ({per_evaluation} an evaluation)"),
        ("U-Net passes", f"{forwards:,} images"),
        *(("time" if not number else "", line) for number, line in enumerate(time_rows(cost, duration))),
        ("memory", memory_row(cost)),
        ("disk", f"about {room(cost.disk_bytes)} in {run_folder}"),
        *rows(files),
        *([] if stands == "empty" else [("resume", f"the folder holds {WORDS[stands]}")]),
    )  # fmt: skip
    return Plan(
        rows=told, warnings=tuple(warnings), images=data.n_images, prompts=len(prompts), steps=steps.total,
        evaluations=evaluations, images_sampled=sampled, unet_forwards=forwards, cost=cost, downloads=files,
        standing=stands, needed_bytes=needed,
    )  # fmt: skip


def _check_new(run_folder: Path) -> None:
    if (run_folder / "result.json").exists():
        raise UserError(
            f"{run_folder}: a run is recorded there already; choose another folder with hydra.run.dir "
            "(hydra.sweep.dir with -m)"
        )


def _check_impostors(config: Config) -> None:
    folder = config.data.impostors
    if folder and not Path(folder).expanduser().is_dir():
        raise UserError(f"data.impostors={folder}: there is no such folder (of folders with other subjects)")
    if folder and config.data.source == "folder":
        from diffusion_lab.data.subjects import impostor_folders, subject_folder

        own, noun = subject_folder(config.data, None)
        impostor_folders(Path(folder).expanduser(), own, noun)


def _check_metrics(config: Config) -> None:
    """Known metrics only; files named for the full-size encoders are there."""
    from diffusion_lab.metrics import METRICS

    metrics = config.metrics
    for key, names in (("metrics.names", metrics.names), ("metrics.ranges", metrics.ranges)):
        for name in names:
            one_of(key, name, METRICS)
    check_encoders(metrics)
    for key, value in (("clip_model", metrics.clip_model), ("dino_model", metrics.dino_model)):
        if value.startswith((".", "/", "~")) and not Path(value).expanduser().is_dir():
            problem = (
                "that is a file; it must be a folder"
                if Path(value).expanduser().is_file()
                else "there is no such folder"
            )
            raise UserError(f"metrics.{key}={value}: {problem}")
    check_files(metrics, needed(metrics))


def _check_optimizer(config: Config) -> None:
    """The optimizers' packages, looked for and not imported: they would load torch."""
    from importlib.util import find_spec

    name = config.steps.optimizer
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(name)
    if package is None or find_spec(package) is not None:
        return
    remedy = "pip install 'diffusion-lab[optimizers]'"
    if package == "bitsandbytes":  # a dependency wherever it has wheels
        remedy = "pip install bitsandbytes, which has wheels for Linux, Windows and Macs with Apple's chips"
    raise UserError(
        f"steps.optimizer={name}: needs the package {package}, which is not installed; {remedy}, or use "
        "steps.optimizer=adamw"
    )


def _check_prompts(config: Config, noun: str) -> PromptSet:
    from diffusion_lab.data.prompts import load_prompts, without_identifier
    from diffusion_lab.metrics import NEEDS_TWINS

    prompts = load_prompts(config.prompts, identifier=config.data.identifier, class_noun=noun)
    wanting = [name for name in config.metrics.names if name in NEEDS_TWINS]
    if wanting and not any(map(without_identifier, prompts)):
        raise UserError(
            f"metrics.names: {', '.join(wanting)} compare prompts with and without the identifier, and the set "
            f"{prompts.name} has none without; take prompts=paper, or leave them out"
        )
    return prompts


def _warnings(config: Config) -> list[str]:
    miniature = config.model.path in MINIATURES
    found = []
    if config.metrics.encoders == "miniature" and not miniature:
        found.append("metrics=miniature knows drawn portraits only; for photographs use metrics=full")
    found += encoder_warnings(config.metrics)
    if miniature and config.prompts.sampling_steps > 30:
        found.append(f"prompts.sampling_steps={config.prompts.sampling_steps}: 12 do for the miniature")
    return found


def _check_place(folder: Path, needed: int, key: str, less: str = "") -> None:
    """Can `folder` be made and written, with `needed` bytes free? It only looks: the first write decides.

    `less`: a setting that would need less.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}={folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: {existing} cannot be written; choose another folder")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{key}={folder}: {room(free)} are free and the run needs about {room(needed)}; "
            f"free some space or choose another folder{less and f', or set {less}'}"
        )
