"""Phrases and captions."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffusion_lab.miniature.phrases import (
    MAGIC,
    NEGATIVE_PROMPT,
    NOUNS,
    SLOTS,
    SPOILT,
    Phrase,
    caption,
    phrase_of,
)

FULL = {
    slot: phrase_of(slot, value)
    for slot, value in {
        "style": "oil", "expression": "smiling", "pose": "front", "attire": "tshirt", "accessory": "glasses",
        "place": "forest", "lighting": "soft", "quality": "magic",
    }.items()
}  # fmt: skip


def test_a_full_caption_reads_naturally_and_in_order() -> None:
    assert caption("man", FULL) == (
        "an oil painting of a man, smiling, facing the camera, wearing a red t-shirt, with round glasses, "
        "in a forest, soft light, highly detailed"
    )


@pytest.mark.parametrize("noun", NOUNS)
def test_without_phrases_the_caption_is_a_photo(noun: str) -> None:
    assert caption(noun, {}) == f"a photo of a {noun}"
    assert caption(noun, FULL, drop=SLOTS) == f"a photo of a {noun}"


def test_a_subject_replaces_the_noun() -> None:
    chosen = {"place": phrase_of("place", "beach")}
    assert caption("man", chosen, subject="customcls man") == "a photo of customcls man, on a beach"


def test_dropped_slots_and_empty_phrases_leave_no_trace() -> None:
    bare = FULL | {"accessory": phrase_of("accessory", "none"), "quality": phrase_of("quality", "none")}
    text = caption("woman", bare, drop=["lighting"])
    assert text.endswith("in a forest")
    assert ", ," not in text
    assert "soft light" not in text


def test_every_phrase_stands_in_its_caption() -> None:
    checked = 0
    for slot, options in SLOTS.items():
        for phrase in options:
            assert phrase.text in caption("man", FULL | {slot: phrase})
            checked += 1
    assert checked > 50


def test_values_are_shared_in_the_quality_slot_only_and_texts_never() -> None:
    for slot, options in SLOTS.items():
        texts, values = [p.text for p in options], [p.value for p in options]
        assert len(set(texts)) == len(texts)
        assert slot == "quality" or len(set(values)) == len(values)
    assert {p.value for p in MAGIC} == {"magic"}
    assert set(MAGIC) | set(SPOILT) < set(SLOTS["quality"])


def test_the_negative_prompt_lists_the_spoilt_words() -> None:
    assert NEGATIVE_PROMPT.split(", ") == [p.text for p in SPOILT]
    assert "bad anatomy" in NEGATIVE_PROMPT


def test_unknown_slots_and_values_are_named_in_the_error() -> None:
    with pytest.raises(KeyError, match="hat_size"):
        caption("man", {"hat_size": Phrase("large", "large")})
    with pytest.raises(KeyError, match="atlantis"):
        phrase_of("place", "atlantis")


def test_phrases_need_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, diffusion_lab.miniature.phrases; "
        "print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
