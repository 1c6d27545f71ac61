"""The cache of latents gives what encoding anew would give; prompts are encoded as the pipeline does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_lab.data.pictures import center_crop_resize, to_tensor
from diffusion_lab.records import UserError
from diffusion_lab.training.latents import encode_pictures, encode_text, tokenize


def test_cached_equals_uncached(tiny_pipe, tiny_subject) -> None:
    """Three epochs in changing order: a sample from the cache is diffusers' own sample."""
    vae, pictures = tiny_pipe.vae, tiny_subject.train
    cache = encode_pictures(tiny_pipe, pictures, 64)
    ours, theirs = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    for numbers in ([0, 1], [4, 2], [3, 3]):
        latents = cache.sample(numbers, ours)
        for row, number in enumerate(numbers):
            with torch.no_grad():
                posterior = vae.encode(
                    to_tensor(center_crop_resize(pictures[number].pixels, 64))[None]
                ).latent_dist
            fresh = posterior.sample(theirs) * vae.config.scaling_factor
            torch.testing.assert_close(latents[row], fresh[0], rtol=1e-6, atol=1e-6)


def test_every_sample_is_fresh_and_has_the_posteriors_moments(tiny_pipe, tiny_subject) -> None:
    cache = encode_pictures(tiny_pipe, tiny_subject.train[:1], 64)
    samples = cache.sample([0] * 3000, torch.Generator().manual_seed(0)) / cache.scaling_factor
    std = torch.exp(0.5 * cache.logvar[0, 0])
    assert ((samples.mean(0) - cache.mean[0, 0]).abs() / std).max() < 6 / 3000**0.5
    assert (samples.std(0) / std - 1).abs().max() < 0.1


def test_flipped_pictures_are_a_second_entry(tiny_pipe, tiny_subject) -> None:
    pictures = tiny_subject.train[:2]
    cache = encode_pictures(tiny_pipe, pictures, 64, flip=True)
    plain = encode_pictures(tiny_pipe, pictures, 64)
    assert cache.mean.shape == (2, 2, 4, 16, 16)
    assert torch.equal(cache.mean[:, :1], plain.mean)
    with torch.no_grad():
        mirrored = np.ascontiguousarray(center_crop_resize(pictures[1].pixels, 64)[:, ::-1])
        expected = tiny_pipe.vae.encode(to_tensor(mirrored)[None]).latent_dist
    torch.testing.assert_close(cache.mean[1, 1], expected.mean[0])
    torch.testing.assert_close(cache.logvar[1, 1], expected.logvar[0])
    quiet = type(cache)(cache.mean, torch.full_like(cache.logvar, -60.0), cache.scaling_factor, 0.0)
    drawn = quiet.sample([0] * 200, torch.Generator().manual_seed(0)) / cache.scaling_factor
    share = sum(torch.allclose(sample, cache.mean[0, 1], atol=1e-4) for sample in drawn) / 200
    assert 0.35 < share < 0.65


def test_scaling_comes_from_the_vae(tiny_pipe, tiny_subject) -> None:
    cache = encode_pictures(tiny_pipe, tiny_subject.train[:1], 64)
    assert cache.scaling_factor == 0.5
    assert cache.shift_factor == 0.0
    assert cache.mean.dtype == cache.logvar.dtype == torch.float32


def test_encoding_in_half_precision_is_refused(tiny_pipe, tiny_subject) -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        tiny_pipe.vae.to(torch.bfloat16)
        encode_pictures(tiny_pipe, tiny_subject.train, 64)


def test_text_is_what_the_pipeline_would_use(tiny_pipe) -> None:
    text = "a photo of customcls dog"
    tokens = tokenize(tiny_pipe, text)
    assert tokens["tokenizer"].shape == (1, 77)
    expected, _ = tiny_pipe.encode_prompt(text, "cpu", 1, False)
    assert torch.equal(encode_text(tiny_pipe, tokens)["hidden"], expected)


def test_a_prompt_that_is_too_long_is_refused(tiny_pipe) -> None:
    with pytest.raises(UserError, match=r"has \d+ tokens, the model reads 77; shorten data.identifier"):
        tokenize(tiny_pipe, "a photo of " + "x" * 100)
