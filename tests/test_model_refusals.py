"""What does not fit the model's family is refused by the plan: one line, status 2, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import model_cases
from tests.model_cases import SIZES, start, words

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    model_cases.prepare(folder)
    return folder


@pytest.fixture
def refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Refused:
    """`refused(family, method, *words)`: the error line. No run folder is made and no model is loaded."""

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("a model is loaded")

    def ask(family: str, method: str, *more: str) -> str:
        monkeypatch.setattr("diffusion_lab.models.load.load_pipeline", fail)
        capfd.readouterr()
        assert start(words(root, family, method, tmp_path / "run", *more)) == 2
        assert not (tmp_path / "run").exists()
        lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, lines
        return lines[0]

    return ask


def test_a_hypernetwork_for_sdxl(refused: Refused) -> None:
    told = refused("sdxl", "hypernetwork")
    assert told.startswith("error: method=hypernetwork: is not for Stable Diffusion XL")
    assert "use method=" in told


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
def test_a_new_word_for_a_large_model(refused: Refused, family: str, method: str) -> None:
    told = refused(family, method)
    assert told.startswith(f"error: method={method}: is not for ")
    assert "use method=lora or method=dreambooth" in told


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_min_snr_weights_for_a_rectified_flow(refused: Refused, family: str) -> None:
    told = refused(family, "lora", "steps.snr_gamma=5")
    assert told.startswith("error: steps.snr_gamma=5: ")
    assert told.endswith("set steps.snr_gamma=null")


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_min_snr_weights_for_a_diffusion_model(root: Path, tmp_path: Path, family: str) -> None:
    argv = words(root, family, "lora", tmp_path / "run", "steps.snr_gamma=5", "job.dry_run=true")
    assert start(argv) == 0


def test_a_pipeline_of_no_family(refused: Refused, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(root / "models" / "sd3", folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtAlphaPipeline"}))
    told = refused("sd3", "lora", f"model.path={folder}")
    assert told.startswith(f"error: model.path={folder}: model_index.json names a PixArtAlphaPipeline")
    for pipeline in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"):
        assert pipeline in told


@pytest.mark.parametrize(("family", "said"), [("sdxl", "sd"), ("flux", "sd3"), ("sd", "flux")])
def test_a_family_that_the_folder_contradicts(refused: Refused, family: str, said: str) -> None:
    told = refused(family, "lora", f"model.family={said}")
    assert "model_index.json names a" in told
    assert told.endswith(f"set model.family={family}, or null")


def test_a_family_that_is_none(refused: Refused) -> None:
    told = refused("sd", "lora", "model.family=flux2")
    assert told.startswith("error: model.family=flux2: ")
    assert "sdxl" in told


@pytest.mark.parametrize(("family", "ignored"), [("flux", True), ("sd3", False), ("sdxl", False)])
def test_a_negative_prompt_without_an_unconditional_branch(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], family: str, ignored: bool
) -> None:
    argv = words(root, family, "lora", tmp_path / "run", "prompts.negative=blurry", "job.dry_run=true")
    assert start(argv) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert ("the negative prompt is ignored; set prompts.negative=''" in told) is ignored


def test_torch_is_not_imported_for_a_refusal(root: Path, tmp_path: Path) -> None:
    import os
    import subprocess

    argv = words(root, "flux", "lora", tmp_path / "run", "steps.snr_gamma=5", "model.precision=fp32")
    script = (
        "import sys; from diffusion_lab.__main__ import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "set steps.snr_gamma=null" in done.stderr


# --- SDXL is told how each picture was cut ------------------------------------------------------------


def test_each_pictures_own_crop_reaches_the_u_net(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents and time ids come in pairs: which picture a row is of is told by its latents, free of noise here."""
    from diffusers import UNet2DConditionModel

    from diffusion_lab.families.ddpm import Ddpm
    from diffusion_lab.families.sdxl import StableDiffusionXL

    seen: list[tuple[torch.Tensor, list[int]]] = []
    forward, posterior = UNet2DConditionModel.forward, StableDiffusionXL.posterior
    means: dict[tuple[int, ...], torch.Tensor] = {}

    def spy(self: Any, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            ids = options["added_cond_kwargs"]["time_ids"]
            assert ids.dtype == torch.int64
            seen.extend(zip(sample.detach().clone(), ids.tolist(), strict=True))
        return forward(self, sample, *args, **options)

    def certain(self: Any, pipe: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, logvar = posterior(self, pipe, pixels)
        for number in range(len(SIZES)):
            with Image.open(root / "pictures" / "plain" / f"{number}.png") as picture:
                side = min(picture.size)
                left, top = ((length - side) // 2 for length in picture.size)
                square = picture.crop((left, top, left + side, top + side)).resize(
                    (64, 64), Image.Resampling.LANCZOS
                )
            if np.array_equal(np.asarray(square), ((pixels[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()):
                height, width = SIZES[number]
                scale = 64 / side
                means[height, width, round(top * scale), round(left * scale), 64, 64] = mean[0]
        return mean, torch.full_like(logvar, -60.0)

    monkeypatch.setattr(UNet2DConditionModel, "forward", spy)
    monkeypatch.setattr(StableDiffusionXL, "posterior", certain)
    monkeypatch.setattr(Ddpm, "add_noise", lambda self, latents, noise, timesteps: latents)
    argv = words(root, "sdxl", "lora", tmp_path / "run", "steps.total=6", "steps.every=6")
    assert start(argv) == 0
    assert len(seen) == 6 * 2
    assert len(means) == 3  # one of the four is held out
    assert len({ids for ids in means if any(ids[2:4])}) >= 2, "no picture was cropped: nothing is tested"
    factor = 0.4  # the tiny VAE's
    for latents, ids in seen:
        assert torch.allclose(latents, means[tuple(ids)] * factor, atol=1e-4), ids
    assert {tuple(ids) for _, ids in seen} == set(means)
