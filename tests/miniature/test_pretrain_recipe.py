"""Every stage of the recipe at tiny scale, with the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.evaluation.encoders.miniature import (
    MiniatureAesthetics,
    MiniatureClip,
    MiniatureFaceEmbedder,
)
from diffusion_lab.recipes.miniature import recipe
from diffusion_lab.recipes.miniature.data import HELDOUT_SEED, TRAIN_SEED

SCALE = 0.0004


def test_the_command_line_knows_all_stages() -> None:
    from diffusion_lab.config.jobs import STAGES

    assert list(recipe.STAGES) == list(STAGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pretrain")
    return folder, recipe.run(folder, device="cpu", scale=SCALE, progress=False)


@pytest.mark.slow
def test_all_stages_leave_figures_and_weights(made: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = made
    assert list(figures) == list(recipe.STAGES)
    assert json.loads((folder / "figures.json").read_text()).keys() == figures.keys()
    assert {path.name for path in (folder / "weights").iterdir()} == {"sd", "clip", "face", "aesthetics"}


@pytest.mark.slow
def test_weights_are_half_on_disk_and_single_when_loaded(made: tuple[Path, dict[str, Any]]) -> None:
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    folder = made[0] / "weights" / "sd"
    files = list(folder.rglob("*.safetensors"))
    assert len(files) == 3
    for path in files:
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe.safety_checker is None
    assert pipe.vae_scale_factor == 4
    assert pipe.scheduler.config.steps_offset == 1
    assert pipe.scheduler.config.clip_sample is False
    generator = torch.Generator().manual_seed(0)
    image = pipe("a photo of a man", num_inference_steps=2, output_type="np", generator=generator).images
    assert image.shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_text_tower_of_pipeline_is_the_one_that_clip_had_then(made: tuple[Path, dict[str, Any]]) -> None:
    """CLIP goes on learning afterwards (stage "polish"); the U-Net's text encoder must not move with it."""
    from transformers import CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(made[0] / "weights" / "sd" / "tokenizer")
    ids = words(["an oil painting of a woman, smiling"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    with torch.no_grad():
        ours, theirs = (
            CLIPTextModel.from_pretrained(made[0] / place).eval()(ids).last_hidden_state
            for place in ("weights/sd/text_encoder", "parts/text")
        )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_encoders_load_what_was_made(made: tuple[Path, dict[str, Any]]) -> None:
    folder = made[0] / "weights"
    face, clip = MiniatureFaceEmbedder.load(folder / "face"), MiniatureClip.load(folder / "clip")
    crops = torch.randint(0, 256, (3, face.size, face.size, 3), dtype=torch.uint8).numpy()
    torch.testing.assert_close(face.embed(crops).norm(dim=1), torch.ones(3))
    images = [crops[0], crops[1][:30], crops[2]]
    seen, said = clip.embed_images(images), clip.embed_texts(["a photo of a man", "", "x " * 200])
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(said.norm(dim=1), torch.ones(3))
    scores = MiniatureAesthetics.load(folder / "aesthetics").score(seen)
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 10)).all()
    assert face.embed(crops[:0]).shape == (0, 128)
    assert clip.embed_images([]).shape == (0, 128)


@pytest.mark.slow
def test_finished_stages_are_not_run_again(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise AssertionError("ran again")

    monkeypatch.setattr(recipe, "STAGES", dict.fromkeys(recipe.STAGES, refuse))
    assert recipe.run(made[0], device="cpu", scale=SCALE, progress=False) == made[1]


def test_unknown_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unet_2.*known.*unet"):
        recipe.run(tmp_path, stages=["unet_2"])


def test_heldout_people_are_not_trained_on() -> None:
    assert TRAIN_SEED < 1_000_000 <= HELDOUT_SEED
