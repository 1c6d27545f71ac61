"""DreamBooth: the class's pictures, their place in the loss, and the pipeline that is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.config import Prompts, Steps
from diffusion_lab.data.class_pictures import class_pictures, class_prompt, fingerprint
from diffusion_lab.interfaces import UserError
from diffusion_lab.methods.dreambooth import DreamBooth, notes_of
from diffusion_lab.training.loop import training_step

SETTINGS = Prompts(n=1, sampling_steps=2, guidance_scale=2.0, batch_size=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


def test_class_pictures_are_drawn_once_and_kept_by_what_they_depend_on(
    tiny_pipe, monkeypatch, tmp_path
) -> None:
    def make(n: int, noun: str = "dog", seed: int = 0):
        return class_pictures(tiny_pipe, noun, n, SETTINGS, resolution=64, seed=seed)

    first = make(3)
    assert [p.pixels.shape for p in first] == [(64, 64, 3)] * 3
    assert len({p.sha256 for p in first}) == 3
    folder = first[0].path.parent
    first[1].path.unlink()  # as a killed run leaves it
    assert [p.sha256 for p in make(3)] == [p.sha256 for p in first]
    assert [p.sha256 for p in make(5)][:3] == [p.sha256 for p in first]
    assert make(2, noun="man")[0].path.parent != folder
    assert make(2, seed=1)[0].path.parent != folder
    monkeypatch.setattr("diffusion_lab.sampling.sample.sample", lambda *a, **k: pytest.fail("drawn again"))
    make(5)
    before = fingerprint(tiny_pipe)
    with torch.no_grad():
        tiny_pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert fingerprint(tiny_pipe) != before


def test_article() -> None:
    assert [class_prompt(n) for n in ("dog", "ox")] == ["a photo of a dog", "a photo of an ox"]


def test_a_batch_has_the_subject_first_and_the_class_behind(make_state) -> None:
    state = make_state(method=DreamBooth(prior_images=3))
    batch = state.next_batch(2)
    assert batch.n_class == 2
    assert batch.latents.shape[0] == batch.input_ids.shape[0] == batch.encoder_hidden_states.shape[0] == 4
    decode = state.pipe.tokenizer.batch_decode
    texts = [t.replace(" ", "") for t in decode(batch.input_ids, skip_special_tokens=True)]
    assert texts == ["aphotoofcustomclsdog"] * 2 + ["aphotoofadog"] * 2
    none = make_state(method=DreamBooth(prior_weight=0.0)).next_batch(2)
    assert (none.n_class, none.latents.shape[0]) == (0, 2)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_whole_pipeline_in_plain_diffusers(
    make_state, load_plain_pipe, tmp_path: Path, text_encoder: bool
) -> None:
    method = DreamBooth(prior_weight=0.0, text_encoder=text_encoder, learning_rate=1e-3)
    state = make_state(method=method)
    for _ in range(2):
        training_step(state, Steps(batch_size=2))
    method.complete(state.pipe, tmp_path)
    state.save(tmp_path)
    assert notes_of(tmp_path)["trigger"] == "customcls"

    def image(pipe) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        return pipe("a customcls dog", num_inference_steps=2, output_type="np", generator=generator).images

    assert np.array_equal(image(load_plain_pipe(tmp_path)), image(state.pipe))


def test_what_is_not_there_is_named(make_state, tmp_path: Path) -> None:
    state = make_state(method=DreamBooth(prior_weight=0.0))
    with pytest.raises(UserError, match="unet is missing"):
        state.method.load(state.pipe, tmp_path)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"prior_weight": -1.0}, "method.prior_weight=-1.0"),
        ({"prior_images": 0}, "method.prior_images=0"),
        ({"learning_rate": 0.0}, "method.learning_rate=0.0"),
    ],
)
def test_wrong_values_name_their_key(values, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        DreamBooth(**values)
