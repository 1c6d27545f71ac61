"""Checks of a job's inputs before anything slow is loaded: metrics, prompts, other subjects, optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.evaluation.encoders.check import check_encoders, configured_fields
from diffusion_lab.evaluation.encoders.files import check_files
from diffusion_lab.records import PromptSet, UserError
from diffusion_lab.values.checks import one_of

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config


def check_impostors(config: Config) -> None:
    folder = config.data.impostors
    if folder and not Path(folder).expanduser().is_dir():
        raise UserError(f"data.impostors={folder}: there is no such folder (of folders with other subjects)")
    if folder and config.data.source == "folder":
        from diffusion_lab.data.subjects import impostor_folders, subject_folder

        own, noun = subject_folder(config.data, None)
        impostor_folders(Path(folder).expanduser(), own, noun)


def check_metrics(config: Config) -> None:
    """UserError for unknown metrics, or if files named for the full-size encoders are missing."""
    from diffusion_lab.evaluation.metrics import METRICS

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
    check_files(metrics, configured_fields(metrics))


def check_optimizer(config: Config) -> None:
    """UserError if the optimizer's package is not installed. Does not import it (or torch)."""
    from importlib.util import find_spec

    name = config.steps.optimizer
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(name)
    if package is None or find_spec(package) is not None:
        return
    remedy = "pip install 'diffusion-lab[optimizers]'"
    if package == "bitsandbytes":  # a dependency on all platforms for which it has wheels
        remedy = "pip install bitsandbytes, which has wheels for Linux, Windows and Macs with Apple's chips"
    raise UserError(
        f"steps.optimizer={name}: needs the package {package}, which is not installed; {remedy}, or use "
        "steps.optimizer=adamw"
    )


def check_prompts(config: Config, noun: str) -> PromptSet:
    from diffusion_lab.data.prompts import load_prompts, without_identifier
    from diffusion_lab.evaluation.metrics import NEEDS_TWINS

    prompts = load_prompts(config.prompts, identifier=config.data.identifier, class_noun=noun)
    wanting = [name for name in config.metrics.names if name in NEEDS_TWINS]
    if wanting and not any(map(without_identifier, prompts)):
        raise UserError(
            f"metrics.names: {', '.join(wanting)} compare prompts with and without the identifier, and the set "
            f"{prompts.name} has none without; take prompts=paper, or leave them out"
        )
    return prompts
