"""LoRA and its variants in peft: the class and settings of each variant, and peft's own folder format.

LoRA and DoRA are saved in diffusers' format (see `lora.py`). diffusers has no format for LoHa, LoKr and OFT,
so they are saved in peft's format, with one folder per network:

    pipe.unet = PeftModel.from_pretrained(pipe.unet, "artefact/unet")
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_json, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


VARIANTS = ("lora", "loha", "lokr", "oft")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
PREFIX = "base_model.model."  # of each key in peft's files
PLAIN_RANK = 8  # rank at which a rank-stabilised adapter with default alpha has a scale of 1


class Settings(Protocol):
    """The method settings that the variants use; see `Lora`."""

    variant: str
    rank: int
    alpha: float | None
    rank_stabilised: bool
    dora: bool
    dropout: float

    @property
    def default_alpha(self) -> float | None: ...


def default_alpha(variant: str, rank: int, rank_stabilised: bool) -> float | None:
    """The alpha for a scale of 1; rank-stabilised: a scale of 1 at rank 8, otherwise sqrt(8 / rank)."""
    if variant == "oft":
        return None  # a rotation has no scale
    return math.sqrt(PLAIN_RANK) if rank_stabilised else float(rank)


def peft_config(method: Settings, targets: list[str]) -> Any:
    """The peft configuration for the method's variant.

    LoRA: Hu et al. 2021, arXiv:2106.09685; rank-stabilised: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu
    et al. 2024, arXiv:2402.09353; LoHa: Hyeon-Woo et al. 2021, arXiv:2108.06098; LoKr: Yeh et al. 2023,
    arXiv:2309.14859; OFT: Qiu et al. 2023, arXiv:2306.07280, with blocks of width `rank`.
    """
    import peft

    common: dict[str, Any] = {"target_modules": list(targets)}
    alpha = method.alpha if method.alpha is not None else method.default_alpha
    if method.variant == "lora":
        config: Any = peft.LoraConfig  # alpha is annotated as int, but a float works and is saved
        return config(
            r=method.rank, lora_alpha=alpha, lora_dropout=method.dropout, init_lora_weights="gaussian",
            use_rslora=method.rank_stabilised, use_dora=method.dora, **common,
        )  # fmt: skip
    if method.variant == "oft":
        return peft.OFTConfig(r=0, oft_block_size=method.rank, module_dropout=method.dropout, **common)
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[method.variant]
    return config(r=method.rank, alpha=alpha, rank_dropout=method.dropout, **common)


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that must be the same in a saved adapter and in this run, by config key."""
    if "lora_alpha" in config:
        return {
            "method.rank": config["r"],
            "method.alpha": config["lora_alpha"],
            "method.rank_stabilised": config.get("use_rslora", False),
            "method.dora": config.get("use_dora", False),
        }
    if "oft_block_size" in config:
        return {"method.rank": config["oft_block_size"]}
    return {"method.rank": config["r"], "method.alpha": config["alpha"]}


def compare(where: Path, part: str, saved: Mapping[str, Any], attached: Mapping[str, Any]) -> None:
    """UserError if the settings of the saved and the attached adapter differ."""
    theirs = settings_of(saved) if saved else {}
    for key, ours in settings_of(attached).items():
        if theirs.get(key) != ours:
            raise UserError(
                f"{where}: saved with {key}={theirs.get(key)} for the {part}, this run has {ours}"
            )


def save_folder(module: nn.Module, folder: Path, header: Mapping[str, str]) -> list[Path]:
    """Writes peft's two files atomically."""
    from peft import get_peft_model_state_dict

    from diffusion_lab.system import tensors
    from diffusion_lab.system.atomic import write_json
    from diffusion_lab.system.folders import replace_folder

    adapter: Any = module
    config = copy.copy(adapter.peft_config["default"])
    config.inference_mode = True  # as when peft saves it: a loaded adapter is not trained by default
    weights = get_peft_model_state_dict(module, save_embedding_layers=False)
    with replace_folder(folder) as beside:
        tensors.write(
            beside / WEIGHTS,
            {PREFIX + key: value for key, value in weights.items()},
            {"format": "pt", **header},
        )
        # Like peft's save_pretrained, but that writes sets in an order that differs between processes.
        write_json(beside / CONFIG, dict(sorted(config.to_dict().items())))
    return [folder / WEIGHTS, folder / CONFIG]


def load_folder(module: nn.Module, folder: Path) -> None:
    """Loads what `save_folder` wrote into a network with the same adapter; UserError if they differ."""
    path = folder / WEIGHTS
    for needed in (path, folder / CONFIG):
        if not needed.exists():
            raise UserError(f"{needed} is missing: no adapter was saved there")
    saved = read_json(folder / CONFIG, "the artefact")
    adapter: Any = module
    attached = adapter.peft_config["default"].to_dict()
    if saved.get("peft_type") != attached["peft_type"]:
        raise UserError(
            f"{folder}: holds {saved.get('peft_type')}, this run's method.variant is {attached['peft_type'].lower()}"
        )
    compare(folder, folder.name, saved, attached)
    set_weights(
        module, {k.removeprefix(PREFIX): v for k, v in read_tensors(path, "the artefact").items()}, path
    )


def set_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads weights (with peft's keys) into the attached adapter; UserError if the layers differ."""
    from peft import set_peft_model_state_dict

    own = {key for key, p in module.named_parameters() if ".default" in key}
    result: Any = set_peft_model_state_dict(module, weights, adapter_name="default")
    strange = [*result.unexpected_keys, *(key for key in result.missing_keys if key in own)]
    if strange:
        raise UserError(f"{path}: saved with other method.targets than this run's ({strange[0]})")
