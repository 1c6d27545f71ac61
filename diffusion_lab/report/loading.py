"""How to load a run's artefact: the code that the report shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError
from diffusion_lab.report.texts import get

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family
    from diffusion_lab.runs.reading import Run


def loading_code(run: Run) -> str:
    """Python code that loads the artefact, with plain diffusers if possible; "" if there is no artefact."""
    artefact = run.folder / "artefact"
    lora = sorted(artefact.rglob("pytorch_lora_weights.safetensors"))
    embeds = sorted(artefact.rglob("learned_embeds.safetensors"))
    whole = sorted(artefact.rglob("model_index.json"))
    adapters = sorted(path.parent for path in artefact.rglob("adapter_config.json"))
    networks = sorted(artefact.rglob("hypernetwork.safetensors"))
    notes = artefact / "dreambooth.json"  # without weights: the base model, unchanged
    if not (lora or embeds or whole or adapters or networks or notes.is_file()):
        return ""
    model = str(get(run.config, "model.path"))
    family = _family(run, [*lora[:1], *embeds[:1]], notes)
    lines = [f"from diffusers import {family.pipeline}", ""]
    folder = repr(model)
    if whole:
        folder = repr(whole[0].parent.relative_to(run.folder).as_posix())
    elif model in MINIATURES:
        lines = ["from diffusion_lab.miniature.shipped import shipped_folder", "", *lines]
        folder = f"shipped_folder({model!r})"
    lines.append(f"pipe = {family.pipeline}.from_pretrained({folder})")
    lines += [f"pipe.load_lora_weights({p.parent.relative_to(run.folder).as_posix()!r})" for p in lora[:1]]
    for path in embeds[:1]:
        lines += _loading_word(path, path.relative_to(run.folder).as_posix(), family)
    for place in adapters:  # LoHa, LoKr, OFT
        part, where = place.name, place.relative_to(run.folder).as_posix()
        lines.append(f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, {where!r})")
    for path in networks[:1]:
        lines += [
            f"network = from_file({path.relative_to(run.folder).as_posix()!r})",
            "network.attach(pipe)",
            f"network.load(pipe, Path({path.parent.relative_to(run.folder).as_posix()!r}))",
        ]
    if adapters:
        lines.insert(0, "from peft import PeftModel")
    if networks:
        lines[:0] = ["from pathlib import Path", "from diffusion_lab.methods.hypernetwork import from_file"]
    identifier, noun = get(run.config, "data.identifier"), get(run.config, "data.class_noun")
    if embeds:  # plain diffusers may need another name for the word
        identifier = _word_in(embeds[0], family) or identifier
    prompt = " ".join(str(word) for word in ("a photo of", identifier, noun) if word)
    return "\n".join([*lines, f"image = pipe({prompt!r}).images[0]"])


def _family(run: Run, files: Sequence[Path], notes: Path) -> Family:
    """The family that the artefact's metadata names, or the configuration, or the model's own folder."""
    named = next(filter(None, (_header(path).get("family") for path in files)), None)
    if named is None and notes.is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            named = json.loads(notes.read_text("utf-8")).get("family")
    named = named or get(run.config, "model.family")
    if named in FAMILIES:
        return FAMILIES[named]
    keys = {key: get(run.config, f"model.{key}") for key in ("path", "config", "revision")}
    try:
        return which_family(Model(**{key: value for key, value in keys.items() if value is not None}))
    except (UserError, TypeError):
        return FAMILIES["sd"]


def _loading_word(path: Path, name: str, family: Family) -> list[str]:
    """Lines that load a learned word; with several vocabularies, each from its own tensor."""
    if [place.key for place in family.vocabularies] == [""]:
        return [f"pipe.load_textual_inversion({name!r})"]
    word = _word_in(path, family)
    lines = ["from safetensors.torch import load_file", f"vectors = load_file({name!r})"]
    for place in family.vocabularies:
        lines.append(
            f"pipe.load_textual_inversion(vectors[{place.key!r}], token={word!r}, "
            f"text_encoder=pipe.{place.text_encoder}, tokenizer=pipe.{place.tokenizer})"
        )
    return lines


def _word_in(embedding: Path, family: Family) -> str | None:
    """The word by which a file in diffusers' format is loaded; None if it cannot be read."""
    if [place.key for place in family.vocabularies] != [""]:
        return _header(embedding).get("trigger")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(embedding, framework="np") as file:
            return next(iter(file.keys()), None)
    except (OSError, SafetensorError):
        return None


def _header(path: Path) -> dict[str, str]:
    """A safetensors file's metadata; empty if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
