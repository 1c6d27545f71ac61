"""Applies adapters to a pipeline: every layer changes as described by the file, times the weight.

Pairs (LoRA) are attached as peft adapters, separate from the weights, so that half precision does not round
one into the other; all other kinds (LoHa, LoKr, DoRA, OFT, full differences) have as many numbers as the
layer itself and are merged into its weight, W + weight (W' - W), in float32.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import changes
from diffusion_lab.artefacts.adapter_file import parts_of
from diffusion_lab.artefacts.made_for import CROSS, no_fit, other_width
from diffusion_lab.artefacts.places import Change
from diffusion_lab.families import of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_json, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's file names
PEFT_TYPES = ("LORA", "LOHA", "LOKR", "OFT")
_PREFIX = "base_model.model."  # prefix of every key in peft's files


def attach(pipe: Any, found: Sequence[Change], weight: float, where: str) -> None:
    """Applies all layers of a file to the pipeline. UserError if one does not have its layer's size."""
    for part in parts_of(of(pipe)):
        own = [change for change in found if change.part == part]
        pairs = [change for change in own if change.is_plain]
        try:
            if len(pairs) < len(own):
                refuse_quantised(getattr(pipe, part), where)
            if pairs:
                _beside(getattr(pipe, part), pairs, weight)
            for change in own:
                if not change.is_plain:
                    _into(change, weight)
        except changes.Misfit as error:
            raise no_fit(where, f"{part}.{error}") from error


def _beside(network: nn.Module, pairs: Sequence[Change], weight: float) -> None:
    """Adds a separate adapter for these layers; existing ones stay active."""
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: Any = network
    adapter = _free_name(getattr(adapted, "peft_config", {}))
    shaped = {}
    by_rank: dict[int, list[str]] = {}
    for change in pairs:
        try:
            shaped[change.name] = changes.pair(change.tensors, _unpacked(change.module))
        except changes.Misfit as error:
            raise changes.Misfit(f"{change.name} has {error}") from error
        by_rank.setdefault(len(shaped[change.name][0]), []).append(re.escape(change.name))
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules="|".join(name for names in by_rank.values() for name in names),
        rank_pattern={f"^({'|'.join(names)})": rank for rank, names in by_rank.items()},
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        # several adapters are intended
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        adapted.add_adapter(config, adapter)
    modules = dict(network.named_modules())
    for change in pairs:
        layer: Any = modules[change.name]
        down, up = shaped[change.name]
        with torch.no_grad():
            for side, value in ((layer.lora_A, down), (layer.lora_B, up)):
                side[adapter].weight = torch.nn.Parameter(value.to(change.module.weight.device), False)
        layer.lora_alpha[adapter] = changes.scale(change.tensors, stabilised=change.stabilised) * len(down)
        layer.set_scale(adapter, weight)
    for module in modules.values():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(adapted.peft_config))


def refuse_quantised(network: nn.Module, where: str) -> None:
    """UserError if the network's weights are in 4 bits: pairs can be attached, but nothing can be merged."""
    if getattr(network, "is_quantized", False):
        raise UserError(
            f"{where}: changes the weights themselves, which model.quantise keeps in 4 bits; set model.quantise=null"
        )


def _unpacked(module: Any) -> Tensor:
    """The module's weight, or a placeholder of its original shape if it is packed in 4 bits."""
    import torch

    weight: Tensor = module.weight
    if weight.is_floating_point():
        return weight
    return torch.empty(module.out_features, module.in_features, device="meta")


def _free_name(taken: Mapping[str, Any]) -> str:
    number, name = 1, "artefact"
    while name in taken:
        number += 1
        name = f"artefact_{number}"
    return name


def _into(change: Change, weight: float) -> None:
    import torch

    own: Tensor = change.module.weight
    tensors = {role: value.to(own.device) for role, value in change.tensors.items()}
    bias = tensors.get("diff_b", tensors.get("bias"))
    try:
        with torch.no_grad():
            whole = changes.changed(tensors, own, stabilised=change.stabilised)
            own.copy_(torch.lerp(own.float(), whole, weight))
            if bias is not None:
                if change.module.bias is None or change.module.bias.shape != bias.shape:
                    raise changes.Misfit(f"a bias of {list(bias.shape)}, which the layer has not")
                factor = 1.0 if "diff_b" in tensors else changes.scale(tensors, stabilised=change.stabilised)
                change.module.bias.add_(bias.float(), alpha=factor * weight)
    except changes.Misfit as error:
        raise changes.Misfit(f"{change.name} has {error}") from error


