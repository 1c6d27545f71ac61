"""Reads the tensor names of a LoRA file: each must belong to a known layer and role.

Files of this kind name layers in several ways, and each tensor by a suffix:

    lora_unet_down_blocks_0_..._attn1_to_q.lora_down.weight      kohya's scripts, LyCORIS; lora_te_, lora_te1_
    unet.down_blocks.0....attn1.to_q.lora_A.weight               diffusers with peft; text_encoder.
    unet.down_blocks.0....attn1.to_q.lora.down.weight            diffusers' scripts
    unet.down_blocks.0....attn1.processor.to_q_lora.down.weight  earlier diffusers scripts
    base_model.model.down_blocks.0....lora_A.weight              peft
    diffusion_model.double_blocks.0....lora_A.weight             ComfyUI

The denoiser's layers are named as in diffusers or as in the model's original code, where a layer may contain
several of diffusers' (queries, keys and values are rows of one matrix); see `Family.layer_names`.

diffusers' own loader uses one alpha for a whole file even if they differ by layer, and ignores layers that it
does not know. The layers are therefore read here, each with its own alpha.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffusion_lab.artefacts import changes, peft_settings
from diffusion_lab.artefacts.made_for import OTHER_FILE, check_header, check_names, no_fit
from diffusion_lab.families import FAMILIES
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import Header

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family

SUFFIXES = {  # suffix of a layer's name -> role of the tensor
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_B.bias": "bias",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".dora_scale": "dora_scale", ".alpha": "alpha", ".diff": "diff", ".diff_b": "diff_b",
    **{f".{role}": role for role in sorted(changes.LOHA | changes.LOKR)},
}  # fmt: skip
TELLING = (
    "lora",
    "hada_",
    "lokr_",
    "oft_",
    "glora",
    ".dora_scale",
)  # a key that contains one of these belongs to an adapter
DENOISER, T5 = "denoiser", "t5"  # placeholders for the family's parts, which kohya's names do not specify
KOHYA = {
    "lora_unet_": DENOISER, "lora_transformer_": DENOISER, "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2", "lora_te3_": T5,
}  # fmt: skip
PREFIXES = {
    "unet.": "unet", "transformer.": "transformer", "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3", "diffusion_model.": DENOISER,
}  # fmt: skip
_EARLIER = {"to_out": "to_out.0"}  # names of layers in earlier scripts
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the file."""

    # unet, transformer, text_encoder, text_encoder_2, ...; DENOISER, T5 if its key does not specify it
    part: str
    name: str  # the module's name within its network; with underscores in kohya's files
    keys: dict[str, str] = field(default_factory=dict)  # role of a tensor -> its key in the file
    # For a name from the original code: all layers that are rows of its matrix, including this one, in order.
    together: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is only an up and a down matrix, which peft stores separately from the weight."""
        return not set(self.keys) - changes.LORA - {"alpha"}


def is_adapter(header: Header) -> bool:
    """Whether the file changes layers of networks, judged by its tensor names."""
    return any(word in key for key in header.shapes for word in TELLING) or any(
        key.endswith((".diff", ".diff_b")) for key in header.shapes
    )


def layers(header: Header, where: str) -> list[Layer]:
    """The file's layers. UserError, beginning with `where`, for an unknown tensor or an incomplete layer."""
    _refuse_others(header, where)
    found: dict[tuple[str, str], Layer] = {}
    strange = []
    for key in header.shapes:
        suffix = next((end for end in _BY_LENGTH if key.endswith(end)), None)
        if suffix is None:
            strange.append(key)
            continue
        part, name = _place(key.removesuffix(suffix), earlier=suffix.startswith("_lora"))
        layer = found.setdefault((part, name), Layer(part, name))
        role = SUFFIXES[suffix]
        if role in layer.keys:
            raise UserError(f"{where}: names one layer twice: {layer.keys[role]} and {key}; {OTHER_FILE}")
        layer.keys[role] = key
    if strange:
        raise UserError(
            f"{where}: {len(strange)} of its {len(header.shapes)} tensors are of a kind that is not known here, such "
            f"as {strange[0]}; nothing of it is used, since a part of it would be another adapter"
        )
    for layer in found.values():
        wrong = changes.problem({role: header.shapes[key] for role, key in layer.keys.items()})
        for role, key in layer.keys.items():
            if role != "alpha" and "F" not in header.dtypes.get(key, "F"):  # F32, BF16, F8_E4M3
                wrong = (
                    wrong
                    or f"has whole numbers ({key} is {header.dtypes[key]}), and their scale is not known"
                )
        if wrong:
            raise UserError(f"{where}: the layer {layer.name} {wrong}; {OTHER_FILE}")
    peft_settings.read(header, where)
    return list(found.values())


