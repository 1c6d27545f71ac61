"""Checks whether device, model and method fit together, from headers and configs, before torch is imported.

The loaded model is checked again (`models/load.py`, the methods' `attach`); the checks here take
milliseconds, so that no run folder is created for a run that cannot start.
"""

from __future__ import annotations

import json
import math
import platform
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families.flow import no_min_snr
from diffusion_lab.methods import METHODS
from diffusion_lab.methods.method import NewWord, Targeted
from diffusion_lab.miniature.shipped import MINIATURES, shipped_folder
from diffusion_lab.models.folder import part_configs
from diffusion_lab.models.place import model_folder
from diffusion_lab.models.single_file import PART_NAMES
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Model
    from diffusion_lab.families.family import Family
    from diffusion_lab.methods.method import Method

Shapes = Mapping[str, tuple[int, ...]]  # of the weights of linear and convolution layers, by layer name

LDM_UNET = "model.diffusion_model."  # prefix of the U-Net's names in a single file
# Suffixes of layer names in single files and in diffusers. Those of attention layers are the same in both.
LDM_ENDS = {
    "in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
    ".0.op": ".0.conv", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
}  # fmt: skip
CARD_SIGNS = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def check_device(model: Model) -> None:
    """UserError for `model.device=cuda` or `mps` if there is no such device.

    If nothing on the machine indicates a GPU, this is known at once; otherwise torch is asked, which takes
    seconds to import but is needed for that run anyway.
    """
    device = model.device
    if model.quantise and (device == "cpu" or not may_have_card()):
        raise UserError(
            f"model.quantise={model.quantise}: 4-bit weights need an NVIDIA GPU, and none is used here; set "
            "model.quantise=null"
        )
    if device in ("auto", "cpu"):
        return
    if device == "mps" and (sys.platform != "darwin" or platform.machine() != "arm64"):
        raise UserError(
            "model.device=mps: is for Macs with Apple's own processors, and this is none; use model.device=auto"
        )
    if device.startswith("cuda") and not may_have_card():
        raise UserError(f"model.device={device}: no GPU is visible on this machine; use model.device=auto")
    from diffusion_lab.models.load import resolve_device

    resolve_device(device)


def may_have_card() -> bool:
    """Whether anything indicates a CUDA or ROCm GPU; False only if there is certainly no usable one."""
    from diffusion_lab.models.devices import has_gpu

    if sys.platform == "darwin":
        return False
    return (
        has_gpu() or any(Path(sign).exists() for sign in CARD_SIGNS) or not sys.platform.startswith("linux")
    )


def check_method(config: Config, configs: Path | None) -> list[str]:
    """Warnings about model and method.

    `configs`: the folder with the model's configs, None if only a hub has them.

    Raises UserError for a method that the model's family does not support, a model of another family, an
    unsupported resolution, Min-SNR weights with a rectified flow, targets that match no layer, a rank beyond
    every layer's width, and an initialiser without tokens for the new word.
    """
    family = which_family(config.model)
    check_trainable(config.method, family)
    if config.steps.snr_gamma is not None and not family.min_snr:
        raise no_min_snr(config.steps.snr_gamma)
    if configs is not None:
        _check_configs(config.model, family, configs)
        for place in family.vocabularies:
            check_initialiser(config, configs / place.tokenizer)
    return check_targets(config, family)


def check_trainable(method: Method, family: Family) -> None:
    """UserError if the family does not support this kind of fine-tuning."""
    for kind in sorted(method.traits.trains - family.trainable):
        others = [name for name, other in METHODS.items() if other().traits.trains <= family.trainable]
        raise UserError(
            f"method={method.name}: is not for {family.title}: {family.why_not[kind]}; use "
            f"{' or '.join(f'method={name}' for name in others)}"
        )


def _check_configs(model: Model, family: Family, folder: Path) -> None:
    configs = part_configs(folder, family)
    name = "model.path" if model.config is None else "model.config"
    given = model.path if model.config is None else model.config
    problem = family.check_configs(configs)
    if problem is not None:
        raise UserError(f"{name}={given}: {problem}; use another model")
    if model.resolution is None:
        return
    try:
        multiple = family.multiple(configs)
    except (KeyError, TypeError):  # reported when the folder is checked
        return
    if model.resolution % multiple:
        near = max(multiple, round(model.resolution / multiple) * multiple)
        raise UserError(
            f"model.resolution={model.resolution}: must be a multiple of {multiple} for this model; set "
            f"model.resolution={near}"
        )


# --- initial value of a new word -------------------------------------------------------------------------


