"""FLUX.1 behind the Protocol, against diffusers' own pipeline and independent formulas."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.families.family import Framing
from diffusion_lab.records import UserError
from tests.families.tiny_flux import FLUX, TEXT, draw, flux, load, noise, plain

DEV: dict[str, Any] = {  # transformer/config.json of FLUX.1 [dev], as published: axes_dims_rope is not in it
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38,
    "patch_size": 1, "pooled_projection_dim": 768,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flux")
    flux(place)
    return place


@pytest.fixture
def pipe(folder: Path) -> Any:
    return load(folder)


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    found = {part.parent.name: json.loads(part.read_text()) for part in folder.glob("*/config.json")}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {**found, "scheduler": scheduler}


# --- facts ---


def test_supported_configs(folder: Path) -> None:
    assert FLUX.check_configs(configs(folder)) is None
    assert FLUX.check_configs({"transformer": DEV}) is None


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("transformer", {"in_channels": 384, "out_channels": 64}, "384 channels.*64: FLUX.1 Fill"),
        ("transformer", {"in_channels": 128, "out_channels": 64}, "128 channels.*Canny and Depth"),
        ("transformer", {"guidance_embeds": False}, r"schnell.*use FLUX.1 \[dev\]"),
        ("transformer", {"patch_size": 2}, "patch_size=2"),
        ("transformer", {"_class_name": "Flux2Transformer2DModel"}, "Flux2Transformer2DModel"),
        ("text_encoder", {"hidden_size": 64}, "text_encoder is 64 wide.*reads 32"),
        ("text_encoder_2", {"d_model": 64}, "text_encoder_2 is 64 wide.*reads 40"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
    ],
)
def test_other_models_are_refused_with_a_reason(
    part: str, change: dict[str, Any], reason: str, folder: Path
) -> None:
    found = configs(folder)
    found[part] = {**found[part], **change}
    assert re.search(reason, FLUX.check_configs(found) or "")


def test_sizes(pipe: Any, folder: Path) -> None:
    assert FLUX.resolution(configs(folder)) == 64
    assert FLUX.multiple(configs(folder)) == 16
    assert FLUX.latent_shape(pipe, None) == (16, 8, 8)
    assert FLUX.latent_shape(pipe, (48, 80)) == (16, 6, 10)
    with pytest.raises(UserError, match="model.resolution is 72: .* multiple of 16"):
        FLUX.latent_shape(pipe, (72, 64))
    with pytest.raises(KeyError):
        FLUX.resolution({"transformer": DEV})


def test_published_numbers_of_parameters() -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        models = {
            "transformer": FluxTransformer2DModel.from_config(DEV),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
        }  # fmt: skip
    found = {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()}
    assert found == FLUX.parameters


@pytest.mark.parametrize("config", ["tiny", "dev"])
def test_work_against_counted_operations(config: str, folder: Path) -> None:
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    side = {"tiny": 6, "dev": 128}[config]
    settings = configs(folder)["transformer"] if config == "tiny" else DEV
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(settings)
        tokens = (side // 2) ** 2
        given = (
            torch.zeros(1, tokens, 64), torch.zeros(1, 512, settings["joint_attention_dim"]),
            torch.zeros(1, settings["pooled_projection_dim"]), torch.zeros(1), torch.zeros(tokens, 3),
            torch.zeros(512, 3), torch.zeros(1),
        )  # fmt: skip
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*given)
        model.add_adapter(LoraConfig(r=1, target_modules=list(FLUX.lora_targets)))
    work = FLUX.work({"transformer": settings}, side)
    assert work.tflop == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-9)
    assert work.adapted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = model.inner_dim
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    assert work.positions == blocks * (512 + tokens)
    assert work.transformer == work.positions * width
    assert work.residual == 0


# --- texts ---


def test_a_text_longer_than_clips_limit_is_read_by_t5(pipe: Any) -> None:
    text = " ".join(["red castle"] * 60)
    assert len(pipe.tokenizer(text).input_ids) > 77
    tokens = FLUX.tokenize(pipe, text)
    assert int(tokens["tokenizer"][0, -1]) == pipe.tokenizer.eos_token_id
    with torch.no_grad():
        found, expected = FLUX.encode(pipe, tokens), FLUX.encode_prompts(pipe, [text])
    torch.testing.assert_close(found["pooled"], expected["pooled"], rtol=0, atol=0)
    torch.testing.assert_close(found["hidden"], expected["hidden"], rtol=0, atol=0)


def test_a_text_too_long_for_t5_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="has 601 tokens, the model reads 512"):
        FLUX.tokenize(pipe, " ".join(["red"] * 600))


def test_gradients_reach_clip_through_the_transformer(pipe: Any) -> None:
    for network in FLUX.networks(pipe).values():
        network.requires_grad_(False)
    layer = pipe.text_encoder.get_submodule("encoder.layers.0.self_attn.q_proj")
    layer.weight.requires_grad_(True)
    conditioning = {**FLUX.encode(pipe, FLUX.tokenize(pipe, TEXT)), **FLUX.training_extras(pipe, [FRAMING])}
    answer = FLUX.predict(pipe, noise((64, 64)), torch.tensor([500.0]), conditioning)
    answer.square().mean().backward()  # type: ignore[no-untyped-call]
    assert float(layer.weight.grad.abs().sum()) > 0


# --- images, denoising ---

FRAMING = Framing((64, 64), (0, 0), (64, 64))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("scale", [3.5, 1.0])
def test_images_are_those_of_the_plain_pipeline(size: tuple[int, int], scale: float, pipe: Any) -> None:
    found, expected = draw(pipe, size, scale=scale), plain(pipe, size, scale=scale)
    assert found.shape == expected.shape == (1, 3, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_images_in_half_precision_are_those_of_the_plain_pipeline(pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    found, expected = draw(pipe, (64, 64)), plain(pipe, (64, 64))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2**-8)


def test_every_picture_of_a_batch_has_its_own_timestep_and_text(pipe: Any) -> None:
    noisy, timesteps = noise((48, 64), 2), torch.tensor([200.0, 900.0])
    texts = [TEXT, "the red castle"]
    with torch.no_grad():
        both = {**FLUX.encode_prompts(pipe, texts), **FLUX.training_extras(pipe, [FRAMING] * 2)}
        found = FLUX.predict(pipe, noisy, timesteps, both)
        for row in range(2):
            own = {name: value[row : row + 1] for name, value in both.items()}
            alone = FLUX.predict(pipe, noisy[row : row + 1], timesteps[row], own)
            torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-5)


def test_guidance_is_one_in_training_and_as_given_in_sampling(pipe: Any) -> None:
    assert FLUX.training_extras(pipe, [FRAMING] * 3)["guidance"].tolist() == [1.0] * 3
    assert FLUX.sampling_extras(pipe, 2, (64, 64), 3.5)["guidance"].tolist() == [3.5] * 2


@pytest.mark.parametrize(("size", "mu"), [((256, 256), 0.5), ((1024, 1024), 1.15), ((512, 768), 0.71667)])
def test_training_times_are_a_shifted_logit_normal(size: tuple[int, int], mu: float, pipe: Any) -> None:
    """logit(level) is normal around mu, since the shift by exp(mu) adds mu to a logit.

    mu grows with the number of tokens, from 0.5 at 256 to 1.15 at 4096.
    """
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    process = FLUX.process(pipe, size)
    assert calculate_shift(size[0] * size[1] // 256) == pytest.approx(mu, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([process.draw(generator) for _ in range(4000)]) / 1000
    assert 0 < float(drawn.min()) < float(drawn.max()) < 1
    logits = torch.logit(drawn.double())
    assert float(logits.mean()) == pytest.approx(mu, abs=4 / math.sqrt(4000))
    assert float(logits.std()) == pytest.approx(1.0, abs=0.05)


def test_the_process_is_a_straight_path(pipe: Any) -> None:
    process = FLUX.process(pipe, (64, 64))
    latents, other = noise((64, 64)), torch.flip(noise((64, 64)), (-1,))
    t = torch.tensor([300.0])
    torch.testing.assert_close(process.add_noise(latents, other, t), 0.7 * latents + 0.3 * other)
    torch.testing.assert_close(process.target(latents, other, t), other - latents)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_sampling_levels_are_the_shifted_ones(steps: int, pipe: Any) -> None:
    size = (512, 768)
    mu = 0.5 + (512 * 768 / 256 - 256) * 0.65 / 3840
    levels = [1 - i / steps for i in range(steps)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / level - 1) * 1000 for level in levels]
    found = FLUX.solver(pipe, steps, size)
    assert found.timesteps.tolist() == pytest.approx(expected, rel=1e-6)
    assert found is not pipe.scheduler