_BY_LENGTH = sorted(SUFFIXES, key=len, reverse=True)


def _refuse_others(header: Header, where: str) -> None:
    for key in header.shapes:
        if ".oft_" in key or key.endswith(".oft_blocks"):
            raise UserError(
                f"{where}: is an OFT in another tool's keys ({key}), whose rotations the tools compute differently; "
                "OFT is read from peft's folders only (unet/adapter_config.json)"
            )
        if key.startswith("lora_prior_"):
            raise UserError(f"{where}: is for an architecture that is not known here ({key})")
        if re.search(r"_lora[12]\.(down|up)\.", key):
            raise UserError(
                f"{where}: is in XLabs' format ({key}), which is not read; convert it: diffusers' FluxPipeline reads it "
                "(load_lora_weights) and writes its own (save_lora_adapter of the transformer)"
            )
        if re.search(r"(^|\.)(double|single)_blocks\.\d+\..*norm\.(key|query)_norm\.", key):
            raise UserError(
                f"{where}: is a control LoRA of FLUX.1 (Canny, Depth) ({key}), whose model is given a picture too; "
                "such models are not supported"
            )


def _place(name: str, *, earlier: bool) -> tuple[str, str]:
    """Network and layer of a key without its suffix, by their current diffusers names."""
    for prefix, part in KOHYA.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    name = name.removeprefix("base_model.model.") if name.startswith("base_model.model.") else name
    part = DENOISER
    for prefix, network in PREFIXES.items():
        if name.startswith(prefix):
            part, name = network, name.removeprefix(prefix)
            break
    name = name.replace(".processor.", ".")
    head, _, last = name.rpartition(".")
    if part.startswith("text_encoder") and head.endswith("self_attn"):
        last = _TEXT.get(last, last)
    elif earlier or last == "to_out":
        last = _EARLIER.get(last, last)
    return part, f"{head}.{last}" if head else last


def parts_of(family: Family) -> tuple[str, ...]:
    """Networks of the family that adapters can change."""
    return (family.denoiser, *family.text_encoders)


def for_family(header: Header, family: Family, where: str) -> list[Layer]:
    """`layers` with the family's own names. Also raises UserError if the file belongs to another family."""
    found = layers(header, where)
    check_header(where, header.metadata, family)
    own = []
    for layer in found:
        names: tuple[str, ...] = (layer.name,)
        part = {DENOISER: family.denoiser, T5: family.t5 or "text_encoder_3"}.get(layer.part, layer.part)
        key = next(iter(layer.keys.values()))
        if part == family.denoiser or part not in parts_of(family):
            check_names(where, [key], family)
        if part not in parts_of(family):
            having = [other for other in FAMILIES.values() if part in parts_of(other)]
            like = [other for other in having if other.denoiser == family.denoiser] or having
            titles = " or ".join(other.title for other in like)
            raise no_fit(
                where, f"it changes the {part} ({key}), as files for {titles} do, and this is {family.title}"
            )
        if part == family.denoiser:
            names = family.layer_names(layer.name)
        together = names if names != (layer.name,) else ()
        own += [Layer(part, name, layer.keys, together) for name in names]
    seen: dict[tuple[str, str], Layer] = {}
    for layer in own:
        other = seen.setdefault((layer.part, spelling(layer.name)), layer)
        if other is not layer:
            first, second = (next(iter(one.keys.values())) for one in (other, layer))
            raise UserError(f"{where}: names one layer twice: {first} and {second}; {OTHER_FILE}")
    return own


def spelling(name: str) -> str:
    """A common form of all tools' names: with underscores, without transformers' former `text_model`."""
    return name.replace(".", "_").removeprefix("text_model_")


def layers_of_peft(keys: Iterable[str], part: str) -> list[Layer]:
    """The layers in a peft folder for the network `part`, by their names; whole layers are omitted."""
    names = dict.fromkeys(
        found[1]
        for key in keys
        if (found := re.match(r"base_model\.model\.(.+?)\.(lora|hada|lokr|oft)_", key))
    )
    return [Layer(part, name) for name in names]


def text_width(header: Header, found: Sequence[Layer]) -> int | None:
    """Width of the text embeddings that the cross-attention layers read; None if unknown or not read."""
    for layer in found:
        if layer.part != "unet" or not re.search(r"attn2[._]to[._][kv]$", layer.name):
            continue
        shapes = {role: header.shapes[key] for role, key in layer.keys.items()}
        for role in ("down", "hada_w1_b", "diff"):
            if role in shapes and len(shapes[role]) >= 2:
                return shapes[role][1]
        second = shapes.get("lokr_w2") or shapes.get("lokr_w2_b")
        first = shapes.get("lokr_w1") or shapes.get("lokr_w1_b")
        if first and second:
            return first[1] * second[1]
    return None
