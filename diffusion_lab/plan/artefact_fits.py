"""Does an artefact fit the model, and can it have a weight? Asked of headers and configs; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.artefacts import adapter_file
from diffusion_lab.artefacts.artefact import (
    EMBEDDING,
    HYPERNETWORK,
    LORA,
    NETWORKS,
    PEFT,
    PIPELINE,
    Artefact,
    check_vocabularies,
    check_width,
)
from diffusion_lab.models.folder import part_configs
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.fits import layers_of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model


def check_weight(found: Sequence[Artefact], weight: float) -> None:
    """UserError where what is there has no strength between nothing (0) and all of it (1)."""
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
    """UserError where a piece is another model's, by its widths. `folder`: the model's. Loads no weights."""
    family = which_family(model)
    configs = part_configs(folder, family)
    reads = configs.get(family.denoiser, {}).get("cross_attention_dim")
    for piece in found:
        place = f"job.artefact={piece.path}"
        if piece.kind == HYPERNETWORK and "hypernetwork" not in family.trainable:
            raise adapter_file.no_fit(place, f"a hypernetwork, and {family.why_not['hypernetwork']}")
        if piece.kind == EMBEDDING:
            check_vocabularies(piece, family)
            widths = {
                place.key: configs.get(place.text_encoder, {}).get("hidden_size")
                for place in family.vocabularies
            }
            check_width(piece, {key: width for key, width in widths.items() if isinstance(width, int)})
        elif piece.kind == LORA:
            header = read_header(piece.path, place)
            layers = adapter_file.for_family(adapter_file.layers(header, place), family, place)
            theirs = adapter_file.text_width(header, layers)
            if theirs is not None and isinstance(reads, int) and theirs != reads:
                raise adapter_file.other_width(place, adapter_file.CROSS, theirs, reads)
            names = {part: layers_of(folder / part) for part in adapter_file.parts_of(family)}
            adapter_file.check_names(layers, names, place)
        elif piece.kind == PEFT:
            keys = read_header(piece.path / "adapter_model.safetensors", place).shapes
            layers = adapter_file.layers_of_peft(keys, piece.part)
            adapter_file.check_names(layers, {piece.part: layers_of(folder / piece.part)}, place)
        elif piece.kind == NETWORKS:
            is_text = piece.part.startswith("text_encoder")
            key = "hidden_size" if is_text else "cross_attention_dim"
            what = "its text encoder is" if is_text else adapter_file.CROSS
            theirs = read_json(piece.path / "config.json", place).get(key)
            ours = configs.get(piece.part, {}).get(key)
            if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours:
                raise adapter_file.other_width(place, what, theirs, ours)
