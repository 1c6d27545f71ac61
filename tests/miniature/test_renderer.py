"""Identities, scenes and pictures of the miniature world."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.miniature.identity import (
    BEARDS,
    EYE_COLOURS,
    HAIR_COLOURS,
    HAIR_CUTS,
    Identity,
    blend,
    numeric_fields,
    sample_identity,
    vector,
)
from diffusion_lab.miniature.phrases import MAGIC, NOUNS, SLOTS, SPOILT, phrase_of
from diffusion_lab.miniature.renderer import render
from diffusion_lab.miniature.scene import Scene
from diffusion_lab.miniature.world import draw_portrait, face_box, identity_from_seed, rating_of

PLAIN = {slot: options[0] for slot, options in SLOTS.items()} | {
    "expression": phrase_of("expression", "serious"),
    "place": phrase_of("place", "studio"),
}


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def sharpness(image: np.ndarray) -> float:
    """Mean squared second difference of the green channel."""
    green = image[..., 1].astype(float)
    rows = 4 * green[1:-1, 1:-1] - green[:-2, 1:-1] - green[2:, 1:-1]
    return float(((rows - green[1:-1, :-2] - green[1:-1, 2:]) ** 2).mean())


def average_person(noun: str = "woman", /, **changes: Any) -> Identity:
    """Everything in the middle of its range."""
    values: dict[str, Any] = dict.fromkeys(numeric_fields(), 0.5)
    cut = HAIR_CUTS[noun][1]
    values |= {"eye_colour": "brown", "hair_colour": "brown", "hair_cut": cut, "beard": "none"}
    return Identity(noun=noun, **(values | changes))


@pytest.mark.parametrize("seed", [0, 1, 7, 123_456])
def test_the_same_seed_gives_the_same_bytes(seed: int) -> None:
    first, second = draw_portrait(seed), draw_portrait(seed)
    assert first.image.shape == (64, 64, 3)
    assert first.image.dtype == np.uint8
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.identity, first.scene, first.phrases, first.rating) == (
        second.identity, second.scene, second.phrases, second.rating,
    )  # fmt: skip


def test_drawing_neither_reads_nor_moves_the_global_generator() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    draw_portrait(3)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_different_seeds_give_different_people_and_pictures() -> None:
    pictures = {draw_portrait(seed).image.tobytes() for seed in range(40)}
    people = {identity_from_seed(seed) for seed in range(200)}
    assert len(pictures) == 40
    assert len(people) == 200


@pytest.mark.parametrize("slot", list(SLOTS))
def test_every_value_of_a_slot_is_a_picture_of_its_own(slot: str) -> None:
    one_per_value = {p.value: p for p in SLOTS[slot]}
    pictures = [draw_portrait(5, phrases=PLAIN | {slot: p}).image for p in one_per_value.values()]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert difference(first, second) > 0.3


def test_changing_one_phrase_leaves_the_other_draws_alone() -> None:
    one = draw_portrait(9, phrases={"place": phrase_of("place", "beach")})
    other = draw_portrait(9, phrases={"place": phrase_of("place", "library")})
    assert one.identity == other.identity
    assert dataclasses.replace(one.scene, place="library") == other.scene


@pytest.mark.parametrize(
    "name", [n for n in numeric_fields() if n not in {"freckles", "mole_x", "mole_y", "wrinkles", "fringe"}]
)
def test_every_number_of_an_identity_shows(name: str) -> None:
    scene = Scene(quality_kind="magic", quality=1.0)
    low = render(average_person(**{name: 0.05}), scene)
    high = render(average_person(**{name: 0.95}), scene)
    assert difference(low, high) > 0.05


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("freckles", {"freckles": 0.9}),
        ("mole_y", {"mole_y": 0.8, "mole_x": 0.9}),
        ("wrinkles", {"wrinkles": 0.95}),
        ("fringe", {"fringe": 0.9}),
    ],
)
def test_marks_that_appear_above_a_threshold(name: str, changes: dict[str, float]) -> None:
    scene = Scene(quality_kind="magic", quality=1.0)
    assert difference(render(average_person(), scene), render(average_person(**changes), scene)) > 0.02


@pytest.mark.parametrize(
    ("noun", "name", "values"),
    [
        ("woman", "eye_colour", EYE_COLOURS),
        ("woman", "hair_colour", HAIR_COLOURS),
        ("woman", "hair_cut", HAIR_CUTS["woman"]),
        ("man", "hair_cut", HAIR_CUTS["man"]),
        ("man", "beard", BEARDS),
    ],
)
def test_every_category_of_an_identity_shows(noun: str, name: str, values: tuple[str, ...]) -> None:
    pictures = {render(average_person(noun, **{name: v}), Scene()).tobytes() for v in values}
    assert len(pictures) == len(values)


def test_women_have_no_beards_and_nouns_follow_the_seed() -> None:
    rng = np.random.default_rng(0)
    assert {sample_identity(rng, "woman").beard for _ in range(50)} == {"none"}
    assert [identity_from_seed(s).noun for s in (0, 1)] == list(NOUNS)
    with pytest.raises(ValueError, match="noun"):
        sample_identity(rng, "cat")
    with pytest.raises(ValueError, match="contradicts"):
        draw_portrait(0, noun="woman", identity=identity_from_seed(0, "man"))


def test_blend_goes_from_one_person_to_the_other() -> None:
    a, b = identity_from_seed(0), identity_from_seed(1)
    assert blend(a, b, 0.0) == a
    assert blend(a, b, 1.0) == b
    n = len(numeric_fields())
    middle = blend(a, b, 0.5)
    np.testing.assert_allclose(vector(middle)[:n], (vector(a)[:n] + vector(b)[:n]) / 2)
    with pytest.raises(ValueError, match="t must be"):
        blend(a, b, 1.5)


def test_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"identity\.skin_tone"):
        average_person(skin_tone=1.5)
    with pytest.raises(ValueError, match=r"scene\.place"):
        Scene(place="atlantis")
    with pytest.raises(ValueError, match=r"scene\.quality"):
        Scene(quality=2.0)


def test_magic_is_sharper_than_ordinary_and_ordinary_than_blurry() -> None:
    wins = 0
    for seed in range(20):
        values = [
            sharpness(draw_portrait(seed, phrases=PLAIN | {"quality": phrase_of("quality", v)}).image)
            for v in ("magic", "none", "blurry")
        ]
        wins += values[0] > values[1] > values[2]
    assert wins == 20


def test_ratings_spread_and_follow_quality() -> None:
    portraits = [draw_portrait(seed) for seed in range(150)]
    ratings = np.array([p.rating for p in portraits])
    quality = np.array([p.scene.quality for p in portraits])
    assert ratings.min() >= 0
    assert ratings.max() <= 10
    assert ratings.min() < 3
    assert ratings.max() > 8.5
    assert np.corrcoef(ratings, quality)[0, 1] > 0.9
    best = Scene(style="oil", lighting="sunset", quality_kind="magic", quality=1.0, scale=1.03)
    assert rating_of(best) == pytest.approx(10.0)


def test_shares_of_quality_words() -> None:
    spoilt = {p.text for p in SPOILT}
    magic = {p.text for p in MAGIC}
    words = [
        p.phrases["quality"].text if "quality" in p.phrases else "" for p in map(draw_portrait, range(300))
    ]
    assert 0.36 < np.mean([w == "" for w in words]) < 0.54
    assert 0.22 < np.mean([w in magic for w in words]) < 0.38
    assert 0.17 < np.mean([w in spoilt for w in words]) < 0.33


def test_clean_portraits_are_unspoilt_photos() -> None:
    for seed in range(60):
        portrait = draw_portrait(seed, clean=True)
        assert portrait.scene.style == "photo"
        assert portrait.scene.quality > 0.5


def test_face_box_lies_in_the_picture_and_follows_the_head() -> None:
    identity = identity_from_seed(0)
    x0, y0, x1, y1 = face_box(identity, Scene())
    assert 0 < x0 < x1 < 64
    assert 0 < y0 < y1 < 64
    assert 0.4 < (y1 - y0) / 64 < 0.65
    moved = face_box(identity, Scene(dx=3.0))
    assert moved[0] - x0 == pytest.approx(3.0)


def test_another_size_is_an_enlargement() -> None:
    identity, scene = identity_from_seed(0), Scene()
    large = render(identity, scene, size=160)
    assert large.shape == (160, 160, 3)
    again = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX))
    assert difference(again, render(identity, scene)) < 4


def test_a_picture_takes_milliseconds() -> None:
    draw_portrait(0)
    seconds = []
    for seed in range(60):
        start = time.process_time()
        draw_portrait(seed)
        seconds.append(time.process_time() - start)
    # 5 ms on a slow core; the bound allows for one several times slower.
    assert np.median(seconds) < 0.03


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks on a shared machine: more threads only wait for each other."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_real_face_detector_finds_the_faces() -> None:
    """facenet-pytorch's MTCNN, trained on photographs, with its default thresholds."""
    facenet = pytest.importorskip("facenet_pytorch")
    detector = facenet.MTCNN(keep_all=False, min_face_size=80, device="cpu")
    portraits = [
        draw_portrait(seed, clean=True, phrases={"quality": MAGIC[0] if seed % 2 else SLOTS["quality"][0]})
        for seed in range(700_000, 700_060)
    ]
    large = [Image.fromarray(p.image).resize((256, 256), Image.Resampling.BICUBIC) for p in portraits]
    found, inside = 0, 0
    for portrait, boxes in zip(portraits, detector.detect(large)[0], strict=True):
        if boxes is None:
            continue
        found += 1
        x0, y0, x1, y1 = face_box(portrait.identity, portrait.scene)
        cx, cy = (boxes[0][0] + boxes[0][2]) / 8, (boxes[0][1] + boxes[0][3]) / 8
        inside += x0 < cx < x1 and y0 < cy < y1
    assert found >= 57
    assert inside >= 57
