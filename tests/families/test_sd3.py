"""Stable Diffusion 3 at toy size against plain diffusers: images, texts, latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusion_lab.families.family import Family, Framing
from diffusion_lab.families.sd3 import StableDiffusion3
from diffusion_lab.records import UserError
from tests.families import tiny_sd3
from tests.families.tiny_sd3 import DOG, GUIDANCE, MAN, STEPS, noise, plain

FAMILY: Family = StableDiffusion3()
SIZE = (64, 64)
CLIPS = ("text_encoder", "text_encoder_2")


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


@torch.no_grad()
def drawn(pipe: Any, text: str = DOG, negative: str = "") -> torch.Tensor:
    """Latents through the family alone, with classifier-free guidance."""
    conditional, unconditional = (
        FAMILY.encode_prompts(pipe, [text]),
        FAMILY.unconditional(pipe, negative, FAMILY.encode_prompts(pipe, [negative])),
    )
    extras = FAMILY.sampling_extras(pipe, 2, SIZE, GUIDANCE)
    both = {key: torch.cat([unconditional[key], conditional[key]]) for key in conditional} | dict(extras)
    scheduler = FAMILY.solver(pipe, STEPS, SIZE)
    latents = noise()
    for t in scheduler.timesteps:
        without, with_text = FAMILY.predict(pipe, torch.cat([latents, latents]), t, both).chunk(2)
        latents = scheduler.step(without + GUIDANCE * (with_text - without), t, latents, return_dict=False)[0]
    return latents


# --- images --------------------------------------------------------------------------------------------


def test_the_image_is_that_of_the_plain_pipeline(pipe: Any) -> None:
    own = drawn(pipe)
    torch.testing.assert_close(own, plain(pipe), rtol=1e-5, atol=1e-5)
    assert (own - plain(pipe, MAN)).abs().max() > 0.1
    image = pipe(
        DOG, latents=noise(), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt"
    ).images
    with torch.no_grad():
        pixels = FAMILY.decode(pipe, own)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), image, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_that_of_the_plain_pipeline(full: Any) -> None:
    own = drawn(full, negative=MAN)
    torch.testing.assert_close(own, plain(full, negative_prompt=MAN), rtol=1e-5, atol=1e-5)
    assert (own - plain(full)).abs().max() > 0.05


def test_dynamic_shifting_is_that_of_the_plain_pipeline(full: Any) -> None:
    """As the scheduler of FLUX.1: the shift depends on the number of patches."""
    before = plain(full)
    config = dict(
        full.scheduler.config, use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256
    )
    full.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    torch.testing.assert_close(drawn(full), plain(full), rtol=1e-5, atol=1e-5)
    assert (drawn(full) - before).abs().max() > 0.01


def test_the_denoiser_is_told_the_timesteps_that_the_pipeline_passes(full: Any) -> None:
    """In 0..1000, as floats: training's own are in the same unit."""
    seen: list[torch.Tensor] = []
    handle = full.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["timestep"].clone()), with_kwargs=True
    )
    plain(full)
    pipelines = torch.stack(seen)
    seen.clear()
    drawn(full)
    handle.remove()
    assert torch.equal(torch.stack(seen), pipelines)
    assert pipelines[0, 0] == 1000
    assert pipelines.dtype == torch.float32
    process = FAMILY.process(full, SIZE)
    generator = torch.Generator().manual_seed(0)
    training = torch.cat([process.draw(generator) for _ in range(500)])
    assert 0 < training.min() < 250
    assert 950 < training.max() < 1000
    # Noise of a timestep is as strong as the scheduler's sigma there.
    scheduler = FAMILY.solver(full, STEPS, SIZE)
    zeros, ones = torch.zeros(STEPS, 1, 1, 1), torch.ones(STEPS, 1, 1, 1)
    sigmas = process.add_noise(zeros, ones, scheduler.timesteps).flatten()
    torch.testing.assert_close(sigmas, scheduler.sigmas[:-1])


def test_the_solver_leaves_the_pipelines_scheduler_alone(full: Any) -> None:
    before = full.scheduler.timesteps.clone()
    assert FAMILY.solver(full, 3, SIZE) is not full.scheduler
    assert torch.equal(full.scheduler.timesteps, before)
    assert FAMILY.process(full, SIZE).shift == 3.0  # type: ignore[attr-defined]


# --- texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DOG, "", "snow " * 90])
def test_one_text_is_encoded_as_the_pipeline_does(pipe: Any, text: str) -> None:
    if pipe.text_encoder_3 is None and len(text) > 77:
        text = text[:200]
    tokens = FAMILY.tokenize(pipe, text)
    assert all(ids.shape[0] == 1 and ids.dtype == torch.int64 for ids in tokens.values())
    with torch.no_grad():
        own, pipelines = FAMILY.encode(pipe, tokens), FAMILY.encode_prompts(pipe, [text])
    assert own.keys() == pipelines.keys()
    for key in own:
        torch.testing.assert_close(own[key], pipelines[key], rtol=0, atol=0)
    assert own["hidden"].shape == (1, 77 + 256, tiny_sd3.TEXT_WIDTH)
    assert own["pooled"].shape == (1, tiny_sd3.FIRST_POOLED + tiny_sd3.SECOND_POOLED)


