"""Batched sampling against plain diffusers: one `pipe(prompt)` call an image."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Prompts
from diffusion_lab.families import ddpm
from diffusion_lab.records import Prompt, PromptSet, TrainingDiverged, UserError
from diffusion_lab.sampling import sample as module
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.sampling.sample import denoise, plan, sample

PROMPTS = PromptSet(
    name="three",
    prompts=tuple(
        Prompt(f"p{i}", text, text) for i, text in enumerate(("a dog", "a photo of man", "the woman"))
    ),
    negative="blurry",
    sha256="",
)


def settings_of(**changes: Any) -> Prompts:
    return Prompts(**{"n": 3, "sampling_steps": 3, "batch_size": 2, "guidance_scale": 4.0} | changes)


def plain(pipe: Any, settings: Prompts, prompts: PromptSet = PROMPTS) -> list[np.ndarray]:
    """What anybody would write with diffusers."""
    kept, pipe.scheduler = pipe.scheduler, ddpm.solver(pipe, settings.sampling_steps)
    try:
        return [
            np.asarray(
                pipe(
                    item.prompt.text,
                    negative_prompt=prompts.negative,
                    num_inference_steps=settings.sampling_steps,
                    guidance_scale=settings.guidance_scale,
                    generator=torch.Generator().manual_seed(item.seed),
                ).images[0]
            )
            for item in plan(prompts, settings)
        ]
    finally:
        pipe.scheduler = kept


def assert_same_pictures(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs) > 0
    difference = np.abs(np.stack(ours).astype(int) - np.stack(theirs).astype(int))
    assert (difference > 1).mean() < 1e-4
    assert difference.max() <= 2


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_equals_plain_diffusers(tiny_pipe: Any, guidance: float) -> None:
    settings = settings_of(guidance_scale=guidance)
    ours = sample(tiny_pipe, PROMPTS, settings)
    assert [image.shape for image in ours] == [(64, 64, 3)] * 3
    assert all(image.dtype == np.uint8 for image in ours)
    assert_same_pictures(ours, plain(tiny_pipe, settings))


def test_equals_plain_diffusers_with_v_prediction(tiny_v_pipe: Any) -> None:
    settings = settings_of()
    assert_same_pictures(sample(tiny_v_pipe, PROMPTS, settings), plain(tiny_v_pipe, settings))


def test_batch_size_changes_the_speed_only(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(pipe: Any, noise: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(noise.clone())
        return denoise(pipe, noise, *rest)

    monkeypatch.setattr(module, "denoise", watched)
    images, noises = [], []
    for batch_size in (1, 2, 8):
        seen.clear()
        images.append(sample(tiny_pipe, PROMPTS, settings_of(batch_size=batch_size, images_per_prompt=2)))
        noises.append(torch.cat(seen))
    assert torch.equal(noises[0], noises[1])
    assert torch.equal(noises[0], noises[2])
    assert_same_pictures(images[0], images[1])
    assert_same_pictures(images[0], images[2])


def test_same_batch_size_same_bits(tiny_pipe: Any) -> None:
    torch.manual_seed(1)
    first = np.stack(sample(tiny_pipe, PROMPTS, settings_of()))
    torch.manual_seed(2)
    assert np.array_equal(first, np.stack(sample(tiny_pipe, PROMPTS, settings_of())))


def test_negative_prompt_noise_seed_and_index_matter(tiny_pipe: Any) -> None:
    base = np.stack(sample(tiny_pipe, PROMPTS, settings_of()))
    assert not np.array_equal(base, np.stack(sample(tiny_pipe, replace(PROMPTS, negative=""), settings_of())))
    assert not np.array_equal(base, np.stack(sample(tiny_pipe, PROMPTS, settings_of(noise_seed=1))))
    twice = sample(tiny_pipe, PROMPTS, settings_of(images_per_prompt=2))
    assert not np.array_equal(twice[0], twice[1])
    assert_same_pictures([twice[0], twice[2], twice[4]], list(base))


def test_leaves_everything_as_it_was(tiny_pipe: Any) -> None:
    tiny_pipe.unet.train()
    tiny_pipe.unet.mid_block.eval()  # mixed on purpose
    tiny_pipe.text_encoder.train()
    modules = [*tiny_pipe.unet.modules(), *tiny_pipe.vae.modules(), *tiny_pipe.text_encoder.modules()]
    modes = [part.training for part in modules]
    weights = {name: value.clone() for name, value in tiny_pipe.unet.state_dict().items()}
    scheduler, config = tiny_pipe.scheduler, dict(tiny_pipe.scheduler.config)
    streams = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    sample(tiny_pipe, PROMPTS, settings_of())
    assert [part.training for part in modules] == modes
    assert all(torch.equal(weights[name], value) for name, value in tiny_pipe.unet.state_dict().items())
    assert tiny_pipe.scheduler is scheduler
    assert dict(scheduler.config) == config
    assert random.getstate() == streams[0]
    assert np.array_equal(np.random.get_state()[1], streams[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), streams[2])
    assert torch.is_grad_enabled()


def test_dropout_is_off(tiny_pipe: Any) -> None:
    base = np.stack(sample(tiny_pipe, PROMPTS, settings_of()))
    for part in tiny_pipe.unet.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.9
    tiny_pipe.unet.train()
    assert np.array_equal(base, np.stack(sample(tiny_pipe, PROMPTS, settings_of())))


def test_progress_counts_images(tiny_pipe: Any) -> None:
    done: list[int] = []
    sample(tiny_pipe, PROMPTS, settings_of(), progress=done.append)
    assert done == [2, 1]


def test_resolution(tiny_pipe: Any) -> None:
    assert sample(tiny_pipe, PROMPTS, settings_of(), resolution=32)[0].shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"model\.resolution.*multiple of 4"):
        sample(tiny_pipe, PROMPTS, settings_of(), resolution=33)


def test_weights_of_two_precisions(tiny_pipe: Any) -> None:
    """Frozen in half precision, trained in float32, as while fine-tuning with model.precision=bf16."""
    base = np.stack(sample(tiny_pipe, PROMPTS, settings_of())).astype(float)
    for name, parameter in tiny_pipe.unet.named_parameters():
        if "to_q" not in name:
            parameter.data = parameter.data.bfloat16()
    tiny_pipe.vae.bfloat16()
    tiny_pipe.text_encoder.bfloat16()
    mixed = np.stack(sample(tiny_pipe, PROMPTS, settings_of())).astype(float)
    assert 0 < np.abs(base - mixed).mean() < 8
    assert {p.dtype for p in tiny_pipe.unet.parameters()} == {torch.bfloat16, torch.float32}


def test_diverged_weights_are_named(tiny_pipe: Any) -> None:
    with torch.no_grad():
        tiny_pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="not finite"):
        sample(tiny_pipe, PROMPTS, settings_of())


def test_a_vae_that_overflows_draws_no_black_images(tiny_pipe: Any) -> None:
    with torch.no_grad():
        tiny_pipe.vae.decoder.conv_out.bias.fill_(torch.inf)
        tiny_pipe.vae.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"model\.precision.*set model\.precision=bf16 or fp32"):
        sample(tiny_pipe, PROMPTS, settings_of())


def test_solver_is_ours_and_the_noise_schedule_the_models(tiny_v_pipe: Any) -> None:
    config = ddpm.solver(tiny_v_pipe, 3).config
    assert {key: config[key] for key in ddpm.SOLVER} == ddpm.SOLVER
    assert config.prediction_type == "v_prediction"
    assert (config.beta_schedule, config.beta_start) == ("scaled_linear", 0.00085)


@pytest.fixture
def calls(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []
    real: Callable[..., Any] = tiny_pipe.encode_prompt

    def watched(prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        found.append(list(prompt))
        return real(prompt, *args, **kwargs)

    monkeypatch.setattr(tiny_pipe, "encode_prompt", watched)
    return found


def test_prompts_are_embedded_once_while_the_encoder_is_frozen(
    tiny_pipe: Any, calls: list[list[str]]
) -> None:
    tiny_pipe.text_encoder.requires_grad_(False)
    cache = PromptEmbeddings()
    first = sample(tiny_pipe, PROMPTS, settings_of(), prompt_embeds=cache)
    second = sample(tiny_pipe, PROMPTS, settings_of(), prompt_embeds=cache)
    assert calls == [["blurry", "a dog", "a photo of man", "the woman"]]
    assert len(cache) == 4
    assert np.array_equal(np.stack(first), np.stack(second))


def test_a_changed_or_training_encoder_is_asked_again(tiny_pipe: Any, calls: list[list[str]]) -> None:
    cache = PromptEmbeddings()
    encoder = tiny_pipe.text_encoder.requires_grad_(False)
    before = cache.encode(tiny_pipe, ["a dog"])["hidden"]
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(2)
    after = cache.encode(tiny_pipe, ["a dog"])["hidden"]
    assert len(calls) == 2
    assert not torch.equal(before, after)
    encoder.requires_grad_(True)
    cache.encode(tiny_pipe, ["a dog"])
    cache.encode(tiny_pipe, ["a dog"])
    assert len(calls) == 4
    assert len(cache) == 0


def test_embeddings_are_diffusers_own(tiny_pipe: Any) -> None:
    texts = ["a dog", "the woman", "a dog"]
    ours = PromptEmbeddings().encode(tiny_pipe, texts)["hidden"]
    for text, embedding in zip(texts, ours, strict=True):
        expected, _ = tiny_pipe.encode_prompt(text, "cpu", 1, False)
        assert torch.allclose(embedding, expected[0], atol=1e-6)
    assert not ours.requires_grad
    assert not ours.is_inference()
