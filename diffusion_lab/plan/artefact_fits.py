"""Does an artefact fit the model, and can it have a weight? Asked of headers and configs; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.artefacts import adapter_file
from diffusion_lab.artefacts.artefact import EMBEDDING, LORA, NETWORKS, PEFT, PIPELINE, Artefact, check_width
from diffusion_lab.plan.fits import layers_of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json


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


def check_fit(found: Sequence[Artefact], configs: Path, model: str) -> None:
    """UserError where a piece is another model's, by its widths. `configs`: the model's folder. Loads no weights."""
    where = f"model.path={model}"
    unet = read_json(configs / "unet" / "config.json", where)
    text = read_json(configs / "text_encoder" / "config.json", where)
    for piece in found:
        place = f"job.artefact={piece.path}"
        if piece.kind == EMBEDDING:
            check_width(piece, text.get("hidden_size"))
        elif piece.kind == LORA:
            header = read_header(piece.path, place)
            layers = adapter_file.layers(header, place)
            theirs = adapter_file.text_width(header, layers)
            ours = unet.get("cross_attention_dim")
            if theirs is not None and isinstance(ours, int) and theirs != ours:
                raise adapter_file.other_width(place, adapter_file.CROSS, theirs, ours)
            names = {part: layers_of(configs / part) for part in adapter_file.PARTS}
            adapter_file.check_names(layers, names, place)
        elif piece.kind == PEFT:
            keys = read_header(piece.path / "adapter_model.safetensors", place).shapes
            layers = adapter_file.layers_of_peft(keys, piece.part)
            adapter_file.check_names(layers, {piece.part: layers_of(configs / piece.part)}, place)
        elif piece.kind == NETWORKS:
            key = "cross_attention_dim" if piece.part == "unet" else "hidden_size"
            what = adapter_file.CROSS if piece.part == "unet" else "its text encoder is"
            theirs = read_json(piece.path / "config.json", place).get(key)
            ours = (unet if piece.part == "unet" else text).get(key)
            if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours:
                raise adapter_file.other_width(place, what, theirs, ours)
