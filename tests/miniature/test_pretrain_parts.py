"""Tokenizer, captions, ratings, loss weights and scores of the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.miniature.phrases import NOUNS, SLOTS, caption
from diffusion_lab.recipes.miniature import unet
from diffusion_lab.recipes.miniature.aesthetics import noisy_ratings
from diffusion_lab.recipes.miniature.clip import slot_captions
from diffusion_lab.recipes.miniature.data import portraits, training_caption
from diffusion_lab.recipes.miniature.evaluate import evaluation_prompts, save_grid
from diffusion_lab.recipes.miniature.tokenizer import encode, train_tokenizer
from diffusion_lab.recipes.miniature.unet import BETAS, loss_weights


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(tmp_path_factory.mktemp("words"))


def test_words_of_the_world_are_single_tokens(words: Any) -> None:
    for noun in NOUNS:
        assert words.tokenize(noun) == [noun + "</w>"]
    for phrases in SLOTS.values():
        for phrase in phrases:
            assert len(words.tokenize(phrase.text)) <= max(1, len(phrase.text.split()) * 3)


def test_unknown_words_split_and_any_text_is_encoded(words: Any) -> None:
    assert len(words.tokenize("customcls")) > 1
    for text in ("customcls", "Élan 漢字 🙂", "x" * 50):
        ids = words(text).input_ids
        assert words.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_format_is_stable_diffusions(words: Any) -> None:
    ids = encode(words, ["a photo of a man", "woman"])
    assert ids.shape == (2, 77)
    assert (ids[:, 0] == words.bos_token_id).all()
    assert words.pad_token_id == words.eos_token_id != 2
    assert (ids[1, 2:] == words.eos_token_id).all()
    assert encode(words, ["man " * 200]).shape == (1, 77)
    assert words.model_max_length == 77
    assert words.add_tokens("customcls") == 1


def test_longest_caption_fits(words: Any) -> None:
    longest = {
        slot: max(phrases, key=lambda p: len(words.tokenize(p.text))) for slot, phrases in SLOTS.items()
    }
    assert len(words(caption("woman", longest)).input_ids) <= 77


def test_portraits_are_kept_and_described(tmp_path: Path) -> None:
    data = portraits(tmp_path, "some", range(6), range(6))
    assert data.images.shape == (6, 64, 64, 3)
    assert all(set(data.phrases_of(i)) == set(SLOTS) for i in range(6))
    changed = (tmp_path / "some.npy").stat().st_mtime_ns
    assert (portraits(tmp_path, "some", range(6), range(6)).images == data.images).all()
    assert (tmp_path / "some.npy").stat().st_mtime_ns == changed


def test_training_captions_name_styles_and_vary(tmp_path: Path) -> None:
    data, rng = portraits(tmp_path, "some", range(20), range(20)), np.random.default_rng(0)
    for i in range(20):
        shown = data.phrases_of(i)
        texts = {training_caption(rng, data.noun(i), shown) for _ in range(20)}
        assert len(texts) > 3
        assert all(text.startswith(shown["style"].text + " of a " + data.noun(i)) for text in texts)


def test_slot_captions_cover_values() -> None:
    for slot in SLOTS:
        values, texts = slot_captions(slot, "man", np.random.default_rng(0))
        assert set(values) == {phrase.value for phrase in SLOTS[slot]}
        assert len(texts) == len(values)


def test_ratings_are_means_of_ten_whole_votes() -> None:
    true = np.linspace(0, 10, 2000, dtype=np.float32)
    said = noisy_ratings(true, 0)
    assert np.allclose(said * 10, (said * 10).round(), atol=1e-4)
    assert 0.2 < np.std((said - true)[200:-200]) < 0.45


def test_loss_weights_are_min_snr_and_debiased_at_high_noise() -> None:
    from diffusers import DDPMScheduler

    alphas = DDPMScheduler(**BETAS).alphas_cumprod
    snr = alphas / (1 - alphas)
    epsilon, velocity = loss_weights(alphas, "epsilon"), loss_weights(alphas, "v_prediction")
    assert epsilon[0] == pytest.approx(5 / snr[0].item())
    middle = epsilon[(snr < 5) & (snr > 1)]
    torch.testing.assert_close(middle, torch.ones_like(middle))
    assert epsilon[-1] == pytest.approx(snr[-1].item() ** -0.5)
    torch.testing.assert_close(velocity / epsilon, snr / (snr + 1))


def test_head_weights_count_the_head_more_and_keep_the_mean() -> None:
    boxes = np.array([[16.0, 24.0, 48.0, 56.0], [-8.0, -8.0, 2.0, 4.0], [70.0, 0.0, 80.0, 9.0]], np.float32)
    found = unet.head_weights(boxes, 16)
    assert found.shape == (3, 1, 16, 16)
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), torch.ones(3))
    inside = found[0, 0, 6:14, 4:12]
    assert torch.equal(inside, inside[:1, :1].expand(8, 8))
    assert float(inside[0, 0] / found[0, 0, 0, 0]) == pytest.approx(unet.HEAD_WEIGHT)
    corner = found[1, 0]  # half of the first latent pixel, in one direction
    assert float(corner[0, 0] / corner[5, 5]) == pytest.approx(1 + (unet.HEAD_WEIGHT - 1) * 0.5)
    assert torch.equal(found[2], torch.ones(1, 16, 16))  # a face outside of the picture


def test_heads_are_faces_with_their_hair() -> None:
    found = unet.heads(np.array([[20.0, 16.0, 40.0, 40.0]], np.float32))
    assert found.tolist() == [[13.0, 4.0, 47.0, 46.0]]
    assert found.dtype == np.float32


def test_evaluation_prompts_ask_for_no_flaws(tmp_path: Path) -> None:
    prompts = evaluation_prompts(40)
    assert {p["quality"].value for _, p in prompts} == {"none", "magic"}
    assert {noun for noun, _ in prompts} == set(NOUNS)
    save_grid([np.zeros((4, 4, 3), np.uint8)] * 5, 3, tmp_path / "sheet.png", 2)
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_shipped_configs_name_no_folder_of_the_machine_that_made_them() -> None:
    from diffusion_lab.evaluation.encoders.miniature import WEIGHTS

    texts = {p: p.read_text() for p in WEIGHTS.rglob("*.json") if p.name != "tokenizer.json"}
    assert len(texts) >= 6
    assert not [path.name for path, text in texts.items() if "_name_or_path" in text or '"/' in text]


def test_origin_is_forgotten_and_the_rest_kept(tmp_path: Path) -> None:
    from diffusion_lab.recipes.miniature.export import forget_origin

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_name_or_path": "/somewhere", "b": 1, "a": [2]}')
    forget_origin(tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text()) == {"b": 1, "a": [2]}
