"""The work of a forward pass from the config, against torch's own count and against hooks on the real modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.families import FAMILIES, unet
from diffusion_lab.families.family import Work

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SMALL = {
    "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 24, "norm_num_groups": 8,
}  # fmt: skip
# Config, side of the latents.
UNETS: dict[str, tuple[dict[str, Any], int]] = {
    "1.5": ({"cross_attention_dim": 768}, 64),
    "2.1": ({"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}, 96),
    "xl": (SDXL, 128),
    "small": (SMALL, 16),
    "layers by block": ({**SMALL, "layers_per_block": (1, 3), "cross_attention_dim": (24, 40)}, 16),
    # As in distilled SDXL models.
    "depths by layer": (
        {
            **SDXL, "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, (2, 1), (4, 3)),
            "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        },
        32,
    ),
    "no middle": ({**SMALL, "mid_block_type": None}, 16),
}  # fmt: skip


def counted(config: dict[str, Any], side: int) -> tuple[Work, dict[str, Any]]:
    """Of the real network on torch's meta device; and its whole config."""
    residual = transformer = positions = 0

    def block(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal residual
        residual += output[0, 0].numel() * (args[0].shape[1] + output.shape[1])

    def attention(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal transformer, positions
        transformer += output[0].numel()
        positions += output.shape[1]

    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=side, **config)
        for module in network.modules():
            kind = type(module).__name__
            if kind in ("ResnetBlock2D", "BasicTransformerBlock"):
                module.register_forward_hook(block if kind == "ResnetBlock2D" else attention)
        text = torch.zeros(1, 77, config["cross_attention_dim"])
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 4, side, side), torch.zeros(1), text, added_cond_kwargs=added)
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    linear = [m for name, m in network.named_modules() if name.endswith(ends) and isinstance(m, nn.Linear)]
    assert linear
    adapted = sum(m.in_features + m.out_features for m in linear)
    found = Work(residual, transformer, positions, counter.get_total_flops() / 1e12, adapted, sampled=0.0)
    return found, dict(network.config)


@pytest.mark.parametrize("name", [name for name in UNETS if name != "layers by block"])
def test_work_is_what_the_network_does(name: str) -> None:
    config, side = UNETS[name]
    expected, whole = counted(config, side)
    found = unet.work(whole, side)
    assert found.tflop == pytest.approx(expected.tflop, rel=1e-12)
    for sum_of in ("residual", "transformer", "positions", "adapted"):
        assert getattr(found, sum_of) == getattr(expected, sum_of), sum_of
    assert found.sampled > 0


def test_layers_and_widths_by_block() -> None:
    config, side = UNETS["layers by block"]
    network = UNet2DConditionModel(sample_size=side, **config)
    parts = list(unet.parts(network.config))
    kinds = [type(module).__name__ for module in network.modules()]
    assert sum(isinstance(part, unet.Residual) for part in parts) == kinds.count("ResnetBlock2D")
    transformers = [part for part in parts if isinstance(part, unet.Transformer)]
    read = sorted(m.in_features for n, m in network.named_modules() if n.endswith("attn2.to_k"))
    assert sorted(part.width for part in transformers) == read


def test_stable_diffusion_15_as_in_the_plan() -> None:
    found = FAMILIES["sd"].work(FAMILIES["sd"].configs, 64)
    # By hand: transformer blocks stand at 64, 32 and 16 latents a side (320, 640, 1280 channels; 2 + 3 each) and in
    # the middle at 8.
    blocks = [(64, 320)] * 5 + [(32, 640)] * 5 + [(16, 1280)] * 5 + [(8, 1280)]
    assert found.transformer == sum(side**2 * channels for side, channels in blocks)
    assert found.positions == sum(side**2 for side, _ in blocks)
    assert found.adapted == sum(14 * channels + 2 * 768 for _, channels in blocks)
    assert found.residual == 32_194_560
    assert found.tflop == pytest.approx(0.803, abs=5e-4)


def test_published_numbers_of_parameters() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def count(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    large = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )
    base = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    sd, sdxl = FAMILIES["sd"].parameters, FAMILIES["sdxl"].parameters
    with torch.device("meta"):
        assert count(UNet2DConditionModel(**UNETS["1.5"][0])) == sd["unet"]
        assert count(UNet2DConditionModel(**SDXL)) == sdxl["unet"]
        assert count(CLIPTextModel(base)) == sd["text_encoder"] == sdxl["text_encoder"]
        assert count(CLIPTextModelWithProjection(large)) == sdxl["text_encoder_2"]
    assert sd["vae"] == sdxl["vae"] == 83_653_863
