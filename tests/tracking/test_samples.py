from __future__ import annotations

import io
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.runs import samples
from diffusion_lab.system.images import png


def test_small_pictures_keep_every_pixel(cases: ModuleType) -> None:
    evaluation, prompts = cases.evaluation(50), cases.prompt_set()
    texts = samples.labels(evaluation, prompts)
    sheet = np.asarray(samples.sheet(evaluation.images, texts))
    for number in range(6):
        left = samples.MARGIN + number * (samples.PICTURE + samples.MARGIN)
        shown = sheet[samples.MARGIN :, left:][: samples.PICTURE, : samples.PICTURE]
        assert np.array_equal(shown[::2, ::2], evaluation.images[number])
        assert np.array_equal(shown[1::2, 1::2], evaluation.images[number])
        below = sheet[samples.MARGIN + samples.PICTURE :, left:][:, : samples.PICTURE]
        assert (below < 100).any(), "there is no text below the picture"


def test_labels_say_number_and_phrases(cases: ModuleType) -> None:
    texts = samples.labels(cases.evaluation(0), cases.prompt_set())
    assert texts[0] == "0 · in place 0, with a hat"
    assert texts[1] == "1 · in place 1"


def test_pictures_of_512_pixels_are_reduced_and_keep_their_aspect() -> None:
    red = np.zeros((256, 512, 3), np.uint8)
    red[..., 0] = 200
    sheet = np.asarray(
        samples.sheet([red] * 100, [f"{number} a dog" for number in range(100)], title="step 7")
    )
    height, width = sheet.shape[:2]
    assert width < 1500
    assert height < 2500
    top = samples.TITLE + 2 * samples.MARGIN
    cell = sheet[top : top + samples.PICTURE, samples.MARGIN : samples.MARGIN + samples.PICTURE]
    coloured = (cell == (200, 0, 0)).all(-1)
    assert coloured.any(0).sum() == 128
    assert coloured.any(1).sum() == 64


def test_a_hundred_pictures_of_64_pixels_fit_a_screen_and_an_inbox() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)  # the worst case
    texts = [f"{number} · a photo, smiling, wearing a red t-shirt, in a forest" for number in range(100)]
    image = samples.sheet(list(noise), texts, title="step 50")
    assert image.width < 1400
    assert image.height < 2200
    content = png(image)
    assert len(content) < 3_000_000
    assert content == png(samples.sheet(list(noise), texts, title="step 50"))
    assert Image.open(io.BytesIO(content)).size == image.size


def test_long_texts_are_cut_to_their_cell() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    short = samples.sheet([black, black], ["a", "b"])
    long = samples.sheet([black, black], ["word " * 200, "W" * 500])
    assert long.width == short.width
    assert long.height == short.height + (samples.LINES - 1) * samples.LINE
    edge = np.asarray(long)[:, -samples.MARGIN :]
    assert (edge == 255).all(), "text runs out of the sheet"


def test_many_and_none() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    many = samples.sheet([black] * 1000, ["x"] * 1000, title="step 3")
    assert many.width < 2800
    assert many.height < 4000
    assert samples.sheet([], [], title="nothing").height > 0
    with pytest.raises(ValueError, match="2 pictures for 1 texts"):
        samples.sheet([black, black], ["one"])
