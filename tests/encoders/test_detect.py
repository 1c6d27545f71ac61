"""The detector on any mix of none, one and many faces and of sizes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_lab.evaluation.encoders.detect import Face, FaceDetector, crop
from diffusion_lab.miniature import world
from diffusion_lab.miniature.phrases import SLOTS

Image = NDArray[np.uint8]


def person(seed: int) -> Image:
    """A flawless photo without accessory, facing the camera in plain light."""
    shown = {"pose": "front", "accessory": "none", "lighting": "daylight", "place": "studio"}
    phrases = {slot: next(p for p in SLOTS[slot] if p.value == value) for slot, value in shown.items()}
    return world.draw_portrait(seed, phrases=phrases, clean=True).image


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def people(detector: FaceDetector) -> list[Image]:
    found = [image for seed in range(2_000_000, 2_000_012) if detector.detect([image := person(seed)])[0]]
    assert len(found) >= 9
    return found


def test_no_images(detector: FaceDetector) -> None:
    assert detector.detect([]) == []


def test_faces_of_drawn_people(detector: FaceDetector, people: list[Image]) -> None:
    for face in detector.detect(people):
        assert face is not None
        left, top, right, bottom = face.box
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert 0.7 <= face.probability <= 1
        assert 10 < right - left < 50


def test_mixed_list(detector: FaceDetector, people: list[Image]) -> None:
    """None, one and two faces, three sizes, in one call."""
    blank = np.full((64, 64, 3), 128, np.uint8)
    tiny = np.zeros((8, 8, 3), np.uint8)
    pair = np.concatenate(people[:2], axis=1)  # 64 x 128
    wide = np.pad(people[2], ((0, 0), (30, 30), (0, 0)), mode="edge")
    found = detector.detect([blank, people[0], tiny, pair, wide])
    assert [face is not None for face in found] == [False, True, False, True, True]
    assert all(face is None for face in detector.detect([blank, blank]))


def test_result_does_not_depend_on_the_batch(detector: FaceDetector, people: list[Image]) -> None:
    together = detector.detect([np.zeros((64, 64, 3), np.uint8), *people])[1:]
    assert together == [detector.detect([image])[0] for image in people]


def test_box_is_in_pixels_of_the_input(detector: FaceDetector, people: list[Image]) -> None:
    small = detector.detect([people[0]])[0]
    large = detector.detect([people[0].repeat(4, axis=0).repeat(4, axis=1)])[0]
    assert small is not None
    assert large is not None
    assert np.allclose(np.array(small.box) * 4, large.box, atol=12)


def test_without_enlarging(people: list[Image]) -> None:
    """Images are taken as they are; whatever is found lies inside."""
    for face in FaceDetector(enlarge_to=None).detect(people[:2]):
        assert face is None or face.box[2] <= 64


def test_crop_is_square_and_centred() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 20:30] = 255
    whole = crop(image, Face((20, 10, 30, 20), 1.0), 16, 0.0)
    assert whole.shape == (16, 16, 3)
    assert whole.dtype == np.uint8
    assert whole.min() == 255
    wider = crop(image, Face((20, 10, 30, 20), 1.0), 20, 1.0)
    assert wider[10, 10].min() == 255
    assert wider[0].max() == 0
    assert wider[:, -1].max() == 0


def test_crop_beyond_the_border_repeats_the_edge() -> None:
    image = np.full((20, 20, 3), 7, np.uint8)
    assert (crop(image, Face((-10, -10, 15, 15), 1.0), 8, 0.5) == 7).all()
