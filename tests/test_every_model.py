"""Every model family with every method that it has: trains, is measured, goes on after SIGKILL and is exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diffusion_lab.families import FAMILIES
from diffusion_lab.methods import METHODS as ALL_METHODS
from tests import model_cases
from tests.families.tiny import plain, reload
from tests.model_cases import (
    CASES,
    GUIDANCE,
    HALF,
    KILLED,
    LARGE,
    METHODS,
    STEPS,
    TEXTS,
    image,
    losses,
    result,
    start,
    weights,
    words,
)  # fmt: skip

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every_model")
    model_cases.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def run(root: Path) -> Run:
    """`run(family, method, *words)`: the folder of that run, which is made once."""
    done: dict[tuple[str, ...], Path] = {}

    def once(family: str, method: str, *more: str, pictures: str = "plain") -> Path:
        key = (family, method, pictures, *more)
        if key not in done:
            folder = root / "runs" / f"{family}-{method}-{len(done)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DIFFUSION_LAB_CACHE", str(root / "cache"))
                patch.chdir(root)
                threads = torch.get_num_threads()
                torch.set_num_threads(1)  # as the runs that are killed: the number changes the last bits
                try:
                    assert start(words(root, family, method, folder, *more, pictures=pictures)) == 0
                finally:
                    torch.set_num_threads(threads)
            done[key] = folder
        return done[key]

    return once


def test_the_table_is_what_the_families_allow() -> None:
    allowed = {
        name: {key for key, method in ALL_METHODS.items() if method().traits.trains <= family.trainable}
        for name, family in FAMILIES.items()
    }
    assert {family: set(methods) for family, methods in METHODS.items()} == allowed


@pytest.mark.parametrize(("family", "method"), CASES)
def test_it_trains_and_is_measured(run: Run, family: str, method: str) -> None:
    folder = run(family, method)
    record = result(folder)
    assert record["status"] == "completed"
    assert [entry["step"] for entry in record["evaluations"]] == [0, 2, 4]
    found = losses(folder)
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert np.isfinite([loss for _, loss in found]).all()
    assert pq.read_table(folder / "scores.parquet").num_rows == 3 * 2
    assert (folder / "report.html").stat().st_size > 0
    assert any((folder / "artefact").iterdir())
    before, after = (image(folder / f"samples/step-00000{step}/p000-0.png") for step in (0, 4))
    assert before.shape == (64, 64, 3)
    assert before.std() > 5, "the tiny model draws one colour, which no test could tell from another"
    assert np.abs(after - before).max() > 3, "training changed nothing that can be seen"


# --- killed, and started again ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(root: Path) -> dict[str, list[int]]:
    """Exit statuses of all cases, killed and started again, in another process than the whole runs."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    wanted = {
        name: words(root, family, method, root / "killed" / name, *more, pictures=pictures)
        for name, (family, method, more, pictures) in KILLED.items()
    }
    (root / "killed.json").write_text(json.dumps(wanted))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killed_runs.py"), str(root / "killed.json")],
        capture_output=True, text=True, cwd=root, timeout=1200, check=False,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1",
            "DIFFUSION_LAB_CACHE": str(root / "cache"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    statuses: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return statuses


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_started_again_it_is_the_same_run(
    root: Path, run: Run, killed: dict[str, list[int]], name: str
) -> None:
    """The same seed in another process, through a kill: the same scores, losses and weights to the bit."""
    assert killed[name] == [-signal.SIGKILL, 0]
    family, method, more, pictures = KILLED[name]
    whole, again = run(family, method, *more, pictures=pictures), root / "killed" / name
    assert "after step 2" in (again / "run.log").read_text("utf-8")
    assert (again / "scores.parquet").read_bytes() == (whole / "scores.parquet").read_bytes()
    assert losses(again) == losses(whole)
    for folder in ("artefact", "adapters"):
        files = sorted(path.relative_to(whole) for path in (whole / folder).rglob("*") if path.is_file())
        assert files == sorted(
            path.relative_to(again) for path in (again / folder).rglob("*") if path.is_file()
        )
        assert files
        for file in files:
            assert (whole / file).read_bytes() == (again / file).read_bytes(), file


# --- exported -----------------------------------------------------------------------------------------


def with_artefact(family: str, base: Path, folder: Path) -> Any:
    """Plain diffusers with what lies in `folder`: a whole pipeline, its denoiser, a LoRA, embeddings."""
    kind = FAMILIES[family].pipeline_class()
    if (folder / "model_index.json").is_file():
        return reload(kind, folder)
    pipe = reload(kind, base)
    denoiser = FAMILIES[family].denoiser
    if (folder / denoiser).is_dir():
        setattr(pipe, denoiser, type(getattr(pipe, denoiser)).from_pretrained(folder / denoiser))
    if (folder / "learned_embeds.safetensors").is_file():
        from safetensors.torch import load_file

        vectors = load_file(folder / "learned_embeds.safetensors")
        if family == "sd":
            pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")
        else:  # one file with both, as textual_inversion_sdxl.py of diffusers is loaded
            for key, number in (("clip_l", ""), ("clip_g", "_2")):
                pipe.load_textual_inversion(
                    vectors[key], token="customcls", tokenizer=getattr(pipe, f"tokenizer{number}"),
                    text_encoder=getattr(pipe, f"text_encoder{number}"),
                )  # fmt: skip
            for module in pipe.text_encoder_2.modules():
                # Published configs call the end token 2; transformers then pools at the token with the highest number,
                # which is the new word. See the comment in its CLIPTextTransformer.forward.
                if getattr(module, "eos_token_id", None) == 2:
                    module.eos_token_id = pipe.tokenizer_2.eos_token_id
    if (folder / "pytorch_lora_weights.safetensors").is_file():
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    return pipe


def assert_plain_diffusers_draws(
    family: str, base: Path, run_folder: Path, artefact: Path, step: int
) -> None:
    """The images that the run measured at `step`, to the rounding."""
    drawn = run_folder / "samples" / f"step-{step:06d}"
    seeds = {
        row["prompt_id"]: row["seed"] for row in pq.read_table(run_folder / "scores.parquet").to_pylist()
    }
    prompts = json.loads((run_folder / "prompts.json").read_text("utf-8"))["prompts"]
    pipe = with_artefact(family, base, artefact)
    for prompt in prompts:
        with torch.no_grad():
            found = plain(
                FAMILIES[family], pipe, prompt["text"], scale=GUIDANCE, steps=STEPS, seed=seeds[prompt["id"]]
            )
        pixels = (found[0] / 2 + 0.5).clamp(0, 1).mul(255).round().permute(1, 2, 0).int().numpy()
        assert np.abs(pixels - image(drawn / f"{prompt['id']}-0.png")).max() <= 1


@pytest.mark.parametrize(("family", "method"), [case for case in CASES if case[1] != "hypernetwork"])
def test_plain_diffusers_draws_what_was_measured(root: Path, run: Run, family: str, method: str) -> None:
    folder = run(family, method)
    step = result(folder)["recommendation"]["step"]
    base = root / "models" / family
    assert_plain_diffusers_draws(family, base, folder, folder / "artefact", step)
    assert_plain_diffusers_draws(family, base, folder, folder / "adapters/step-000004", 4)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_generate_draws_what_was_measured(run: Run, tmp_path: Path, family: str, method: str) -> None:
    """Nothing is said but the artefact: model, prompts and sampling are its own."""
    folder = run(family, method)
    step = result(folder)["recommendation"]["step"]
    for place, number in (("artefact", step), ("adapters/step-000004", 4)):
        output = tmp_path / place
        assert start(
            ["job=generate", f"job.artefact={folder / place}", f"job.output={output}", "model.device=cpu"]
        ) == 0  # fmt: skip
        names = sorted(path.name for path in output.glob("*.png"))
        assert names == ["p000-0.png", "p001-0.png"]
        for name in names:
            measured = folder / f"samples/step-{number:06d}" / name
            assert np.abs(image(output / name) - image(measured)).max() <= 1, (place, name)


# --- settings that change how, not what ---------------------------------------------------------------


def assert_close(one: Path, other: Path) -> None:
    """The trained weights, and how far they have moved at all."""
    first, second = (weights(folder / "adapters/step-000004") for folder in (one, other))
    assert first.keys() == second.keys()
    moved = torch.cat([value.flatten().float() for value in first.values()])
    apart = moved - torch.cat([value.flatten().float() for value in second.values()])
    assert float(apart.norm()) < 1e-3 * float(moved.norm())


@pytest.mark.parametrize("family", LARGE)
def test_memory_savers_train_the_same_adapter(run: Run, family: str) -> None:
    """Frozen text encoders and the VAE run at every step, activations are computed twice."""
    plain_run = run(family, "lora")
    saving = run(family, "lora", "memory.cache=off", "memory.gradient_checkpointing=true")
    assert_close(plain_run, saving)


@pytest.mark.parametrize("family", LARGE)
def test_the_text_encoders_train_with_captions_of_their_own(root: Path, run: Run, family: str) -> None:
    one = run(family, "lora", *TEXTS, pictures="captioned")
    fast = ("memory.cache=disk", "memory.gradient_checkpointing=false")
    assert_close(one, run(family, "lora", *TEXTS, *fast, pictures="captioned"))
    names = weights(one / "adapters/step-000004")
    for part in FAMILIES[family].lora_text_encoders:
        own = [value for name, value in names.items() if f":{part}." in name and "lora_B" in name]
        assert own, part
        assert any(bool(value.any()) for value in own), f"{part} learned nothing"
    without = run(family, "lora", *TEXTS, "data.captions=never", "steps.total=2", pictures="captioned")
    assert losses(without)[0][1] != losses(one)[0][1], "captions say nothing"
    assert_plain_diffusers_draws(family, root / "models" / family, one, one / "adapters/step-000004", 4)


@pytest.mark.parametrize("family", LARGE)
def test_prior_preservation_in_half_precision(run: Run, tmp_path: Path, family: str) -> None:
    folder = run(family, "dreambooth", *HALF)
    assert result(folder)["status"] == "completed"
    assert np.isfinite([loss for _, loss in losses(folder)]).all()
    saved = weights(folder / "adapters/step-000004")
    assert all(value.dtype == torch.float32 for value in saved.values())
    place = folder / "adapters/step-000004"
    assert start(
        ["job=generate", f"job.artefact={place}", f"job.output={tmp_path}", "model.device=cpu"]
    ) == 0  # fmt: skip
    for name in ("p000-0.png", "p001-0.png"):
        apart = np.abs(image(tmp_path / name) - image(folder / "samples/step-000004" / name))
        assert apart.mean() < 2, "rounding of bf16 alone"


@pytest.mark.parametrize("family", LARGE)
def test_whole_text_encoders_train(root: Path, run: Run, family: str) -> None:
    folder = run(family, "dreambooth", "method.text_encoder=true", "memory.gradient_checkpointing=true")
    saved = weights(folder / "adapters/step-000004")
    for part in FAMILIES[family].lora_text_encoders:
        assert any(name.startswith(f"{part}/") for name in saved), part
