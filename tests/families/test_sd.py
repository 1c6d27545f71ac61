"""Stable Diffusion's family computes what training, sampling and export compute, to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusion_lab.families import FAMILIES, ddpm, losses
from diffusion_lab.families.batch import Batch
from diffusion_lab.methods import lora
from diffusion_lab.miniature.shipped import shipped_folder
from diffusion_lab.records import UserError
from diffusion_lab.sampling import sample
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.training import latents

FAMILY: Any = FAMILIES["sd"]
PROMPTS = ["a photo of dog", "the woman"]


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipe(
    request: pytest.FixtureRequest, tiny_sd_folder: Path, tiny_v_sd_folder: Path, load_plain_pipe: Any
) -> Any:
    return load_plain_pipe(tiny_sd_folder if request.param == "epsilon" else tiny_v_sd_folder)


def test_texts(pipe: Any) -> None:
    ids = pipe.tokenizer(PROMPTS[0], padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokens = FAMILY.tokenize(pipe, PROMPTS[0])
    assert torch.equal(tokens["tokenizer"], ids)
    with torch.no_grad():
        hidden = FAMILY.encode(pipe, tokens)["hidden"]
        assert torch.equal(hidden, pipe.text_encoder(ids)[0])
        found = FAMILY.encode_prompts(pipe, PROMPTS)
        assert torch.equal(FAMILY.unconditional(pipe, "blurry", found)["hidden"], found["hidden"])
    assert torch.equal(found["hidden"], PromptEmbeddings().encode(pipe, PROMPTS)["hidden"])


def test_pictures(pipe: Any, tiny_subject: Any) -> None:
    from diffusion_lab.data.pictures import center_crop_resize, to_tensor

    cached = latents.encode_pictures(pipe, tiny_subject.train, 64, flip=True)
    for number, picture in enumerate(tiny_subject.train):
        pixels = to_tensor(center_crop_resize(picture.pixels, 64))
        for version, shown in enumerate((pixels, pixels.flip(-1))):
            with torch.no_grad():
                posterior = pipe.vae.encode(shown[None]).latent_dist
            assert torch.equal(posterior.mean[0], cached.mean[number, version])
            assert torch.equal(posterior.logvar[0], cached.logvar[number, version])
    assert (cached.scaling_factor, cached.shift_factor) == (pipe.vae.config.scaling_factor, 0.0)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_loss(pipe: Any, gamma: float | None) -> None:
    """Picture by picture: noise, then its timestep, from the one stream; U-Net and scheduler are called as they are."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn((3, 4, 16, 16), generator=generator)
    tokens = {"tokenizer": FAMILY.tokenize(pipe, PROMPTS[0])["tokenizer"].expand(3, -1)}
    process = FAMILY.process(pipe, (64, 64))
    batch = Batch(clean, tokens, None, {}, process, snr_gamma=gamma)
    found = losses.batch_loss(pipe, batch, torch.Generator().manual_seed(1))
    stream = torch.Generator().manual_seed(1)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pairs = [
        (torch.randn((4, 16, 16), generator=stream), torch.randint(0, 1000, (1,), generator=stream))
        for _ in range(3)
    ]
    noise, timesteps = torch.stack([one for one, _ in pairs]), torch.cat([one for _, one in pairs])
    hidden = pipe.text_encoder(tokens["tokenizer"])[0]
    answer = pipe.unet(scheduler.add_noise(clean, noise, timesteps), timesteps, hidden).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, timesteps) if is_v else noise
    error = (answer - target).pow(2)
    if gamma is None:
        assert torch.equal(found, torch.nn.functional.mse_loss(answer, target))
        return
    snr = compute_snr(scheduler, timesteps)
    weights = snr.clamp(max=gamma) / (snr + 1 if is_v else snr)
    assert torch.equal(found, (error.mean(dim=(1, 2, 3)) * weights).mean())


