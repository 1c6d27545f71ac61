"""Words for a face, and captions with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_lab.config.schema import Prompts
from diffusion_lab.data.prompts import load_prompts
from diffusion_lab.miniature.identity import BEARDS, EYE_COLOURS, HAIR_COLOURS, HAIR_CUTS
from diffusion_lab.miniature.looks import TRAITS, described, looks_of
from diffusion_lab.miniature.phrases import NOUNS, phrase_of
from diffusion_lab.miniature.world import draw_portrait, identity_from_seed
from diffusion_lab.recipes.miniature.clip import look_captions, look_labels
from diffusion_lab.recipes.miniature.data import LOOKS_MOST, LOOKS_SHARE, portraits, training_caption
from diffusion_lab.recipes.miniature.evaluate import PROMPT_SEED, evaluation_prompts, look_texts, plain_looks

WORDS = {
    word for values in TRAITS.values() for look in values.values() for word in (look.adjective, look.thing)
}


def test_every_kind_of_hair_beard_and_eyes_has_words() -> None:
    assert set(TRAITS["hair_colour"]) == set(HAIR_COLOURS)
    assert set(TRAITS["hair_cut"]) == {cut for cuts in HAIR_CUTS.values() for cut in cuts}
    assert set(TRAITS["beard"]) == set(BEARDS)
    assert set(TRAITS["eye_colour"]) == set(EYE_COLOURS)


def test_no_two_looks_share_words() -> None:
    assert len(WORDS) == 2 * sum(len(values) for values in TRAITS.values())


def test_what_is_said_is_what_is_drawn() -> None:
    man = identity_from_seed(4, "man")
    freckled = replace(man, freckles=0.9, skin_tone=0.9, beard="full", hair_cut="curly", hair_colour="red")
    looks = looks_of(freckled)
    assert looks["freckles"] == "many"
    assert looks["skin"] == "deep"
    assert (looks["beard"], looks["hair_cut"], looks["hair_colour"]) == ("full", "curly", "red")
    assert "freckles" not in looks_of(replace(freckled, freckles=0.6))
    assert "hair_colour" not in looks_of(replace(freckled, hair_cut="bald"))
    assert "beard" not in looks_of(identity_from_seed(3, "woman"))


def test_what_a_headscarf_hides_is_not_said_and_hardly_seen() -> None:
    black = replace(identity_from_seed(8, "man"), hair_cut="short", hair_colour="black", beard="none")
    assert looks_of(black).keys() - looks_of(black, {"headscarf"}).keys() >= {"hair_colour", "hair_cut"}
    assert "hair_cut" not in looks_of(black, {"cap"})

    def difference(worn: str) -> int:
        """Of the pixels of two people who differ in the colour of their hair."""
        phrases = {"accessory": phrase_of("accessory", worn)}
        one, two = (
            draw_portrait(8, identity=who, phrases=phrases).image.astype(int)
            for who in (black, replace(black, hair_colour="brown"))
        )
        return int(abs(one - two).sum())

    assert difference("headscarf") < 0.2 * difference("none")


def test_descriptions_read_as_english() -> None:
    assert described("man", {}, {}) == "a man"
    assert described(
        "man", {"skin": "fair", "beard": "full"}, {"hair_colour": "red", "freckles": "many"}
    ) == ("a fair-skinned bearded man with red hair and freckles")
    assert described("woman", {"hair_colour": "auburn"}, {}) == "an auburn-haired woman"


def test_most_captions_speak_of_looks_and_the_rest_do_not() -> None:
    rng = np.random.default_rng(0)
    texts, said = [], 0
    for seed in range(400):
        portrait = draw_portrait(seed)
        looks = looks_of(portrait.identity, {p.value for p in portrait.phrases.values()})
        text = training_caption(rng, portrait.noun, portrait.phrases, looks)
        texts.append(text)
        named = [
            t
            for t, v in looks.items()
            if {TRAITS[t][v].adjective, TRAITS[t][v].thing} & _said(text, portrait.noun)
        ]
        said += bool(named)
        assert len(named) <= LOOKS_MOST
        assert portrait.noun in text
    assert said / 400 == pytest.approx(LOOKS_SHARE, abs=0.08)
    plain = [training_caption(rng, "man", draw_portrait(2).phrases) for _ in range(50)]
    assert all(" of a man" in text for text in plain)


def _said(text: str, noun: str) -> set[str]:
    """The adjectives and things that a caption says of the person."""
    head = text.split(" of ", 1)[1].split(", ")[0].split(" ", 1)[1]
    before, _, after = head.partition(noun)
    things = set(after.removeprefix(" with ").split(" and "))
    return things | {word for word in WORDS if f" {word} " in f" {before.strip()} "}


def test_evaluation_prompts_say_nothing_of_a_face() -> None:
    texts = [p.text for p in load_prompts(Prompts(n=100), identifier="customcls", class_noun="woman").prompts]
    assert len(texts) == 100
    assert not [t for t in texts for word in WORDS if f" {word}" in t]


@pytest.mark.parametrize("noun", NOUNS)
def test_labels_point_at_the_caption_that_is_true(
    noun: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = portraits(tmp_path_factory.mktemp("looks"), "some", range(24), range(24))
    found = look_labels(data)
    assert set(found) == set(TRAITS)
    for trait, known in found.items():
        values, texts = look_captions(trait, noun, np.random.default_rng(0))
        assert len(values) == len(texts) == len(set(texts)) >= 2
        for i in range(24):
            shown = data.looks_of(i)
            assert known[i] == (
                values.index(shown[trait]) if trait in shown else values.index("") if "" in values else -1
            )


def test_prompts_with_looks_describe_the_people_that_are_drawn_for_them() -> None:
    prompts = evaluation_prompts(12)
    for text, looks, (noun, phrases) in zip(look_texts(prompts), plain_looks(prompts), prompts, strict=True):
        assert looks
        assert phrases["place"].text in text
        assert f"{TRAITS[list(looks)[-1]][list(looks.values())[-1]].adjective} {noun}" in text
    first = draw_portrait(PROMPT_SEED, noun=prompts[0][0], phrases=prompts[0][1]).identity
    assert plain_looks(prompts)[0].items() <= looks_of(first).items()
