"""Which layer each tensor of a LoRA file belongs to, and what it is there: every key is known, or the file refused.

Files of this kind name layers in several ways, and each tensor by a suffix:

    lora_unet_down_blocks_0_..._attn1_to_q.lora_down.weight      kohya's scripts, LyCORIS; lora_te_, lora_te1_
    unet.down_blocks.0....attn1.to_q.lora_A.weight               diffusers with peft; text_encoder.
    unet.down_blocks.0....attn1.to_q.lora.down.weight            diffusers' scripts
    unet.down_blocks.0....attn1.processor.to_q_lora.down.weight  earlier ones
    base_model.model.down_blocks.0....lora_A.weight              peft

diffusers' own loader takes one alpha for a whole file where they differ by layer, and passes over layers that it
does not know; so the layers are read here, each with its own alpha.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import changes
from diffusion_lab.families import of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import Header, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.families.family import Family

SUFFIXES = {  # what follows a layer's name -> what the tensor is
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
)  # a key with one of these is an adapter's
DENOISER = "denoiser"  # stands for the part that the family calls so: kohya's names do not tell
KOHYA = {
    "lora_unet_": DENOISER, "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
}  # fmt: skip
PREFIXES = {
    "unet.": "unet", "transformer.": "transformer", "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2", "base_model.model.": DENOISER,
}  # fmt: skip
NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2")
SETTINGS = "lora_adapter_metadata"  # diffusers' name in the header for peft's settings
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_EARLIER = {"to_out": "to_out.0"}  # the earlier scripts' names for layers
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the file."""

    part: str  # unet, transformer, text_encoder, text_encoder_2; DENOISER where its key does not tell
    name: str  # the module's, without its network's; kohya's with underscores
    keys: dict[str, str] = field(default_factory=dict)  # what a tensor is -> its key in the file

    @property
    def is_plain(self) -> bool:
        """Whether it is an up and a down and nothing else, which a peft layer holds apart from the weight."""
        return not set(self.keys) - changes.LORA - {"alpha"}


def is_adapter(header: Header) -> bool:
    """Whether the file changes layers of networks, by its tensors' names."""
    return any(word in key for key in header.shapes for word in TELLING) or any(
        key.endswith((".diff", ".diff_b")) for key in header.shapes
    )


def layers(header: Header, where: str) -> list[Layer]:
    """The file's layers. UserError beginning with `where` for a tensor that is not known, or a layer not whole."""
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
    _settings(header, where)
    return list(found.values())


MADE_FOR = "set model.path to the one it was made for"
CROSS = "its cross-attention reads text"
OTHER_FILE = "the file is damaged or made by a tool that is not known here; copy it again, or convert it"
_BY_LENGTH = sorted(SUFFIXES, key=len, reverse=True)


def _refuse_others(header: Header, where: str) -> None:
    for key in header.shapes:
        if ".oft_" in key or key.endswith(".oft_blocks"):
            raise UserError(
                f"{where}: is an OFT in another tool's keys ({key}), whose rotations the tools compute differently; "
                "OFT is read from peft's folders only (unet/adapter_config.json)"
            )
        if key.startswith(("lora_transformer_", "lora_prior_")):
            raise UserError(f"{where}: is for an architecture that is not known here ({key})")


def _place(name: str, *, earlier: bool) -> tuple[str, str]:
    """Network and layer of a key without its suffix, as diffusers has them today."""
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
    if part == "text_encoder" and head.endswith("self_attn"):
        last = _TEXT.get(last, last)
    elif earlier or last == "to_out":
        last = _EARLIER.get(last, last)
    return part, f"{head}.{last}" if head else last


def parts_of(family: Family) -> tuple[str, ...]:
    """Networks of the family that adapters change."""
    return (family.denoiser, *family.text_encoders)


def for_family(found: Sequence[Layer], family: Family, where: str) -> list[Layer]:
    """The layers by the family's own names. UserError where they are of networks that it does not have."""
    own = []
    for layer in found:
        part, name = layer.part, layer.name
        if part in (DENOISER, family.denoiser):
            part, name = family.denoiser, family.layer_name(name)
        if part not in parts_of(family):
            raise no_fit(
                where,
                f"it changes the {part} ({next(iter(layer.keys.values()))}), which {family.title} lacks",
            )
        own.append(Layer(part, name, layer.keys))
    return own


def layers_of_peft(keys: Iterable[str], part: str) -> list[Layer]:
    """The layers of a folder of peft's for the network `part`, by their names alone; whole layers are left out."""
    names = dict.fromkeys(
        found[1]
        for key in keys
        if (found := re.match(r"base_model\.model\.(.+?)\.(lora|hada|lokr|oft)_", key))
    )
    return [Layer(part, name) for name in names]


def text_width(header: Header, found: list[Layer]) -> int | None:
    """Width of the text that the file's cross-attention layers read, None where it has none or does not tell."""
    for layer in found:
        if layer.part not in (DENOISER, "unet") or not re.search(r"attn2[._]to[._][kv]$", layer.name):
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


def no_fit(where: str, what: str) -> UserError:
    """What is told where an artefact is another model's."""
    return UserError(f"{where}: does not fit the model ({what}); {MADE_FOR}")


