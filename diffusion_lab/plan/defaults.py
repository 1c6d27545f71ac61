"""Rules for the null values of the configuration."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.data.nouns import fitting_set
from diffusion_lab.methods.method import NewWord
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models.devices import best_precision
from diffusion_lab.models.folder import part_configs
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Data, Metrics, Model, Prompts
    from diffusion_lab.families.family import Family

SMALL = 256  # pixels; a local model with a smaller resolution is trained like the miniature


def fill_defaults(config: Config, run_folder: Path | None = None) -> Config:
    """A copy in which the nulls that stand for a rule are replaced by the values that the rule gives.

    A run in `run_folder` is resumed in its original precision, even if `auto` would now select another one.

    Values that depend on the model or the photos (a hub model's resolution, the number of held-out photos,
    the prompt set's own negative prompt, the device) stay null or `auto`; the run's record contains them.
    """
    filled = copy.deepcopy(config)
    steps, data, model = filled.steps, filled.data, filled.model
    family = which_family(model)
    own = 64 if model.path in MINIATURES else _resolution_of(model, family)
    small = own is not None and own < SMALL
    if model.resolution is None:
        model.resolution = own
    if model.precision == "auto":
        model.precision = _begun_in(run_folder) or best_precision(model.device)
    if steps.total is None:
        steps.total = 300 if small else 100 * data.n_images
    if steps.every is None:
        steps.every = math.ceil(steps.total / 6)  # rounded up, so that there is no seventh, shorter interval
    if data.source == "folder":
        data.subject = data.subject or Path(str(data.folder)).expanduser().resolve().name
    if data.class_noun is None:
        data.class_noun = _noun_of(data)
    if filled.prompts.name == "auto":
        filled.prompts.name = fitting_set(data.class_noun)
    _fill_metrics(filled.metrics)
    filled.method.fill(family, small=small, free=steps.optimizer == "prodigy")
    _fill_sampling(filled.prompts, family)
    _fill_token(filled)
    return filled


def _begun_in(run_folder: Path | None) -> str | None:
    """The precision of the run in the folder; None if there is none."""
    if run_folder is None:
        return None
    try:
        record = json.loads((run_folder / "result.json").read_text("utf-8"))
        found = record["config"]["model"]["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in ("fp32", "bf16", "fp16") else None


def _fill_token(config: Config) -> None:
    """A method that learns a token learns the one used in the prompts."""
    method, data = config.method, config.data
    if not isinstance(method, NewWord):
        return
    if method.token not in (None, data.identifier):
        raise UserError(
            f"method.token={method.token}: the prompts say data.identifier={data.identifier}; set that one"
        )
    method.token = data.identifier
    if method.initialiser is None:
        method.initialiser = data.class_noun


def _fill_metrics(metrics: Metrics) -> None:
    """`auto`: the published aesthetics head if it fits the CLIP model, else none (miniature: its own)."""
    from diffusion_lab.evaluation.encoders.weights import PUBLISHED, why_not_published

    if metrics.aesthetics_weights == "auto":
        fits = metrics.encoders == "full" and not why_not_published(metrics.clip_model, metrics.clip_weights)
        metrics.aesthetics_weights = PUBLISHED if fits else None


def _fill_sampling(prompts: Prompts, family: Family) -> None:
    """The family's published number of sampling steps and guidance scale."""
    if prompts.sampling_steps is None:
        prompts.sampling_steps = family.sampling_steps
    if prompts.guidance_scale is None:
        prompts.guidance_scale = family.guidance_scale


def _noun_of(data: Data) -> str | None:
    """The subject's class noun according to the miniature or the folder; None if unknown."""
    from diffusion_lab.data.subjects import check_subject

    try:
        return check_subject(data)
    except UserError:
        return None


def is_full_size(model: Model) -> bool:
    """Whether the model is neither a miniature nor, as far as its configs show, of a similar size."""
    if model.path in MINIATURES:
        return False
    side = _resolution_of(model, which_family(model))
    return side is None or side >= SMALL


def _resolution_of(model: Model, family: Family) -> int | None:
    """Resolution in pixels of a diffusers folder, or None if its configs do not contain it."""
    try:
        return family.resolution(part_configs(Path(model.config or model.path).expanduser(), family))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
