"""One table of methods and variants: the same tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import TextualInversion


@dataclass(frozen=True, slots=True)
class Case:
    """A method, and the names (of `part.parameter`) that it may change."""

    make: Callable[[], Any]
    trains: Callable[[str], bool]
    falls: float = 0.9  # the loss on one batch, to this share of itself in 12 steps
    start: str = "customcls"  # what the identifier means at step 0, in words of the untouched model


def ti(**values: Any) -> TextualInversion:
    return TextualInversion(token="customcls", initialiser="dog", learning_rate=5e-2, **values)


def pivotal(switch: float, **values: Any) -> Pivotal:
    return Pivotal(
        switch=switch, rank=4, token="customcls", initialiser="dog", learning_rate=1e-2,
        token_learning_rate=5e-2, **values,
    )  # fmt: skip


CASES = {
    "lora": Case(lambda: Lora(rank=4, learning_rate=1e-2), lambda name: "lora_" in name),
    "lora_text": Case(
        lambda: Lora(rank=4, text_encoder=True, learning_rate=1e-2), lambda name: "lora_" in name
    ),
    "lora_stabilised": Case(
        lambda: Lora(rank=4, rank_stabilised=True, learning_rate=1e-2), lambda name: "lora_" in name
    ),
    "lora_dropout": Case(
        lambda: Lora(rank=4, alpha=8.0, dropout=0.2, targets=["to_q", "to_v"], learning_rate=1e-2),
        lambda name: "lora_" in name,
        falls=0.99,
    ),
    "dora": Case(lambda: Lora(rank=4, dora=True, learning_rate=1e-2), lambda name: "lora_" in name),
    "dora_text": Case(
        lambda: Lora(rank=4, dora=True, text_encoder=True, learning_rate=1e-2), lambda name: "lora_" in name
    ),
    "loha": Case(lambda: Lora(variant="loha", rank=4, learning_rate=1e-2), lambda name: ".hada_" in name),
    "lokr": Case(lambda: Lora(variant="lokr", rank=4, learning_rate=1e-2), lambda name: ".lokr_" in name),
    "lokr_text": Case(
        lambda: Lora(variant="lokr", rank=4, text_encoder=True, learning_rate=1e-2),
        lambda name: ".lokr_" in name,
    ),
    "oft": Case(
        lambda: Lora(variant="oft", rank=4, learning_rate=1e-2), lambda name: ".oft_R" in name, falls=0.95
    ),
    "oft_text": Case(
        lambda: Lora(variant="oft", rank=4, text_encoder=True, learning_rate=1e-2),
        lambda name: ".oft_R" in name,
        falls=0.95,
    ),
    "dreambooth": Case(
        lambda: DreamBooth(prior_weight=0.0, learning_rate=1e-3), lambda name: name.startswith("unet.")
    ),
    "dreambooth_prior": Case(
        lambda: DreamBooth(prior_images=3, prior_weight=0.7, learning_rate=1e-3),
        lambda name: name.startswith("unet."),
    ),
    "dreambooth_ema": Case(
        lambda: DreamBooth(prior_weight=0.0, ema=True, learning_rate=1e-3),
        lambda name: name.startswith("unet."),
    ),
    "dreambooth_text": Case(
        lambda: DreamBooth(prior_weight=0.0, text_encoder=True, learning_rate=1e-3),
        lambda name: name.startswith(("unet.", "text_encoder.")),
    ),
    "textual_inversion": Case(ti, lambda name: name.endswith(".learned"), falls=0.999, start="dog"),
    "textual_inversion_3": Case(
        lambda: ti(vectors=3), lambda name: name.endswith(".learned"), falls=0.999, start="dog dog dog"
    ),
    "textual_inversion_norm": Case(
        lambda: ti(keep_norm=True), lambda name: name.endswith(".learned"), falls=0.9999, start="dog"
    ),
    # Of three steps the first trains the word, two the adapter: its A learns from the second on, when B is not 0.
    "pivotal": Case(
        lambda: pivotal(0.2),
        lambda name: name.endswith(".learned") or "lora_" in name,
        falls=0.9,
        start="dog",
    ),
    "pivotal_text": Case(
        lambda: pivotal(0.2, vectors=2, text_encoder=True),
        lambda name: name.endswith(".learned") or "lora_" in name,
        falls=0.9,
        start="dog dog",
    ),
    "hypernetwork": Case(
        lambda: Hypernetwork(learning_rate=1e-2),
        lambda name: name.startswith("unet.hypernetwork."),
        falls=0.99,
    ),
    "hypernetwork_deep": Case(
        lambda: Hypernetwork(
            layers=[1.0, 1.5, 1.5, 1.0],
            activation="leakyrelu",
            layer_norm=True,
            dropout=0.2,
            init="KaimingNormal",
            self_attention=True,
            learning_rate=1e-2,
        ),
        lambda name: name.startswith("unet.hypernetwork."),
        falls=0.99,
    ),
}
