"""The 77-token limit, with a real CLIP tokenizer of a few hundred pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffusion_lab.config.schema import Prompts
from diffusion_lab.data.prompts import load_prompts
from diffusion_lab.data.tokens import (
    CLIP_LIMIT,
    check_lengths,
    check_texts,
    length_of,
    limit_of,
    token_report,
)
from diffusion_lab.records import Prompt, PromptSet, Subject, UserError


def tiny_tokenizer(**options: object) -> CLIPTokenizer:
    """All bytes as pieces, alone and at a word's end, and the merges for `custom`, `cls` and `dog`."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["c u", "s t", "cu st", "o m</w>", "o m", "cust om", "c l", "cl s</w>", "d o", "do g</w>"]
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], **options)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return tiny_tokenizer(model_max_length=77)


def prompts_of(*texts: str, negative: str = "") -> PromptSet:
    made = tuple(Prompt(id=f"p{i:03d}", text=text, plain=text) for i, text in enumerate(texts))
    return PromptSet(name="test", prompts=made, negative=negative, sha256="")


def subject(identifier: str = "customcls") -> Subject:
    instance = f"a photo of {identifier} dog"
    return Subject(
        name="rex", class_noun="dog", identifier=identifier, train=(), heldout=(), instance_prompt=instance
    )


def test_identifier_in_two_ordinary_pieces(tokenizer: CLIPTokenizer) -> None:
    report = token_report(tokenizer, subject(), prompts_of("a dog", "a dog a dog"))
    assert report.pieces == ("custom", "cls</w>")
    assert report.ids == tuple(tokenizer.convert_tokens_to_ids(list(report.pieces)))
    assert not report.unknown
    assert "2 ordinary pieces (custom cls</w>)" in str(report)
    assert report.longest == ("p001", 6)
    assert report.too_long == ()
    assert report.instance_length == length_of(tokenizer, "a photo of customcls dog")
    assert token_report(tokenizer, subject("dog"), prompts_of("a")).kind == "one ordinary piece"


def test_rare_pieces_are_told_from_ordinary_ones() -> None:
    """By the numbers of CLIP's vocabulary: "sks" is 48136, "man" 786."""

    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    ends = {f"{letter}</w>": 30 + number for letter, number in letters.items()}
    words = {"ks</w>": 60, "an</w>": 61, "man</w>": 786, "sks</w>": 48136}
    special = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    merges = [("k", "s</w>"), ("s", "ks</w>"), ("a", "n</w>"), ("m", "an</w>")]
    tokenizer = CLIPTokenizer(vocab={**letters, **ends, **words, **special}, merges=merges)

    def kind(identifier: str) -> str:
        return token_report(tokenizer, subject(identifier), prompts_of("a")).kind

    assert kind("sks") == "one rare piece"
    assert kind("man") == "one ordinary piece"
    assert kind("sks man") == "2 pieces, 1 of them rare"


def test_length_counts_start_and_end(tokenizer: CLIPTokenizer) -> None:
    assert length_of(tokenizer, "") == 2
    assert length_of(tokenizer, "dog") == 3
    assert length_of(tokenizer, "customcls dog") == 5


def test_exactly_77_fit_and_78_do_not(tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    fits, over = " ".join(["dog"] * 75), " ".join(["dog"] * 76)
    assert (length_of(tokenizer, fits), length_of(tokenizer, over)) == (77, 78)
    check_lengths(tokenizer, fits, prompts_of(fits, negative=fits))
    with pytest.raises(UserError, match=r"p001: 78 tokens.*reads 77.*prompts\.path"):
        check_lengths(tokenizer, "a dog", prompts_of(fits, over))
    with pytest.raises(UserError, match=r"p000, and 1 more: 78 tokens"):
        check_lengths(tokenizer, "a dog", prompts_of(over, over + " dog"))
    with pytest.raises(UserError, match=r"instance prompt: 78 tokens.*data\.identifier"):
        check_lengths(tokenizer, over, prompts_of(fits))
    with pytest.raises(UserError, match=r"negative prompt: 78 tokens.*prompts\.negative"):
        check_lengths(tokenizer, "a dog", prompts_of(fits, negative=over))
    report = token_report(tokenizer, subject(), prompts_of(fits, over))
    assert report.too_long == (("p001", 78),)
    assert "too long: p001 (78)" in str(report)
    assert not caplog.records  # the library's own remark on long texts would say less, and at another time


def test_the_limit_is_the_tokenizers() -> None:
    short = tiny_tokenizer(model_max_length=16)
    assert limit_of(short) == 16
    with pytest.raises(UserError, match="reads 16"):
        check_lengths(short, "a dog", prompts_of(" ".join(["dog"] * 20)))
    assert limit_of(tiny_tokenizer()) == CLIP_LIMIT


def test_unknown_pieces_are_said() -> None:
    vocabulary = {"d": 0, "o": 1, "g</w>": 2, "do": 3, "dog</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    poor = CLIPTokenizer(vocab=vocabulary, merges=[("d", "o"), ("do", "g</w>")], model_max_length=77)
    assert "unknown" in str(token_report(poor, subject("xyz"), prompts_of("dog")))
    assert not token_report(poor, subject("dog"), prompts_of("dog")).unknown


def test_the_sets_of_the_package_fit(tokenizer: CLIPTokenizer) -> None:
    """Counted by words and commas, which a real vocabulary splits little further."""
    for name in ("miniature", "miniature_negative", "portrait", "dreambooth_objects", "dreambooth_live"):
        prompts = load_prompts(Prompts(name=name), identifier="customcls", class_noun="woman")
        for prompt in prompts:
            assert len(prompt.text.replace(",", " ,").split()) < 60


@pytest.mark.parametrize(("family", "most"), [("sdxl", 77), ("sd3", 256), ("flux", 512)])
def test_the_longest_text_is_the_familys(family: str, most: int, tmp_path: Path) -> None:
    """CLIP's 77 tokens where CLIP is all that reads the text, else T5's."""
    from tests.families.tiny import FAMILY

    pipe = FAMILY[family](tmp_path)
    long = " ".join(["dog"] * (70 if most == 77 else most // 3))
    check_texts(pipe, prompts_of("a dog", long), instance_prompt=long)
    over = " ".join(["dog"] * 600)
    for texts, negative, instance in (
        (["a dog", over], "", ""),
        (["a dog"], over, ""),
        (["a dog"], "", over),
    ):
        with pytest.raises(UserError, match=f"the model reads {most}"):
            check_texts(pipe, prompts_of(*texts, negative=negative), instance_prompt=instance)
