"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank pairs beside the U-Net's attention, through peft.

A linear layer W x becomes W x + (alpha / rank) B A x; A and B train, W does not. A starts normal with
standard deviation 1 / rank, B at zero, as in diffusers' training script: the untouched model at step 0.
The files are diffusers' own; peft's settings (rank, alpha, targets) travel in the header, where
`pipe.load_lora_weights` finds them, so that alpha survives also where it is not the rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion_lab.checks import closest, flag, number, whole, words
from diffusion_lab.interfaces import Batch, ParamGroup, UserError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn

FILE_NAME = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
REST = ("ff.net.0.proj", "ff.net.2", "conv1", "conv2")
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
SMALL_UNET = 100_000_000  # parameters; below, a model is taken for a miniature and learns at its rate


@dataclass(kw_only=True, slots=True)
class Lora:
    learning_rates: ClassVar[tuple[float, float]] = (1e-3, 1e-4)  # miniature, full-size models

    name: str = "lora"
    rank: int = 8
    alpha: float | None = None  # null: equal to rank, so that the scale alpha / rank is 1
    dropout: float = 0.0
    targets: list[str] | None = None  # null: attention; on the miniature feed-forward and convolutions too
    text_encoder: bool = False
    learning_rate: float | None = None  # null: 1e-3 on the miniature, 1e-4 on full-size models
    text_encoder_learning_rate: float | None = None  # null: a tenth of the U-Net's
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        whole("method.rank", self.rank, 1)
        if self.alpha is not None:
            number("method.alpha", self.alpha, 0, above=True)
        number("method.dropout", self.dropout, 0, 1, below=True)
        if self.targets is not None:
            words("method.targets", self.targets)
        if self.targets == []:
            raise UserError("method.targets=[]: name at least one layer, such as method.targets=[to_q,to_v]")
        flag("method.text_encoder", self.text_encoder)
        for key in ("learning_rate", "text_encoder_learning_rate"):
            if getattr(self, key) is not None:
                number(f"method.{key}", getattr(self, key), 0, above=True)
        number("method.weight_decay", self.weight_decay, 0)

    @property
    def scale(self) -> float:
        """What the product B A is multiplied with: alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(self, pipe: StableDiffusionPipeline) -> list[ParamGroup]:
        """Adds the adapter named `default`, float32; everything else is frozen.

        A is drawn from torch's global stream. UserError where a target names no layer of the U-Net.
        """
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False)
        is_small = sum(p.numel() for p in pipe.unet.parameters()) < SMALL_UNET
        small, full = self.learning_rates
        rate = self.learning_rate or (small if is_small else full)
        targets = self.targets or default_targets(is_small)
        _check_targets(pipe.unet, targets)
        pipe.unet.add_adapter(self._peft_config(targets))
        groups = [ParamGroup("unet", _trainable(pipe.unet), rate, self.weight_decay)]
        if self.text_encoder:
            pipe.text_encoder.add_adapter(self._peft_config(TEXT_TARGETS))
            text_rate = self.text_encoder_learning_rate or rate / 10
            groups.append(
                ParamGroup("text_encoder", _trainable(pipe.text_encoder), text_rate, self.weight_decay)
            )
        for module in (pipe.unet, pipe.text_encoder):
            module.train(module.training)  # peft's new layers arrive in training mode, with dropout on
        return groups

    def _peft_config(self, targets: list[str]) -> Any:
        from peft import LoraConfig

        config: Any = LoraConfig  # its alpha is annotated int; a fraction works and is saved
        return config(
            r=self.rank,
            lora_alpha=self.alpha if self.alpha is not None else self.rank,
            lora_dropout=self.dropout,
            target_modules=list(targets),
            init_lora_weights="gaussian",
        )

    def loss(self, pipe: StableDiffusionPipeline, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar."""
        from diffusion_lab.training.losses import batch_loss

        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe: StableDiffusionPipeline) -> None:
        """Nothing to do."""

    def save(
        self, pipe: StableDiffusionPipeline, folder: Path, notes: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Writes `pytorch_lora_weights.safetensors`, whole or not at all; `notes` go into its header.

        Plain diffusers reads it: `pipe.load_lora_weights(folder)`.
        """
        from diffusers import StableDiffusionPipeline
        from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        trained = {"unet": pipe.unet}
        if self.text_encoder:
            trained["text_encoder"] = pipe.text_encoder
        settings: dict[str, Any] = {}
        for part, module in trained.items():
            for key, value in module.peft_config["default"].to_dict().items():
                settings[f"{part}.{key}"] = sorted(value) if isinstance(value, set) else value
        header = {
            "format": "pt",
            LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True),
            "method": self.name,
            "rank": str(self.rank),
            "alpha": str(self.alpha if self.alpha is not None else float(self.rank)),
            **(notes or {}),
        }

        def write(weights: dict[str, Tensor], name: str) -> None:
            partial = Path(f"{name}.part")
            try:
                save_file(
                    {key: value.contiguous() for key, value in weights.items()}, partial, metadata=header
                )
                os.replace(partial, name)
            finally:
                partial.unlink(missing_ok=True)

        # peft's own key names. diffusers' scripts rename them first (`lora.down`), but not those of every
        # layer, and a file with both kinds of names is read wrongly, without a word.
        layers = {
            f"{part}_lora_layers": get_peft_model_state_dict(module, save_embedding_layers=False)
            for part, module in trained.items()
        }
        save_weights = StableDiffusionPipeline.save_lora_weights
        save_weights(folder, **layers, weight_name=FILE_NAME, save_function=write)
        return [folder / FILE_NAME]

    def load(self, pipe: StableDiffusionPipeline, folder: Path) -> None:
        """Reads what `save` wrote into a pipe attached with the same settings; else UserError."""
        from diffusers import StableDiffusionPipeline
        from peft import set_peft_model_state_dict

        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"{path} is missing: no adapter was saved there")
        weights, _, settings = StableDiffusionPipeline.lora_state_dict(
            folder, weight_name=FILE_NAME, use_safetensors=True, return_lora_metadata=True
        )
        trained = {"unet": pipe.unet}
        if self.text_encoder:
            trained["text_encoder"] = pipe.text_encoder
        for part, module in trained.items():
            attached = module.peft_config["default"]
            for key, ours in (("r", attached.r), ("lora_alpha", attached.lora_alpha)):
                theirs = (settings or {}).get(f"{part}.{key}")
                if theirs != ours:
                    name = {"r": "method.rank", "lora_alpha": "method.alpha"}[key]
                    raise UserError(f"{path}: saved with {name}={theirs} for the {part}, this run has {ours}")
            own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
            result: Any = set_peft_model_state_dict(module, own, adapter_name="default")
            strange = [*result.unexpected_keys, *(key for key in result.missing_keys if ".lora_" in key)]
            if strange:
                raise UserError(f"{path}: saved with other method.targets than this run's ({strange[0]})")


def default_targets(small: bool) -> list[str]:
    """Attention as in diffusers' script; a miniature's attention is too thin for a face to fit into it."""
    return [*ATTENTION, *REST] if small else list(ATTENTION)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    import torch

    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    return parameters


def _check_targets(unet: nn.Module, targets: list[str]) -> None:
    """peft complains only where no target fits at all; one misspelt of four would train less, silently."""
    from torch import nn

    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            ends = {".".join(name.split(".")[-parts:]) for name in layers for parts in (1, 2)}
            known = sorted(end for end in ends if not end[0].isdigit())
            raise UserError(
                f"method.targets: the U-Net has no linear or convolution layer named {target}"
                f"{closest(target, known)}; the attention has to_q, to_k, to_v, to_out.0"
            )
