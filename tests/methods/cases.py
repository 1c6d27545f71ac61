"""One table of methods and variants: the same tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.textual_inversion import TextualInversion


@dataclass(frozen=True, slots=True)
class Case:
    """A method, and the names (of `part.parameter`) that it may change."""

    make: Callable[[], Any]
    trains: Callable[[str], bool]
    falls: float = 0.9  # the loss on one batch, to this share of itself in 25 steps


def ti(**values: Any) -> TextualInversion:
    return TextualInversion(token="customcls", initialiser="dog", learning_rate=5e-2, **values)


CASES = {
    "lora": Case(lambda: Lora(rank=4, learning_rate=1e-2), lambda name: "lora_" in name),
    "lora_text": Case(
        lambda: Lora(rank=4, text_encoder=True, learning_rate=1e-2), lambda name: "lora_" in name
    ),
    "dreambooth": Case(
        lambda: DreamBooth(prior_weight=0.0, learning_rate=1e-3), lambda name: name.startswith("unet.")
    ),
    "dreambooth_prior": Case(
        lambda: DreamBooth(prior_images=3, learning_rate=1e-3), lambda name: name.startswith("unet.")
    ),
    "dreambooth_text": Case(
        lambda: DreamBooth(prior_weight=0.0, text_encoder=True, learning_rate=1e-3),
        lambda name: name.startswith(("unet.", "text_encoder.")),
    ),
    "textual_inversion": Case(ti, lambda name: name.endswith(".learned"), falls=0.999),
    "textual_inversion_3": Case(lambda: ti(vectors=3), lambda name: name.endswith(".learned"), falls=0.999),
    "textual_inversion_norm": Case(
        lambda: ti(keep_norm=True), lambda name: name.endswith(".learned"), falls=0.9999
    ),
}
