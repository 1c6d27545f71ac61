"""Applies the settings that an artefact or a run has recorded when sampling from it or scoring its images.

They replace the configuration's defaults; what the command line sets (`job.given`) takes precedence.
No model is loaded here.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts.sampling_note import HEADER, MODEL, SAMPLER, SET
from diffusion_lab.config.jobs import Score, as_job
from diffusion_lab.data.nouns import fitting_set
from diffusion_lab.models.devices import best_precision
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.defaults import is_full_size
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.families.family import Family

log = logging.getLogger(__name__)

DATA = (
    "source", "folder", "subject", "class_noun", "identifier", "n_images", "n_heldout", "subset_seed", "impostors",
    "on_corrupt", "captions",
)  # fmt: skip
ENCODERS = (
    "encoders", "face_weights", "clip_model", "clip_weights", "aesthetics_weights", "dino_model",
    "inception_weights",
)  # fmt: skip
STEPS = 30  # for sampling a full-size model whose published number is higher
INDEX = "generated.json"  # what the images of the folder depend on, and which file is which
PRECISIONS = ("fp32", "bf16", "fp16")


class Given:
    """The keys set on the command line, including its groups and experiments."""

    def __init__(self, config: Config) -> None:
        keys = getattr(config.job, "given", None)  # only jobs that use recorded settings have it
        self.keys = _differing(config) if keys is None else set(keys)

    def __contains__(self, key: str) -> bool:
        return key in self.keys or key.partition(".")[0] in self.keys


def _differing(config: Config) -> set[str]:
    """Keys that differ from the schema's defaults, for a configuration made without a command line."""
    found = set()
    for group in ("model", "prompts", "data", "metrics"):
        part = getattr(config, group)
        plain = type(part)()
        for item in dataclasses.fields(part):
            if getattr(part, item.name) != getattr(plain, item.name):
                found.add(f"{group}.{item.name}")
    return found - {"model.resolution", "data.class_noun", "prompts.n"}


# --- sampling -----------------------------------------------------------------------------------------


def as_trained(
    config: Config, artefact: Path | None, header: Mapping[str, str], pipeline: Path | None = None
) -> tuple[Config, str]:
    """`config` with the artefact's recorded settings where the command line sets none; a line listing them.

    `pipeline`: the folder of a whole pipeline, which is used as the model.

    An artefact without recorded settings, for a full-size model, is sampled with the usual settings of such
    models, not with those of the miniature. UserError if a recorded value is not allowed.
    """
    config, given = copy.deepcopy(config), Given(config)
    before = copy.deepcopy(config)
    recorded, source = _recorded(artefact, header)
    for group, keys in (("model", MODEL), ("prompts", (*SET, *SAMPLER))):
        values = recorded.get(group)
        if isinstance(values, dict):
            wanted = [key for key in keys if f"{group}.{key}" not in given and values.get(key) is not None]
            _check_types(group, type(getattr(config, group)), {key: values[key] for key in wanted}, source)
    model = recorded.get("model") or {}
    if header.get("base_model"):
        model = {**model, "path": header["base_model"]}
    precise = _take_model(config, model, str(recorded.get("device")), given)
    if pipeline is not None:
        config.model.path, config.model.config, config.model.variant = str(pipeline), None, None
    if config.model.path != before.model.path and "model.resolution" not in given:
        config.model.resolution = model.get("resolution")  # the filled value belongs to another model
    if config.model.path != before.model.path and not precise and is_full_size(config.model):
        config.model.precision = best_precision(config.model.device)  # the default is for the miniature
    prompts, family = recorded.get("prompts") or {}, which_family(config.model)
    if family is not which_family(before.model):  # the filled values belong to another family
        own = {"sampling_steps": family.sampling_steps, "guidance_scale": family.guidance_scale}
        config.prompts = dataclasses.replace(config.prompts, **_not_given(own, given))
    if not prompts and artefact is not None and is_full_size(config.model):
        noun = config.data.class_noun if "data.class_noun" in given else header.get("class_noun")
        prompts = {**usual(which_family(config.model)), "name": fitting_set(noun)}
        source = "the usual for full-size models, since the artefact tells nothing of it"
    is_other_set = any(f"prompts.{key}" in given for key in ("name", "path"))
    has_texts = any(getattr(config.job, key, None) for key in ("text", "texts", "texts_file"))
    for key in (*(() if is_other_set or has_texts else SET), *SAMPLER):
        if is_other_set and key == "negative":
            continue  # the other set may have its own
        if key in prompts and f"prompts.{key}" not in given and prompts[key] is not None:
            setattr(config.prompts, key, prompts[key])
    for key, name in (("identifier", "trigger"), ("class_noun", "class_noun")):
        if header.get(name) and f"data.{key}" not in given:
            setattr(config.data, key, header[name])
    _check(config, source)
    return config, _line(before, config, ("model", "prompts", "data"), source)


def usual(family: Family) -> dict[str, Any]:
    """Usual settings of the family's full-size models, for other tools' files, which record none."""
    return {
        "n": 100,
        "images_per_prompt": 1,
        "sampling_steps": min(STEPS, family.sampling_steps),
        "guidance_scale": family.guidance_scale,
        "batch_size": 8,
    }


