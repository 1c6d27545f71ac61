"""Stable Diffusion 3's facts and figures: torch's and peft's own counting, published configs, models of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.families.family import Family
from diffusion_lab.families.sd3 import FEED_FORWARD, StableDiffusion3
from tests.families import tiny_sd3

FAMILY: Family = StableDiffusion3()


# The published configs (config.json of the transformers of SD 3.5 medium and large).
MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
LARGE: dict[str, Any] = {
    **MEDIUM, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With T5 and the second attention. Read only."""
    where = tmp_path_factory.mktemp("tiny_sd3") / "full"
    tiny_sd3.sd3(where)
    return where


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without T5 and without the second attention. Read only."""
    where = tmp_path_factory.mktemp("tiny_sd3") / "bare"
    tiny_sd3.sd3(where, t5=False, dual=False)
    return where


@pytest.fixture(params=["full", "bare"])
def pipe(request: pytest.FixtureRequest, folder: Path, bare_folder: Path) -> Any:
    return tiny_sd3.load(folder if request.param == "full" else bare_folder)


@pytest.fixture
def full(folder: Path) -> Any:
    return tiny_sd3.load(folder)


def on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return SD3Transformer2DModel(**config)


@pytest.mark.parametrize(
    ("config", "side"),
    [
        (tiny_sd3.TRANSFORMER, 16),
        ({**tiny_sd3.TRANSFORMER, "dual_attention_layers": (), "num_layers": 1, "qk_norm": None}, 8),
        (MEDIUM, 128),
        (LARGE, 64),
    ],
)
def test_work_is_what_torch_counts(config: dict[str, Any], side: int) -> None:
    network = on_meta(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(
            torch.empty(1, 16, side, side),
            torch.empty(1, 77 + 256, config["joint_attention_dim"]),
            torch.empty(1, config["pooled_projection_dim"]),
            torch.empty(1),
        )
    work = FAMILY.work({"transformer": config}, side)
    assert work.tflop == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-9)
    both = (side // 2) ** 2 + 77 + 256
    width = config["num_attention_heads"] * config["attention_head_dim"]
    assert work.positions == config["num_layers"] * both
    assert work.transformer == config["num_layers"] * both * width
    assert work.residual == 0


@pytest.mark.parametrize("config", [tiny_sd3.TRANSFORMER, MEDIUM, LARGE])
def test_adapted_is_what_peft_adds_at_rank_1(config: dict[str, Any]) -> None:
    from peft import LoraConfig

    network = on_meta(config)
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=1, target_modules=list(FAMILY.lora_targets)))
    added = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert FAMILY.work({"transformer": config}, 128).adapted == added


def test_default_targets_are_those_of_the_training_script_and_the_second_attention() -> None:
    script = {
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_k", "attn.to_out.0",
        "attn.to_q", "attn.to_v",
    }  # fmt: skip
    second = {f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(FAMILY.lora_targets) == script | second
    assert set(FAMILY.small_lora_targets) == script | second | set(FEED_FORWARD)
    layers = [name for name, _ in on_meta(tiny_sd3.TRANSFORMER).named_modules()]
    for target in FAMILY.small_lora_targets:
        assert any(name.endswith(f".{target}") for name in layers), target


def published() -> dict[str, Callable[[], Any]]:
    """Every network of SD 3.5 medium from its config."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, T5Config

    classes = FAMILY.part_classes()

    def clip(part: str, width: int, layers: int, heads: int) -> Any:
        return classes[part](
            CLIPTextConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
                projection_dim=width, vocab_size=49408,
            )
        )  # fmt: skip

    return {
        "transformer": lambda: classes["transformer"](**MEDIUM),
        "vae": lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": lambda: clip("text_encoder", 768, 12, 12),
        "text_encoder_2": lambda: clip("text_encoder_2", 1280, 32, 20),
        "text_encoder_3": lambda: classes["text_encoder_3"](
            T5Config(
                vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            )
        ),
    }  # fmt: skip


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"])
def test_parameters_are_those_of_the_published_networks(part: str) -> None:
    with torch.device("meta"):
        network = published()[part]()
    kept = sum(buffer.numel() for name, buffer in network.named_buffers() if name in network.state_dict())
    assert FAMILY.parameters[part] == sum(p.numel() for p in network.parameters()) + kept
    if part == "transformer":
        assert sum(p.numel() for p in network.parameters()) == 2_243_171_520


# --- which models --------------------------------------------------------------------------------------


def configs_of(pipe: Any) -> dict[str, dict[str, Any]]:
    found = {name: dict(getattr(pipe, name).config) for name in ("transformer", "vae", "scheduler")}
    encoders = (name for name in FAMILY.text_encoders if getattr(pipe, name) is not None)
    return found | {name: getattr(pipe, name).config.to_dict() for name in encoders}


def test_its_own_models_are_accepted(pipe: Any) -> None:
    configs = configs_of(pipe)
    for name in ("transformer", "scheduler"):
        configs[name]["_class_name"] = type(getattr(pipe, name)).__name__
    assert FAMILY.check_configs(configs) is None
    assert FAMILY.networks(pipe).keys() == {
        name for name in FAMILY.part_classes() if getattr(pipe, name) is not None
    }
    assert next(iter(FAMILY.networks(pipe))) == FAMILY.denoiser
    assert type(pipe) is FAMILY.pipeline_class()
    assert FAMILY.pipeline == type(pipe).__name__
    for name, network in FAMILY.networks(pipe).items():
        assert type(network) is FAMILY.part_classes()[name]


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("transformer", "_class_name", "FluxTransformer2DModel", "transformer is FluxTransformer2DModel"),
        ("scheduler", "_class_name", "EulerDiscreteScheduler", "scheduler is EulerDiscreteScheduler"),
        ("transformer", "in_channels", 33, "33 input channels for 16 latent ones"),
        ("text_encoder_3", "d_model", 512, "T5 has 512 channels and its transformer reads 64"),
        ("text_encoder_2", "projection_dim", 1, "CLIPs pool to 17 channels and its transformer reads 40"),
    ],
)
def test_other_models_are_refused_with_the_reason(
    full: Any, part: str, key: str, value: Any, reason: str
) -> None:
    configs = configs_of(full)
    configs["transformer"]["_class_name"] = "SD3Transformer2DModel"
    configs["scheduler"]["_class_name"] = "FlowMatchEulerDiscreteScheduler"
    assert FAMILY.check_configs(configs) is None
    configs[part][key] = value
    assert reason in str(FAMILY.check_configs(configs))


def test_kinds_that_it_has_not_have_a_reason() -> None:
    kinds = {"network", "adapter", "word", "hypernetwork"}
    assert FAMILY.trainable | FAMILY.why_not.keys() == kinds
    assert not FAMILY.trainable & FAMILY.why_not.keys()
    assert not hasattr(StableDiffusion3Pipeline, "load_textual_inversion")
