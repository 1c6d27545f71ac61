"""Before a method is attached nothing trains."""

from __future__ import annotations

from typing import Any

from diffusion_lab.families import of


def freeze(pipe: Any) -> None:
    """No parameter of any network requires gradients."""
    for network in of(pipe).networks(pipe).values():
        network.requires_grad_(False)
