"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank pairs added to the U-Net's attention, through peft.

A linear layer W x becomes W x + (alpha / rank) B A x; A and B are trained, W is not. As in diffusers'
training script, A is initialised from a normal distribution with standard deviation 1 / rank and B to zero,
so the model is unchanged at step 0. The variants (`variant`, `rank_stabilised`, `dora`) are implemented by
peft; see `variants.py`.

Files: LoRA and DoRA use diffusers' format. peft's settings (rank, alpha, targets) are stored in the header,
where `pipe.load_lora_weights` reads them, so alpha is preserved even if it differs from the rank. diffusers
has no loader for LoHa, LoKr and OFT; they are saved as peft folders, which `PeftModel.from_pretrained` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import of
from diffusion_lab.families.batch import Batch
from diffusion_lab.families.clip import TEXT_TARGETS
from diffusion_lab.families.small import is_small
from diffusion_lab.families.unet import CONVOLUTIONS
from diffusion_lab.methods.freeze import freeze
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.methods.variants import (
    VARIANTS,
    compare,
    default_alpha,
    load_folder,
    peft_config,
    save_folder,
    set_weights,
)  # fmt: skip
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_tensors
from diffusion_lab.values.checks import bounded, closest, flag, one_of, text_list

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffusion_lab.families.family import Family, Sizes, Trainable

FILE_NAME = "pytorch_lora_weights.safetensors"
# Miniature, full-size models. 1e-4: diffusers' LoRA example; LyCORIS' guidelines train LoHa and LoKr like
# LoRA.
LEARNING_RATES = {"lora": (1.5e-3, 1e-4), "loha": (3e-3, 1e-4), "lokr": (5e-3, 1e-4), "oft": (3e-3, 1e-4)}


@dataclass(kw_only=True, slots=True)
class Lora:
    name: str = "lora"
    variant: str = "lora"  # lora, loha, lokr, oft
    rank: int = 8  # oft: width of the rotated blocks
    alpha: float | None = None  # null: equal to rank, so that the scale alpha / rank is 1
    rank_stabilised: bool = False  # lora: the scale is alpha / sqrt(rank); alpha null: 1 at rank 8
    dora: bool = False  # lora: the magnitude of each weight is trained separately from its direction
    dropout: float = 0.0  # lora: on the input; loha, lokr: on rows of the update; oft: on rotated blocks
    targets: list[str] | None = None  # null: attention; on the miniature also feed-forward and convolutions
    text_encoder: bool = False
    learning_rate: float | None = None  # null: 1.5e-3 on the miniature, 1e-4 on full-size models
    text_encoder_learning_rate: float | None = None  # null: a tenth of the U-Net's
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        one_of("method.variant", self.variant, VARIANTS)
        bounded("method.rank", self.rank)
        if self.variant == "oft" and self.rank < 2:
            raise UserError(
                "method.rank=1: method.variant=oft rotates blocks of 2 or more; set method.rank=2"
            )
        if self.alpha is not None:
            bounded("method.alpha", self.alpha)
        for key in ("rank_stabilised", "dora"):
            flag(f"method.{key}", getattr(self, key))
            if getattr(self, key) and self.variant != "lora":
                raise UserError(
                    f"method.{key}=true: is for method.variant=lora, and this is {self.variant}; leave out one"
                )
        if self.variant == "oft" and self.alpha is not None:
            raise UserError(
                f"method.alpha={self.alpha}: method.variant=oft rotates and has no scale; leave it null"
            )
        bounded("method.dropout", self.dropout)
        if self.targets is not None:
            text_list("method.targets", self.targets)
        if self.targets == []:
            raise UserError("method.targets=[]: name at least one layer, such as method.targets=[to_q,to_v]")
        flag("method.text_encoder", self.text_encoder)
        for key in ("learning_rate", "text_encoder_learning_rate"):
            if getattr(self, key) is not None:
                bounded(f"method.{key}", getattr(self, key))
        bounded("method.weight_decay", self.weight_decay)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Default learning rates for the miniature and for full-size models."""
        return LEARNING_RATES[self.variant]

    @property
    def default_alpha(self) -> float | None:
        return default_alpha(self.variant, self.rank, self.rank_stabilised)

    @property
    def traits(self) -> Traits:
        kinds: frozenset[Trainable] = frozenset({"adapter"})
        return Traits(trains=kinds, text_encoder=self.text_encoder, rank=self.rank, starts_unchanged=True)

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Fills in learning rates, alpha and targets; see `Method.fill`."""
        if self.learning_rate is None:
            self.learning_rate = 1.0 if free else self.learning_rates[0 if small else 1]
        if self.text_encoder_learning_rate is None:
            self.text_encoder_learning_rate = 1.0 if free else self.learning_rate / 10
        if self.alpha is None:
            self.alpha = self.default_alpha
        if self.targets is None:
            self.targets = self.default_targets(family, small)

    def default_targets(self, family: Family, small: bool) -> list[str]:
        """The family's default targets; for OFT only the linear layers."""
        if not small:
            return list(family.lora_targets)
        left_out = CONVOLUTIONS if self.variant == "oft" else ()
        return [target for target in family.small_lora_targets if target not in left_out]

    def trained_numbers(self, sizes: Sizes) -> float:
        """Size of the pairs B A for the default targets, without the (small) text encoder adapters."""
        return self.rank * sizes.work.adapted

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Adds an adapter named `default` in float32; everything else is frozen.

        A is drawn from torch's global generator. UserError if a target matches no layer of the denoiser.
        """
        family = of(pipe)
        networks = self._networks(pipe)
        freeze(pipe)
        denoiser = networks[family.denoiser]
        small = is_small(denoiser)
        rate = self.learning_rate or self.learning_rates[0 if small else 1]
        targets = self.targets or self.default_targets(family, small)
        _check_targets(denoiser, targets, self.variant, family)
        groups = []
        for part, network in networks.items():
            adapted: Any = network
            is_text = part != family.denoiser
            adapted.add_adapter(peft_config(self, list(TEXT_TARGETS) if is_text else targets))
            own = (self.text_encoder_learning_rate or rate / 10) if is_text else rate
            groups.append(ParamGroup(part, _trainable(network), own, self.weight_decay))
        for network in (denoiser, *(getattr(pipe, part) for part in family.text_encoders)):
            if network is not None:
                network.train(network.training)  # new layers are in training mode, with dropout enabled
        return groups

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar."""
        from diffusion_lab.families.losses import batch_loss

        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe: Any) -> None:
        """Nothing to do."""

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes `pytorch_lora_weights.safetensors` atomically, with `notes` in its header.

        Plain diffusers reads it: `pipe.load_lora_weights(folder)`. LoHa, LoKr and OFT are written to `unet/`
        and, if trained, `text_encoder/`, which `PeftModel.from_pretrained(pipe.unet, folder / "unet")` reads.
        """
        header = {
            "method": self.name,
            "variant": self.variant,
            "rank": str(self.rank),
            "alpha": str(self.alpha if self.alpha is not None else self.default_alpha),
            **(notes or {}),
        }
        if self.variant == "lora":
            return [_save_lora(pipe, self._networks(pipe), folder, header)]
        return [
            path
            for part, module in self._networks(pipe).items()
            for path in save_folder(module, folder / part, header)
        ]

    def load(self, pipe: Any, folder: Path) -> None:
        """Loads what `save` wrote into a pipe attached with the same settings; UserError if they differ."""
        if self.variant == "lora":
            _load_lora(pipe, self._networks(pipe), folder)
            return
        for part, module in self._networks(pipe).items():
            load_folder(module, folder / part)

    def _networks(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoiser and, with `text_encoder`, the text encoders that the family trains."""
        family = of(pipe)
        parts = (family.denoiser, *(family.lora_text_encoders if self.text_encoder else ()))
        return {part: getattr(pipe, part) for part in parts}


