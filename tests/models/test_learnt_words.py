"""A learnt word is the same for the tokenizer as for the person, and nothing else changes.

On three vocabularies: the tiny one, the miniature's, and CLIP's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Steps
from diffusion_lab.data.prompts import load_prompts
from diffusion_lab.families.learnt_words import learn, name_in_diffusers, normalised, teach
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import FILE_NAME, TextualInversion
from diffusion_lab.miniature.shipped import shipped_folder
from diffusion_lab.records import UserError
from diffusion_lab.training.latents import tokenize
from diffusion_lab.training.loop import training_step
from diffusion_lab.values.word_match import contains_word
from tests.clip_vocabulary import clip_tokenizer
from tests.conftest import tiny_tokenizer


def miniature_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(shipped_folder("miniature") / "tokenizer")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "tiny": tiny_tokenizer, "miniature": miniature_tokenizer, "clip": clip_tokenizer,
}  # fmt: skip
WORDS = [
    "customcls", "MyDog", "MYDOG", "lin", "rin", "ari", "ing", "pho", "joh", "jenni", "isab", "my-dog", "my_dog", "d0g",
    "x", "x_1", "x1", "123", "<cat-toy>", "<CatToy>", "élan", "e\u0301lan", "İnci", "ẞigrid", "Ǆ", "маша", "小明",
    "राम", "🐶", "👩\u200d🔬", "!", "...", "'s", "s",
]  # fmt: skip
TEXTS = [
    "", "a photo of a smiling man", "ring, spring, arid, linen, photograph", "john, jennifer and isabel", "x_1 x_12 x1",
    "my dog", "mydogs", "İnciler", "машина", "小明天", "👩 👩\u200d🔬", "Cafe\u0301  \n and ǆ", "a dog's x-ray...!!",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(scope="module")
def fresh() -> Callable[[str], Any]:
    """A copy of a tokenizer, made from its own files' content: reading CLIP's anew takes a second."""
    from transformers import CLIPTokenizer

    kept = {name: make() for name, make in TOKENIZERS.items()}

    def copy(name: str) -> Any:
        backend = type(kept[name].backend_tokenizer).from_str(kept[name].backend_tokenizer.to_str())
        return CLIPTokenizer(tokenizer_object=backend, model_max_length=77)

    return copy


def forms(tokenizer: Any, word: str) -> set[str]:
    """How a person may type it."""
    return {
        form
        for form in (word, word.lower(), word.upper(), word.title())
        if normalised(tokenizer.backend_tokenizer, form) == normalised(tokenizer.backend_tokenizer, word)
    }


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_word_has_its_own_tokens_and_no_other_text_changes(fresh, plain, name: str, count: int) -> None:
    untouched = plain[name]
    for word in WORDS if name != "clip" else WORDS[2 * count :: 4]:  # a copy of CLIP's takes half a second
        tokenizer = fresh(name)
        ids = teach(tokenizer, word, count)
        assert ids == list(range(len(untouched), len(untouched) + count)), word
        assert tokenizer.get_vocab().items() >= untouched.get_vocab().items()
        for form in forms(tokenizer, word):
            before, after = (untouched(part).input_ids[1:-1] for part in ("a photo of ", " dog"))
            assert tokenizer(f"a photo of {form} dog").input_ids[1:-1] == [*before, *ids, *after], form
            assert tokenizer(f"({form})", add_special_tokens=False).input_ids[1:-1] == ids
        for text in TEXTS:
            if not contains_word(normalised(tokenizer.backend_tokenizer, word), text.lower()):
                assert tokenizer(text).input_ids == untouched(text).input_ids, (word, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_word_and_any_text(fresh, plain, name: str) -> None:
    """The same for words and texts that nobody thought of."""
    untouched = plain[name]
    letters = st.one_of(st.text("abxliné_-'.İ🐶1", min_size=1), st.text(min_size=1, max_size=8))

    @settings(max_examples=12 if name == "clip" else 60, deadline=None)
    @given(letters, st.lists(letters, max_size=5), st.integers(1, 4))
    def holds(word: str, others: list[str], count: int) -> None:
        tokenizer = fresh(name)
        backend = tokenizer.backend_tokenizer
        if not normalised(backend, word):
            with pytest.raises(ValueError, match="nothing to this tokenizer"):
                teach(tokenizer, word, count)
            return
        ids = teach(tokenizer, word, count)
        for text in (" ".join(others), "".join(others)):
            read = tokenizer(text).input_ids
            if not contains_word(normalised(backend, word), backend.normalizer.normalize_str(text)):
                assert read == untouched(text).input_ids
            assert tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids[
                :5
            ] == read[:5] + [tokenizer.pad_token_id] * (5 - len(read[:5]))
        said = [number for number in tokenizer(f"a , {word.strip()} , dog").input_ids if number in ids]
        assert said[:count] == ids

    holds()


def test_a_tokenizer_that_does_not_lower(fresh) -> None:
    tokenizer = fresh("tiny")
    tokenizer.backend_tokenizer.normalizer = None
    ids = [*teach(tokenizer, "MyDog", 2), *teach(tokenizer, "mydog", 1)]
    read = tokenizer("MyDog mydog MYDOG", add_special_tokens=False).input_ids
    assert (read[:3], set(read[3:]) & set(ids)) == (ids, set())
    assert name_in_diffusers(tokenizer.backend_tokenizer, "MyDog") == "MyDog"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_that_begin_alike(fresh, name: str) -> None:
    tokenizer = fresh(name)
    words = {
        word: teach(tokenizer, word, count)
        for word, count in (("x", 3), ("x_1", 2), ("x-ray", 1), ("X_1_1", 2))
    }
    assert len({number for ids in words.values() for number in ids}) == 8
    read = tokenizer("x_1 x x-ray, x_1_1", add_special_tokens=False).input_ids
    comma = tokenizer(",", add_special_tokens=False).input_ids
    assert read == [*words["x_1"], *words["x"], *words["x-ray"], *comma, *words["X_1_1"]]
    with pytest.raises(ValueError, match="known already"):
        teach(tokenizer, "X", 1)


def test_all_ways_to_call_it(fresh, plain) -> None:
    tokenizer = fresh("clip")
    ids = teach(tokenizer, "lin", 2)
    text = "a photo of Lin smiling"
    expected = [49406, 320, 1125, 539, *ids, 9200, 49407]
    assert (
        tokenizer(text).input_ids == tokenizer([text, "a"]).input_ids[0] == tokenizer.encode(text) == expected
    )
    assert tokenizer([text, "a dog"], padding=True, return_tensors="pt").input_ids[0].tolist() == expected
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == expected[1:-1]
    assert tokenizer(("a", "b")).input_ids == plain["clip"](("a", "b")).input_ids


@pytest.mark.parametrize("word", ["lin", "rin", "ari", "pho", "MyDog"])
def test_the_shipped_prompts_lose_nothing_but_the_word(fresh, plain, word: str) -> None:
    from diffusion_lab.config.schema import Prompts

    for name in ("miniature", "clip"):
        tokenizer = fresh(name)
        ids = teach(tokenizer, word, 3)
        stand_in = plain[name]("customcls", add_special_tokens=False).input_ids
        for said, usual in zip(
            load_prompts(Prompts(n=100), identifier=word, class_noun="man"),
            load_prompts(Prompts(n=100), identifier="customcls", class_noun="man"),
            strict=True,
        ):
            read, expected = tokenizer(said.text).input_ids, plain[name](usual.text).input_ids
            at = next(i for i in range(len(expected)) if expected[i : i + len(stand_in)] == stand_in)
            assert read == [*expected[:at], *ids, *expected[at + len(stand_in) :]]
            assert tokenizer(said.plain).input_ids == plain[name](said.plain).input_ids


# --- through the methods and the files -----------------------------------------------------------------------


def method(kind: str, word: str, vectors: int) -> Any:
    if kind == "textual_inversion":
        return TextualInversion(token=word, initialiser="dog", vectors=vectors, learning_rate=5e-2)
    return Pivotal(
        switch=0.9,
        rank=2,
        token=word,
        initialiser="dog",
        vectors=vectors,
        token_learning_rate=5e-2,
        learning_rate=1e-3,
    )


def subject_called(word: str) -> Any:
    import dataclasses

    from tests.conftest import pattern

    return dataclasses.replace(pattern(), identifier=word, instance_prompt=f"a photo of {word} dog")


@pytest.mark.parametrize(
    ("kind", "word", "vectors"),
    [
        ("textual_inversion", "MyDog", 3),
        ("textual_inversion", "pho", 1),
        ("textual_inversion", "<CatToy>", 4),
        ("textual_inversion", "x_1", 2),
        ("textual_inversion", "🐶", 2),
        ("textual_inversion", "mr.flora", 2),
        ("pivotal", "MyDog", 3),
        ("pivotal", "port", 2),
    ],
)
def test_every_vector_trains_and_is_drawn_with(
    make_state, load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, kind: str, word: str, vectors: int
) -> None:
    """`pho` and `port` are pieces of the tiny vocabulary."""
    state = make_state(method=method(kind, word, vectors), subject=subject_called(word))
    embedding = state.pipe.text_encoder.get_input_embeddings()
    old = load_plain_pipe(tiny_sd_folder)
    rows = old.text_encoder.get_input_embeddings().weight
    before = embedding.learned.detach().clone()
    for _ in range(2):
        training_step(state, Steps(batch_size=2))
        state.step += 1
    assert ((embedding.learned - before).abs().max(dim=1).values > 0).all(), "every vector moves"
    assert torch.equal(embedding.weight[: len(rows)], rows)
    ids = tokenize(state.pipe, f"a photo of {word} dog")["tokenizer"][0]
    assert (ids >= len(rows)).sum() == vectors
    state.save(tmp_path)
    pieces = recognise(tmp_path)
    assert pieces[0].header["trigger"] == word
    ours = load_plain_pipe(tiny_sd_folder)
    for piece in pieces:
        apply(ours, piece)
    # Plain diffusers, by the name that the file gives it.
    (name,) = load_file(tmp_path / FILE_NAME)
    assert name == name_in_diffusers(old.tokenizer.backend_tokenizer, word)
    old.load_textual_inversion(tmp_path, weight_name=FILE_NAME)
    if len(pieces) > 1:
        old.load_lora_weights(tmp_path, weight_name=pieces[1].path.name)
    expected = image(state.pipe, word)
    for pipe, said in ((ours, word), (ours, word.upper()), (old, name)):
        np.testing.assert_allclose(image(pipe, said), expected, rtol=0, atol=1e-6)
    assert np.abs(image(load_plain_pipe(tiny_sd_folder), word) - expected).max() > 1e-3


def image(pipe: Any, word: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 2, "output_type": "np", "generator": generator}
    return np.asarray(pipe(f"a photo of {word} dog", **options).images)


def test_a_run_goes_on_from_the_file_of_an_earlier_version(make_state, tmp_path: Path) -> None:
    """It was saved under the word as typed."""
    state = make_state(method=method("textual_inversion", "MyDog", 2), subject=subject_called("MyDog"))
    wanted = torch.randn(2, 32)
    save_file({"MyDog": wanted}, tmp_path / FILE_NAME)
    state.method.load(state.pipe, tmp_path)
    assert torch.equal(state.pipe.text_encoder.get_input_embeddings().learned, wanted)


def test_files_of_other_tools_several_at_once(tiny_pipe, tmp_path: Path) -> None:
    """Called by their files' names or, in diffusers' format, by their own, in any letter case."""
    torch.manual_seed(0)
    vectors = {name: torch.randn(n, 32) for name, n in (("CharTurner", 3), ("CharTurner_1", 2), ("dog", 1))}
    for name, value in vectors.items():
        save_file({"emb_params": value}, tmp_path / f"{name}.safetensors")
    vectors["<cat-toy>"] = torch.randn(32)
    save_file({"<cat-toy>": vectors["<cat-toy>"]}, tmp_path / "toy.safetensors")
    rows = tiny_pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    pieces = recognise(tmp_path)
    assert {piece.header["trigger"] for piece in pieces} == set(vectors)
    for piece in pieces:
        apply(tiny_pipe, piece)
    weight = tiny_pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(weight[: len(rows)], rows)
    for name, value in vectors.items():
        for form in (name, name.lower(), name.upper()):
            ids = tiny_pipe.tokenizer(f"a photo of {form}", add_special_tokens=False).input_ids[3:]
            assert torch.equal(weight[ids], value.reshape(-1, 32)), form
    with pytest.raises(UserError, match="known already"):
        apply(tiny_pipe, pieces[0])


def test_another_models_embedding_is_refused_with_the_sizes(tiny_pipe, tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "big.safetensors")
    size = len(tiny_pipe.tokenizer)
    with pytest.raises(UserError, match=r"768 wide.* 32"):
        apply(tiny_pipe, recognise(tmp_path / "big.safetensors")[0])
    with pytest.raises(ValueError, match=r"\[2, 768\].* 32 numbers"):
        learn(tiny_pipe.tokenizer, tiny_pipe.text_encoder, "big", torch.zeros(2, 768))
    assert len(tiny_pipe.tokenizer) == size


def test_spare_rows_of_the_text_encoder_stay(tiny_pipe) -> None:
    """A text encoder padded to more rows than the tokenizer has entries is never cut."""
    size = len(tiny_pipe.tokenizer)
    tiny_pipe.text_encoder.resize_token_embeddings(size + 8)
    rows = tiny_pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    ids = learn(tiny_pipe.tokenizer, tiny_pipe.text_encoder, "word", torch.ones(3, 32))
    weight = tiny_pipe.text_encoder.get_input_embeddings().weight
    assert len(weight) == size + 8
    assert [i for i in range(len(rows)) if not torch.equal(weight[i], rows[i])] == ids
