"""Which of several faces in a photograph is the subject's: composed pictures of the miniature's people."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.encoders.cache import FeatureCache
from diffusion_lab.evaluation.encoders.detect import Face, FaceDetector, prominence
from diffusion_lab.evaluation.encoders.face_boxes import DetectedFace
from diffusion_lab.evaluation.encoders.photographs import Photograph, choose, report, subject_faces
from diffusion_lab.evaluation.evaluate import reference_features, several_faces
from diffusion_lab.evaluation.metrics import select
from diffusion_lab.jobs.photographs import record_photographs
from diffusion_lab.miniature.subjects import SUBJECTS, subject_portrait
from diffusion_lab.records import Picture, Subject
from diffusion_lab.runs.files import FileTracker

Pixels = NDArray[np.uint8]
OTHERS = ("ben", "bea", "carl", "carla", "dora", "emil")
CANVAS = 192


def portrait(name: str, number: int, side: int) -> Pixels:
    image = Image.fromarray(subject_portrait(name, number).image)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def together(people: Sequence[tuple[Pixels, int, int]], canvas: int = CANVAS) -> Pixels:
    """A grey square with these pictures at (left, top), the later ones in front."""
    image = np.full((canvas, canvas, 3), 150, np.uint8)
    for pixels, left, top in people:
        part = image[top : top + len(pixels), left : left + pixels.shape[1]]
        part[:] = pixels[: part.shape[0], : part.shape[1]]
    return image


def crowded(number: int, stranger: str, middle: int = 80, large: int = 104) -> Pixels:
    """Anna in the middle, a larger stranger in one of the corners."""
    start, end = (CANVAS - middle) // 2, CANVAS - large
    left, top = ((0, 0), (end, 0), (0, end), (end, end))[number % 4]
    other = (portrait(stranger, number, large), left, top)
    return together([other, (portrait("anna", number, middle), start, start)])


def picture(number: int, pixels: Pixels, folder: str = "anna") -> Picture:
    return Picture(path=Path(folder) / f"{number:02d}.png", sha256=f"{number:064x}", pixels=pixels)


def subject(train: Sequence[Pixels], heldout: Sequence[Pixels] = (), **values: Any) -> Subject:
    pictures = [picture(number, pixels) for number, pixels in enumerate([*train, *heldout])]
    own = tuple(pictures[: len(train)]), tuple(pictures[len(train) :])
    return Subject("anna", "woman", "customcls", *own, **values)


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(Metrics())


def centre(photograph: Photograph, resolution: int) -> tuple[float, float]:
    """Of the chosen face, 0 to 1 of the picture."""
    assert photograph.chosen is not None
    left, top, right, bottom = photograph.faces[photograph.chosen].box
    return (left + right) / 2 / resolution, (top + bottom) / 2 / resolution


def in_the_middle(photograph: Photograph, resolution: int) -> bool:
    return all(abs(value - 0.5) < 0.13 for value in centre(photograph, resolution))


@pytest.mark.parametrize("resolution", [64, 128, 256])
@pytest.mark.parametrize("others", [OTHERS, ("ben",)], ids=["others", "the same one"])
def test_a_larger_stranger_at_the_margin(bank: EncoderBank, others: Sequence[str], resolution: int) -> None:
    """12 of 12; also where one and the same stranger is in all pictures, so that likeness cannot tell."""
    pictures = [crowded(number, others[number % len(others)]) for number in range(12)]
    found = subject_faces(subject(pictures), bank, resolution)["train"]
    several = [one for one in found if len(one.faces) > 1]
    assert len(several) >= 8, "the composed pictures show two faces"
    areas = [[(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in one.faces] for one in several]
    assert sum(max(sizes) > sizes[one.chosen or 0] for one, sizes in zip(several, areas, strict=True)) > 4
    assert [in_the_middle(one, resolution) for one in found] == [True] * 12


@pytest.mark.parametrize("number", range(8))
def test_of_one_photograph_size_and_centre_decide(bank: EncoderBank, number: int) -> None:
    (found,) = subject_faces(subject([crowded(number, "ben")]), bank, 128)["train"]
    assert in_the_middle(found, 128)
    assert found.likeness is None
    assert not found.unlike


def test_likeness_outweighs_size_and_centre(bank: EncoderBank) -> None:
    """In three of ten pictures a stranger stands in the middle, and the subject is small at the margin."""
    pictures = [portrait("anna", number, 64) for number in range(7)]
    for number, stranger in ((7, "ben"), (8, "carla"), (9, "emil")):
        people = [(portrait(stranger, number, 110), 70, 40), (portrait("anna", number, 76), 0, 116)]
        pictures.append(together(people))
    found = subject_faces(subject(pictures[3:], pictures[:3]), bank, 128)
    chosen = [one for one in found["train"] if len(one.faces) > 1]
    assert len(chosen) == 3
    for one in chosen:
        x, y = centre(one, 128)
        assert x < 0.35, one.path
        assert y > 0.6
        assert one.likeness is not None
        assert one.likeness > 0.6


def two_beside_others(who: str, others: Sequence[str]) -> list[tuple[Pixels, tuple[float, float]]]:
    """Two photographs, each with another and larger stranger."""
    return [
        (together([(portrait(other, n, 100), 80, 60), (portrait(who, n, 70), 0, 60)]), (35, 95))
        for n, other in enumerate(others[:2], 1)
    ]


def three_with_the_same_stranger(who: str, others: Sequence[str]) -> list[tuple[Pixels, tuple[float, float]]]:
    """The subject small in a corner beside one large stranger, three times, and once alone."""
    beside = [
        (together([(portrait(others[4], n, 110), 41, 41), (portrait(who, n, 64), 0, 0)]), (32.0, 32.0))
        for n in range(3)
    ]
    return [*beside, (portrait(who, 5, 192), (96, 96))]


def groups_of_five(who: str, others: Sequence[str]) -> list[tuple[Pixels, tuple[float, float]]]:
    """The subject in another place each time, never in the middle."""
    places = [(0, 0), (64, 0), (128, 0), (30, 90), (98, 90)]
    found = []
    for n in range(6):
        people = [
            (portrait(who if i == n % 5 else others[(n + i) % len(others)], n, 62), *place)
            for i, place in enumerate(places)
        ]
        found.append((together(people), (places[n % 5][0] + 31.0, places[n % 5][1] + 31.0)))
    return found


@pytest.mark.parametrize("who", ["anna", "ben"])
@pytest.mark.parametrize("made", [two_beside_others, three_with_the_same_stranger, groups_of_five])
def test_who_is_in_all_pictures_outweighs_who_is_large(bank: EncoderBank, made: Any, who: str) -> None:
    """Other people who are larger or nearer to the centre, but not in every picture."""
    pictures = made(who, [name for name in SUBJECTS if name != who])
    found = subject_faces(subject([pixels for pixels, _ in pictures]), bank, 128)["train"]
    for one, (_, (x, y)) in zip(found, pictures, strict=True):
        assert centre(one, 128) == pytest.approx((x / CANVAS, y / CANVAS), abs=0.14), one.path
    assert not any(one.unlike for one in found)


def test_another_person_is_named(bank: EncoderBank) -> None:
    pictures = [portrait("anna", number, 64) for number in range(6)]
    found = subject_faces(subject([*pictures, portrait("ben", 3, 64)]), bank, 64)
    assert [one.unlike for one in found["train"]] == [False] * 6 + [True]
    (said,) = report(found)
    assert "06.png (" in said
    assert "unlike" in said


@pytest.mark.parametrize(("own", "wrong"), [(5, 2), (6, 4)])
def test_several_pictures_of_another_person_are_named(bank: EncoderBank, own: int, wrong: int) -> None:
    """They are like each other, and still unlike the person of most pictures."""
    pictures = [portrait("anna", number, 64) for number in range(own)]
    pictures += [portrait("ben", number, 64) for number in range(wrong)]
    found = subject_faces(subject(pictures), bank, 64)["train"]
    assert [one.unlike for one in found] == [False] * own + [True] * wrong
    (said,) = report({"train": found})
    assert f"{own:02d}.png (" in said
    assert ("and 1 more" in said) == (wrong == 4)


def test_nobody_is_named_among_pictures_of_one_person(bank: EncoderBank) -> None:
    for name in list(SUBJECTS)[::3]:
        found = subject_faces(subject([portrait(name, number, 64) for number in range(8)]), bank, 64)
        assert report(found) == [], name


def test_pictures_with_several_faces_are_named(bank: EncoderBank) -> None:
    pictures = [crowded(number, "ben") if number < 5 else portrait("anna", number, 64) for number in range(8)]
    said = report(subject_faces(subject(pictures), bank, 128))
    assert len(said) == 1
    assert "00.png (2 faces, used: the 2nd from the left)" in said[0]
    assert "more" in said[0], "not all five"
    assert said[0].count(".png (") == 3


def test_a_single_face_is_what_it_was_to_the_bit(bank: EncoderBank) -> None:
    pixels = [subject_portrait("anna", number).image for number in range(6)]
    pixels.append(np.full((64, 64, 3), 128, np.uint8))
    references = reference_features(subject(pixels[:4], pixels[4:]), bank, 64)
    plain = bank.features(pixels, texts=None, needs={"face"}).face
    assert plain is not None
    assert references.train.face is not None
    assert references.heldout is not None
    assert references.heldout.face is not None
    together = torch.cat([references.train.face, references.heldout.face])
    torch.testing.assert_close(together, plain, rtol=0, atol=0, equal_nan=True)
    assert references.heldout.faces is not None
    assert references.heldout.faces.tolist() == [1, 1, 0]


def test_folders_of_others_decide_for_themselves(bank: EncoderBank) -> None:
    others = tuple(
        picture(number, portrait(name, number, 64), name) for number in range(2) for name in ("bea", "carla")
    )
    found = subject_faces(subject([portrait("anna", 0, 64)], impostors=others), bank, 64)["impostors"]
    assert [one.path for one in found] == [one.path for one in others]
    assert not any(one.unlike for one in found)


def test_faces_of_photographs_come_from_the_cache(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    pictures = subject([crowded(number, "ben") for number in range(3)])
    first = subject_faces(pictures, EncoderBank(Metrics(), cache=cache), 128)["train"]
    assert (cache.hits, cache.misses) == (0, 3)
    again = subject_faces(pictures, EncoderBank(Metrics(), cache=cache), 128)["train"]
    assert cache.hits == 3
    for one, other in zip(first, again, strict=True):
        assert one.faces == other.faces
        assert torch.equal(one.embedding, other.embedding)


def test_several_faces_of_generated_images_are_counted(bank: EncoderBank) -> None:
    """The most prominent is measured, whoever it is; blank images and single faces do not count."""
    images = [
        crowded(0, "ben"),
        portrait("anna", 1, 64),
        np.full((64, 64, 3), 128, np.uint8),
        crowded(3, "ben"),
    ]
    found = bank.features(images, texts=None, needs={"face"})
    assert found.faces is not None
    assert found.faces.tolist() == [2, 1, 0, 2]
    assert several_faces(found) == 2
    assert several_faces(bank.features(images[:1], texts=None, needs={"clip_image"})) is None


def test_record(bank: EncoderBank, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sheet, result.json and the log name them."""
    pictures = subject([crowded(0, "ben"), *(portrait("anna", number, 64) for number in range(1, 4))])
    files = FileTracker(tmp_path / "run")
    files.start({})
    with caplog.at_level(logging.WARNING):
        record_photographs(pictures, bank, 128, select(["similarity"]), files)
    assert "00.png" in caplog.text
    record = json.loads((tmp_path / "run" / "result.json").read_text())["photographs"]
    assert [(one["file"], one["faces"], one["unlike"]) for one in record["train"]] == [("00.png", 2, False)]
    sheet = np.asarray(Image.open(tmp_path / "run" / "samples" / "training.png"))
    green, red = ((sheet == colour).all(axis=2) for colour in ((0, 200, 80), (230, 60, 60)))
    assert green.sum() > 4 * red.sum() > 0, "four solid frames, one dashed"
    record_photographs(pictures, bank, 128, select(["aesthetics"]), files)
    plain = np.asarray(Image.open(tmp_path / "run" / "samples" / "training.png"))
    assert not (plain == (0, 200, 80)).all(axis=2).any(), "where no metric looks at faces"
    files.finish("completed", {})


