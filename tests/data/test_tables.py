"""Prompts out of a template and a table of phrases: the set `portrait`, a user's own table, and what stays the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Prompts
from diffusion_lab.data.prompts import load_prompts
from diffusion_lab.data.stratified_choice import stratified
from diffusion_lab.data.tables import PORTRAIT, Table, read_table
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import PromptSet, UserError


def load(name: str = "portrait", noun: str = "man", **options: object) -> PromptSet:
    return load_prompts(Prompts(name=name, **options), identifier="customcls", class_noun=noun)  # type: ignore[arg-type]


def test_five_thousand_portraits_are_unique_and_say_what_their_slots_say() -> None:
    prompts = load(n=5000).prompts
    assert len({p.text for p in prompts}) == 5000
    for prompt in prompts:
        assert "customcls man" in prompt.text
        assert prompt.text.replace("of customcls man", "of a man") == prompt.plain
        assert all(phrase in prompt.text for phrase in prompt.slots.values())
        assert " ," not in prompt.text
        assert ",," not in prompt.text
        assert not prompt.text.endswith((",", " "))
    for slot, phrases in PORTRAIT.slots.items():
        counts = Counter(p.slots[slot] for p in prompts)
        assert set(counts) == set(phrases)
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_hundred_portraits_are_stratified_and_lie_within_the_five_thousand() -> None:
    hundred = load(n=100).prompts
    assert load(n=5000).prompts[:100] == hundred
    for slot, phrases in PORTRAIT.slots.items():
        counts = Counter(p.slots[slot] for p in hundred)
        assert max(counts.values()) - min(counts[phrase] for phrase in phrases) <= 1
    assert load(n=100, seed=1).sha256 != load(n=100).sha256 == load(n=100).sha256


def test_the_portraits_negative_prompt_is_a_choice_of_the_set() -> None:
    plain, negative = load(n=10), load("portrait_negative", n=10)
    assert plain.prompts == negative.prompts
    assert plain.negative == ""
    assert "deformed" in negative.negative
    assert plain.sha256 != negative.sha256


def test_full_size_runs_take_the_portraits() -> None:
    for words in (["prompts=portrait"], ["prompts=full"], ["prompts=small_card"], ["experiment=full"]):
        assert fill_defaults(compose(words)).prompts.name == "portrait"
    assert compose(["prompts=portrait_negative"]).prompts.sampling_steps == 25


# --- what a change of the table leaves alone ------------------------------------------------------------

SLOTS = {name: tuple(range(size)) for name, size in (("a", 17), ("b", 9), ("c", 21), ("d", 18))}


def column(hands: list[dict[str, int]], slot: str) -> list[int]:
    return [hand[slot] for hand in hands]


def test_a_new_slot_leaves_the_others_as_they_were() -> None:
    before, after = stratified(SLOTS, 60, 3), stratified({**SLOTS, "e": tuple(range(5))}, 60, 3)
    assert all(column(before, slot) == column(after, slot) for slot in SLOTS)
    reordered = stratified(dict(reversed(SLOTS.items())), 60, 3)
    assert all(column(before, slot) == column(reordered, slot) for slot in SLOTS)


def test_a_new_phrase_leaves_the_other_slots_as_they_were() -> None:
    before, after = stratified(SLOTS, 60, 3), stratified({**SLOTS, "b": tuple(range(10))}, 60, 3)
    assert column(before, "b") != column(after, "b")
    assert all(column(before, slot) == column(after, slot) for slot in "acd")


def test_a_new_phrase_at_the_end_keeps_the_order_of_the_first_round() -> None:
    first = column(stratified(SLOTS, 9, 3), "b")
    longer = column(stratified({**SLOTS, "b": tuple(range(10))}, 10, 3), "b")
    assert [phrase for phrase in longer if phrase != 9] == first


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_rounds_that_end_together_do_not_end_the_prompts(a: int, b: int, seed: int) -> None:
    """A quarter of all combinations can be drawn, whatever the slots' sizes."""
    slots = {"a": tuple(range(a)), "b": tuple(range(b)), "c": tuple(range(a))}
    n = max(2, a * a * b // 4)
    hands = stratified(slots, n, seed)
    assert len({tuple(hand.values()) for hand in hands}) == n
    for slot, options in slots.items():
        counts = Counter(column(hands, slot))
        assert max(counts.values()) - min(counts[option] for option in options) <= 2


# --- a user's own table ---------------------------------------------------------------------------------

GOOD = """
template: "{style} of {subject}, {place}, {light}"
slots:
  style: [a photo, an oil painting]
  place: ["", in a forest, on a beach]
  light: [soft light, ""]
negative: blurry
"""


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    found = load("table", "owl", n=12, path=str(tmp_path / "mine.yaml"))
    assert found.negative == "blurry"
    assert load("table", n=2, path=str(tmp_path / "mine.yaml"), negative="").negative == ""
    by_slots = {tuple(p.slots.values()): (p.text, p.plain) for p in found}
    assert len(by_slots) == 12  # all there are
    assert by_slots["a photo", "", ""] == ("a photo of customcls owl", "a photo of an owl")
    assert by_slots["an oil painting", "on a beach", ""][0] == "an oil painting of customcls owl, on a beach"
    assert by_slots["a photo", "", "soft light"][0] == "a photo of customcls owl, soft light"
    with pytest.raises(UserError, match=r"prompts\.n: no more than 12 different"):
        load("table", n=13, path=str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=r"prompts\.path is not set"):
        load("table")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a list", "needs template and slots"),
        ("template: a {subject}", "needs template and slots"),
        ("template: a {subject}\nslots: {}\nnegativ: x", "and nothing else"),
        ("template: a {subject}\nslots: [a]", "list of phrases for each slot"),
        ("template: 3\nslots: {}", "are texts"),
        ("template: a {subject} {x}\nslots: {x: [no]}", "slots.x: False is no text; put it into quotes"),
        ("template: a {x}\nslots: {x: [a]}", r"does not name \{subject\}"),
        ("template: a {subject} {y}\nslots: {x: [a]}", r"names \{y\}, and slots has no y"),
        ("template: a {subject} {x} {x}\nslots: {x: [a]}", r"\{x\} twice"),
        ("template: a {subject}\nslots: {x: [a]}", r"does not name the slot \{x\}"),
        ("template: a {subject} {x}\nslots: {x: []}", "slots.x has no phrase"),
        ("template: a {subject} {x}\nslots: {x: [a, a]}", "slots.x has a phrase twice"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=f"(?s)prompts.path: .*mine.yaml.*{message}"):
        load("table", path=str(tmp_path / "mine.yaml"))


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="does not name"):
        Table("a photo", {})


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "phrases.yaml", "wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        read_table(tmp_path / "phrases.yaml")
