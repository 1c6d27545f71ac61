"""A real Stable Diffusion of toy size, with random weights: what most tests run on.

`tiny_sd_folder` is an ordinary diffusers folder (64x64 pixels, latents 4x16x16, about 900,000 parameters),
built once a session and never written to; `tiny_pipe` is a fresh copy of it for one test.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from diffusion_lab.records import Picture, Subject

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from diffusion_lab.training.state import TrainingState

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads than cores slow all of them down
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask a model hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Each test computes its own evaluations; tests of the shared ones (tests/evaluation/) turn them on.
os.environ["DIFFUSION_LAB_SHARED_GB"] = "0"

TINY_RESOLUTION = 64
# Common words get a token of their own, so that prompts of ordinary length fit in 77 tokens.
TINY_WORDS = [
    "a", "photo", "of", "man", "woman", "person", "dog", "the", "in", "on", "at", "with", "and", "wearing",
    "portrait", "face", "blurry", "quality", "highly", "detailed",
]  # fmt: skip

BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; one at a time, since playwright cannot be started twice in a process."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine: the page was not opened in a browser")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER_FLAGS))
        yield opened
        opened.close()


def tiny_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE over all 256 bytes, merges for `TINY_WORDS`; every other word is spelt in letters."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in TINY_WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:  # left to right; BPE applies merges by rank, earlier words first
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def build_tiny_pipe(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline with random weights, float32, on the CPU, in eval mode."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            sample_size=TINY_RESOLUTION,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,  # not the usual 0.18215: code that hard-codes it fails here
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder, prediction type epsilon. Read only: copy it before you change it."""
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    build_tiny_pipe().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_v_sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with `prediction_type: v_prediction` in the scheduler's config."""
    folder = tmp_path_factory.mktemp("tiny_v") / "sd"
    build_tiny_pipe("v_prediction").save_pretrained(folder, safe_serialization=True)
    return folder


def load_plain(folder: Path) -> StableDiffusionPipeline:
    """The folder as anybody would load it: plain diffusers, no code of this package."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe(tiny_sd_folder: Path) -> StableDiffusionPipeline:
    """A fresh pipeline from `tiny_sd_folder`, epsilon prediction."""
    return load_plain(tiny_sd_folder)


@pytest.fixture
def tiny_v_pipe(tiny_v_sd_folder: Path) -> StableDiffusionPipeline:
    """A fresh pipeline from `tiny_v_sd_folder`, v-prediction."""
    return load_plain(tiny_v_sd_folder)


def make_picture(number: int, height: int = 72, width: int = 64) -> Picture:
    """A smooth coloured pattern that differs by number; uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (3 + number) + c) * np.cos(y / (5 + c) + number) for c in range(3)]
    pixels = np.uint8(np.clip(127.5 + 100 * np.stack(waves, axis=-1), 0, 255))
    return Picture(path=Path(f"{number:02d}.png"), sha256=f"{number:064x}", pixels=pixels)


def pattern() -> Subject:
    """Five small pictures to train on and two held out; identifier `customcls`, noun `dog`."""
    return Subject(
        name="pattern",
        class_noun="dog",
        identifier="customcls",
        train=tuple(make_picture(n) for n in range(5)),
        heldout=tuple(make_picture(n) for n in range(5, 7)),
        instance_prompt="a photo of customcls dog",
    )


@pytest.fixture
def tiny_subject() -> Subject:
    """`pattern()`."""
    return pattern()


@pytest.fixture
def load_plain_pipe() -> Callable[[Path], StableDiffusionPipeline]:
    """`load_plain` for tests that need several pipelines of the same folder."""
    return load_plain


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for DIFFUSION_LAB_CACHE: pictures of a class are drawn once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_state(make_state_once: Callable[..., TrainingState]) -> Callable[..., TrainingState]:
    """Builds a run on the tiny model, see `make_state_once`."""
    return make_state_once


@pytest.fixture(scope="session")
def make_state_once(tiny_sd_folder: Path) -> Callable[..., TrainingState]:
    """Builds a run on the tiny model: `make_state(method=Lora(...), seed=0, flip=False, total=4, ...)`.

    Keywords it does not know go to `Steps`.
    """
    import torch

    from diffusion_lab.config.schema import Config, Data, Memory, Model, Prompts, Steps
    from diffusion_lab.methods.lora import Lora
    from diffusion_lab.models.load import load_pipeline
    from diffusion_lab.training.state import build_state

    def make(
        *,
        folder: Path = tiny_sd_folder,
        method: Any = None,
        subject: Subject | None = None,
        seed: int = 0,
        flip: bool = False,
        precision: str = "fp32",
        memory: Memory | None = None,
        **steps: Any,
    ) -> TrainingState:
        config = Config(
            seed=seed,
            model=Model(path=str(folder), device="cpu", precision=precision),
            memory=memory or Memory(),
            method=method or Lora(rank=4, learning_rate=1e-2),
            data=Data(flip=flip),
            prompts=Prompts(sampling_steps=2),  # of pictures of the class, where a method draws some
            steps=Steps(**{"total": 4, "every": 2, "batch_size": 2, "log_every": 2, **steps}),
        )
        return build_state(config, load_pipeline(config.model, torch.device("cpu")), subject or pattern())

    return make


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """The entry point in this process; the logging that Hydra sets up does not outlive the test."""
    import logging

    from diffusion_lab.__main__ import main

    monkeypatch.chdir(tmp_path)
    root, ours = logging.getLogger(), logging.getLogger("diffusion_lab")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield lambda *words: main(list(words))
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
