"""Activations that are computed again on the way back instead of being kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from diffusion_lab.config.schema import Memory


def recompute_activations(pipe: StableDiffusionPipeline, settings: Memory) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174), block by block, where the config asks for it.

    Activations are computed again on the way back instead of being kept: less memory, about a third more time.
    """
    if not settings.gradient_checkpointing:
        return
    pipe.unet.enable_gradient_checkpointing()
    if any(parameter.requires_grad for parameter in pipe.text_encoder.parameters()):
        pipe.text_encoder.activation_checkpointing_enable()
