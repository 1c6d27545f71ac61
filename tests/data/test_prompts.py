"""Prompt sets: balanced, nested, unique, and the same in every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.config.schema import Prompts
from diffusion_lab.data.prompt_files import read_lines
from diffusion_lab.data.prompts import (
    SETS,
    fill,
    images_per_prompt,
    load_prompts,
    prompt_slots,
    prompts_sha256,
    with_article,
    without_identifier,
)
from diffusion_lab.data.stratified_choice import seeded_random, stratified
from diffusion_lab.miniature import phrases
from diffusion_lab.records import PromptSet, UserError


def load(noun: str = "woman", **options: object) -> PromptSet:
    return load_prompts(Prompts(**options), identifier="customcls", class_noun=noun)  # type: ignore[arg-type]


def test_every_phrase_occurs_equally_often_in_every_prefix() -> None:
    prompts = load(n=100).prompts
    slots = prompt_slots()
    assert len(slots) >= 7
    for n in (13, 30, 50, 100):
        for slot, options in slots.items():
            counts = Counter(prompt.slots[slot] for prompt in prompts[:n])
            expected = [counts[phrase.text] for phrase in options]
            assert sum(expected) == n
            assert max(expected) - min(expected) <= 1, (slot, n)


def test_texts_are_unique_and_say_what_their_slots_say() -> None:
    for noun in ("man", "woman"):
        prompts = load(noun, n=400)
        assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == 400
        for prompt in prompts:
            assert f"of customcls {noun}" in prompt.text
            assert "customcls" not in prompt.plain
            assert f"of a {noun}" in prompt.plain
            assert prompt.text.replace(f"customcls {noun}", f"a {noun}") == prompt.plain
            assert all(phrase in prompt.text for phrase in prompt.slots.values())
    assert load("apple", n=1).prompts[0].plain.count("an apple") == 1


def test_five_thousand_stay_unique_and_balanced() -> None:
    prompts = load(n=5000)
    assert len({p.text for p in prompts}) == 5000
    for slot, options in prompt_slots().items():
        counts = Counter(prompt.slots[slot] for prompt in prompts)
        assert max(counts.values()) - min(counts[o.text] for o in options) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=3), st.integers(0, 50), st.data())
def test_collisions_are_repaired_without_loss_of_balance(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    """With few combinations collisions are the rule."""
    slots = {f"s{i}": tuple(range(size)) for i, size in enumerate(sizes)}
    total = 1
    for size in sizes:
        total *= size
    n = data.draw(st.integers(2, total))
    drawn = []
    while len(drawn) < n:  # as many as the table gives; the refusal itself is tested below
        try:
            drawn = stratified(slots, n, seed)
        except UserError:
            n -= 1
    assert n >= 2  # two different combinations can always be drawn
    assert len({tuple(hand.values()) for hand in drawn}) == n
    for slot, options in slots.items():
        counts = Counter(hand[slot] for hand in drawn)
        assert max(counts.values()) - min(counts[option] for option in options) <= 2
    assert stratified(slots, max(1, n // 2), seed) == drawn[: max(1, n // 2)]


def test_too_many_for_the_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompts\.n"):
        stratified({"a": (1, 2), "b": (1, 2)}, 5, 0)


def test_nested_in_n_and_changed_by_the_seed() -> None:
    hundred = load(n=100).prompts
    assert load(n=30).prompts == hundred[:30]
    assert {p.text for p in load(n=100, seed=1)} != {p.text for p in hundred}
    assert load(n=100, seed=1).sha256 != load(n=100).sha256


def test_the_hash_is_of_everything_that_was_asked() -> None:
    prompts = load(n=3)
    first, *rest = prompts.prompts
    assert prompts.sha256 == prompts_sha256(prompts.prompts, prompts.negative)
    changed = [
        replace(first, id="p9"),
        replace(first, text=first.text + "."),
        replace(first, plain="a dog"),
        replace(first, slots={**first.slots, "place": "at sea"}),
    ]
    hashes = {prompts_sha256([one, *rest], "") for one in changed}
    hashes |= {prompts_sha256([*rest, first], ""), prompts_sha256(prompts.prompts, "ugly"), prompts.sha256}
    assert len(hashes) == 7


def test_the_plain_set_has_no_negative_prompt_and_no_spoilt_words() -> None:
    plain, negative = load(), load(name="miniature_negative")
    assert plain.negative == ""
    assert negative.negative == phrases.NEGATIVE_PROMPT != ""
    assert plain.prompts == negative.prompts
    assert plain.sha256 != negative.sha256
    spoilt = {phrase.text for phrase in phrases.SPOILT}
    assert spoilt
    assert not spoilt & {prompt.slots["quality"] for prompt in plain}
    assert {phrase.text for phrase in phrases.MAGIC} <= {prompt.slots["quality"] for prompt in plain}
    assert load(negative="ugly").negative == "ugly"
    assert load(name="miniature_negative", negative="").negative == ""


def test_the_same_in_every_process() -> None:
    program = (
        "from diffusion_lab.config.schema import Prompts; from diffusion_lab.data.prompts import load_prompts\n"
        "for name in ('miniature', 'dreambooth_live'):\n"
        "    for n in (7, 100):\n"
        "        prompts = load_prompts(Prompts(name=name, n=n), identifier='customcls', class_noun='dog')\n"
        "        print(prompts.sha256)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(runs) == 1
    assert len(set(runs.pop().split())) == 4


@pytest.mark.parametrize("name", ["dreambooth_objects", "dreambooth_live"])
def test_dreambooth_sets(name: str) -> None:
    prompts = load("dog", name=name)
    assert len(prompts) == len({p.text for p in prompts}) == 25
    assert images_per_prompt(Prompts(name=name, n=100), prompts) == 4
    assert images_per_prompt(Prompts(name=name, n=30), prompts) == 2
    assert images_per_prompt(Prompts(name=name, n=25, images_per_prompt=3), prompts) == 3
    first, last = prompts.prompts[0], prompts.prompts[-1]
    assert (first.text, first.plain) == ("a customcls dog in the jungle", "a dog in the jungle")
    assert (last.text, last.plain) == ("a cube shaped customcls dog", "a cube shaped dog")
    assert last.slots == {"property": "cube shaped"}
    assert Counter(slot for p in prompts for slot in p.slots) == (
        {"place": 20, "property": 5}
        if name == "dreambooth_objects"
        else {"place": 10, "outfit": 10, "property": 5}
    )
    assert load("owl", name=name).prompts[0].plain == "an owl in the jungle"


def test_a_smaller_draw_of_a_list_lies_inside_a_larger_one() -> None:
    inside: set[str] = set()
    for n in range(1, 26):
        drawn = load("dog", name="dreambooth_live", n=n)
        texts = {p.text for p in drawn}
        assert len(texts) == n
        assert inside <= texts
        inside = texts
        ids = [p.id for p in drawn]
        assert ids == sorted(ids)
    everything = {p.text: p.id for p in load("dog", name="dreambooth_live")}
    assert all(everything[p.text] == p.id for p in load("dog", name="dreambooth_live", n=5))
    draws = {frozenset(p.text for p in load("dog", name="dreambooth_live", n=5, seed=s)) for s in range(5)}
    assert len(draws) == 5


def test_the_papers_prompts_come_in_pairs() -> None:
    prompts = load("owl", name="paper", n=20)
    with_it = [p for p in prompts if not without_identifier(p)]
    without = [p for p in prompts if without_identifier(p)]
    assert len(with_it) == len(without) == 10
    assert [p.plain for p in with_it] == [p.plain for p in without] == [p.text for p in without]
    assert [p.text.replace("a customcls owl", "an owl") for p in with_it] == [p.text for p in without]
    assert with_it[0].text == "a photo of a customcls owl"
    assert [p.slots["edit"] for p in with_it] == [p.slots["edit"] for p in without]
    assert [p.slots["edit"] for p in with_it].count("") == 1
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == 20
    assert images_per_prompt(Prompts(name="paper", n=20, images_per_prompt=5), prompts) == 5
    everything = {p.text: p.id for p in prompts}
    inside: set[str] = set()
    for n in (1, 2, 3, 4, 10, 18, 19):
        few = load("owl", name="paper", n=n)
        assert len(few) == 2 * ((n + 1) // 2)
        assert images_per_prompt(Prompts(name="paper", n=n, images_per_prompt=5), few) == 5, n
        assert [p.plain for p in few.prompts[: len(few) // 2]] == [
            p.text for p in few.prompts[len(few) // 2 :]
        ]
        assert few.prompts[0] == with_it[0]
        assert all(everything[p.text] == p.id for p in few)
        assert inside <= {p.text for p in few}
        inside = {p.text for p in few}


def test_logo_and_probes() -> None:
    logo = load("logo", name="logo", n=5)
    assert [p.text for p in logo][1] == "a male model wearing a blue customcls logo sweater"
    assert [p.plain for p in logo][3:] == ["the latest logo products", "the new logo fragrance"]
    assert all("customcls" in p.text and "customcls" not in p.plain for p in logo)
    probes = load("dog", name="probes", n=2)
    assert [p.slots for p in probes] == [{"probe": "neglect"}, {"probe": "binding"}]
    assert [p.text for p in probes] == [p.plain for p in probes]


@pytest.mark.skipif("DIFFUSION_LAB_PHOTOS" not in os.environ, reason="DIFFUSION_LAB_PHOTOS is not set")
def test_dreambooth_sets_are_the_published_ones() -> None:
    published = (Path(os.environ["DIFFUSION_LAB_PHOTOS"]) / "prompts_and_classes.txt").read_text()
    lists = [re.findall(r"'([^']+)'\.format", part) for part in published.split("prompt_list")[1:]]
    assert [len(found) for found in lists] == [25, 25]
    for name, found in zip(("dreambooth_objects", "dreambooth_live"), lists, strict=True):
        assert [p.text for p in load("dog", name=name)] == [t.format("customcls", "dog") for t in found]


# --- files ----------------------------------------------------------------------------------------------


def test_text_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(
        b"\xef\xbb\xbf# my prompts\r\na photo of {subject}\r\n\r\n  a {subject} in the snow \n"
        b"a red customcls dog\na painting of Customcls\na dog asleep\na photo of {subject}\n"
    )
    prompts = load("dog", name="file", path=str(file)).prompts
    assert [(p.id, p.text, p.plain) for p in prompts] == [
        ("p000", "a photo of customcls dog", "a photo of a dog"),
        ("p001", "a customcls dog in the snow", "a dog in the snow"),
        ("p002", "a red customcls dog", "a red dog"),
        ("p003", "a painting of Customcls", "a painting of dog"),
        ("p004", "a dog asleep", "a dog asleep"),
    ]
    assert "line 8" in caplog.text
    assert "twice" in caplog.text
    assert "cannot show the subject" not in caplog.text
    file.write_text("a photo of {subject}\na red car\n")
    load("dog", name="file", path=str(file))
    assert "1 prompts name neither 'customcls' nor 'dog'" in caplog.text
    assert "a red car" in caplog.text
    assert images_per_prompt(Prompts(name="file", n=100), load("dog", name="file", path=str(file))) == 50


def test_csv_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        'place,prompt,light\nsnow,"a {subject}, in the snow",dim\n\nbeach,a {subject} on a beach,\n'
    )
    prompts = load("owl", name="file", path=str(file)).prompts
    assert [(p.text, p.plain) for p in prompts] == [
        ("a customcls owl, in the snow", "an owl, in the snow"),
        ("a customcls owl on a beach", "an owl on a beach"),
    ]
    assert [dict(p.slots) for p in prompts] == [
        {"place": "snow", "light": "dim"},
        {"place": "beach", "light": ""},
    ]
    (tmp_path / "mine.tsv").write_text("prompt\tplace\na {subject}, here\tx\n")
    assert read_lines(tmp_path / "mine.tsv")[0].text == "a {subject}, here"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"# nothing\n\n", "holds no prompt"),
        ("a.txt", b"a {subjct} here\n", r"line 1.*\{subjct\} is not known; only \{subject\}"),
        ("a.txt", b"caf\xe9 with {subject}\n", "UTF-8"),
        ("a.csv", b"", "one column named prompt"),
        ("a.csv", b"text,place\na,b\n", "one column named prompt.*text, place"),
        ("a.csv", b"prompt,prompt\na,b\n", "one column named prompt"),
        ("a.csv", b"prompt,x,x\na,b,c\n", "needs a different name"),
        ("a.csv", b"prompt,place\na, b, c\n", "line 2.*3 cells for 2 columns"),
        ("a.csv", b"prompt,place\n ,b\n", "line 2.*empty"),
        ("a.csv", b'prompt\n"open\n', "line"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s)prompts.path.*{message}"):
        load("dog", name="file", path=str(tmp_path / name))


@pytest.mark.parametrize("n", [1, 3, 7, 50, 51])
def test_a_file_is_drawn_from_as_the_whole_list_would_be(tmp_path: Path, n: int) -> None:
    """Against the plain way: a random number for every line, the n smallest, in the order of the lines."""
    texts = [f"{{subject}} number {i}" for i in range(50)]
    (tmp_path / "mine.csv").write_text(
        "prompt,place\n" + "".join(f"{text},{i}\n" for i, text in enumerate(texts))
    )
    generator = seeded_random("prompts", 3)
    keys = [generator.random() for _ in texts]
    expected = sorted(sorted(range(50), key=lambda i: keys[i])[:n])
    drawn = load_prompts(
        Prompts(name="file", path=str(tmp_path / "mine.csv"), n=n, seed=3), identifier="sks", class_noun="dog"
    )
    assert [int(prompt.slots["place"]) for prompt in drawn] == expected
    assert [prompt.id for prompt in drawn] == [f"p{i:03d}" for i in expected]


def test_a_long_table_is_read_to_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.csv"
    with open(path, "w") as file:
        file.write("prompt\n")
        file.writelines(f"a {{subject}} in place {i % 100_001}\n" for i in range(110_000))
        file.write("a {wrong} one\n")
    drawn = load_prompts(Prompts(name="file", path=str(path), n=4), identifier="sks", class_noun="dog")
    assert len(drawn) == 4
    assert "has more than 100000 prompts; those after line 100001 are not used" in caplog.text


def test_many_repeated_lines_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.txt").write_text("a {subject}\n" * 1000)
    assert len(read_lines(tmp_path / "mine.txt")) == 1
    assert len(caplog.records) == 6
    assert "994 more prompts occur twice" in caplog.text


def test_lines_without_end_are_not_read(tmp_path: Path) -> None:
    for name in ("mine.txt", "mine.csv"):
        with open(tmp_path / name, "wb") as file:
            file.write(b"prompt\n")
            file.truncate(20_000_000_000)
        settings = Prompts(name="file", path=str(tmp_path / name))
        with pytest.raises(UserError, match=r"line 2: has more than 65,536 characters"):
            load_prompts(settings, identifier="sks", class_noun="dog")


@pytest.mark.parametrize(
    "values",
    [{"n": 10**9}, {"n": 10**21}, {"images_per_prompt": 10**9}, {"n": 50_000, "images_per_prompt": 2}],
)
def test_more_than_anybody_draws_is_refused_at_once(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"prompts\.(n|images_per_prompt)=\d+.*50000"):
        Prompts(**values)


def test_missing_file_and_unknown_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts\.path is not set"):
        load(name="file")
    with pytest.raises(UserError, match=r"prompts\.path.*does not exist"):
        load(name="file", path=str(tmp_path / "missing.txt"))
    with pytest.raises(UserError, match=r"prompts\.path"):
        load(name="file", path=str(tmp_path))
    with pytest.raises(UserError) as caught:
        load(name="dreambooth_lives")
    assert all(name in str(caught.value) for name in SETS)
    assert "did you mean 'dreambooth_live'" in str(caught.value)
    few = Prompts()
    few.n = 0
    with pytest.raises(UserError, match=r"prompts\.n=0"):
        load_prompts(few, identifier="customcls", class_noun="man")


def test_articles() -> None:
    assert with_article("dog") == "a dog"
    assert with_article("Owl") == "an Owl"
    assert fill("a {subject} and a {subject}", "owl") == "an owl and an owl"
    assert fill("A {subject}", "owl") == "An owl"
    assert fill("a {subject}", "customcls owl") == "a customcls owl"


def test_the_config_is_left_alone() -> None:
    config = Prompts(n=5)
    before = replace(config)
    load_prompts(config, identifier="x", class_noun="man")
    assert config == before