def test_texts_keep_their_order_and_negatives_are_one(full: Any) -> None:
    with torch.no_grad():
        both, second = (
            FAMILY.encode_prompts(full, [DOG, MAN]),
            FAMILY.unconditional(full, MAN, FAMILY.encode_prompts(full, [MAN])),
        )
    for key in both:
        torch.testing.assert_close(both[key][1:], second[key])
        assert not torch.allclose(both[key][:1], second[key])


def test_a_text_too_long_is_refused_with_both_lengths(folder: Path, bare_folder: Path) -> None:
    """The limit is T5's where it is there, and CLIP's where it is not."""
    full, bare = tiny_sd3.load(folder), tiny_sd3.load(bare_folder)
    text = "snow " * 80
    assert FAMILY.tokenize(full, text)["tokenizer"].shape == (1, 77)
    with pytest.raises(ValueError, match="has 82 tokens, the model reads 77"):
        FAMILY.tokenize(bare, text)
    given = len(full.tokenizer_3(text * 4).input_ids)
    assert given > 256
    with pytest.raises(ValueError, match=f"has {given} tokens, the model reads 256"):
        FAMILY.tokenize(full, text * 4)


def test_gradients_reach_the_text_encoders_that_train(full: Any) -> None:
    """T5 is frozen by whoever trains, as every network that does not train."""
    full.text_encoder_3.requires_grad_(False)
    conditioning = FAMILY.encode(full, FAMILY.tokenize(full, DOG))
    FAMILY.predict(full, noise(), torch.tensor([500.0]), conditioning).square().mean().backward()
    for part in CLIPS:
        encoder = getattr(full, part)
        for name in ("encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.2.mlp.fc2.weight"):
            gradient = encoder.get_parameter(f"text_model.{name}").grad
            assert gradient is not None
            assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in full.text_encoder_3.parameters())
    assert FAMILY.lora_text_encoders == CLIPS


# --- pictures ------------------------------------------------------------------------------------------


def test_latents_are_scaled_and_shifted_as_in_the_training_script(full: Any) -> None:
    """train_dreambooth_lora_sd3.py: model_input = (vae.encode(x).sample() - shift_factor) * scaling_factor."""
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, logvar = FAMILY.posterior(full, pixels)
        distribution = full.vae.encode(pixels).latent_dist
        torch.testing.assert_close(mean, distribution.mean)
        torch.testing.assert_close(logvar, distribution.logvar)
        scale, shift = FAMILY.factors(full)
        assert (scale, shift) == (0.75, 0.25)
        # There and back: what is decoded is what the VAE makes of the unscaled mean.
        torch.testing.assert_close(FAMILY.decode(full, (mean - shift) * scale), full.vae.decode(mean).sample)
    assert mean.shape == (2, *FAMILY.latent_shape(full, SIZE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vae_gives_float32(full: Any, dtype: torch.dtype) -> None:
    latents = noise()
    with torch.no_grad():
        exact = FAMILY.decode(full, latents)
        full.vae.to(dtype)
        half = FAMILY.decode(full, latents)
        moments = FAMILY.posterior(full, torch.zeros(1, 3, 64, 64))
    assert half.dtype == torch.float32
    assert all(moment.dtype == torch.float32 for moment in moments)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


def test_sizes(full: Any) -> None:
    configs = {"transformer": dict(full.transformer.config), "vae": dict(full.vae.config)}
    assert FAMILY.resolution(configs) == 64
    assert FAMILY.multiple(configs) == 8
    assert FAMILY.latent_shape(full, None) == (16, 16, 16)
    assert FAMILY.latent_shape(full, (64, 96)) == (16, 16, 24)
    for size in ((64, 68), (0, 64), (64, 24 * 8 + 8)):  # no multiple, none, more than the positions it knows
        with pytest.raises(
            UserError, match=r"model\.resolution is \d+: .* multiple of 8 pixels, at most 192"
        ):
            FAMILY.latent_shape(full, size)
    with torch.no_grad():
        conditioning = FAMILY.encode_prompts(full, [DOG])
        wide = FAMILY.predict(full, torch.zeros(1, 16, 16, 24), torch.tensor([3.0]), conditioning)
    assert wide.shape == (1, 16, 16, 24)
    assert FAMILY.training_extras(full, [Framing((64, 64), (0, 0), (64, 64))]) == {}


def test_half_precision_prediction(full: Any) -> None:
    """Cached texts in float32 are read by a transformer in half precision."""
    with torch.no_grad():
        conditioning = FAMILY.encode_prompts(full, [DOG])
        exact = FAMILY.predict(full, noise(), torch.tensor(500.0), conditioning)
        full.transformer.to(torch.bfloat16)
        half = FAMILY.predict(full, noise().bfloat16(), torch.tensor(500.0), conditioning)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)
