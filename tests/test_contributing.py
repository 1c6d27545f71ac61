"""CONTRIBUTING.md is right about what to touch: a toy of each kind is added to a copy of the package, which then runs.

The copy is changed only in the places that the page names: new files, and one line in a table each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent

METRIC = '''
"""How bright an image is."""

from typing import Literal


class Brightness:
    name = "brightness"
    version = "1"
    higher_is_better = True
    needs = ("mean_colour",)
    label = "Brightness"
    unit = "0 to 1"
    can_miss = False
    pairwise = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated, references):
        return generated.more["mean_colour"].mean(dim=1)

    def ceiling(self, references):
        return references.train.more["mean_colour"].mean(dim=1)

    def impostor(self, references):
        return None
'''
ENCODER = '''
"""The mean colour of an image."""


class MeanColour:
    name, version, preprocessing = "mean-colour", "1", "x / 255"

    def embed_images(self, images):
        import torch

        return torch.stack([torch.from_numpy(image.copy()).float().mean(dim=(0, 1)) / 255 for image in images])


def load(settings, device):
    return MeanColour()
'''
METHOD = '''
"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199): only the denoiser's biases train."""

from dataclasses import dataclass

from diffusion_lab.families import of
from diffusion_lab.methods.freeze import freeze
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.system.readers import read_tensors


@dataclass(kw_only=True, slots=True)
class BitFit:
    name: str = "bitfit"
    learning_rate: float | None = None

    @property
    def traits(self):
        return Traits(trains=frozenset({"adapter"}))

    def fill(self, family, *, small, free):
        if self.learning_rate is None:
            self.learning_rate = 1.0 if free else 1e-3

    def trained_numbers(self, sizes):
        return 1e-3 * sizes.parameters[sizes.denoiser]

    def attach(self, pipe):
        freeze(pipe)
        biases = list(self._biases(pipe).values())
        for bias in biases:
            bias.requires_grad_(True)
        return [ParamGroup("biases", biases, self.learning_rate, 0.0)]

    def loss(self, pipe, batch, generator):
        from diffusion_lab.families.losses import batch_loss

        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe):
        """Nothing to do."""

    def save(self, pipe, folder, notes=None):
        from diffusion_lab.system import tensors

        tensors.write(folder / "biases.safetensors", self._biases(pipe), {"method": self.name, **(notes or {})})
        return [folder / "biases.safetensors"]

    def load(self, pipe, folder):
        import torch

        with torch.no_grad():
            for name, value in read_tensors(folder / "biases.safetensors", "the artefact").items():
                self._biases(pipe)[name].copy_(value)

    def _biases(self, pipe):
        network = getattr(pipe, of(pipe).denoiser)
        return {name: p for name, p in network.named_parameters() if name.endswith(".bias")}
'''
# A family that differs in one thing, so that it is short; a whole one is `families/sdxl.py`.
FAMILY = '''
"""Stable Diffusion under another pipeline's name, sampled with Euler's method."""

from diffusion_lab.families.sd import StableDiffusion


class Toy(StableDiffusion):
    name, title, pipeline = "toy", "Toy Diffusion", "ToyPipeline"

    def pipeline_class(self):
        from diffusers import StableDiffusionPipeline

        return type("ToyPipeline", (StableDiffusionPipeline,), {})

    def solver(self, pipe, steps, size):
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps, device=pipe.unet.device)
        return scheduler
