"""Figures of further published models of a family: for the plan, if a model has not been downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.families.family import Config


@dataclass(frozen=True, slots=True)
class Published:
    """What differs from `Family.parameters` and `Family.configs`, by part."""

    parameters: Mapping[str, float] = field(default_factory=dict)
    configs: Mapping[str, Config] = field(default_factory=dict)


PUBLISHED: Mapping[str, Published] = {
    "stabilityai/stable-diffusion-3.5-large": Published(
        {"transformer": 8_146_280_768},  # number in its files, including positions
        {
            "transformer": {
                "patch_size": 2, "num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64,
                "joint_attention_dim": 4096, "caption_projection_dim": 2432, "pooled_projection_dim": 2048,
                "in_channels": 16, "out_channels": 16, "sample_size": 128,
            },
        },
    ),
}  # fmt: skip
