"""The noise a validation image starts from: a function of its prompt and number, of nothing else.

Every image has its own CPU generator, so that neither the batch size, nor the device, nor what was drawn
before changes it, and so that one image of a hundred can be made again alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def image_seed(prompt_text: str, index: int, noise_seed: int) -> int:
    """Seed of the prompt's ``index``-th image, 0 <= seed < 2**32.

    32 bits because torch's CPU generator uses no more of a seed, and because every image tool's seed field
    takes them.
    """
    text = f"{noise_seed}\n{index}\n{prompt_text}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def initial_noise(prompt: str, index: int, noise_seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 [*shape] on the CPU, of one image.

    The same numbers as ``pipe(prompt, generator=torch.Generator().manual_seed(image_seed(...)))`` draws in
    float32.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(image_seed(prompt, index, noise_seed))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
