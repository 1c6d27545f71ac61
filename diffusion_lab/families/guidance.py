"""Whether sampling has an unconditional branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family


def is_guided(family: Family, guidance_scale: float) -> bool:
    """Whether every step has an unconditional branch: it is skipped for scales <= 1, as in diffusers."""
    return family.guidance == "classifier_free" and guidance_scale > 1
