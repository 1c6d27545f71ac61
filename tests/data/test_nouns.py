"""People, animals and objects get their own prompts; what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.data.nouns import (
    MADE_FOR,
    SET_FOR,
    faces_warnings,
    fitting_set,
    kind_of,
    prompts_warnings,
)  # fmt: skip
from diffusion_lab.data.prompts import SETS, load_prompts
from diffusion_lab.jobs import check
from diffusion_lab.plan.defaults import fill_defaults

NOUNS = {
    "man": "person", "Woman": "person", "old man": "person", "women": "person", "babies": "person",
    "dog": "animal", "golden retriever": "animal", "cats": "animal", "black cat": "animal", "puppies": "animal",
    "teapot": "object", "rc_car": "object", "teddy bear": "object", "stuffed animal": "object", "hot dog": "object",
    "backpacks": "object", "watches": "object", "glasses": "object", "Vase": "object",
    "mice": "animal", "wolves": "animal", "geese": "animal", "knives": "object", "teddy-bear": "object",
    "t-shirt": "object", "golden-retriever": "animal", "action-figure": "object", "German_Shepherd": "animal",
    "frobnitz": None, "": None,
}  # fmt: skip


@pytest.mark.parametrize(("noun", "kind"), NOUNS.items())
def test_what_a_noun_names(noun: str, kind: str | None) -> None:
    assert kind_of(noun) == kind


def test_the_classes_of_dreambooths_set_have_theirs() -> None:
    """Its 30 subjects' classes, as its paper lists them."""
    for noun in ("backpack", "stuffed animal", "bowl", "can", "candle", "cartoon", "clock", "sneaker", "toy", "glasses",
                 "robot toy", "teapot", "vase", "boot"):  # fmt: skip
        assert fitting_set(noun) == "dreambooth_objects"
    for noun in ("cat", "dog"):
        assert fitting_set(noun) == "dreambooth_live"


def test_every_set_that_is_chosen_exists_and_knows_what_it_is_for() -> None:
    assert set(SET_FOR.values()) | set(MADE_FOR) <= set(SETS)
    assert all(MADE_FOR[name] == kind for kind, name in SET_FOR.items())


@pytest.mark.parametrize("experiment", ["experiment=full", "experiment=small_card", "prompts=full"])
@pytest.mark.parametrize("noun", ["man", "dog", "teapot", "frobnitz"])
def test_the_set_is_chosen_by_the_noun_and_has_100_images(experiment: str, noun: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    words = [experiment, "data=folder", f"data.folder={tmp_path}", f"data.class_noun={noun}"]
    config = fill_defaults(compose(words))
    assert config.prompts.name == SET_FOR[kind_of(noun) or "object"]  # type: ignore[index]
    from diffusion_lab.data.prompts import images_per_prompt

    made = load_prompts(config.prompts, identifier="customcls", class_noun=noun)
    assert len(made) * images_per_prompt(config.prompts, made) == 100
    explicit = fill_defaults(compose([*words, "prompts=logo"]))
    assert explicit.prompts.name == "logo", "what is asked for by name stays"


@pytest.mark.parametrize("name", MADE_FOR)
@pytest.mark.parametrize("noun", ["man", "dog", "teapot", "frobnitz"])
def test_a_mismatch_is_said(name: str, noun: str) -> None:
    told = prompts_warnings(name, noun)
    kind = kind_of(noun)
    assert bool(told) == (kind != MADE_FOR[name])
    if told:
        fitting = SET_FOR[kind] if kind else "dreambooth_live" if MADE_FOR[name] != "animal" else "portrait"
        assert f"prompts={fitting}" in told[0]
        assert noun in told[0]
    assert not prompts_warnings("file", noun)


def test_metrics_of_faces_are_for_people() -> None:
    names = ["similarity", "face_rate", "clip_image", "diversity"]
    (told,) = faces_warnings("full", names, "dog")
    assert told.startswith("metrics.names: similarity, face_rate look for human faces")
    assert "an animal" in told
    assert "clip_image takes the place of similarity" in told
    (told,) = faces_warnings("full", ["face_rate"], "teapot")
    assert "looks for human faces" in told
    assert "name clip_image or dino instead" in told
    for encoders, some, noun in (("full", names, "man"), ("full", names, "frobnitz"), ("miniature", names, "dog"),
                                 ("full", ["clip_image", "dino"], "dog")):  # fmt: skip
        assert not faces_warnings(encoders, some, noun)


def test_the_plan_says_it(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    words = [
        "data=folder",
        f"data.folder={tmp_path}",
        "data.class_noun=dog",
        "data.n_images=2",
        "prompts=portrait",
    ]
    told = check(fill_defaults(compose(words)), tmp_path / "run").warnings
    assert any("prompts=portrait" in one and "prompts=dreambooth_live" in one for one in told)
