"""Where a word stands: one rule, as a table and as properties."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.data.prompts import plain_prompt
from diffusion_lab.values.word_match import (
    contains_word,
    has_visible_text,
    replace_words,
    without_overlaps,
    word_spans,
)


@pytest.mark.parametrize(
    ("word", "text", "stands"),
    [
        ("lin", "lin", True),
        ("lin", "a photo of Lin, smiling", True),
        ("lin", "a smiling man in a linen shirt", False),
        ("x", "x-ray", True),
        ("x", "x_1", False),
        ("x", "x1", False),
        ("x_1", "a x_1", True),
        ("x_1", "x_12", False),
        ("my-dog", "a My-Dog.", True),
        ("<cat-toy>", "a<cat-toy>b", True),
        ("<cat-toy>", "a <CAT-TOY> there", True),
        ("🐶", "🐶🐶", True),
        ("👍", "👍🏽", False),  # another skin tone is another sign
        ("👩", "👩\u200d🔬", False),  # a scientist, not a woman
        ("caf", "cafe\u0301", False),
        ("cafe", "cafe\u0301", False),
        ("café", "a CAFE\u0301 there", True),
        ("cafe\u0301", "a café", True),
        ("राम", "रामी", False),  # a vowel sign belongs to the letter before it
        ("маша", "Маша в лесу", True),
        ("маша", "машина", False),
        ("小明", "a photo of 小明, man", True),
        ("小明", "小明天", False),
        ("a-a", "xa-a-a", True),
        *((end, f"a man'{end} hat", False) for end in ("s", "S", "t", "re", "ve", "m", "ll", "d")),
        ("s", "a man\u2019s hat", False),
        ("s", "s's hat", True),
        ("s", "'s'", True),
        ("'s", "a man's hat", True),
        ("anna", "d'Anna", True),
        ("mydog", "MyDog's ball, the MyDogs\u2019 ball", True),
        ("mydog", "the mydogs", False),
        ("sks dog", "a photo of sks  dog", True),
        ("", "anything", False),
        (" ", "a b", False),
    ],
)
def test_where_a_word_stands(word: str, text: str, stands: bool) -> None:
    assert contains_word(word, text) is stands
    assert (replace_words(text, [word], "▲") != text) is stands


@given(st.text(max_size=12), st.text(max_size=40), st.text(max_size=40))
def test_between_spaces_every_visible_word_stands(word: str, before: str, after: str) -> None:
    if unicodedata.category((word.strip() or " ")[0])[0] == "M":
        return  # a mark belongs to the space before it
    text = f"{before} {word} {after}"
    assert contains_word(word, text) is bool(word.split())


@given(st.text("abx_ -é'", min_size=1, max_size=3), st.text("abx_ -é'", max_size=30))
def test_spans_are_whole_words_and_miss_none(word: str, text: str) -> None:
    """Against a slow reference: every place is tried."""

    def written(character: str) -> bool:
        return character.isalnum() or character == "_"

    def whole(at: int) -> bool:
        end = at + len(word)
        glued_before = at > 0 and written(text[at - 1]) and written(word[0])
        glued_after = end < len(text) and written(text[end]) and written(word[-1])
        return text.startswith(word, at) and not (glued_before or glued_after)

    expected, at = [], 0
    while at < len(text):
        if whole(at):
            expected.append((at, at + len(word)))
            at += len(word)
        else:
            at += 1
    assert word_spans(text, word) == expected


def test_the_longest_word_wins() -> None:
    assert without_overlaps([(0, 3, 0), (0, 7, 1), (8, 9, 0)]) == [(0, 7, 1), (8, 9, 0)]
    assert replace_words("sks dog, sks", ["sks", "sks dog"], "cat") == "cat, cat"


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\u00ad\u2060", "\x00"])
def test_what_nobody_sees(text: str) -> None:
    assert not has_visible_text(text)
    assert has_visible_text(f"{text}🐶")


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        ("a photo of lin man, smiling", "a photo of man, smiling"),
        ("LIN in linen", "man in linen"),
        ("Lin  man's hat", "man's hat"),
        ("a smiling man", "a smiling man"),
    ],
)
def test_plain_prompts_know_words_from_pieces(template: str, plain: str) -> None:
    assert plain_prompt(template, "lin", "man") == plain
