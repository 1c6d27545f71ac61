"""Stable Diffusion's family computes what training, sampling and export compute, to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_lab.models.shipped import shipped_folder

from diffusion_lab.families import FAMILIES
from diffusion_lab.methods import lora
from diffusion_lab.models import kohya, load, single_file
from diffusion_lab.records import Batch, UserError
from diffusion_lab.sampling import sample
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.training import latents, losses
from tests.families.tiny import draw

FAMILY: Any = FAMILIES["sd"]
PROMPTS = ["a photo of dog", "the woman"]


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipe(
    request: pytest.FixtureRequest, tiny_sd_folder: Path, tiny_v_sd_folder: Path, load_plain_pipe: Any
) -> Any:
    return load_plain_pipe(tiny_sd_folder if request.param == "epsilon" else tiny_v_sd_folder)


def test_texts(pipe: Any) -> None:
    tokens = FAMILY.tokenize(pipe, PROMPTS[0])
    assert torch.equal(tokens["tokenizer"], latents.tokenize(pipe, PROMPTS[0]))
    with torch.no_grad():
        hidden = FAMILY.encode(pipe, tokens)["hidden"]
        assert torch.equal(hidden, latents.encode_text(pipe, tokens["tokenizer"]))
        found = FAMILY.encode_prompts(pipe, PROMPTS)["hidden"]
        negative = FAMILY.unconditional(pipe, "blurry", FAMILY.encode_prompts(pipe, ["blurry"]))["hidden"]
    assert torch.equal(found, PromptEmbeddings().encode(pipe, PROMPTS))
    assert torch.equal(negative, PromptEmbeddings().encode(pipe, ["blurry"]))


def test_pictures(pipe: Any, tiny_subject: Any) -> None:
    from diffusion_lab.data.pictures import fit, to_tensor

    cached = latents.encode_pictures(pipe.vae, tiny_subject.train, 64, flip=True)
    for number, picture in enumerate(tiny_subject.train):
        pixels = to_tensor(fit(picture.pixels, 64))
        for version, shown in enumerate((pixels, pixels.flip(-1))):
            mean, logvar = FAMILY.posterior(pipe, shown[None])
            assert torch.equal(mean[0], cached.mean[number, version])
            assert torch.equal(logvar[0], cached.logvar[number, version])
    assert FAMILY.factors(pipe) == (cached.scaling_factor, cached.shift_factor)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_loss(pipe: Any, gamma: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn((3, 4, 16, 16), generator=generator)
    tokens = FAMILY.tokenize(pipe, PROMPTS[0])
    expected = losses.batch_loss(
        pipe,
        Batch(clean, tokens["tokenizer"].expand(3, -1), None, load.training_scheduler(pipe), snr_gamma=gamma),
        torch.Generator().manual_seed(1),
    )
    process = FAMILY.process(pipe, (64, 64))
    stream = torch.Generator().manual_seed(1)
    pairs = [(torch.randn((4, 16, 16), generator=stream), process.draw(stream)) for _ in range(3)]
    noise, timesteps = torch.stack([one for one, _ in pairs]), torch.cat([one for _, one in pairs])
    conditioning = FAMILY.encode(pipe, {"tokenizer": tokens["tokenizer"].expand(3, -1)})
    answer = FAMILY.predict(pipe, process.add_noise(clean, noise, timesteps), timesteps, conditioning)
    error = (answer - process.target(clean, noise, timesteps)).pow(2)
    weights = process.weights(timesteps, gamma)
    loss = error.mean() if weights is None else (error.mean(dim=(1, 2, 3)) * weights).mean()
    assert torch.equal(loss, expected)


def test_sampling(pipe: Any) -> None:
    with torch.no_grad():
        known = PromptEmbeddings().encode(pipe, ["blurry", PROMPTS[0]])
        noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
        denoised = sample.denoise(pipe, noise, known[1:], known[:1], 3, 4.0)
        (pixels,) = sample.decode(pipe, denoised)
        decoded = FAMILY.decode(pipe, denoised)
        ours = draw(FAMILY, pipe, PROMPTS[0], negative="blurry")
    assert torch.equal(ours, decoded)
    rounded = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)[0].permute(1, 2, 0)
    assert np.array_equal(rounded.numpy(), pixels)


def test_sizes(pipe: Any) -> None:
    configs = {"unet": pipe.unet.config, "vae": pipe.vae.config}
    assert FAMILY.resolution(configs) == load.describe(pipe)["resolution"]
    assert FAMILY.latent_shape(pipe, None) == sample.latent_shape(pipe, None)
    assert FAMILY.latent_shape(pipe, (32, 32)) == sample.latent_shape(pipe, 32)
    assert FAMILY.latent_shape(pipe, (32, 64)) == (4, 8, 16)
    for pixels in (0, -4, 30):
        with pytest.raises(UserError) as theirs:
            sample.latent_shape(pipe, pixels)
        with pytest.raises(UserError) as ours:
            FAMILY.latent_shape(pipe, (pixels, pixels))
        assert str(ours.value) == str(theirs.value)


def test_facts_are_the_methods() -> None:
    method = lora.Lora()
    assert list(FAMILY.lora_targets) == method.default_targets(small=False)
    assert list(FAMILY.small_lora_targets) == method.default_targets(small=True)
    assert FAMILY.single_file_config == single_file.SD1_CONFIG


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
    ours, theirs = FAMILY.kohya(weights, settings), kohya.rename(weights, settings)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert any(key.startswith("lora_te_") for key in ours)
    assert FAMILY.kohya(weights, {**settings, "unet.use_dora": True}) is None
