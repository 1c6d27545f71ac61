"""Freezing of all networks, before a method is attached."""

from __future__ import annotations

from typing import Any

from diffusion_lab.families import of


def freeze(pipe: Any) -> None:
    """Disables gradients for all parameters of all networks."""
    for network in of(pipe).networks(pipe).values():
        network.requires_grad_(False)
