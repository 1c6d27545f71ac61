"""What every method must do, whatever it is: the table in `cases.py` goes through all of these."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.artefacts.notes import annotate
from diffusion_lab.config.schema import Prompts, Steps
from diffusion_lab.families.losses import Draw, draw_noise
from diffusion_lab.methods import METHODS
from diffusion_lab.methods.dreambooth import notes_of
from diffusion_lab.records import Prompt, PromptSet
from diffusion_lab.sampling.sample import sample
from diffusion_lab.system.readers import read_header
from diffusion_lab.training.loop import evaluated_weights, training_step
from tests.methods.cases import CASES
from tests.training.test_losses import cumulative_alphas, literal_loss

PROMPT = Prompt("p", "a photo of customcls dog", "a photo of dog")
WORDS = PromptSet("one", (PROMPT,), "", "")
SETTINGS = Prompts(n=1, sampling_steps=2, guidance_scale=1.0, batch_size=1)


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(session_cache))


def picture(pipe) -> np.ndarray:
    return sample(pipe, WORDS, SETTINGS)[0]


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


def values(pipe) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }


def test_the_table_has_every_method() -> None:
    assert {case.make().name for case in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_what_trains_moves_and_nothing_else(make_state, tiny_pipe, case: str) -> None:
    state = make_state(method=CASES[case].make(), noise_offset=0.05, snr_gamma=5.0)
    assert all(p.dtype == torch.float32 for p in state.trained)
    before = values(state.pipe)
    loaded = values(tiny_pipe)
    step(state)
    after = {name.replace(".base_layer.", "."): value for name, value in values(state.pipe).items()}
    for name in (
        loaded if CASES[case].make().name != "dreambooth" else ()
    ):  # attaching moved none of them either
        assert torch.equal(after[name][: len(loaded[name])], loaded[name]), name
    moved = {name for name, value in values(state.pipe).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(CASES[case].trains(name) for name in moved), sorted(moved)[:5]
    own = {id(p) for p in state.trained}
    names = {
        f"{part}.{name}"
        for part in ("unet", "text_encoder")
        for name, p in getattr(state.pipe, part).named_parameters()
        if id(p) in own
    }
    assert len(names) == len(own)
    # A key's bias moves no softmax: its gradient is rounding, everything else must have moved.
    assert {n for n in names - moved if not n.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("case", CASES)
def test_untouched_at_step_0(make_state, tiny_pipe, case: str) -> None:
    def image(pipe, subject: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        prompt = f"a photo of {subject} dog"
        return pipe(prompt, num_inference_steps=2, output_type="np", generator=generator).images

    ours = image(make_state(method=CASES[case].make()).pipe, "customcls")
    assert np.array_equal(ours, image(tiny_pipe, CASES[case].start))


@pytest.mark.parametrize("case", CASES)
def test_loss_falls_on_one_batch(make_state, monkeypatch, case: str) -> None:
    total = 12
    state = make_state(method=CASES[case].make(), total=total)
    batch = state.next_batch(2)  # pivotal looks at how far the run has come
    monkeypatch.setattr(
        type(state), "next_batch", lambda self, size: dataclasses.replace(batch, progress=self.step / total)
    )
    losses = []
    for state.step in range(total):
        state.noise_stream.manual_seed(0)
        losses.append(training_step(state, Steps(batch_size=2))[0])
    assert losses[-1] < CASES[case].falls * losses[0]


def check_headers(folder: Path, method) -> None:
    """Every file says what it is and how it was made; the recommended one also by what it was chosen."""
    annotate(folder, {"recommended_step": "3", "scores": "{}"})
    files = [*folder.rglob("*.safetensors")] if method.name != "dreambooth" else []
    for header in [read_header(path, "artefact").metadata for path in files] or [notes_of(folder)]:
        told = {"method": method.name, "trigger": "customcls", "class_noun": "dog", "step": "3"}
        told |= {"prediction_type": "epsilon", "recommended_step": "3", "scores": "{}"}
        assert told.items() <= header.items()
        assert header["base_model"].endswith("sd")
        assert {"commit", "version", "seed", "instance_prompt"} <= set(header)
        made = json.loads(header["hyperparameters"])
        assert made["method"] == dataclasses.asdict(method)
        assert (made["steps"]["batch_size"], made["data"]["n_images"], made["seed"]) == (2, 14, 0)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_gives_the_same_image(make_state, tmp_path: Path, case: str) -> None:
    state = make_state(method=CASES[case].make())
    step(state)
    with evaluated_weights(state):
        ours = picture(state.pipe)
    assert all(path.is_file() for path in state.save(tmp_path / "artefact"))
    check_headers(tmp_path / "artefact", state.method)
    other = make_state(method=CASES[case].make(), seed=1)
    assert not np.array_equal(picture(other.pipe), ours)
    other.method.load(other.pipe, tmp_path / "artefact")
    with evaluated_weights(other):
        assert np.array_equal(picture(other.pipe), ours)


@pytest.mark.parametrize("folder", ["tiny_sd_folder", "tiny_v_sd_folder"])
@pytest.mark.parametrize(("case", "size"), [*((case, 2) for case in CASES), ("dreambooth_prior", 1)])
def test_loss_is_the_papers_formula(make_state, request, case: str, size: int, folder: str) -> None:
    """Written out number by number in `literal_loss`, on the same batch, noise and time steps.

    DDPM's eq. 14 or v (Salimans and Ho), Min-SNR's eq. 5 where asked, DreamBooth's eq. 2 where there is a prior.
    """
    state = make_state(folder=request.getfixturevalue(folder), method=CASES[case].make())
    step(state, 2)  # now adapters and words differ from the model's own, and pivotal trains its second part
    prior_weight = state.method.traits.prior_weight
    batch = state.next_batch(size)
    scheduler = state.process.scheduler.config
    assert scheduler["prediction_type"] == ("v_prediction" if "_v_" in folder else "epsilon")
    draw = draw_noise(batch.latents, state.process, torch.Generator().manual_seed(7))
    abar = cumulative_alphas(scheduler)

    def each(i: int) -> float:
        """Mean squared error of picture i alone."""

        def predict(noisy, timesteps):
            with torch.no_grad():
                hidden = state.pipe.text_encoder(batch.tokens["tokenizer"][i : i + 1])[0]
                return state.pipe.unet(noisy, timesteps, hidden).sample

        one = Draw(draw.noise[i : i + 1], draw.timesteps[i : i + 1])
        return literal_loss(scheduler, batch.latents[i : i + 1], one, predict)

    errors = [each(i) for i in range(len(batch.latents))]
    for gamma in (None, 5.0):
        weights = []
        for t in draw.timesteps.tolist():
            snr = abar[t] / (1 - abar[t])
            divisor = snr + 1 if scheduler["prediction_type"] == "v_prediction" else snr
            weights.append(1.0 if gamma is None else min(snr, gamma) / divisor)
        weighted = [w * e for w, e in zip(weights, errors, strict=True)]
        own, of_class = weighted[:size], weighted[size:]
        assert len(of_class) == (size if prior_weight else 0)
        expected = sum(own) / size + (prior_weight * sum(of_class) / size if of_class else 0.0)
        given = dataclasses.replace(batch, snr_gamma=gamma)
        ours = state.method.loss(state.pipe, given, torch.Generator().manual_seed(7))
        assert ours.item() == pytest.approx(expected, rel=1e-4)
    if batch.conditioning is not None:  # computed in the loss it is the same number
        anew = dataclasses.replace(batch, snr_gamma=None, conditioning=None)
        kept = dataclasses.replace(batch, snr_gamma=None)
        losses = [
            state.method.loss(state.pipe, b, torch.Generator().manual_seed(7)).item() for b in (anew, kept)
        ]
        assert losses[0] == losses[1]