def _take_model(config: Config, model: Mapping[str, Any], device: str, given: Given) -> bool:
    """If the model is not the artefact's own, only the number format is applied.

    Returns whether the number format is settled: taken from the artefact or given on the command line.
    """
    precise = "model.precision" in given
    own = "model.path" not in given
    for key in MODEL if own else ("precision",):
        value = model.get(key)
        if value is None or f"model.{key}" in given:
            continue
        if key == "precision" and value not in PRECISIONS:
            continue
        if key == "precision" and value != "fp32" and _on_cpu(config) != (device == "cpu"):
            continue  # half precision depends on the device, and this is another one
        if key == "quantise" and (value != "nf4" or _on_cpu(config)):
            continue
        setattr(config.model, key, value)
        precise |= key == "precision"
    return precise


def _not_given(values: Mapping[str, Any], given: Given) -> dict[str, Any]:
    return {key: value for key, value in values.items() if f"prompts.{key}" not in given}


def _on_cpu(config: Config) -> bool:
    from diffusion_lab.models.devices import has_gpu

    return config.model.device == "cpu" or (config.model.device == "auto" and not has_gpu())


def _recorded(artefact: Path | None, header: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """Settings from the header, or from the run whose folder contains the artefact; and their source."""
    text = header.get(HEADER)
    if text:
        try:
            found = json.loads(text)
            if isinstance(found, dict) and all(
                isinstance(found.get(key), dict) for key in ("model", "prompts")
            ):
                return found, "the artefact"
        except (ValueError, RecursionError):
            pass
        log.warning(
            "the artefact's header has settings (%s) that cannot be read: they are passed over", HEADER
        )
        return {}, ""
    run = run_of(artefact) if artefact is not None else None
    return (run_config(run), f"the run {run}") if run is not None else ({}, "")


def _check(config: Config, source: str) -> None:
    """A header is untrusted input: its values are validated as if they had been typed."""
    for group in ("model", "prompts", "data", "metrics"):
        part = getattr(config, group)
        values = {item.name: getattr(part, item.name) for item in dataclasses.fields(part)}
        _check_types(group, type(part), values, source)
        try:
            type(part)(**values)
        except TypeError as error:
            raise UserError(f"{group}, from {source}: {error}; set it yourself") from error
        except UserError as error:
            raise UserError(f"{error} (from {source})" if source else str(error)) from error


def _check_types(group: str, schema: type, values: Mapping[str, Any], source: str) -> None:
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if not _is_of(hints[key], value):
            raise UserError(f"{group}.{key}={value}, from {source}: is of another type; set it yourself")


def _is_of(hint: Any, value: Any) -> bool:
    """Whether the value matches the schema's type `hint`; for a list, only whether it is one."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = {typing.get_origin(part) or part for part in parts}
    return type(value) in allowed or (type(value) is int and float in allowed)


def _line(before: Config, after: Config, groups: Iterable[str], source: str) -> str:
    """ "model.path=sd15 prompts.sampling_steps=25, from the artefact"; "" if nothing was taken."""
    changed = [
        f"{group}.{item.name}={_shown(getattr(getattr(after, group), item.name))}"
        for group in groups
        for item in dataclasses.fields(getattr(after, group))
        if getattr(getattr(after, group), item.name) != getattr(getattr(before, group), item.name)
        and getattr(getattr(after, group), item.name) not in (None, "")  # neither is a value
    ]
    return f"{' '.join(changed)}, from {source or 'the artefact'}" if changed else ""


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return repr(text) if not text or " " in text or not text.isprintable() else text


# --- scoring ------------------------------------------------------------------------------------------


def as_measured(config: Config) -> tuple[Config, str]:
    """`config` with the subject and encoders of the run that generated `job.images` or trained their model.

    The command line takes precedence. Also returns a line that lists what was taken, "" if the images belong
    to no known run.
    """
    from diffusion_lab.system.readers import read_json

    config, given = copy.deepcopy(config), Given(config)
    before = copy.deepcopy(config)
    images = Path(as_job(config.job, Score).images).expanduser()
    run = run_of(images)
    if run is None and (images / INDEX).is_file():
        drawn = read_json(images / INDEX, "job.images", remedy="remove it, or draw the images again").get(
            "artefact"
        )
        run = run_of(Path(drawn)) if isinstance(drawn, str) and drawn else None
    if run is None:
        return config, ""
    recorded = run_config(run)
    is_other = any(f"data.{key}" in given for key in ("source", "folder", "subject"))
    for group, keys in (("data", () if is_other else DATA), ("metrics", ENCODERS)):
        for key in keys:
            values = recorded.get(group)
            if isinstance(values, dict) and key in values and f"{group}.{key}" not in given:
                setattr(getattr(config, group), key, values[key])
    _check(config, f"the run {run}")
    return config, _line(before, config, ("data", "metrics"), f"the run {run}")


def run_of(place: Path) -> Path | None:
    """The run folder that contains `place`: RUN/artefact, RUN/adapters/step-N, RUN/samples/step-N."""
    place = place.absolute()
    for folder in (place, *place.parents[:3]):
        if (folder / "config.yaml").is_file() and (folder / "result.json").is_file():
            return folder
    return None


def run_config(run: Path) -> Mapping[str, Any]:
    """A run's recorded configuration; empty, with a warning, if it cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        log.warning("%s cannot be read (%s): its settings are not taken", run / "config.yaml", error)
        return {}
    return found if isinstance(found, dict) else {}
