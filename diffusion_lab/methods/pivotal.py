"""Pivotal tuning: Textual Inversion first, then LoRA with the learned word.

After Roich et al. 2021 (arXiv:2106.05744: invert first, then tune the generator around what was found), as the
LoRA tools do it for diffusion models: for `switch` of the steps only the word's vectors train, without the LoRA;
from then on they stay as they are and the LoRA trains with them. Both parts are the methods of those names, and
so are their files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion_lab.families import of
from diffusion_lab.families.batch import Batch
from diffusion_lab.methods.lora import LEARNING_RATES, Lora
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.methods.textual_inversion import TextualInversion, embeddings
from diffusion_lab.values.checks import bounded

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffusion_lab.families.family import Family, Sizes


@dataclass(kw_only=True, slots=True)
class Pivotal:
    learning_rates: ClassVar[tuple[float, float]] = LEARNING_RATES["lora"]  # miniature, full-size models
    # Full size: half of the steps, as diffusers' script for pivotal tuning; the miniature's words hold little.
    switches: ClassVar[tuple[float, float]] = (0.3, 0.5)
    token_learning_rates: ClassVar[tuple[float, float]] = TextualInversion.learning_rates

    name: str = "pivotal"
    switch: float | None = None  # share of the steps that train the word, then the LoRA; null: 0.3 or 0.5
    token: str | None = None  # these four: see TextualInversion
    initialiser: str | None = None
    vectors: int = 1
    keep_norm: bool = False
    token_learning_rate: float | None = None  # null: Textual Inversion's
    rank: int = 8  # from here on: see Lora
    alpha: float | None = None
    rank_stabilised: bool = False
    dora: bool = False
    dropout: float = 0.0
    targets: list[str] | None = None
    text_encoder: bool = False
    learning_rate: float | None = None  # of the LoRA; null: LoRA's
    text_encoder_learning_rate: float | None = None
    weight_decay: float = 1e-2  # of the LoRA; the word has none

    def __post_init__(self) -> None:
        if self.switch is not None:
            bounded("method.switch", self.switch)
        if self.token_learning_rate is not None:
            bounded("method.token_learning_rate", self.token_learning_rate)
        self._word()
        self._lora()

    @property
    def default_alpha(self) -> float | None:
        return self._lora().default_alpha

    @property
    def traits(self) -> Traits:
        return Traits(
            trains=frozenset({"adapter", "word"}),
            text_encoder=self.text_encoder,
            rank=self.rank,
            vectors=self.vectors,
        )

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """What both methods fill, and the switch; see `Method.fill`."""
        lora = self._lora()
        lora.fill(family, small=small, free=free)
        for key in ("learning_rate", "text_encoder_learning_rate", "alpha", "targets"):
            setattr(self, key, getattr(lora, key))
        number = 0 if small else 1
        if self.token_learning_rate is None:
            self.token_learning_rate = 1.0 if free else self.token_learning_rates[number]
        if self.switch is None:
            self.switch = self.switches[number]

    def trained_numbers(self, sizes: Sizes) -> float:
        """Those of the adapters: the word's are few beside them."""
        return self._lora().trained_numbers(sizes)

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Adds the word and the adapter; everything else is frozen. UserError as the two methods' own."""
        groups = [*self._word().attach(pipe), *self._lora().attach(pipe)]
        for group in groups:  # each method froze what the other had added
            for parameter in group.params:
                parameter.requires_grad_(True)
        return groups

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar.

        What does not train in this phase has no part in the graph and so gets no gradient at all: the
        optimizer passes it by, weight decay and moments included.
        """
        from diffusion_lab.families.losses import batch_loss

        first = batch.progress < (self.switches[1] if self.switch is None else self.switch)
        family = of(pipe)
        places = list(embeddings(pipe).values())
        phase = "word" if first else "lora"
        if getattr(places[0], "phase", None) != phase:
            for embedding in places:
                embedding.phase = phase
                embedding.learned.requires_grad_(first)
            adapted = (family.denoiser, *(family.lora_text_encoders if self.text_encoder else ()))
            for network in (getattr(pipe, part) for part in adapted):
                (network.disable_adapters if first else network.enable_adapters)()
        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe: Any) -> None:
        """Gives the word's vectors their length back where asked, while they train."""
        if all(embedding.learned.requires_grad for embedding in embeddings(pipe).values()):
            self._word().after_step(pipe)

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes both methods' files into one folder; plain diffusers reads both:

        pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
        """
        told = {**(notes or {}), "method": self.name}
        return [*self._word().save(pipe, folder, told), *self._lora().save(pipe, folder, told)]

    def load(self, pipe: Any, folder: Path) -> None:
        """Reads what `save` wrote into a pipe attached with the same settings; else UserError."""
        self._word().load(pipe, folder)
        self._lora().load(pipe, folder)

    def _word(self) -> TextualInversion:
        return TextualInversion(**self._shared(TextualInversion, learning_rate=self.token_learning_rate))

    def _lora(self) -> Lora:
        return Lora(**self._shared(Lora))

    def _shared(self, kind: type[Any], **values: Any) -> dict[str, Any]:
        """The fields that this method has in common with one of its parts."""
        own = {field.name for field in dataclasses.fields(self)} - {"name"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if f.name in own} | values
