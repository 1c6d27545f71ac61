"""Textual Inversion (Gal et al. 2022, arXiv:2208.01618): a new word is learned, and nothing else.

The word consists of new tokenizer entries that no other text maps to (`families.learnt_words`). Its vectors
are a separate parameter that replaces the corresponding rows of the embedding's output in the forward pass,
so the optimizer never changes another word (zeroing gradients would not be enough: weight decay changes all
rows). Files are in the usual formats: diffusers' `learned_embeds.safetensors`, and the same vectors as a file
for A1111, where the file name is the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion_lab.families import of
from diffusion_lab.families.batch import Batch
from diffusion_lab.families.small import is_small
from diffusion_lab.methods.freeze import freeze
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_tensors
from diffusion_lab.values.checks import bounded, flag

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffusion_lab.families.family import Family, Sizes

FILE_NAME = "learned_embeds.safetensors"
A1111_NAME = "learned_embeds_a1111.safetensors"


@dataclass(kw_only=True, slots=True)
class TextualInversion:
    # Full size: 5e-4 times a batch size of 4, scaled as in diffusers' example.
    learning_rates: ClassVar[tuple[float, float]] = (2e-2, 2e-3)  # miniature, full-size models

    name: str = "textual_inversion"
    token: str | None = None  # the new word; null: data.identifier
    initialiser: str | None = None  # words whose vectors initialise it; null: the class noun
    vectors: int = 1  # number of tokens of the word; more can represent more, but take up more of the prompt
    keep_norm: bool = False  # reset the norm of each vector to its initial value after every step
    learning_rate: float | None = None  # null: 2e-2 on the miniature, 2e-3 on full-size models

    def __post_init__(self) -> None:
        bounded("method.vectors", self.vectors)
        flag("method.keep_norm", self.keep_norm)
        if self.learning_rate is not None:
            bounded("method.learning_rate", self.learning_rate)
        if self.initialiser is not None and not self.initialiser.strip():
            raise UserError(
                "method.initialiser='': is empty; give a word such as dog, or null for data.class_noun"
            )
        if self.token is not None and len(self.token.split()) != 1:
            raise UserError(f"method.token={self.token!r}: must be one word")

    @property
    def traits(self) -> Traits:
        return Traits(trains=frozenset({"word"}), vectors=self.vectors, starts_unchanged=True)

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Fills in the learning rate; see `Method.fill`."""
        if self.learning_rate is None:
            self.learning_rate = 1.0 if free else self.learning_rates[0 if small else 1]

    def trained_numbers(self, sizes: Sizes) -> float:
        """Size of the vectors, summed over the vocabularies."""
        return float(self.vectors * sum(sizes.text_widths))

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Adds the word to each vocabulary and its vectors to the text encoders; everything else is frozen.

        UserError if a tokenizer already knows the word, or has no tokens for an initialiser.
        """
        from torch import nn

        from diffusion_lab.families.learnt_words import learn
        from diffusion_lab.families.vocabulary import check_new_word

        family = of(pipe)
        freeze(pipe)
        found = []
        for place in family.vocabularies:
            tokenizer, encoder = getattr(pipe, place.tokenizer), getattr(pipe, place.text_encoder)
            start = self._start(tokenizer, encoder)
            check_new_word(tokenizer.backend_tokenizer, self._new_word())
            try:
                ids = learn(tokenizer, encoder, self._new_word(), start)
            except ValueError as error:
                raise UserError(f"data.identifier={self.token}: {error}; give another word") from error
            encoder.requires_grad_(False)
            embedding = encoder.get_input_embeddings()
            learned = nn.Parameter(start.clone().float())
            embedding.register_parameter("learned", learned)
            norm = start.float().norm(dim=1, keepdim=True)
            embedding.register_buffer("learned_norm", norm, persistent=False)
            embedding.register_forward_hook(_replace(ids))
            found.append(learned)
        small = is_small(getattr(pipe, family.denoiser))
        rate = self.learning_rate or self.learning_rates[0 if small else 1]
        return [ParamGroup("embedding", found, rate, 0.0)]

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar."""
        from diffusion_lab.families.losses import batch_loss

        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe: Any) -> None:
        """Restores the norm of the vectors, if requested."""
        if self.keep_norm:
            import torch

            with torch.no_grad():
                for embedding in embeddings(pipe).values():
                    norm = embedding.learned.norm(dim=1, keepdim=True)
                    embedding.learned.mul_(embedding.learned_norm / norm)

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes a file for diffusers' `load_textual_inversion(folder)` and one for A1111, both with `notes`.

        The word is saved in a form that plain diffusers can find: in lower case if the tokenizer lowercases
        its input, in <> if the word is a token of the vocabulary. For several vocabularies there is one file
        that all tools read, with the vectors of each vocabulary (`clip_l`, `clip_g`) and the word in its
        header.
        """
        from diffusion_lab.system import tensors

        vectors = {key: one.learned.detach().float() for key, one in embeddings(pipe).items()}
        header = {"format": "pt", "method": self.name, "vectors": str(self.vectors), **(notes or {})}
        if "" not in vectors:
            tensors.write(folder / FILE_NAME, vectors, {"trigger": self._new_word(), **header})
            return [folder / FILE_NAME]
        tensors.write(folder / FILE_NAME, {self._name(pipe): vectors[""]}, header)
        tensors.write(folder / A1111_NAME, {"emb_params": vectors[""]}, header)
        return [folder / FILE_NAME, folder / A1111_NAME]

    def load(self, pipe: Any, folder: Path) -> None:
        """Loads what `save` wrote into a pipe attached with the same settings; UserError if they differ."""
        import torch

        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"{path} is missing: no embedding was saved there")
        weights = read_tensors(path, "the artefact")
        for key, embedding in embeddings(pipe).items():
            names = [key] if key else [self._new_word(), self._name(pipe)]
            found = next((weights[name] for name in names if name in weights), None)
            if found is None or found.shape != embedding.learned.shape:
                shapes = {name: tuple(value.shape) for name, value in weights.items()}
                raise UserError(
                    f"{path}: holds {shapes}, this run learns {self.token!r} of shape "
                    f"{tuple(embedding.learned.shape)}"
                )
            with torch.no_grad():
                embedding.learned.copy_(found)

    def _name(self, pipe: Any) -> str:
        """The name of the word in plain diffusers."""
        from diffusion_lab.families.learnt_words import name_in_diffusers

        return name_in_diffusers(pipe.tokenizer.backend_tokenizer, self._new_word())

    def _new_word(self) -> str:
        if self.token is None:
            raise ValueError("method.token is not filled in: see plan.defaults.fill_defaults")
        return self.token

    def _start(self, tokenizer: Any, text_encoder: Any) -> Tensor:
        """Initial vectors, float [vectors, d]: those of the initialiser's tokens, repeated in turn."""
        import torch

        if self.initialiser is None:
            raise ValueError("method.initialiser is not filled in: see plan.defaults.fill_defaults")
        ids = tokenizer(self.initialiser, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"method.initialiser={self.initialiser!r}: has no token; give a word or several")
        if self.vectors == 1 and len(ids) > 1:
            raise UserError(
                f"method.initialiser={self.initialiser!r}: is {len(ids)} tokens and the word starts from one; "
                "give a common word, or set method.vectors"
            )
        rows = torch.tensor([ids[i % len(ids)] for i in range(self.vectors)])
        weight: Tensor = text_encoder.get_input_embeddings().weight
        return weight.detach()[rows.to(weight.device)].clone()


def embeddings(pipe: Any) -> dict[str, Any]:
    """The text encoders' embedding modules with the new word's `learned` vectors, by vocabulary key."""
    return {
        place.key: getattr(pipe, place.text_encoder).get_input_embeddings() for place in of(pipe).vocabularies
    }


def _replace(ids: list[int]) -> Any:
    """A forward hook that takes the rows of `ids` from the module's `learned`, with gradients."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        import torch

        learned: Any = module.learned
        for row, token in enumerate(ids):
            here = (inputs[0] == token).unsqueeze(-1)
            output = torch.where(here, learned[row].to(output.dtype), output)
        return output

    return hook
