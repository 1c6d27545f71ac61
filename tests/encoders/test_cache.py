"""What was seen is kept by picture and encoder, and nothing is encoded twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.encoders.cache import FeatureCache, image_key, text_key

NEEDS = {"face", "clip_image", "clip_text", "aesthetics"}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_keys() -> None:
    assert image_key(picture(1)) == image_key(picture(1).copy())
    assert image_key(picture(1)) != image_key(picture(2))
    flat = np.zeros((4, 6, 3), np.uint8)
    assert image_key(flat) != image_key(flat.reshape(6, 4, 3))
    assert image_key(picture(1)[:, ::2]) == image_key(np.ascontiguousarray(picture(1)[:, ::2]))
    assert text_key("a dog") != text_key("a dog ")


def test_rows_are_encoded_once(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def encode(numbers: list[int]) -> torch.Tensor:
        asked.append(numbers)
        return torch.tensor([[float(n), float("nan")] for n in numbers])

    cache = FeatureCache(tmp_path / "deep" / "features.sqlite")
    keys = [b"a", b"b", b"a", b"c"]
    first = cache.rows("one", keys, encode)
    assert asked == [[0, 1, 3]]
    assert first[:, 0].tolist() == [0, 1, 0, 3]
    assert first[:, 1].isnan().all()
    again = FeatureCache(cache.path).rows("one", list(reversed(keys)), encode)
    assert asked == [[0, 1, 3]]
    assert again[:, 0].tolist() == [3, 0, 1, 0]
    FeatureCache(cache.path).rows("another encoder", keys, encode)
    assert len(asked) == 2
    assert (cache.hits, cache.misses) == (1, 3)


def test_more_keys_than_one_question_takes(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    keys = [str(n).encode() for n in range(1203)]
    cache.rows("one", keys, lambda numbers: torch.arange(1203.0)[numbers][:, None])
    found = cache.rows("one", keys, lambda _: pytest.fail("all of them are kept"))
    assert found[:, 0].tolist() == list(range(1203))


def test_a_broken_cache_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "features.sqlite"
    path.write_text("this is no database, and longer than a header of one hundred bytes" * 3)
    cache = FeatureCache(path)
    for _ in range(2):
        assert cache.rows("one", [b"a"], lambda numbers: torch.ones(len(numbers), 2)).tolist() == [[1, 1]]
    assert caplog.text.count("cannot be used") == 1


def test_the_bank_sees_the_same_with_it_and_encodes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = [picture(n) for n in range(3)], ["a dog", None, "a cat"]
    settings = Metrics(batch_size=3)
    plain = EncoderBank(settings).features(images, texts=texts, needs=NEEDS)
    cache = FeatureCache(tmp_path / "features.sqlite")
    kept = EncoderBank(settings, cache=cache).features(images, texts=texts, needs=NEEDS)
    assert cache.misses == 3 + 3 + 2
    assert plain.clip_text is not None
    assert plain.clip_text.isnan().all(1).tolist() == [False, True, False]
    second = EncoderBank(settings, cache=FeatureCache(cache.path))
    second._clip.embed_images = second._clip.embed_texts = lambda *_: pytest.fail("it was kept")
    monkeypatch.setattr(type(second), "_faces", lambda *_: pytest.fail("it was kept"))
    again = second.features(images, texts=texts, needs=NEEDS)
    for name in NEEDS:
        for found in (kept, again):
            torch.testing.assert_close(
                getattr(found, name), getattr(plain, name), equal_nan=True, atol=1e-6, rtol=0
            )
    assert second.identities().keys() == {"aesthetics", "clip", "detector", "face"}
