"""What holds for every family, on a tiny model of each: plain diffusers is the reference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.families import FAMILIES, by_pipeline, of
from diffusion_lab.families.family import Framing
from tests.families.tiny import FAMILY, SIDE, draw, plain

PROMPT, OTHER = "a photo of dog", "the portrait of a woman in the dog"


@pytest.fixture(params=sorted(FAMILY), scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    pipe = FAMILY[request.param](folder)
    return FAMILIES[request.param], pipe, folder


@pytest.fixture
def family(case: tuple[Any, Any, Path]) -> Any:
    return case[0]


@pytest.fixture
def pipe(case: tuple[Any, Any, Path]) -> Any:
    return case[1]


@pytest.fixture
def configs(case: tuple[Any, Any, Path]) -> dict[str, Any]:
    """By part, as in the folder."""
    files = [*case[2].glob("*/config.json"), *case[2].glob("scheduler/*.json")]
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    assert {"vae", "scheduler", case[0].denoiser, *case[0].text_encoders} == set(found)
    return found


def test_importing_families_loads_nothing_slow() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import sys, diffusion_lab.families; print(*sys.modules, sep='\\n')"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "diffusion_lab.families.sdxl" in told
    assert not {"torch", "diffusers", "transformers", "numpy"} & set(told)


def test_every_family_is_tried_here() -> None:
    assert set(FAMILY) == set(FAMILIES)


def test_found_by_its_pipeline(family: Any, pipe: Any) -> None:
    assert of(pipe) is family
    assert by_pipeline(type(pipe).__name__) is family
    assert by_pipeline("StableDiffusionXLImg2ImgPipeline") is None
    assert isinstance(pipe, family.pipeline_class())
    with pytest.raises(ValueError, match="object is a pipeline of none of"):
        of(object())


def test_parts_are_the_pipelines(family: Any, pipe: Any) -> None:
    networks = family.networks(pipe)
    assert list(networks) == [family.denoiser, "vae", *family.text_encoders]
    assert all(network is getattr(pipe, part) for part, network in networks.items())
    for part, kind in family.part_classes().items():
        assert type(networks[part]) is kind
    assert set(family.parameters) == set(networks)
    assert len(family.tokenizers) == len(family.text_encoders)
    assert set(family.lora_text_encoders) <= set(family.text_encoders)
    assert set(family.why_not) == {"network", "adapter", "word", "hypernetwork"} - family.trainable
    for vocabulary in family.vocabularies:
        rows = getattr(pipe, vocabulary.text_encoder).get_input_embeddings().num_embeddings
        assert len(getattr(pipe, vocabulary.tokenizer)) == rows


def test_targets_name_layers(family: Any, pipe: Any) -> None:
    layers = [
        name
        for name, module in getattr(pipe, family.denoiser).named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    for target in {*family.lora_targets, *family.small_lora_targets}:
        assert any(name.endswith(f".{target}") for name in layers), target


def test_its_own_configs_are_accepted(family: Any, pipe: Any, configs: dict[str, Any]) -> None:
    assert family.check_configs(configs) is None
    assert family.resolution(configs) == SIDE
    assert SIDE % family.multiple(configs) == 0
    side = family.latent_shape(pipe, (SIDE, SIDE))[-1]
    assert family.latent_shape(pipe, None)[1:] == (side, side)
    work = family.work(configs, side)
    assert work.tflop > 0
    with pytest.raises(KeyError):
        family.work({**configs, family.denoiser: {}}, side)


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_an_image_is_plain_diffusers(family: Any, pipe: Any, scale: float) -> None:
    ours = draw(family, pipe, PROMPT, scale=scale)
    theirs = plain(family, pipe, PROMPT, scale=scale)
    assert torch.allclose(ours.clamp(-1, 1), theirs, atol=1e-5)
    assert (ours - draw(family, pipe, OTHER, scale=scale)).abs().max() > 1e-5  # the text counts


def test_encode_is_encode_prompts(family: Any, pipe: Any) -> None:
    together = family.encode_prompts(pipe, [OTHER, PROMPT])
    alone = family.encode(pipe, family.tokenize(pipe, PROMPT))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert value.shape == together[name][1:].shape
        assert torch.allclose(value, together[name][1:], atol=1e-6)
        assert not torch.allclose(value, together[name][:1], atol=1e-4)


def test_tokens_are_of_one_text_by_tokenizer(family: Any, pipe: Any) -> None:
    tokens = family.tokenize(pipe, PROMPT)
    assert set(tokens) <= set(family.tokenizers)
    assert tokens
    for ids in tokens.values():
        assert ids.dtype == torch.int64
        assert ids.shape[0] == 1
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model reads \d+"):
        family.tokenize(pipe, "dog " * 2000)


def test_a_step_of_training(family: Any, pipe: Any) -> None:
    """Rows stay apart, and gradients reach the denoiser and the text encoders."""
    size = (SIDE, SIDE)
    framings = [Framing((72, 64), (4, 0), size), Framing((64, 100), (0, 18), size)]
    process = family.process(pipe, size)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 2, *family.latent_shape(pipe, size)), generator=generator)
    timesteps = torch.cat([process.draw(generator) for _ in range(2)])
    texts = [family.encode(pipe, family.tokenize(pipe, text)) for text in (PROMPT, OTHER)]
    conditioning = {
        **{name: torch.cat([text[name] for text in texts]) for name in texts[0]},
        **family.training_extras(pipe, framings),
    }
    assert all(len(value) == 2 for value in conditioning.values())
    noisy = process.add_noise(latents, noise, timesteps)
    answer = family.predict(pipe, noisy, timesteps, conditioning)
    target = process.target(latents, noise, timesteps)
    assert answer.shape == target.shape == latents.shape
    second = {name: value[1:] for name, value in conditioning.items()}
    with torch.no_grad():
        alone = family.predict(pipe, noisy[1:], timesteps[1:], second)
    assert torch.allclose(alone, answer[1:], atol=1e-5)
    (answer - target).pow(2).mean().backward()
    networks = family.networks(pipe)
    try:
        for part in (family.denoiser, *family.text_encoders):
            gradients = [p.grad for p in networks[part].parameters() if p.grad is not None]
            assert any(bool(g.abs().max() > 0) for g in gradients), part
            assert all(bool(g.isfinite().all()) for g in gradients)
        assert all(p.grad is None for p in pipe.vae.parameters())
    finally:
        for network in networks.values():
            network.zero_grad()


def test_pictures_to_latents_and_back(family: Any, pipe: Any) -> None:
    pixels = torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean, logvar = family.posterior(pipe, pixels)
    with torch.no_grad():
        found = pipe.vae.encode(pixels).latent_dist
        decoded = pipe.vae.decode(found.mean).sample
    assert torch.equal(mean, found.mean)
    assert torch.equal(logvar, found.logvar)
    assert mean.shape[1:] == logvar.shape[1:]
    scale, shift = family.factors(pipe)
    with torch.no_grad():
        again = family.decode(pipe, (mean - shift) * scale)
    assert torch.allclose(again, decoded, atol=1e-4)


def test_pictures_are_encoded_in_float32_under_any_format(family: Any, case: Any) -> None:
    from tests.families.tiny import reload

    pipe = reload(family.pipeline_class(), case[2])
    pixels = torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2)) * 2 - 1
    pipe.vae.to(torch.bfloat16)
    kept = [p.data_ptr() for p in pipe.vae.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = family.posterior(pipe, pixels)
    assert [p.data_ptr() for p in pipe.vae.parameters()] == kept
    assert pipe.vae.dtype == torch.bfloat16
    with torch.no_grad():
        expected = pipe.vae.float().encode(pixels).latent_dist.mean
    assert mean.dtype == torch.float32
    assert torch.equal(mean, expected)
