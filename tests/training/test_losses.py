"""The loss against the papers' formulas, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion_lab.families.ddpm import Ddpm
from diffusion_lab.families.losses import Draw, denoising_loss, draw_noise

LATENTS = (3, 4, 5, 6)
PROCESS = Ddpm(DDPMScheduler())


def cumulative_alphas(config) -> list[float]:
    """abar_t = prod (1 - beta_s) in Python floats, for Stable Diffusion's `scaled_linear` betas."""
    steps, first, last = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    assert config["beta_schedule"] == "scaled_linear"
    betas = [
        (math.sqrt(first) + (math.sqrt(last) - math.sqrt(first)) * s / (steps - 1)) ** 2 for s in range(steps)
    ]
    out, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        out.append(product)
    return out


def literal_loss(config, latents, draw: Draw, predict) -> float:
    """Element by element in Python floats: DDPM eq. 14, or the v of Salimans and Ho."""
    abar = cumulative_alphas(config)
    noisy = torch.empty_like(latents)
    targets: list[float] = []
    for i, t in enumerate(draw.timesteps.tolist()):
        a, s = math.sqrt(abar[t]), math.sqrt(1 - abar[t])
        x, e = latents[i].flatten().tolist(), draw.noise[i].flatten().tolist()
        noisy[i] = torch.tensor([a * u + s * v for u, v in zip(x, e, strict=True)]).reshape(latents[i].shape)
        is_v = config["prediction_type"] == "v_prediction"
        targets += [a * v - s * u if is_v else v for u, v in zip(x, e, strict=True)]
    predicted = predict(noisy, draw.timesteps).flatten().tolist()
    return sum((p - q) ** 2 for p, q in zip(predicted, targets, strict=True)) / len(targets)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_papers(prediction_type: str) -> None:
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(1))
    draw = draw_noise(latents, PROCESS, torch.Generator().manual_seed(2))

    def predict(noisy, timesteps):
        return torch.sin(3 * noisy) + timesteps[:, None, None, None] / 1000

    ours = denoising_loss(predict, Ddpm(scheduler), latents, draw)
    assert ours.shape == ()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(literal_loss(scheduler.config, latents, draw, predict), rel=1e-5)


def test_the_two_types_differ_as_they_should() -> None:
    """v approaches the noise at t = 0 and minus the picture at t = T."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                              prediction_type="v_prediction")  # fmt: skip
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    v = Ddpm(scheduler).target(latents, noise, torch.tensor([0, 999]))
    assert (v[0] - noise[0]).abs().max() < 0.12
    assert (v[1] + latents[1]).abs().max() < 0.25
    bad = DDPMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="sample"):
        Ddpm(bad).target(latents, noise, torch.tensor([0, 999]))


def test_draws_do_not_depend_on_the_split_into_batches() -> None:
    latents = torch.zeros(4, 4, 8, 8)
    whole = draw_noise(latents, PROCESS, torch.Generator().manual_seed(3))
    stream = torch.Generator().manual_seed(3)
    halves = [draw_noise(latents[:2], PROCESS, stream) for _ in range(2)]
    assert torch.equal(whole.noise, torch.cat([half.noise for half in halves]))
    assert torch.equal(whole.timesteps, torch.cat([half.timesteps for half in halves]))


def test_timesteps_cover_the_whole_schedule() -> None:
    draw = draw_noise(
        torch.zeros(4000, 1, 1, 1),
        Ddpm(DDPMScheduler(num_train_timesteps=8)),
        torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(draw.timesteps, minlength=8)
    assert counts.shape == (8,)
    assert counts.min() > 400  # 500 expected, standard deviation 21


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_and_prior_preservation_are_the_papers(prediction_type: str) -> None:
    """Min-SNR (Hang et al., eq. 5) and DreamBooth's eq. 2, element by element in Python floats."""
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )
    latents = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    draw = Draw(torch.randn(latents.shape, generator=torch.Generator().manual_seed(2)),
                torch.tensor([3, 200, 600, 990]))  # fmt: skip

    def predict(noisy, timesteps):
        return torch.cos(2 * noisy) - timesteps[:, None, None, None] / 500

    abar = cumulative_alphas(scheduler.config)
    each = []
    for i, t in enumerate(draw.timesteps.tolist()):
        one = Draw(draw.noise[i : i + 1], draw.timesteps[i : i + 1])
        mse = literal_loss(scheduler.config, latents[i : i + 1], one, predict)
        snr = abar[t] / (1 - abar[t])
        each.append(mse * min(snr, 5.0) / (snr + 1 if prediction_type == "v_prediction" else snr))
    ours = denoising_loss(predict, Ddpm(scheduler), latents, draw, snr_gamma=5.0)
    assert ours.item() == pytest.approx(sum(each) / 4, rel=1e-4)
    both = denoising_loss(
        predict, Ddpm(scheduler), latents, draw, snr_gamma=5.0, n_class=1, prior_weight=0.3
    )  # halves of unequal size: a mean over all would differ
    assert both.item() == pytest.approx(sum(each[:3]) / 3 + 0.3 * each[3], rel=1e-4)


def test_offset_noise_shifts_channels_and_leaves_the_stream_alone_where_it_is_off() -> None:
    latents = torch.zeros(3, 4, 8, 8)
    plain = draw_noise(latents, PROCESS, torch.Generator().manual_seed(3))
    same = draw_noise(latents, PROCESS, torch.Generator().manual_seed(3), 0.0)
    assert torch.equal(plain.noise, same.noise)
    shifted = draw_noise(latents[:1], PROCESS, torch.Generator().manual_seed(3), 0.5)
    difference = shifted.noise[0] - plain.noise[0]
    assert difference.flatten(1).std(dim=1).max() < 1e-6
    assert difference.flatten(1).mean(dim=1).abs().min() > 1e-3