def check_initialiser(config: Config, tokenizer: Path) -> None:
    """UserError unless `method.initialiser` has tokens to initialise the new word. `tokenizer`: its folder.

    Does nothing for a method without a new word, or a model without CLIP's tokenizer.
    """
    method = config.method
    if not isinstance(method, NewWord) or method.initialiser is None:
        return
    from diffusion_lab.families.vocabulary import read_tokenizer

    known = read_tokenizer(tokenizer)
    if known is None:
        return
    pieces = known.encode(method.initialiser, add_special_tokens=False).tokens
    from_noun = method.initialiser == config.data.class_noun
    given = f"method.initialiser={method.initialiser!r}" + (" (from data.class_noun)" if from_noun else "")
    if not pieces:
        raise UserError(f"{given}: has no token; give a word or several")
    if method.vectors == 1 and len(pieces) > 1:
        shown = " + ".join(piece.removesuffix("</w>") for piece in pieces[:6])
        raise UserError(
            f"{given}: is {len(pieces)} tokens ({shown}) and the new word has one vector to start from it; set "
            f"method.initialiser to a common word of one token, or method.vectors={min(32, len(pieces))}"
        )


# --- layers targeted by an adapter ----------------------------------------------------------------------


def check_targets(config: Config, family: Family) -> list[str]:
    """Warnings about `method.targets` and `method.rank`; UserError for unknown layers or too large a rank.

    Layers are read from the header of the weights; for a U-Net on a hub, those of the miniature are used,
    which have the same names, so that only names are checked.
    """
    method = config.method
    if not isinstance(method, Targeted) or not method.targets:
        return []
    targets = method.targets
    own = denoiser_layers(config.model, family)
    if not own and family.denoiser != "unet":
        return []
    shapes = own or layers_of(shipped_folder(MINIATURES[0]) / "unet")
    ends = sorted({end for name in shapes for end in _ends(name)})
    chosen: dict[str, tuple[int, ...]] = {}
    for target in targets:
        found = {
            name: shape for name, shape in shapes.items() if name == target or name.endswith(f".{target}")
        }
        if not found and "blocks." in target and not _is_folder(config.model):
            continue  # a full name, and the known names are of another model or another format
        if not found:
            raise UserError(
                f"method.targets={_listed(targets)}: the {PART_NAMES.get(family.denoiser, family.denoiser)} has no linear or "
                f"convolution layer named {target!r}{closest(target, ends)}; {family.layer_hint}"
            )
        if getattr(method, "variant", "lora") == "oft" and any(
            max(shape[2:], default=1) > 1 for shape in found.values()
        ):
            raise UserError(
                f"method.targets={_listed(targets)}: method.variant=oft rotates linear layers, and {target} is a "
                "convolution; leave it out, or use another variant"
            )
        chosen |= found
    return _check_rank(method, chosen) if own else []


def _check_rank(method: Any, chosen: Shapes) -> list[str]:
    """The rank of an update is at most the smaller of a layer's widths; more has no effect."""
    widths = {name: min(shape[0], math.prod(shape[1:])) for name, shape in chosen.items()}
    widest, narrow = max(widths.values()), [name for name, width in widths.items() if width < method.rank]
    if method.rank > widest:
        raise UserError(
            f"method.rank={method.rank}: no layer among method.targets is wider than {widest}, and a change cannot have "
            f"a higher rank than its layer; set method.rank={widest} or less"
        )
    if not narrow or getattr(method, "variant", "lora") != "lora":
        return []
    least = min(narrow, key=lambda name: widths[name])
    return [
        f"method.rank={method.rank}: {len(narrow)} of {len(widths)} layers are narrower, such as {least} "
        f"({widths[least]}); beyond its width a layer learns nothing more"
    ]


def denoiser_layers(model: Model, family: Family) -> Shapes:
    """The denoiser's linear and convolution layers by diffusers' names (single file: by suffixes).

    Empty if no safetensors file is available: a model on a hub, pickled weights.
    """
    place = model_folder(model)
    if place is None:
        return {}
    if place.is_dir():
        return layers_of(place / family.denoiser)
    found: dict[str, tuple[int, ...]] = {}
    if family.name != "sd":  # the other families' names in the original code are not known here
        return found
    for name, shape in _layers([place]).items():
        if name.startswith(LDM_UNET):
            renamed = name.removeprefix(LDM_UNET)
            for old, new in LDM_ENDS.items():
                if renamed.endswith(old):
                    renamed = renamed.removesuffix(old) + new
            found[renamed] = shape
    return found


def layers_of(folder: Path) -> Shapes:
    """Layers in the safetensors files of a network's folder; shards and variants combined."""
    return _layers(sorted(folder.glob("*.safetensors")))


def _layers(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(min(length, 100_000_000)))
            for name, entry in header.items():
                layer, dot, kind = name.rpartition(".")
                if dot and kind == "weight" and len(entry["shape"]) in (2, 4):
                    found[layer] = tuple(entry["shape"])
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
            continue  # a damaged file is reported when the folder is checked
    return found


def _is_folder(model: Model) -> bool:
    place = model_folder(model)
    return place is not None and place.is_dir()


def _ends(name: str) -> list[str]:
    """Names that a target may use: the last one or two parts of a layer's name, not starting with a digit."""
    parts = name.split(".")
    ends = (".".join(parts[-count:]) for count in (1, 2) if len(parts) >= count)
    return [end for end in ends if not end[0].isdigit()]


def _listed(targets: Iterable[str]) -> str:
    return f"[{','.join(targets)}]"
