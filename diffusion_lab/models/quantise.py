"""Frozen weights in 4 bits, so that a large transformer and its adapter fit into GPU memory.

nf4 (Dettmers et al. 2023, arXiv:2305.14314, section 3): 4-bit numbers at the quantiles of a normal
distribution, with one scale per 64 weights, itself in 8 bits: 4.13 bits per weight. Only linear layers are
quantised. They compute in half precision; an adapter is trained in its own precision.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError
from diffusion_lab.values.checks import one_of

if TYPE_CHECKING:
    import torch

KEY = "model.quantise"
FORMATS = ("nf4",)
BITS = 4 + 8 / 64 + 32 / (64 * 256)  # per weight in nf4, with the scales per block and per 256 blocks
NONE = f"set {KEY}=null"


def check(name: str | None) -> None:
    """UserError if the format is unknown."""
    if name is not None:
        one_of(KEY, name, FORMATS)


def quantisation(name: str | None, device: torch.device) -> Any:
    """diffusers' `BitsAndBytesConfig` for a denoiser's `from_pretrained`; None for None: no quantisation.

    UserError (model.quantise) if `device` is not an NVIDIA GPU or bitsandbytes is not installed.
    """
    check(name)
    if name is None:
        return None
    if device.type != "cuda":
        raise UserError(
            f"{KEY}={name}: 4-bit weights need an NVIDIA GPU, and this run is on {device.type}; {NONE}"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{KEY}={name}: needs bitsandbytes; pip install bitsandbytes, or {NONE}")
    import torch
    from diffusers import BitsAndBytesConfig

    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bf16 else torch.float16,
    )
