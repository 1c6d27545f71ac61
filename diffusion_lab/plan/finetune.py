"""The plan of job=finetune: whether the input is usable, and what the run will cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.schedule import sampler
from diffusion_lab.evaluation.encoders.check import encoder_warnings
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models.devices import precision_row, precision_warnings
from diffusion_lab.models.place import check_model
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.costs import memory_row, memory_warnings, of_run, time_rows
from diffusion_lab.plan.downloads import rows, wanted
from diffusion_lab.plan.inputs import check_impostors, check_metrics, check_optimizer, check_prompts
from diffusion_lab.plan.numbers import planned
from diffusion_lab.plan.plan import WORDS, Plan, check_downloads, check_place
from diffusion_lab.plan.shown import counted, duration, room, shortened
from diffusion_lab.records import PromptSet
from diffusion_lab.runs.resume import FolderStatus, folder_size, folder_status
from diffusion_lab.system.store import limit_in_bytes

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config


def check(config: Config, run_folder: Path) -> Plan:
    """Rejects what cannot work and describes what will happen.

    Writes nothing; `config` has its defaults filled.

    Raises UserError naming the key: unknown subject, too few photos, a model folder with a missing part,
    an unknown prompt set or one beyond the tokenizer's limit, an unwritable folder, too little disk space.
    """
    from diffusion_lab.config.schema import check_evaluations
    from diffusion_lab.data.captions import caption_warnings
    from diffusion_lab.data.identifiers import check_identifier, check_tokens
    from diffusion_lab.data.nouns import faces_warnings, prompts_warnings
    from diffusion_lab.data.picture_checks import check_subject_pictures
    from diffusion_lab.data.subjects import check_subject, passed_over, subject_folder, training_captions
    from diffusion_lab.plan.fits import check_device, check_method
    from diffusion_lab.plan.sampling import enough_images, ignored_negative
    from diffusion_lab.plan.unlikely import unlikely

    noun = check_subject(config.data)
    assert config.steps.total is not None
    assert config.steps.every is not None
    check_evaluations(config.steps.total, config.steps.every)  # default values too
    check_device(config.model)
    check_impostors(config)
    check_metrics(config)
    check_optimizer(config)
    limit_in_bytes()  # of the shared evaluations: refuses a wrong value
    prompts = check_prompts(config, noun)
    captions = training_captions(config.data)
    warnings = _warnings(config) + unlikely(config) + caption_warnings(captions, config.data.identifier)
    if config.data.source == "folder":
        warnings += passed_over(subject_folder(config.data, None)[0], captions=config.data.captions)
    warnings += check_subject_pictures(config.data, config.model.resolution or 512)
    warnings += enough_images(config, prompts) + ignored_negative(
        config.prompts, prompts, which_family(config.model)
    )
    warnings += prompts_warnings(config.prompts.name, noun)
    warnings += faces_warnings(config.metrics.encoders, config.metrics.names, noun)
    warnings += precision_warnings(config.model)
    configs = check_model(config.model, warnings)
    warnings += check_method(config, configs)
    warnings += check_identifier(config, noun, prompts)
    if configs is not None:
        warnings += check_tokens(config, configs, prompts, noun, captions)
    stands = folder_status(config, run_folder)
    return _plan(config, run_folder, prompts, noun, warnings, stands)


def _plan(
    config: Config, run_folder: Path, prompts: PromptSet, noun: str, warnings: list[str], stands: FolderStatus
) -> Plan:
    steps, sampling = config.steps, config.prompts
    numbers = planned(config, prompts)
    evaluations, sampled, forwards = numbers.evaluations, numbers.sampled, numbers.forwards
    cost = of_run(config, numbers)
    fewer = "steps.keep_checkpoints=1" if steps.keep_checkpoints > 1 else ""
    needed = cost.disk_bytes if stands == "empty" else 0
    if stands in ("unfinished", "extended"):  # disk space already used by the run is not needed again
        needed = max(0, cost.disk_bytes - folder_size(run_folder))
    check_place(run_folder, needed, "hydra.run.dir", fewer)
    warnings += memory_warnings(config, cost)
    files = check_downloads(wanted(config))
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
        ("images sampled", f"{sampled:,} ({numbers.per_evaluation} an evaluation)"),
        ("denoiser passes", f"{forwards:,} images"),
        *(("time" if not number else "", line) for number, line in enumerate(time_rows(cost, duration))),
        ("memory", memory_row(cost)),
        ("disk", f"about {room(cost.disk_bytes)} in {run_folder}"),
        *rows(files),
        *([] if stands == "empty" else [("resume", f"the folder holds {WORDS[stands]}")]),
    )  # fmt: skip
    return Plan(
        rows=told, warnings=tuple(warnings), images=data.n_images, prompts=len(prompts), steps=evaluations[-1],
        evaluations=evaluations, images_sampled=sampled, forwards=forwards, cost=cost, downloads=files,
        folder_status=stands, needed_bytes=needed,
    )  # fmt: skip


def _warnings(config: Config) -> list[str]:
    miniature = config.model.path in MINIATURES
    found = []
    if config.metrics.encoders == "miniature" and not miniature:
        found.append("metrics=miniature knows drawn portraits only; for photos use metrics=full")
    found += encoder_warnings(config.metrics)
    if miniature and sampler(config.prompts)[0] > 30:
        found.append(f"prompts.sampling_steps={config.prompts.sampling_steps}: 12 do for the miniature")
    return found
