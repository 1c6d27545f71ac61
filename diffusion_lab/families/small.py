"""Which models are miniatures: they have other learning rates and more layers with adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 100_000_000  # parameters of a denoiser


def is_small(denoiser: nn.Module) -> bool:
    """Whether the denoiser is as small as a miniature's."""
    return sum(parameter.numel() for parameter in denoiser.parameters()) < SMALL
