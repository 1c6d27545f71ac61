"""The identifier is looked at before anything is loaded: refused where it cannot work, with a remedy that helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.data.identifiers import identifier_warnings
from diffusion_lab.families.vocabulary import check_new_word, read_tokenizer
from diffusion_lab.jobs import check
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError
from tests.clip_vocabulary import clip_tokenizer, write_clip_files


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(*words: str) -> Plan:
        return check(fill_defaults(compose(["experiment=debug", *words])), tmp_path / "run")

    return make


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("clip")
    write_clip_files(folder)
    return read_tokenizer(folder)


@pytest.mark.parametrize(
    "text", ["", "a photo of Sks dog's", "Café 123 \n ﬁ 🐶 <|endoftext|> !!", "isn't it  x_1"]
)
def test_clips_two_files_are_read_as_transformers_reads_them(clip: Any, text: str) -> None:
    assert clip.encode(text).ids == clip_tokenizer()(text).input_ids


REFUSED = [
    ("lora", "<|endoftext|>", "control token"),
    ("lora", "a<|startoftext|>", "control token"),
    ("lora", "\u200b", "no visible character"),
    ("textual_inversion", "\u00ad", "no visible character"),
    ("textual_inversion", "dog", "word of the model's vocabulary"),
    ("pivotal", "Cat", "word of the model's vocabulary"),
    ("textual_inversion", "Red", "ordinary word of the prompt"),
    ("textual_inversion", "woman", "word of the class noun"),
    ("pivotal", "WOMAN", "word of the class noun"),
    ("textual_inversion", "my dog", "data.identifier=my-dog"),
    ("textual_inversion", "<|endoftext|>", "control token"),
]


@pytest.mark.parametrize(("method", "identifier", "words"), REFUSED)
def test_what_cannot_work_is_refused(plan, method: str, identifier: str, words: str) -> None:
    quoted = f"data.identifier='{identifier}'"
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        plan(f"method={method}", quoted)
    assert "data.identifier=" in str(refusal.value)
    remedy = re.findall(
        r"(?:such as|set|give a word, such as) (?:data\.identifier=)?([\w-]+)$", str(refusal.value)
    )
    if remedy:
        plan(f"method={method}", f"data.identifier={remedy[0]}")


WARNED = [
    ("lora", "dog", "ordinary word"),
    ("dreambooth", "woman", "word of the class noun"),
    ("lora", "red dog", "ordinary word"),
    ("textual_inversion", "MyDog", "plain diffusers finds the learned word as mydog"),
    ("pivotal", "pho", "as <pho>"),
    ("textual_inversion", "lin", "inside of other words too"),
]


@pytest.mark.parametrize(("method", "identifier", "words"), WARNED)
def test_what_works_with_a_catch_is_said(plan, method: str, identifier: str, words: str) -> None:
    said = [
        line for line in plan(f"method={method}", f"data.identifier='{identifier}'").warnings if words in line
    ]
    assert len(said) == 1
    assert f"data.identifier={identifier!r}" in said[0]


@pytest.mark.parametrize(
    "identifier", ["customcls", "sks", "ohwx", "my-dog", "x_1", "élan", "маша", "🐶", "<cat-toy>", "d0g"]
)
@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion", "pivotal"])
def test_what_works_is_let_be(plan, method: str, identifier: str) -> None:
    assert not [
        line
        for line in plan(f"method={method}", f"data.identifier='{identifier}'").warnings
        if "identifier" in line
    ]


def test_the_words_around_it(plan, tmp_path: Path) -> None:
    """A word that the prompts say in another sense would mean the subject there too."""
    paper = ["prompts=paper", "prompts.n=20", "data.identifier=elmo"]
    assert any("ordinary word of the prompt 'Elmo holding" in line for line in plan(*paper).warnings)
    with pytest.raises(UserError, match=r"'elmo': is an ordinary word of the prompt 'Elmo holding a woman'"):
        plan("method=textual_inversion", *paper)
    with pytest.raises(UserError, match="is in the negative prompt"):
        plan("method=textual_inversion", "data.identifier=blurx", "prompts.negative='ugly, Blurx'")
    plan("method=textual_inversion", "data.identifier=lin", "prompts.negative='smiling'")


def test_a_long_word_counts_as_its_vectors(plan, tmp_path: Path) -> None:
    long = "data.identifier=" + "abcdefghij" * 8
    with pytest.raises(UserError, match=r"has \d+ tokens"):
        plan("method=lora", long)
    plan("method=textual_inversion", long)
    (tmp_path / "prompts.txt").write_text("customcls, customcls and customcls")
    words = ["method=textual_inversion", "prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}"]
    with pytest.raises(UserError, match=r"p000 has 100 tokens .* method\.vectors"):
        plan(*words, "method.vectors=32")
    plan(*words, "method.vectors=20")


@pytest.mark.parametrize(
    ("word", "new"),
    [("lin", False), ("Anna", False), ("pho", False), ("x", False), ("1", False), ("sks", True), ("joh", True),
     ("jenni", True), ("isab", True), ("customcls", True), ("x_1", True), ("🐶", False), ("MyDog", True)],
)  # fmt: skip
def test_new_words_by_clips_vocabulary(clip: Any, word: str, new: bool) -> None:
    if new:
        check_new_word(clip, word)
    else:
        with pytest.raises(UserError, match="a new one is needed, such as data.identifier=") as refusal:
            check_new_word(clip, word)
        check_new_word(clip, str(refusal.value).rpartition("=")[2])


def test_what_plain_diffusers_would_do_is_said_of_clips_words(clip: Any) -> None:
    assert identifier_warnings(clip, "customcls", learnt=True) == []
    (said,) = identifier_warnings(clip, "joh", learnt=True)[:1]
    assert "finds the learned word as <joh> only" in said
    assert any("inside of other words" in line for line in identifier_warnings(clip, "hotogra", learnt=True))
    assert identifier_warnings(clip, "sks", learnt=False) == []
    assert "ordinary word" in identifier_warnings(clip, "anna", learnt=False)[0]


def test_unknown_to_the_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    assert "does not know it" in identifier_warnings(tokenizer, "🐶", learnt=False)[0]
    assert identifier_warnings(tokenizer, "🐶", learnt=True) == []
    tokenizer.pre_tokenizer = pre_tokenizers.Split("x", "removed")  # type: ignore[assignment]
    with pytest.raises(UserError, match="reads nothing there"):
        identifier_warnings(tokenizer, "xx", learnt=False)
