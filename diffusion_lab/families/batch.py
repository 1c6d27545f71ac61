"""One micro-batch of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.families.family import Conditioning, NoiseProcess, Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """On the device, but for `tokens`. What texts become is the family's business."""

    latents: Tensor  # float32 [b, c, h, w], sampled from the posterior and scaled
    tokens: Tokens  # of the captions, b rows
    conditioning: Conditioning | None  # of the captions, where the text encoders are frozen and cached
    extras: Conditioning  # what else the denoiser is given of each picture: `Family.training_extras`
    process: NoiseProcess  # the model's
    n_class: int = 0  # the last so many pictures are of the class, not of the subject
    rows: tuple[int, ...] = ()  # several processes: which of all their pictures these are; (): all
    n_all: int = 0  # several processes: pictures of all of them together
    snr_gamma: float | None = None  # Min-SNR; None: all timesteps weigh the same
    noise_offset: float = 0.0
    progress: float = 0.0  # share of the run's optimizer steps already taken, in [0, 1)
