"""The initial noise of a validation image: a function of its prompt, its index and the noise seed only.

Each image has its own CPU generator, so its noise does not depend on the batch size, the device or previous
draws, and a single image can be reproduced.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def image_seed(prompt_text: str, index: int, noise_seed: int) -> int:
    """Seed of the prompt's ``index``-th image, 0 <= seed < 2**32.

    32 bits, because torch's CPU generator uses no more, and because all image tools accept such seeds.
    """
    text = f"{noise_seed}\n{index}\n{prompt_text}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def initial_noise(prompt: str, index: int, noise_seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one image, float32 [*shape] on the CPU.

    The same numbers as drawn by ``pipe(prompt, generator=torch.Generator().manual_seed(image_seed(...)))`` in
    float32.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(image_seed(prompt, index, noise_seed))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
