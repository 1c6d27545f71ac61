"""The bank with the shipped encoders: mixed faces, shared loading, no trace in the global generators."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders import miniature
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.encoders.detect import FaceDetector
from diffusion_lab.miniature import world
from diffusion_lab.miniature.phrases import SLOTS
from diffusion_lab.records import UserError

NOTHING = np.full((64, 64, 3), 90, np.uint8)
ALL = {"face", "clip_image", "clip_text", "aesthetics"}


def person(seed: int) -> np.ndarray:
    shown = {"pose": "front", "accessory": "none", "lighting": "daylight", "place": "studio"}
    phrases = {slot: next(p for p in SLOTS[slot] if p.value == value) for slot, value in shown.items()}
    return world.draw_portrait(seed, phrases=phrases, clean=True).image


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(Metrics(batch_size=2))


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    detector = FaceDetector()
    found = [image for seed in range(3_000_000, 3_000_006) if detector.detect([image := person(seed)])[0]]
    assert len(found) >= 3
    return found[:3]


def test_mixed_batch(bank: EncoderBank, people: list[np.ndarray]) -> None:
    images = [people[0], NOTHING, people[1], NOTHING, people[2]]
    found = bank.features(images, texts=["a man"] * 5, needs=ALL)
    assert found.n == 5
    assert found.face is not None
    assert found.face.isnan().all(1).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(found.face[[0, 2, 4]].norm(dim=1), torch.ones(3))
    for rows in (found.clip_image, found.clip_text):
        assert rows is not None
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert found.aesthetics is not None
    assert found.aesthetics.shape == (5,)
    assert ((found.aesthetics >= 0) & (found.aesthetics <= 10)).all()
    for name in ALL:
        value = getattr(found, name)
        assert value.dtype == torch.float32
        assert not value.is_inference()


def test_no_faces_at_all(bank: EncoderBank) -> None:
    found = bank.features([NOTHING] * 3, texts=None, needs={"face"})
    assert found.face is not None
    assert found.face.shape[0] == 3
    assert found.face.shape[1] > 1
    assert found.face.isnan().all()


def test_an_image_alone_has_the_same_features(bank: EncoderBank, people: list[np.ndarray]) -> None:
    images = [people[0], NOTHING, people[1]]
    together = bank.features(images, texts=None, needs={"face", "clip_image", "aesthetics"})
    for row, image in enumerate(images):
        alone = bank.features([image], texts=None, needs={"face", "clip_image", "aesthetics"})
        for name in ("face", "clip_image", "aesthetics"):
            torch.testing.assert_close(
                getattr(together, name)[row], getattr(alone, name)[0], atol=1e-4, rtol=1e-4, equal_nan=True
            )


def test_only_what_is_needed_is_loaded(bank: EncoderBank) -> None:
    fresh = EncoderBank(Metrics())
    assert fresh.identities() == {}
    found = fresh.features([NOTHING], texts=["a dog"], needs={"clip_text"})
    assert found.clip_text is not None
    assert (found.face, found.clip_image, found.aesthetics) == (None, None, None)
    assert set(fresh.identities()) == {"clip"}
    assert fresh.features([NOTHING], texts=None, needs={"clip_text"}).clip_text is None  # a photograph


def test_each_encoder_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = miniature.MiniatureClip.load.__func__

    def load(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append("clip")
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(miniature.MiniatureClip, "load", classmethod(load))
    bank = EncoderBank(Metrics())
    for _ in range(3):
        bank.features([NOTHING], texts=None, needs={"clip_image", "aesthetics"})
    assert loads == ["clip"]


def test_loading_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    EncoderBank(Metrics()).features([person(1)], texts=["a man"], needs=ALL)
    assert torch.equal(state, torch.get_rng_state())


def test_identities_name_the_weights(bank: EncoderBank, people: list[np.ndarray]) -> None:
    bank.features(people, texts=["a man"] * 3, needs=ALL)
    identities = bank.identities()
    assert set(identities) == {"aesthetics", "clip", "detector", "face"}
    assert miniature.file_digest(miniature.WEIGHTS / "clip") in identities["clip"]
    assert miniature.file_digest(miniature.WEIGHTS / "face") in identities["face"]
    for role, preprocessing in (
        ("face", "48x48 bilinear"),
        ("clip", "bicubic 64x64"),
        ("aesthetics", "clamped to 0..10"),
        ("detector", "enlarged to 160"),
    ):
        assert preprocessing in identities[role]
        assert re.search(r" [0-9a-f]{12} ", identities[role])


def test_refusals(bank: EncoderBank) -> None:
    with pytest.raises(UserError, match=r"metrics\.encoders"):
        settings = Metrics()
        settings.encoders = "huge"
        EncoderBank(settings)
    with pytest.raises(ValueError, match="no smile"):
        bank.features([NOTHING], texts=None, needs={"smile"})
    with pytest.raises(ValueError, match="2 texts for 1"):
        bank.features([NOTHING], texts=["a", "b"], needs={"clip_text"})


def test_full_encoders_without_a_head_have_no_aesthetics() -> None:
    assert not EncoderBank(Metrics(encoders="full")).has_aesthetics
    assert EncoderBank(Metrics(encoders="full", aesthetics_weights="head.safetensors")).has_aesthetics
    assert EncoderBank(Metrics()).has_aesthetics


def test_full_encoders_are_reached_through_the_same_door(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The settings' names arrive at the loaders; that they cannot be met is said in the settings' words."""
    settings = Metrics(encoders="full", face_weights=str(tmp_path / "face.pt"))
    with pytest.raises(UserError, match=r"metrics\.face_weights"):
        EncoderBank(settings).features([person(1)], texts=None, needs={"face"})
    settings = Metrics(encoders="full", clip_weights=str(tmp_path / "clip.pt"))
    with pytest.raises(UserError, match=r"metrics\.clip_weights"):
        EncoderBank(settings).features([NOTHING], texts=None, needs={"clip_image"})


def test_face_rate_alone_loads_no_embedder() -> None:
    """The detector says all that it asks for; what it says is the same beside similarity."""
    from diffusion_lab.evaluation.metrics import METRICS
    from diffusion_lab.records import References

    images = [person(1), NOTHING, person(2)]
    full = EncoderBank(Metrics(encoders="full", face_weights="nowhere.pt", names=["face_rate"]))
    found = full.features(images, texts=None, needs=set(METRICS["face_rate"].needs))
    assert set(full.identities()) == {"detector"}
    beside = EncoderBank(Metrics()).features(images, texts=None, needs={"face", "face_found"})
    rates = [
        METRICS["face_rate"](features, References(train=features, heldout=None, impostors=None)).tolist()
        for features in (found, beside)
    ]
    assert rates[0] == rates[1] == [1.0, 0.0, 1.0]
