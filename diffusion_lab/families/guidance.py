"""Whether sampling has a second branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family


def is_guided(family: Family, guidance_scale: float) -> bool:
    """Whether every step has an unconditional branch: at w <= 1 it is left out, as in diffusers."""
    return family.guidance == "classifier_free" and guidance_scale > 1
