"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank pairs beside the U-Net's attention, through peft."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Lora:
    name: str = "lora"
    rank: int = 8
    alpha: float | None = None  # null: equal to rank, so that the scale alpha / rank is 1
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    text_encoder: bool = False
    learning_rate: float | None = None  # null: 2e-3 on the miniature, 1e-4 on full-size models
    text_encoder_learning_rate: float | None = None  # null: a tenth of the U-Net's
    weight_decay: float = 1e-2