def _save_lora(pipe: Any, networks: Mapping[str, Any], folder: Path, header: Mapping[str, str]) -> Path:
    """Writes diffusers' file, with peft's settings and our notes in the header."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft import get_peft_model_state_dict

    from diffusion_lab.system import tensors

    settings: dict[str, Any] = {}
    for part, module in networks.items():
        for key, value in module.peft_config["default"].to_dict().items():
            settings[f"{part}.{key}"] = sorted(value) if isinstance(value, set) else value
    metadata = {
        "format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True), **header,
    }  # fmt: skip

    def write(weights: dict[str, Tensor], name: str) -> None:
        tensors.write(Path(name), weights, metadata)

    # peft's own key names. diffusers' scripts rename them first (`lora.down`), but not for all layers, and a
    # file with both kinds of names is silently read incorrectly.
    layers = {
        f"{part}_lora_layers": get_peft_model_state_dict(module, save_embedding_layers=False)
        for part, module in networks.items()
    }
    # transformers 5.23, which reads the text encoder's part, drops DoRA's magnitudes under peft's key name.
    layers = {
        part: {
            f"{key}.weight"
            if part.startswith("text") and key.endswith("lora_magnitude_vector")
            else key: value
            for key, value in weights.items()
        }
        for part, weights in layers.items()
    }
    save_weights = of(pipe).pipeline_class().save_lora_weights
    save_weights(folder, **layers, weight_name=FILE_NAME, save_function=write)
    return folder / FILE_NAME


def _load_lora(pipe: Any, networks: Mapping[str, Any], folder: Path) -> None:

    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path} is missing: no adapter was saved there")
    read_tensors(path, "the artefact")  # raises an error that names the file if it is damaged
    weights, settings = _read_lora(pipe, folder)
    for part, module in networks.items():
        saved = {
            key.removeprefix(f"{part}."): value
            for key, value in (settings or {}).items()
            if key.startswith(f"{part}.")
        }
        compare(path, part, saved, module.peft_config["default"].to_dict())
        own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
        set_weights(module, own, path)


def _read_lora(pipe: Any, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """diffusers' keys and peft's settings. Some pipelines also return alphas; the settings contain them."""
    weights, *_, settings = (
        of(pipe)
        .pipeline_class()
        .lora_state_dict(folder, weight_name=FILE_NAME, use_safetensors=True, return_lora_metadata=True)
    )
    return weights, settings


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    import torch

    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    return parameters


def _check_targets(denoiser: nn.Module, targets: list[str], variant: str, family: Family) -> None:
    """peft only fails if no target matches: a single misspelt target would silently train fewer layers."""
    from torch import nn

    layers = {name: x for name, x in denoiser.named_modules() if isinstance(x, nn.Linear | nn.Conv2d)}
    for target in targets:
        found = [layer for name, layer in layers.items() if name == target or name.endswith(f".{target}")]
        if not found:
            ends = {".".join(name.split(".")[-parts:]) for name in layers for parts in (1, 2)}
            known = sorted(end for end in ends if not end[0].isdigit())
            raise UserError(
                f"method.targets: the {family.denoiser} has no linear or convolution layer named {target}"
                f"{closest(target, known)}; {family.layer_hint}"
            )
        # peft 0.21 adds up rotated patches where they overlap, so the layer would not be unchanged at step 0.
        if variant == "oft" and any(isinstance(x, nn.Conv2d) and max(x.kernel_size) > 1 for x in found):
            raise UserError(
                f"method.targets: method.variant=oft rotates linear layers, and {target} is a convolution; "
                "leave it out, or use another variant"
            )