# --- photographs ----------------------------------------------------------------------------------------


def test_a_real_face_between_drawn_ones() -> None:
    """Scikit-image's astronaut in the middle, a larger drawn face at each margin in turn."""
    from skimage import data

    head = Image.fromarray(np.asarray(data.astronaut())[10:230, 110:330]).resize((120, 120))
    for number in range(4):
        corner = ((0, 0), (180, 0), (0, 180), (180, 180))[number]
        other = portrait("carla", number, 220)
        image = together([(other, *corner), (np.asarray(head), 140, 140)], canvas=400)
        found = FaceDetector().detect_all([image])[0]
        assert len(found) >= 2, number
        left, top, right, bottom = found[0].box
        assert 140 < (left + right) / 2 < 260, number
        assert 140 < (top + bottom) / 2 < 260, number


def test_an_embedder_that_tells_nobody_apart_leaves_it_to_size_and_centre(tmp_path: Path) -> None:
    """Random weights: all faces are about equally alike."""
    from facenet_pytorch import InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(InceptionResnetV1(pretrained=None).state_dict(), tmp_path / "face.pt")
    bank = EncoderBank(Metrics(encoders="full", face_weights=str(tmp_path / "face.pt")))
    pictures = [crowded(number, OTHERS[number % 6]) for number in range(8)]
    found = subject_faces(subject(pictures), bank, 128)["train"]
    assert [in_the_middle(one, 128) for one in found] == [True] * 8