# --- peft folders -----------------------------------------------------------------------------------------


def kind_of(folder: Path, where: str) -> str:
    """peft's name for the kind of adapter in the folder. UserError if it is not in `PEFT_TYPES`."""
    kind = read_json(folder / CONFIG, where).get("peft_type")
    if kind not in PEFT_TYPES:
        raise UserError(
            f"{where}: {folder / CONFIG} has peft_type {kind}; of peft's adapters {', '.join(PEFT_TYPES)} are read here"
        )
    return str(kind)


def merge_folder(pipe: Any, part: str, folder: Path, weight: float, where: str) -> None:
    """Merges a peft folder (LoRA, LoHa, LoKr, OFT) into the weights of the network `part`, using peft.

    UserError if one of its tensors matches no layer, or a layer named by its settings has no tensor.
    """
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    kind = kind_of(folder, where)
    network: Any = getattr(pipe, part)
    refuse_quantised(network, where)
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise UserError(
            f"{where}: another adapter is already attached to the {part} already; put peft's folders on first"
        )
    weights = read_tensors(folder / WEIGHTS, where)
    if not hasattr(network, "text_model"):  # a level that transformers removed
        weights = {key.replace(f"{_PREFIX}text_model.", _PREFIX, 1): value for key, value in weights.items()}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted: Any = get_peft_model(network, config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise no_fit(where, f"{folder / CONFIG}: {reason}") from error
    tuned = {name: module for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
    _check_sizes(adapted, weights, pipe, part, where)
    result: Any = set_peft_model_state_dict(adapted, dict(weights))
    _check_complete(result, len(weights), part, where)
    if kind == "OFT":
        _check_rotations(tuned, where)
    if weight != 1 and config.modules_to_save:
        raise UserError(
            f"{where}: holds whole layers (modules_to_save), which have no strength: job.weight must be 1"
        )
    kept = [
        (parameter, parameter.detach().clone())
        for module in tuned.values()
        for parameter in (module.get_base_layer().parameters() if weight != 1 else ())
    ]
    with torch.no_grad():
        merged = adapted.merge_and_unload(safe_merge=True)
        for parameter, before in kept:
            parameter.copy_(torch.lerp(before, parameter, weight))
    setattr(pipe, part, merged)


def _check_sizes(adapted: Any, weights: Mapping[str, Tensor], pipe: Any, part: str, where: str) -> None:
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for key, value in weights.items():
        if key not in own or own[key].shape == value.shape:
            continue
        name = key.removeprefix(_PREFIX)
        ours = int(getattr(pipe, part).config.get("cross_attention_dim") or 0) if part == "unet" else 0
        if (
            part == "unet"
            and re.search(r"attn2\.to_[kv]\.(lora_A|hada_w1_b)", key)
            and value.shape[1] != ours
        ):
            raise other_width(where, CROSS, int(value.shape[1]), ours)
        raise no_fit(where, f"{part}.{name} is {list(value.shape)}, and {list(own[key].shape)} is needed")


def _check_complete(result: Any, total: int, part: str, where: str) -> None:
    missing = [key for key in result.missing_keys if ".default" in key]
    if result.unexpected_keys:
        strange = result.unexpected_keys
        raise no_fit(
            where, f"{len(strange)} of its {total} tensors have no place in the {part}, such as {strange[0]}"
        )
    if missing:
        raise UserError(
            f"{where}: {CONFIG} names layers that {WEIGHTS} lacks, such as {missing[0].replace('.default', '')}; copy "
            "the folder again"
        )


def _check_rotations(tuned: Mapping[str, Any], where: str) -> None:
    """peft 0.21 adds rotated patches where they overlap, which is not what the adapter learned."""
    from torch import nn

    for name, module in tuned.items():
        base = module.get_base_layer()
        if isinstance(base, nn.Conv2d) and max(base.kernel_size) > 1:
            raise UserError(f"{where}: rotates the convolution {name}, which peft does not merge rightly; OFT of linear "
                            "layers only is read")  # fmt: skip