'''
PROMPTS = """

def _toys(settings, identifier, class_noun):
    texts = [f"a photo of {identifier} {class_noun} {where}" for where in ("on grass", "in snow", "at night")]
    plain = [f"a photo of a {class_noun} {where}" for where in ("on grass", "in snow", "at night")]
    found = [Prompt(_id(i), text, same) for i, (text, same) in enumerate(zip(texts, plain, strict=True))]
    return tuple(found[: settings.n]), ""


SETS["toys"] = _toys
"""


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), "utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its configuration with the toys added."""
    root = tmp_path_factory.mktemp("copy")
    package = root / "diffusion_lab"
    shutil.copytree(
        REPOSITORY / "diffusion_lab", package, ignore=shutil.ignore_patterns("__pycache__", "weights")
    )
    (package / "miniature" / "weights").symlink_to(REPOSITORY / "diffusion_lab" / "miniature" / "weights")
    for name in ("conf", "sweeps"):
        shutil.copytree(REPOSITORY / name, root / name)

    # A metric: one file, one line in the table.
    metrics = package / "evaluation" / "metrics"
    (metrics / "brightness.py").write_text(METRIC)
    replaced(
        metrics / "__init__.py",
        "from diffusion_lab.evaluation.metrics.class_drift",
        "from diffusion_lab.evaluation.metrics.brightness import Brightness\n"
        "from diffusion_lab.evaluation.metrics.class_drift",
    )
    replaced(metrics / "__init__.py", "    Similarity(),\n", "    Similarity(),\n    Brightness(),\n")
    # Its encoder: one file, one line.
    encoders = package / "evaluation" / "encoders"
    (encoders / "mean_colour.py").write_text(ENCODER)
    with (encoders / "table.py").open("a") as file:
        file.write(
            "\n\ndef _mean_colour(settings: Metrics, device: str) -> ImageEncoder:\n"
            "    from diffusion_lab.evaluation.encoders.mean_colour import load\n\n"
            "    return load(settings, device)\n\n\n"
            'IMAGE_ENCODERS["mean_colour"] = _mean_colour\n'
        )
    # A method: one file, one line, one YAML.
    methods = package / "methods"
    (methods / "bitfit.py").write_text(METHOD)
    replaced(
        methods / "__init__.py",
        "from diffusion_lab.methods.dreambooth import",
        "from diffusion_lab.methods.bitfit import BitFit\nfrom diffusion_lab.methods.dreambooth import",
    )
    replaced(methods / "__init__.py", '    "lora": Lora,\n', '    "lora": Lora,\n    "bitfit": BitFit,\n')
    (root / "conf" / "method" / "bitfit.yaml").write_text(
        "# the denoiser's biases\ndefaults:\n  - /schema/method/bitfit@_here_\n\nlearning_rate: null\n"
    )
    # A family: one file, one line.
    families = package / "families"
    (families / "toy.py").write_text(FAMILY)
    replaced(
        families / "__init__.py",
        "from diffusion_lab.families.sdxl import",
        "from diffusion_lab.families.toy import Toy\nfrom diffusion_lab.families.sdxl import",
    )
    replaced(
        families / "__init__.py",
        "        StableDiffusion(),\n",
        "        StableDiffusion(),\n        Toy(),\n",
    )
    # A prompt set: one function, one line, one YAML.
    with (package / "data" / "prompts.py").open("a") as file:
        file.write(PROMPTS)
    (root / "conf" / "prompts" / "toys.yaml").write_text("# 3 prompts of the test\nname: toys\nn: 3\n")
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "diffusion_lab", *words],
        cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_toys_of_all_kinds_run_together(copy: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (80, 64), (40 * number, 90, 160)).save(pictures / f"{number}.png")
    model = tmp_path / "model"
    shutil.copytree(tiny_sd_folder, model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "ToyPipeline"}))
    words = [
        "method=bitfit", "prompts=toys", "prompts.sampling_steps=2", "model=folder", f"model.path={model}",
        "model.precision=fp32", "model.device=cpu", "data=folder", f"data.folder={pictures}", "data.class_noun=dog",
        "data.n_images=3", "data.n_heldout=1", "metrics.names=[brightness]", "steps.total=2", "steps.every=1",
        "tracker=files", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = run(copy, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    table = parquet.read_table(tmp_path / "run" / "scores.parquet").to_pydict()
    assert set(table["metric"]) == {"brightness"}
    assert len(table["value"]) == 3 * 3  # images of three evaluations
    assert all(0 <= value <= 1 for value in table["value"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "completed"
    assert "mean-colour 1 x / 255" in result["encoders"].values()
    assert (tmp_path / "run" / "artefact" / "biases.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()

    shown = run(copy, "--help")
    assert "bitfit" in shown.stdout
    assert "toys" in shown.stdout
    refused = run(copy, "method=lora", "model.family=sdxl", *words[2:], "--dry-run")
    assert refused.returncode == 2
    assert "set model.family=toy" in refused.stderr
