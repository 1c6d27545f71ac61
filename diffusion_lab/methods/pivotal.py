"""Pivotal tuning: Textual Inversion first, then LoRA with the learned word.

After Roich et al. 2021 (arXiv:2106.05744: invert first, then tune the generator around the result), as LoRA
tools apply it to diffusion models: for the fraction `switch` of the steps only the word's vectors are
trained, without the LoRA; after that they are fixed, and the LoRA is trained with them. Both parts, and their
files, are those of the methods of the same names.
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
    # Full size: half of the steps, as in diffusers' script for pivotal tuning; the miniature's words hold
    # little.
    switches: ClassVar[tuple[float, float]] = (0.3, 0.5)
    token_learning_rates: ClassVar[tuple[float, float]] = TextualInversion.learning_rates

    name: str = "pivotal"
    switch: float | None = None  # fraction of steps that train the word, before the LoRA; null: 0.3 or 0.5
    token: str | None = None  # for these four see TextualInversion
    initialiser: str | None = None
    vectors: int = 1
    keep_norm: bool = False
    token_learning_rate: float | None = None  # null: Textual Inversion's
    rank: int = 8  # for this and the following see Lora
    alpha: float | None = None
    rank_stabilised: bool = False
    dora: bool = False
    dropout: float = 0.0
    targets: list[str] | None = None
    text_encoder: bool = False
    learning_rate: float | None = None  # of the LoRA; null: LoRA's
    text_encoder_learning_rate: float | None = None
    weight_decay: float = 1e-2  # of the LoRA; the word has no weight decay

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
            starts_unchanged=True,
            fraction_of_steps="method.switch",
        )

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Fills in the settings of both methods and the switch; see `Method.fill`."""
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
        """Those of the adapters: the word's vectors are negligible."""
        return self._lora().trained_numbers(sizes)

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Adds the word and the adapter; everything else is frozen. UserError as in the two methods."""
        groups = [*self._word().attach(pipe), *self._lora().attach(pipe)]
        for group in groups:  # attaching one method freezes what the other has added
            for parameter in group.params:
                parameter.requires_grad_(True)
        return groups

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar.

        Parameters that are not trained in this phase are not part of the graph and get no gradient, so the
        optimizer skips them, including weight decay and moments.
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
        """Restores the norm of the word's vectors, if requested, while they are trained."""
        if all(embedding.learned.requires_grad for embedding in embeddings(pipe).values()):
            self._word().after_step(pipe)

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes the files of both methods into one folder; plain diffusers reads both:

        pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
        """
        told = {**(notes or {}), "method": self.name}
        return [*self._word().save(pipe, folder, told), *self._lora().save(pipe, folder, told)]

    def load(self, pipe: Any, folder: Path) -> None:
        """Loads what `save` wrote into a pipe attached with the same settings; UserError if they differ."""
        self._word().load(pipe, folder)
        self._lora().load(pipe, folder)

    def _word(self) -> TextualInversion:
        return TextualInversion(**self._shared(TextualInversion, learning_rate=self.token_learning_rate))

    def _lora(self) -> Lora:
        return Lora(**self._shared(Lora))

    def _shared(self, kind: type[Any], **values: Any) -> dict[str, Any]:
        """The fields that this method shares with one of its parts."""
        own = {field.name for field in dataclasses.fields(self)} - {"name"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if f.name in own} | values
