"""One micro-batch of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.families.family import Conditioning, NoiseProcess, Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """On the device, except `tokens`. The form of the conditioning depends on the family."""

    latents: Tensor  # float32 [b, c, h, w], sampled from the posterior and scaled
    tokens: Tokens  # of the captions, b rows
    conditioning: Conditioning | None  # of the captions, if the text encoders are frozen and cached
    extras: Conditioning  # additional conditioning of the denoiser per image: `Family.training_extras`
    process: NoiseProcess  # of the model
    n_class: int = 0  # number of class images; they come last, after the subject's photos
    # with several processes: indices of these images among those of all processes; (): all
    rows: tuple[int, ...] = ()
    n_all: int = 0  # with several processes: number of images of all processes together
    snr_gamma: float | None = None  # Min-SNR; None: all timesteps have the same weight
    noise_offset: float = 0.0
    progress: float = 0.0  # share of the run's optimizer steps already taken, in [0, 1)
