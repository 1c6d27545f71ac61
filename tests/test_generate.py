"""job=generate: any artefact, any prompts; what is there is kept, what it depends on is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Prompts
from diffusion_lab.jobs import check, generate
from diffusion_lab.methods.lora import Lora
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.sampling.sample import sample


@pytest.fixture
def lora(make_state, tmp_path: Path) -> tuple[Any, Path]:
    from diffusion_lab.config.schema import Steps
    from diffusion_lab.training.loop import training_step

    state = make_state(method=Lora(rank=4, learning_rate=3e-2))
    for _ in range(3):
        training_step(state, Steps(batch_size=2))
    state.save(tmp_path / "artefact")
    return state, tmp_path / "artefact"


@pytest.fixture
def make(lora, tmp_path: Path) -> Any:
    words = [
        "job=generate", f"job.artefact={lora[1]}", f"job.output={tmp_path / 'images'}", "model.device=cpu",
        "prompts.sampling_steps=2", "prompts.batch_size=2", "prompts.images_per_prompt=2", "tracker=files",
        "job.texts=['a photo of customcls dog','a photo of customcls dog, blurry']",
    ]  # fmt: skip
    return lambda *more: fill_defaults(compose([*words, *more]))


def test_images_with_their_parameters(make, lora, tmp_path: Path) -> None:
    """They are those of the run in memory; model and words come from the artefact's header."""
    config: Config = make("prompts.negative=blurry")
    plan = check(config, tmp_path / "run")
    assert ("images", "4, prompts texts") in plan.rows
    assert not (tmp_path / "images").exists()
    generate.run(config, tmp_path / "run")
    folder = tmp_path / "images"
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == ["p000-0.png", "p000-1.png", "p001-0.png", "p001-1.png"]
    wanted = generate.order(config)
    settings = Prompts(n=2, sampling_steps=2, batch_size=2, images_per_prompt=2)
    expected = sample(lora[0].pipe, wanted.prompts, settings)
    seeds = set()
    for name, pixels in zip(names, expected, strict=True):
        image = Image.open(folder / name)
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 2
        text = image.text["parameters"].splitlines()  # type: ignore[attr-defined]
        assert text[0].startswith("a photo of customcls dog")
        assert text[1] == "Negative prompt: blurry"
        facts = dict(fact.split(": ", 1) for fact in text[2].split(", "))
        assert facts["Steps"] == "2"
        assert facts["CFG scale"] == "3"
        assert facts["Size"] == "64x64"
        seeds.add(facts["Seed"])
    assert len(seeds) == 4
    index = json.loads((folder / "generated.json").read_text())
    assert {str(row["seed"]) for row in index["images"]} == seeds


def test_what_is_there_is_kept(make, tmp_path: Path, monkeypatch) -> None:
    config = make()
    generate.run(config, tmp_path)
    folder = tmp_path / "images"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")}
    (folder / "p001-1.png").unlink()
    generate.run(config, tmp_path)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")}
    assert after["p001-1.png"][0] == before.pop("p001-1.png")[0], "the same to the bit"
    assert {name: after[name] for name in before} == before
    with pytest.raises(UserError, match=r"job\.output=.*another guidance_scale"):
        generate.run(make("prompts.guidance_scale=5"), tmp_path)
    monkeypatch.setattr("diffusion_lab.models.load.load_pipeline", None)
    generate.run(config, tmp_path)  # all there: nothing is loaded


def test_prompt_sets_get_the_artefacts_words(make, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of {subject}")
    config = make("job.texts=[]", "prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}", "prompts.n=1")
    assert [prompt.text for prompt in generate.order(config).prompts] == ["a photo of customcls dog"]


def test_what_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.artefact=nowhere: there is no such"):
        check(make("job.artefact=nowhere"), tmp_path)
    with pytest.raises(UserError, match=r"job\.output is missing"):
        make("job.output=''")
    with pytest.raises(UserError, match=r"tokens"):
        generate.run(make(f"job.texts=['{'x' * 90}']"), tmp_path)


def test_an_embedding_that_no_prompt_calls_is_named(make, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"emb_params": torch.zeros(2, 192)}, tmp_path / "CharTurner.safetensors")
    artefact = f"job.artefact={tmp_path / 'CharTurner.safetensors'}"

    def said(*words: str) -> list[str]:
        config = make(artefact, "model.path=miniature", *words)
        return [line for line in check(config, tmp_path / "run").warnings if "CharTurner" in line]

    assert said() == [
        "CharTurner.safetensors is called 'CharTurner', which no prompt says, so it has no effect"
    ]
    assert said("job.texts=['a charturner, standing']") == []
    assert said("job.texts=['charturners']")
    assert said("job.texts=[]", "prompts.n=2") == [], "the sets' prompts say it"
