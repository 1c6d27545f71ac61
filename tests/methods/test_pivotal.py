"""Pivotal tuning: one part after the other, and one folder that plain diffusers reads."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.lora import FILE_NAME as LORA_FILE
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import FILE_NAME as WORD_FILE
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import training_step
from tests.methods.cases import pivotal, ti


def image(pipe) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    prompt = "a photo of customcls dog"
    return pipe(prompt, num_inference_steps=2, output_type="np", generator=generator).images


def step(state, n: int) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


@pytest.mark.parametrize("text_encoder", [False, True])
def test_first_the_word_then_the_adapter(make_state, text_encoder: bool) -> None:
    state = make_state(method=pivotal(0.5, text_encoder=text_encoder))
    learned = state.pipe.text_encoder.get_input_embeddings().learned
    adapter = [p for p in state.trained if p is not learned]
    at = [[p.detach().clone() for p in (learned, *adapter)]]
    for _ in range(2):
        step(state, 2)
        at.append([p.detach().clone() for p in (learned, *adapter)])
    moved = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(at)]
    assert moved[0] == [True] + [False] * len(adapter)
    assert moved[1] == [False] + [True] * len(adapter)


def test_the_first_part_is_textual_inversion_to_the_bit(make_state) -> None:
    learned = []
    for method in (pivotal(0.5), ti()):
        state = make_state(method=method)
        step(state, 2)
        learned.append(state.pipe.text_encoder.get_input_embeddings().learned)
    assert torch.equal(*learned)


@pytest.mark.parametrize("vectors", [1, 2])
def test_plain_diffusers_reads_both(
    make_state, load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, vectors: int
) -> None:
    state = make_state(method=pivotal(0.3, vectors=vectors, text_encoder=vectors == 2))
    step(state, 4)
    state.save(tmp_path)
    plain = load_plain_pipe(tiny_sd_folder)
    base = image(plain)
    plain.load_textual_inversion(tmp_path, weight_name=WORD_FILE)
    word = image(plain)
    plain.load_lora_weights(tmp_path, weight_name=LORA_FILE)
    np.testing.assert_allclose(image(plain), image(state.pipe), rtol=0, atol=1e-6)
    assert np.abs(word - base).max() > 0.001
    assert np.abs(image(plain) - word).max() > 0.001


def test_defaults_are_those_of_the_parts() -> None:
    words = ["method.rank=4"]
    ours = fill_defaults(compose(["method=pivotal", *words])).method
    lora = fill_defaults(compose(["method=lora", *words])).method
    word = fill_defaults(compose(["method=textual_inversion"])).method
    for key in ("rank", "alpha", "targets", "learning_rate", "text_encoder_learning_rate", "weight_decay"):
        assert getattr(ours, key) == getattr(lora, key), key
    assert (ours.token, ours.initialiser, ours.token_learning_rate) == (
        word.token, word.initialiser, word.learning_rate,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"switch": 0.0}, "method.switch=0.0"),
        ({"switch": 1.0}, "method.switch=1.0"),
        ({"rank": 0}, "method.rank=0"),
        ({"vectors": 0}, "method.vectors=0"),
        ({"token_learning_rate": 0.0}, "method.token_learning_rate=0.0"),
    ],
)
def test_wrong_values_name_their_key(values, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        Pivotal(**values)
