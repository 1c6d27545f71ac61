"""Checks from headers and configs whether an artefact fits the model and accepts a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import adapter_file, made_for
from diffusion_lab.artefacts.artefact import (
    EMBEDDING,
    LORA,
    NETWORKS,
    PEFT,
    PIPELINE,
    Artefact,
    check_family,
    check_width,
)
from diffusion_lab.artefacts.places import check_names, check_sizes
from diffusion_lab.models.folder import part_configs
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.fits import layers_of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model


def check_weight(found: Sequence[Artefact], weight: float) -> None:
    """UserError if an artefact has no strength between 0 (no effect) and 1 (full effect)."""
    if weight == 1:
        return
    kinds = {piece.kind for piece in found}
    if PIPELINE in kinds:
        what = "is a whole pipeline, and the model it began from is not in it"
    elif kinds == {EMBEDDING}:
        what = "is an embedding, a word that is in the prompt or is not"
    else:
        return
    raise UserError(
        f"job.weight={weight:g}: job.artefact {what}: no strength can be set; leave job.weight at 1"
    )


def check_fit(found: Sequence[Artefact], folder: Path, model: Model) -> None:
    """UserError if a piece was made for another model, judged by its widths.

    `folder`: the model's. Loads no weights.
    """
    family = which_family(model)
    configs = part_configs(folder, family)
    reads = configs.get(family.denoiser, {}).get("cross_attention_dim")
    for piece in found:
        place = f"job.artefact={piece.path}"
        if piece.kind == PIPELINE:
            continue  # it is the model itself
        check_family(piece, family)
        if piece.kind == EMBEDDING:
            widths = {
                place.key: configs.get(place.text_encoder, {}).get("hidden_size")
                for place in family.vocabularies
            }
            check_width(piece, {key: width for key, width in widths.items() if isinstance(width, int)})
        elif piece.kind == LORA:
            header = read_header(piece.path, place)
            layers = adapter_file.for_family(header, family, place)
            theirs = adapter_file.text_width(header, layers)
            if theirs is not None and isinstance(reads, int) and theirs != reads:
                raise made_for.other_width(place, made_for.CROSS, theirs, reads)
            shapes = {part: layers_of(folder / part) for part in adapter_file.parts_of(family)}
            check_names(layers, shapes, place)
            check_sizes(layers, header, shapes, place)
        elif piece.kind == PEFT:
            part = piece.part(family)
            keys = read_header(piece.path / "adapter_model.safetensors", place).shapes
            layers = adapter_file.layers_of_peft(keys, part)
            made_for.check_names(
                place, [layer.name for layer in layers] if part == family.denoiser else (), family
            )
            check_names(layers, {part: layers_of(folder / part)}, place)
        elif piece.kind == NETWORKS:
            _check_network(piece, piece.part(family), configs)


def _check_network(piece: Artefact, part: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError if a whole network has another class or width than the model's."""
    place = f"job.artefact={piece.path}"
    theirs, ours = read_json(piece.path / "config.json", place), configs.get(part, {})
    kinds = [_class_of(config) for config in (theirs, ours)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise made_for.no_fit(place, f"its {part} is a {kinds[0]}, and this model's is a {kinds[1]}")
    is_text = part.startswith("text_encoder")
    what = "its text encoder is" if is_text else made_for.CROSS
    key = "hidden_size" if is_text else "cross_attention_dim"
    widths = theirs.get(key), ours.get(key)
    if isinstance(widths[0], int) and isinstance(widths[1], int) and widths[0] != widths[1]:
        raise made_for.other_width(place, what, widths[0], widths[1])


def _class_of(config: Mapping[str, Any]) -> str | None:
    """The class name in diffusers' or transformers' config."""
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    return str(named) if named else None
