"""Textual Inversion: the word is new, other words stay, and the file works elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.textual_inversion import A1111_NAME, FILE_NAME, TextualInversion
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import training_step
from tests.methods.cases import ti

PROMPT = "a photo of customcls dog"


def image(pipe) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return pipe(PROMPT, num_inference_steps=3, output_type="np", generator=generator).images


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


@pytest.mark.parametrize("vectors", [1, 3])
def test_file_gives_the_same_image_in_plain_diffusers(
    make_state, load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, vectors: int
) -> None:
    state = make_state(method=ti(vectors=vectors))
    step(state)
    state.save(tmp_path)
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        assert file.metadata()["trigger"] == "customcls"
        assert file.metadata()["step"] == "3"
    plain = load_plain_pipe(tiny_sd_folder)
    base = image(plain)
    plain.load_textual_inversion(tmp_path, weight_name=FILE_NAME)
    assert np.array_equal(image(plain), image(state.pipe))
    assert not np.array_equal(image(plain), base)
    assert load_file(tmp_path / A1111_NAME)["emb_params"].shape == (vectors, 32)


def test_other_words_stay_to_the_bit_although_the_optimizer_decays(make_state, tiny_pipe) -> None:
    state = make_state(method=ti())
    assert [(g.name, g.weight_decay) for g in state.groups] == [("embedding", 0.0)]
    old = tiny_pipe.text_encoder.get_input_embeddings().weight
    step(state, 5)
    new = state.pipe.text_encoder.get_input_embeddings()
    assert torch.equal(new.weight[: len(old)], old)
    assert not torch.equal(new.learned, new.weight[len(old) :])


def test_starts_as_the_initialiser(make_state, tiny_pipe) -> None:
    pipe = make_state(method=ti()).pipe
    plain = tiny_pipe.text_encoder(tiny_pipe.tokenizer("a dog", return_tensors="pt").input_ids)[0]
    ours = pipe.text_encoder(pipe.tokenizer("a customcls", return_tensors="pt").input_ids)[0]
    assert torch.equal(ours, plain)


def test_length_is_kept_where_asked(make_state) -> None:
    lengths = {}
    for keep in (False, True):
        state = make_state(method=ti(keep_norm=keep))
        embedding = state.pipe.text_encoder.get_input_embeddings()
        before = embedding.learned.norm().item()
        step(state)
        lengths[keep] = embedding.learned.norm().item() / before
    assert lengths[True] == pytest.approx(1, abs=1e-6)
    assert lengths[False] != pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token": "dog", "initialiser": "dog"}, "data.identifier=dog"),
        ({"token": "customcls", "initialiser": "zebra"}, "method.initialiser='zebra'"),
        ({"token": "customcls", "initialiser": ""}, "method.initialiser=''"),
    ],
)
def test_what_cannot_be_learned_is_refused(tiny_pipe, values, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        TextualInversion(**values).attach(tiny_pipe)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"vectors": 0}, "method.vectors=0"),
        ({"learning_rate": 0.0}, "method.learning_rate=0.0"),
        ({"token": "two words"}, "method.token='two words'"),
    ],
)
def test_wrong_values_name_their_key(values, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        TextualInversion(**values)


def test_a_word_other_than_the_prompts_is_refused() -> None:
    from diffusion_lab.cli.compose import compose
    from diffusion_lab.plan.defaults import fill_defaults

    filled = fill_defaults(compose(["method=textual_inversion"]))
    assert (filled.method.token, filled.method.initialiser) == ("customcls", "woman")
    with pytest.raises(UserError, match=r"method\.token=other"):
        fill_defaults(compose(["method=textual_inversion", "method.token=other"]))
