"""Names of a model's parts and of their files, as in diffusers' folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family


def weight_parts(family: Family) -> tuple[str, ...]:
    """Parts with weights: the denoiser, the VAE, the text encoders."""
    return (family.denoiser, "vae", *family.text_encoders)


def stem(part: str) -> str:
    """Name of the weights file without its extension, as in diffusers or transformers."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def pickled_stem(part: str) -> str:
    """The same for pickled weights."""
    return "pytorch_model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