def other_width(where: str, what: str, theirs: int, ours: int) -> UserError:
    """The same where the widths of the text differ."""
    them, us = (f", as in {WIDTHS[size]}" if size in WIDTHS else "" for size in (theirs, ours))
    return no_fit(where, f"{what} {theirs} wide{them}, and this model's text encoder gives {ours}{us}")


# --- onto a pipeline --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A layer of the file beside the layer of the pipeline that it changes."""

    part: str
    name: str  # the module's
    module: Any  # linear or convolution, as it is without adapters
    tensors: dict[str, Tensor]  # with alpha, where the file or its header tells one
    stabilised: bool
    is_plain: bool


def read_changes(path: Path, header: Header, pipe: Any, where: str) -> list[Change]:
    """All layers of the file with theirs in the pipeline. UserError where one of them has no place or not its size."""
    family = of(pipe)
    found = for_family(layers(header, where), family, where)
    width = text_width(header, found)
    ours = getattr(pipe, family.denoiser).config.get("cross_attention_dim")
    if width is not None and isinstance(ours, int) and width != ours:
        raise other_width(where, CROSS, width, ours)
    parts = parts_of(family)
    places = {part: _modules(getattr(pipe, part)) for part in parts if getattr(pipe, part) is not None}
    _check_places(found, {part: frozenset(places[part]) for part in places}, where)
    settings = _settings(header, where)
    tensors = read_tensors(path, where, name="the file")
    made = []
    for layer in found:
        name, module = places[layer.part][_key(layer.name)]
        own = {role: tensors[key] for role, key in layer.keys.items()}
        if settings.get(f"{layer.part}.use_dora") and not changes.LENGTHS & set(own):
            raise UserError(f"{where}: is a DoRA, and the layer {layer.name} lacks its lengths; {OTHER_FILE}")
        stabilised = _add_alpha(own, settings, layer.part, name)
        made.append(Change(layer.part, name, module, own, stabilised, layer.is_plain))
    return made


def check_names(found: list[Layer], names: Mapping[str, Iterable[str]], where: str) -> None:
    """UserError where the file has layers that the model has not. `names`: the model's by network; none: not known."""
    _check_places(found, {part: frozenset(map(_key, names[part])) for part in names if names[part]}, where)


def _check_places(found: list[Layer], keys: Mapping[str, frozenset[str]], where: str) -> None:
    homeless = [layer for layer in found if layer.part in keys and _key(layer.name) not in keys[layer.part]]
    if not homeless:
        return
    first = homeless[0]
    told = f"such as {first.name} of the {first.part}"
    if len(homeless) == len(found):
        raise UserError(
            f"{where}: none of its {len(found)} layers is in this model, {told}: it is for another architecture, or "
            f"its tool names layers in a way that is not known here; convert it to kohya's or diffusers' names, or {MADE_FOR}"
        )
    raise no_fit(where, f"{len(homeless)} of its {len(found)} layers are not in this model, {told}")


def _modules(network: nn.Module) -> dict[str, tuple[str, Any]]:
    """Name with underscores -> name and module of every linear and convolution, below an adapter's wrapping."""
    from torch import nn

    found: dict[str, tuple[str, Any]] = {}
    for name, module in network.named_modules():
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if isinstance(base, nn.Linear | nn.Conv2d) and "base_layer" not in name and ".lora_" not in name:
            found[_key(name)] = (name, base)
    return found


def _key(name: str) -> str:
    """One spelling for all: underscores, and without the level `text_model`, which transformers has given up."""
    return name.replace(".", "_").removeprefix("text_model_")


def _settings(header: Header, where: str) -> Mapping[str, Any]:
    """peft's settings by `unet.r` and so on, where the file has them."""
    text = header.metadata.get(SETTINGS)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {SETTINGS} in its header is not JSON ({error}); {OTHER_FILE}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {SETTINGS} in its header is not an object; {OTHER_FILE}")
    for part in NETWORKS:
        alpha, patterns = found.get(f"{part}.lora_alpha", 1), found.get(f"{part}.alpha_pattern") or {}
        is_mapping = isinstance(patterns, dict)
        alphas = [alpha, *patterns.values()] if is_mapping else [alpha]
        switches = [found.get(f"{part}.{name}") for name in ("use_rslora", "use_dora")]
        if not (
            is_mapping
            and all(map(_is_finite, alphas))
            and all(map(_is_pattern, patterns))
            and all(switch in (None, True, False) for switch in switches)
            and not isinstance(found.get(part), dict)
        ):
            raise UserError(
                f"{where}: {SETTINGS} in its header cannot be used: {part}.lora_alpha and the values of "
                f"{part}.alpha_pattern must be numbers, its keys names of layers, use_rslora and use_dora true or "
                f"false; {OTHER_FILE}"
            )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _add_alpha(tensors: dict[str, Any], settings: Mapping[str, Any], part: str, name: str) -> bool:
    """The layer's alpha from peft's settings, where it has none of its own; whether it is rank-stabilised.

    Patterns are peft's: a layer's name or its end.
    """
    import torch

    if f"{part}.lora_alpha" not in settings or "alpha" in tensors:
        return False
    alpha = settings[f"{part}.lora_alpha"]
    for pattern, value in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    tensors["alpha"] = torch.tensor(float(alpha))
    return bool(settings.get(f"{part}.use_rslora"))
