"""What a run of the recipe is made of: sizes, places, and the parts that stages hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_lab.evaluation.encoders.miniature import MiniatureClip
from diffusion_lab.recipes.miniature import vae
from diffusion_lab.recipes.miniature.data import (
    FACES_SEED,
    HELDOUT_FACES_SEED,
    HELDOUT_SEED,
    TRAIN_SEED,
    Portraits,
    portraits,
)
from diffusion_lab.system import atomic


@dataclass(frozen=True, slots=True)
class RecipeSizes:
    """Numbers of images and steps at ``scale`` 1; for the shipped weights' steps see the model card."""

    pictures: int = 24_000
    heldout: int = 1_000
    identities: int = 3_000  # of the face embedder
    per_identity: int = 10
    heldout_identities: int = 150
    prompts: int = 300  # a third are plain photos: their face rate has a standard error of 3 points
    steps: Mapping[str, int] = field(
        default_factory=lambda: {
            "clip": 2_500,
            "vae": 12_000,
            "decoder": 1_500,
            "unet": 12_000,
            "face": 1_600,
            "polish": 1_650,
            "aesthetics": 1_500,
        }
    )

    def scaled(self, scale: float) -> RecipeSizes:
        """All numbers times ``scale``, with minima at which everything still runs."""

        def of(number: int, least: int) -> int:
            return max(least, round(number * scale))

        return RecipeSizes(
            of(self.pictures, 64),
            of(self.heldout, 24),
            of(self.identities, 8),
            self.per_identity if scale > 0.01 else 4,
            of(self.heldout_identities, 6),
            of(self.prompts, 4),
            {k: of(v, 2) for k, v in self.steps.items()},
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """What every stage needs to know."""

    folder: Path
    sizes: RecipeSizes
    device: torch.device
    seed: int
    progress: bool
    prediction_type: str
    start: Path | None = None  # a U-Net to begin from

    @property
    def weights(self) -> Path:
        """Where the results lie."""
        return self.folder / "weights"

    def train_set(self) -> Portraits:
        """The portraits that CLIP, VAE and U-Net learn from, each of another person."""
        seeds = range(TRAIN_SEED, TRAIN_SEED + self.sizes.pictures)
        return portraits(self.folder / "data", "train", seeds, seeds)

    def heldout(self) -> Portraits:
        """Portraits of unseen people."""
        seeds = range(HELDOUT_SEED, HELDOUT_SEED + self.sizes.heldout)
        return portraits(self.folder / "data", "heldout", seeds, seeds)

    def faces(self, name: str) -> Portraits:
        """Many portraits a person: "faces" to train on, "heldout_faces" of unseen people."""
        first, people = (
            (FACES_SEED, self.sizes.identities)
            if name == "faces"
            else (HELDOUT_FACES_SEED, self.sizes.heldout_identities)
        )
        each = self.sizes.per_identity
        ids = [first + k // each for k in range(people * each)]
        seeds = [10 * first + k for k in range(people * each)]
        return portraits(self.folder / "data", name, ids, seeds)

    def some_rebuilt(self, data: Portraits, name: str, every: int) -> NDArray[np.uint8]:
        """The pictures of ``data``, every so many-th as the VAE gives it back (cached beside)."""
        path = self.folder / "data" / f"{name}_rebuilt.npy"
        if not path.exists():
            found = vae.reconstruct(self.load_vae(), np.asarray(data.images[::every]), self.device)
            with atomic.writing(path) as sink:
                np.save(sink, found)
        images = np.array(data.images)
        images[::every] = np.load(path)
        return images

    def moments(self, data: Portraits) -> NDArray[np.float16]:
        """The latents' mean and log-variance of ``data`` (the train set): float16 [n, 8, 16, 16], cached."""
        path = self.folder / "data" / "moments.npy"
        if not path.exists():
            found = vae.encode_moments(self.load_vae(), np.asarray(data.images), self.device)
            with atomic.writing(path) as sink:
                np.save(sink, found.astype(np.float16))
        cached: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return cached

    def load_vae(self) -> Any:
        """The trained VAE."""
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_pretrained(self.folder / "parts" / "vae").to(self.device).eval()

    def load_clip(self) -> MiniatureClip:
        """The trained CLIP as an encoder."""
        return MiniatureClip.load(self.weights / "clip", device=str(self.device))