def test_sampling(pipe: Any) -> None:
    """The same image as plain diffusers with the same solver and noise."""
    with torch.no_grad():
        known = PromptEmbeddings().encode(pipe, ["blurry", PROMPTS[0]])
        noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
        parts = [{name: value[rows] for name, value in known.items()} for rows in (slice(1, 2), slice(0, 1))]
        denoised = sample.denoise(pipe, noise, *parts, 3, 4.0)
        (pixels,) = sample.decode(pipe, denoised)
        pipe.scheduler = ddpm.solver(pipe, 3)
        plain = pipe(
            PROMPTS[0], negative_prompt="blurry", latents=noise, num_inference_steps=3, guidance_scale=4.0,
            output_type="np",
        ).images[0]  # fmt: skip
    assert np.abs(pixels.astype(int) - (plain * 255).round().astype(int)).max() <= 1


def test_sizes(pipe: Any) -> None:
    configs = {"unet": pipe.unet.config, "vae": pipe.vae.config}
    assert FAMILY.resolution(configs) == 64
    assert FAMILY.latent_shape(pipe, None) == (4, 16, 16)
    assert FAMILY.latent_shape(pipe, (32, 64)) == (4, 8, 16)
    for pixels in (0, -4, 30):
        with pytest.raises(UserError, match="model.resolution is .*positive multiple of 4 pixels"):
            FAMILY.latent_shape(pipe, (pixels, pixels))


@pytest.mark.parametrize("name", ["miniature", "miniature_v"])
def test_the_shipped_models_are_of_the_family(name: str) -> None:
    folder = shipped_folder(name)
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in FAMILY.parameters}
    configs["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert FAMILY.check_configs(configs) is None
    assert FAMILY.resolution(configs) == 64


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("unet", {"in_channels": 9}, r"not a text-to-image .* \(9 input channels for 4 latent ones\)"),
        ("unet", {"addition_embed_type": "text_time"}, "not a text-to-image .* additional embeddings"),
        ("vae", {"latent_channels": 16}, "4 input channels for 16 latent ones"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type sample of its scheduler"),
    ],
)
def test_other_models_are_refused(pipe: Any, part: str, changes: dict[str, Any], reason: str) -> None:
    configs = {
        "unet": dict(pipe.unet.config), "vae": dict(pipe.vae.config), "scheduler": dict(pipe.scheduler.config)
    }  # fmt: skip
    assert FAMILY.check_configs(configs) is None
    configs[part] |= changes
    assert re.search(reason, str(FAMILY.check_configs(configs)))


@pytest.mark.parametrize("rslora", [False, True])
def test_kohyas_names(pipe: Any, tmp_path: Path, rslora: bool) -> None:
    from diffusers import StableDiffusionPipeline

    method = lora.Lora(rank=4, alpha=2.0, text_encoder=True, rank_stabilised=rslora)
    method.attach(pipe)
    method.save(pipe, tmp_path)
    weights, _, settings = StableDiffusionPipeline.lora_state_dict(
        tmp_path, weight_name=lora.FILE_NAME, use_safetensors=True, return_lora_metadata=True
    )
    ours = FAMILY.kohya(weights, settings)
    assert {key.split("_")[1] for key in ours} == {"unet", "te"}
    scale = 2.0 / 4**0.5 if rslora else 2.0 / 4
    downs = [key for key in ours if key.endswith(".lora_down.weight")]
    assert len(downs) == len(weights) / 2
    for key in downs:  # tools multiply with alpha / rank
        assert float(ours[key.replace("lora_down.weight", "alpha")]) == pytest.approx(scale * 4)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    name = f"lora_unet_{layer.replace('.', '_')}"
    assert torch.equal(ours[f"{name}.lora_up.weight"], weights[f"unet.{layer}.lora_B.weight"])
    assert FAMILY.kohya(weights, {**settings, "unet.use_dora": True}) is None
