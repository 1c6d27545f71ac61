"""DreamBooth: the class's pictures, their place in the loss, and the pipeline that is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion_lab.config.schema import Prompts, Steps
from diffusion_lab.methods.dreambooth import DreamBooth, notes_of
from diffusion_lab.models.fingerprints import fingerprint
from diffusion_lab.records import UserError
from diffusion_lab.training.class_pictures import class_pictures, class_prompt
from diffusion_lab.training.loop import evaluated_weights, training_step

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
    assert len(batch.latents) == len(batch.tokens["tokenizer"]) == len(batch.conditioning["hidden"]) == 4
    decode = state.pipe.tokenizer.batch_decode
    texts = [t.replace(" ", "") for t in decode(batch.tokens["tokenizer"], skip_special_tokens=True)]
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
        ({"ema_decay": 1.0}, "method.ema_decay=1.0"),
        ({"prior_images": 0}, "method.prior_images=0"),
        ({"learning_rate": 0.0}, "method.learning_rate=0.0"),
    ],
)
def test_wrong_values_name_their_key(values, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        DreamBooth(**values)


def test_average_is_the_formulas_and_training_never_sees_it(make_state, tmp_path: Path) -> None:
    """EMA, literally: a <- d a + (1 - d) w with d = min((1 + s) / (10 + s), decay), none at the first step."""
    plain = make_state(method=DreamBooth(prior_weight=0.0, learning_rate=1e-3))
    state = make_state(method=DreamBooth(prior_weight=0.0, learning_rate=1e-3, ema=True, ema_decay=0.25))
    seen = []

    def evaluate(_: int) -> None:
        seen.append(state.pipe.unet.conv_in.weight.detach().clone())
        state.save(tmp_path)  # nested: the average stands there already

    weight, average = state.pipe.unet.conv_in.weight, None
    for s in range(4):
        for each in (plain, state):
            training_step(each, Steps(batch_size=2))
        decay = 0.0 if s == 0 else min((1 + s) / (10 + s), 0.25)
        now = weight.detach().clone()
        average = now if average is None else decay * average + (1 - decay) * now
        assert torch.equal(now, plain.pipe.unet.conv_in.weight)
        with evaluated_weights(state):
            evaluate(s)
        torch.testing.assert_close(seen[-1], average, rtol=1e-6, atol=1e-7)
        assert torch.equal(weight, now)
    assert not torch.equal(seen[-1], weight)
    saved = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(saved, seen[-1])
    state.save(tmp_path)  # outside of an evaluation: the average all the same
    assert torch.equal(
        load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"], saved
    )
    assert torch.equal(weight, now)


def test_state_of_the_average_comes_back(make_state) -> None:
    method = DreamBooth(prior_weight=0.0, learning_rate=1e-3, ema=True)
    state, other = make_state(method=method), make_state(method=method)
    for _ in range(2):
        training_step(state, Steps(batch_size=2))
    kept = state.method.state_dict(state.pipe)
    assert all(isinstance(value, int | torch.Tensor) for value in kept.values())
    other.method.load_state_dict(other.pipe, kept)
    ours, theirs = state.pipe.unet.average, other.pipe.unet.average
    assert theirs.optimization_step == 2
    assert all(torch.equal(a, b) for a, b in zip(ours.shadow_params, theirs.shadow_params, strict=True))
    assert DreamBooth().state_dict(state.pipe) == {}


def test_the_whole_pipeline_is_saved_in_one_format(tiny_pipe, load_plain_pipe, tmp_path: Path) -> None:
    """model.precision=bf16 halves the frozen parts: beside a float32 U-Net plain diffusers cannot run them."""
    from diffusion_lab.models.load import cast_frozen

    method = DreamBooth(prior_weight=0.0)
    method.attach(tiny_pipe)
    cast_frozen(tiny_pipe, "bf16")
    method.complete(tiny_pipe, tmp_path)
    parts = ("unet", "vae", "text_encoder")
    files = [file for part in parts for file in (tmp_path / part).glob("*.safetensors")]
    assert {value.dtype for file in files for value in load_file(file).values()} == {torch.float32}
    assert [getattr(tiny_pipe, part).dtype for part in parts] == [torch.float32] + [torch.bfloat16] * 2
    plain = load_plain_pipe(tmp_path)
    assert plain("a photo of dog", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


DRAW = """
import sys
from pathlib import Path
from diffusion_lab.config.schema import Prompts
from diffusion_lab.training.class_pictures import class_pictures
from tests.conftest import load_plain

pipe = load_plain(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
settings = Prompts(sampling_steps=2, batch_size=2)
print(*[one.sha256 for one in class_pictures(pipe, "dog", 6, settings, resolution=64, seed=0)])
"""


def test_two_processes_that_need_the_same_class_pictures_have_the_same_ones(
    tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """Neither waits for the other, so one of them may be killed at any moment."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(tiny_sd_folder)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
        told.append(out.split())
    assert told[0] == told[1]
    assert len(told[0]) == 6
    (folder,) = (tmp_path / "cache" / "class_pictures").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:05d}.png" for n in range(6)]


def test_class_pictures_depend_on_the_scheduler(tiny_pipe, tiny_sd_folder) -> None:
    def folder():
        return class_pictures(tiny_pipe, "dog", 1, SETTINGS, resolution=64, seed=0)[0].path.parent

    before = folder()
    kind = type(tiny_pipe.scheduler)
    tiny_pipe.scheduler = kind.from_config({**tiny_pipe.scheduler.config, "prediction_type": "v_prediction"})
    assert folder() != before
