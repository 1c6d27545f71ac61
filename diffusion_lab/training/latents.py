"""Latents of the training photos and embeddings of the prompts, computed once.

The VAE encodes a photo as a normal distribution. Its mean and log-variance are cached and a new sample is
drawn at each step, so that a run with the cache equals one that encodes at every step. Caching a single
sample would reduce variety, and caching samples per step would pair them with the wrong photos.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from diffusion_lab.data.pictures import center_crop_resize, to_tensor
from diffusion_lab.families import of
from diffusion_lab.records import Picture, UserError

if TYPE_CHECKING:
    from diffusion_lab.families.family import Conditioning, Tokens

log = logging.getLogger(__name__)


class Latents(Protocol):
    """A source of the latents of a training set."""

    @property
    def device(self) -> torch.device: ...

    def sample(self, numbers: Sequence[int], generator: torch.Generator) -> Tensor:
        """Scaled latents of the given photos, float32 [b, c, h, w] on the device.

        Sampled on the CPU, photo by photo: first whether it is mirrored (if mirroring is on), then
        standard normal noise.
        """


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Posterior moments of every photo in memory; v is 2 if each is also stored mirrored, else 1."""

    mean: Tensor  # float32 [n, v, c, h, w]
    logvar: Tensor  # float32 [n, v, c, h, w], natural logarithm
    scaling_factor: float  # of the VAE: multiplying by it gives latents of about unit variance
    shift_factor: float  # of the VAE: subtracted before scaling; 0 for Stable Diffusion

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def sample(self, numbers: Sequence[int], generator: torch.Generator) -> Tensor:
        many, shape = self.mean.shape[1], self.mean.shape[2:]
        versions, noise = _draw(len(numbers), many, shape, generator)
        rows = torch.tensor(list(numbers)), torch.tensor(versions)
        return _scaled(self.mean[rows], self.logvar[rows], noise, self.scaling_factor, self.shift_factor)


@dataclass(frozen=True, slots=True)
class LatentSource:
    """Like `LatentCache`, but the moments of a photo are read or computed at each request."""

    moments: Callable[[int, int], tuple[Tensor, Tensor]]  # photo, version -> mean, logvar [c, h, w]
    versions: int
    shape: torch.Size  # of one photo's latents
    device: torch.device
    scaling_factor: float
    shift_factor: float

    def sample(self, numbers: Sequence[int], generator: torch.Generator) -> Tensor:
        versions, noise = _draw(len(numbers), self.versions, self.shape, generator)
        found = [self.moments(number, version) for number, version in zip(numbers, versions, strict=True)]
        mean, logvar = (torch.stack(part).to(self.device) for part in zip(*found, strict=True))
        return _scaled(mean, logvar, noise, self.scaling_factor, self.shift_factor)


def _draw(n: int, many: int, shape: torch.Size, generator: torch.Generator) -> tuple[list[int], Tensor]:
    versions, noise = [], []
    for _ in range(n):
        versions.append(int(torch.randint(0, many, (1,), generator=generator)) if many > 1 else 0)
        noise.append(torch.randn(shape, generator=generator))
    return versions, torch.stack(noise)


def _scaled(mean: Tensor, logvar: Tensor, noise: Tensor, scale: float, shift: float) -> Tensor:
    latents = mean + torch.exp(0.5 * logvar) * noise.to(mean.device, non_blocking=True)
    return (latents - shift) * scale


def encode_pictures(
    pipe: Any,
    pictures: Sequence[Picture],
    resolution: int,
    *,
    flip: bool = False,
    keep: str = "memory",
    folder: Path | None = None,
) -> Latents:
    """Encodes the centre square of every photo at `resolution` pixels with the VAE, in float32.

    One by one, so that the memory needed does not depend on their number. `keep`: `memory` keeps the
    moments in memory, `disk` stores them in `folder` for later runs too, `off` encodes at every `sample`.
    """
    if not pictures:
        raise ValueError("no pictures to encode")
    family, vae = of(pipe), pipe.vae
    if vae.dtype != torch.float32:
        raise ValueError(f"the VAE is {vae.dtype}: pictures are encoded before the frozen parts are cast")
    factors = family.factors(pipe)
    versions = 2 if flip else 1

    @torch.no_grad()
    def encode(number: int, version: int) -> tuple[Tensor, Tensor]:
        pixels = to_tensor(center_crop_resize(pictures[number].pixels, resolution)).to(vae.device)
        mean, logvar = family.posterior(pipe, (pixels.flip(-1) if version else pixels)[None])
        return mean[0], logvar[0]

    if keep == "memory":
        found = [encode(number, version) for number in range(len(pictures)) for version in range(versions)]
        mean, logvar = (torch.stack(part) for part in zip(*found, strict=True))
        shape = (len(pictures), versions, *mean.shape[1:])
        return LatentCache(mean.reshape(shape), logvar.reshape(shape), *factors)
    moments = encode if keep == "off" else _on_disk(encode, vae, pictures, resolution, versions, folder)
    shape = moments(0, 0)[0].shape
    return LatentSource(moments, versions, shape, vae.device, *factors)


def _on_disk(
    encode: Callable[[int, int], tuple[Tensor, Tensor]],
    vae: nn.Module,
    pictures: Sequence[Picture],
    resolution: int,
    versions: int,
    folder: Path | None,
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Encodes what `folder` does not yet contain.

    A file's name identifies everything that its content depends on.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from diffusion_lab.models.fingerprints import weights_hash
    from diffusion_lab.system import tensors
    from diffusion_lab.system.cache import default_cache

    place = (folder or default_cache() / "latents") / weights_hash({"vae": vae})

    def path(number: int, version: int) -> Path:
        return place / f"{pictures[number].sha256}-{resolution}{'-mirrored' if version else ''}.safetensors"

    def read(number: int, version: int) -> tuple[Tensor, Tensor]:
        found = load_file(path(number, version))
        mean, logvar = found["mean"], found["logvar"]
        if (
            mean.ndim != 3
            or mean.shape != logvar.shape
            or not bool((mean.isfinite() & logvar.isfinite()).all())
        ):
            raise ValueError("another shape, or numbers that are not finite")
        return mean, logvar

    for number in range(len(pictures)):
        for version in range(versions):
            try:
                read(number, version)
            except (OSError, SafetensorError, KeyError, ValueError) as error:  # missing or damaged
                if path(number, version).exists():
                    log.warning("%s is damaged and is created again (%s)", path(number, version), error)
                if path(number, version).is_dir():
                    shutil.rmtree(path(number, version))
                mean, logvar = encode(number, version)
                tensors.write(path(number, version), {"mean": mean, "logvar": logvar})
    return read


def tokenize(pipe: Any, text: str, remedy: str = "shorten data.identifier or data.class_noun") -> Tokens:
    """Token ids of one text, padded as the pipeline pads its prompts. UserError if the text is too long."""
    try:
        return of(pipe).tokenize(pipe, text)
    except ValueError as error:
        raise UserError(f"the prompt {error}; {remedy}") from error


@torch.no_grad()
def encode_text(pipe: Any, tokens: Tokens) -> Conditioning:
    """The text conditioning of the denoiser, in float32, computed as the pipeline does."""
    return {name: _float(value) for name, value in of(pipe).encode(pipe, tokens).items()}


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