# --- the rule alone -------------------------------------------------------------------------------------


def seen(*faces: tuple[float, float, float, Sequence[float]]) -> list[DetectedFace]:
    """(x, y, width) of a face in a picture of 100 pixels, and the direction of its embedding."""
    made = []
    for x, y, width, direction in faces:
        vector = torch.tensor(direction, dtype=torch.float32)
        box = (x - width / 2, y - width / 2, x + width / 2, y + width / 2)
        made.append(DetectedFace(Face(box, 1.0), vector / vector.norm()))
    return sorted(made, key=lambda one: -prominence(one.face, 100, 100))


A, B, C, D = ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([seen((50, 50, 20, A), (20, 20, 30, B))], [A]),
        ([seen((50, 50, 20, A)), seen((20, 20, 15, A), (50, 50, 40, B)), seen((50, 50, 20, A))], [A, A, A]),
        ([seen((50, 50, 20, A), (20, 20, 30, B))] * 4, [A] * 4),
        ([seen((50, 50, 20, A)), seen((50, 50, 20, B)), seen((50, 50, 20, C))], [A, B, C]),
        ([seen(), seen((50, 50, 20, A), (10, 50, 10, D)), seen((50, 50, 20, A))], [None, A, A]),
        ([seen(), seen()], [None, None]),
        ([seen((50, 50, 20, [1, 0, 0, 0])), seen((50, 50, 20, [np.nan] * 4))], [A, None]),
    ],
)
def test_choice(pictures: list[list[DetectedFace]], expected: list[list[float] | None]) -> None:
    found = choose([Path(f"{i}.png") for i in range(len(pictures))], pictures, 100, 0.6)
    told = [None if bool(one.embedding.isnan().any()) else one.embedding.tolist() for one in found]
    assert told == expected


def test_prominence() -> None:
    """Area, centre and certainty; the same for a picture of any size."""
    middle, margin = Face((40, 40, 60, 60), 1.0), Face((0, 0, 30, 30), 1.0)
    assert prominence(middle, 100, 100) == 400
    assert prominence(middle, 100, 100) > prominence(margin, 100, 100)
    near, far = Face((20, 20, 60, 60), 1.0), Face((45, 45, 55, 55), 1.0)
    assert prominence(near, 100, 100) > prominence(far, 100, 100), (
        "a large face beside a tiny one in the middle"
    )
    double = Face((80, 80, 120, 120), 1.0)
    assert prominence(double, 200, 200) == 4 * prominence(middle, 100, 100)
    assert prominence(Face(middle.box, 0.7), 100, 100) < prominence(middle, 100, 100) / 4
