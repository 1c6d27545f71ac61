"""What one trained with is what one draws and scores with: settings that an artefact or a run has recorded.

They stand in the place of the configuration's defaults; what the command line sets (`job.given`) wins over them.
Nothing in here loads a model.
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

log = logging.getLogger(__name__)

DATA = (
    "source", "folder", "subject", "class_noun", "identifier", "n_images", "n_heldout", "subset_seed", "impostors",
    "on_corrupt", "captions",
)  # fmt: skip
ENCODERS = (
    "encoders", "face_weights", "clip_model", "clip_weights", "aesthetics_weights", "dino_model",
    "inception_weights",
)  # fmt: skip
# For another tool's file, which tells nothing of this: what full-size models are usually sampled with. The guidance is
# the family's; so are the steps, where those are fewer.
FULL_SIZE: Mapping[str, Any] = {
    "n": 100, "images_per_prompt": 1, "sampling_steps": 30, "batch_size": 8,
}  # fmt: skip
INDEX = "generated.json"  # what the images of the folder depend on, and which file is which
PRECISIONS = ("fp32", "bf16", "fp16")


class Given:
    """Which keys the command line sets, its groups and experiments included."""

    def __init__(self, config: Config) -> None:
        keys = getattr(config.job, "given", None)  # jobs that take something up have it
        self.keys = _differing(config) if keys is None else set(keys)

    def __contains__(self, key: str) -> bool:
        return key in self.keys or key.partition(".")[0] in self.keys


def _differing(config: Config) -> set[str]:
    """Of a configuration made without a command line: what is not the schema's default."""
    found = set()
    for group in ("model", "prompts", "data", "metrics"):
        part = getattr(config, group)
        plain = type(part)()
        for item in dataclasses.fields(part):
            if getattr(part, item.name) != getattr(plain, item.name):
                found.add(f"{group}.{item.name}")
    return found - {"model.resolution", "data.class_noun", "prompts.n"}


# --- drawing ------------------------------------------------------------------------------------------


def as_trained(
    config: Config, artefact: Path | None, header: Mapping[str, str], pipeline: Path | None = None
) -> tuple[Config, str]:
    """`config` with what the artefact has recorded where the command line says nothing; a line that says what.

    `pipeline`: a whole pipeline's folder, which is its own model.

    An artefact that tells nothing of it, and is for a full-size model, is drawn with what those are usually drawn
    with, not with the miniature's settings. UserError where a recorded value is not allowed.
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
        config.model.resolution = model.get("resolution")  # what was filled in is another model's
    if config.model.path != before.model.path and not precise and is_full_size(config.model):
        config.model.precision = best_precision(config.model.device)  # the default is the miniature's
    prompts, family = recorded.get("prompts") or {}, which_family(config.model)
    if family is not which_family(before.model):  # what was filled in is another family's
        own = {"sampling_steps": family.sampling_steps, "guidance_scale": family.guidance_scale}
        config.prompts = dataclasses.replace(config.prompts, **_not_given(own, given))
    if not prompts and artefact is not None and is_full_size(config.model):
        noun = config.data.class_noun if "data.class_noun" in given else header.get("class_noun")
        steps = min(FULL_SIZE["sampling_steps"], family.sampling_steps)
        usual = {"sampling_steps": steps, "guidance_scale": family.guidance_scale}
        prompts = {**FULL_SIZE, **usual, "name": fitting_set(noun)}
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


def _take_model(config: Config, model: Mapping[str, Any], device: str, given: Given) -> bool:
    """Of another model than the artefact's own only the number format is of any meaning.

    Returns whether the number format is settled: taken, or given.
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
            continue  # half precision is a matter of the device, and this is another one
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
    """Of the header, or of the run in whose folder the artefact lies."""
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
    """A header is written by others: its values are checked as if they had been typed."""
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
    """Whether the value can stand where the schema says `hint`; of a list, whether it is one."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = {typing.get_origin(part) or part for part in parts}
    return type(value) in allowed or (type(value) is int and float in allowed)


def _line(before: Config, after: Config, groups: Iterable[str], source: str) -> str:
    """ "model.path=sd15 prompts.sampling_steps=25, from the artefact"; "" where nothing was taken."""
    changed = [
        f"{group}.{item.name}={_shown(getattr(getattr(after, group), item.name))}"
        for group in groups
        for item in dataclasses.fields(getattr(after, group))
        if getattr(getattr(after, group), item.name) != getattr(getattr(before, group), item.name)
        and getattr(getattr(after, group), item.name) not in (None, "")  # both say nothing
    ]
    return f"{' '.join(changed)}, from {source or 'the artefact'}" if changed else ""


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return repr(text) if not text or " " in text or not text.isprintable() else text


# --- scoring ------------------------------------------------------------------------------------------


def as_measured(config: Config) -> tuple[Config, str]:
    """`config` with the subject and the encoders of the run that drew `job.images`, or trained what drew them.

    What the command line sets wins; a line that says what was taken, "" where the images are of no run of ours.
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
    """The folder of the run that `place` lies in: RUN/artefact, RUN/adapters/step-N, RUN/samples/step-N."""
    place = place.absolute()
    for folder in (place, *place.parents[:3]):
        if (folder / "config.yaml").is_file() and (folder / "result.json").is_file():
            return folder
    return None


def run_config(run: Path) -> Mapping[str, Any]:
    """A run's configuration as it was recorded; nothing, and a warning, where it cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        log.warning("%s cannot be read (%s): its settings are not taken", run / "config.yaml", error)
        return {}
    return found if isinstance(found, dict) else {}
