"""Is it the same subject in its details? DINO's cosine, the subject fidelity metric of the DreamBooth paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import leave_one_out, mean_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class Dino:
    """Mean over the training photos t of cos(image, t), on DINO's class token.

    Ruiz et al. 2022 (arXiv:2208.12242), section 4.3: unlike CLIP, DINO was not trained to ignore differences
    between objects of one class.
    """

    name = "dino"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("dino",)
    label = "Similarity of the subject (DINO)"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset({"ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.dino is not None
        return mean_cosine(generated.dino, references.train.dino)

    def ceiling(self, references: References) -> Tensor | None:
        """Each training photo against the others."""
        return leave_one_out(references.train.dino)

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects against the training photos."""
        if references.impostors is None or references.impostors.dino is None:
            return None
        return or_none(mean_cosine(references.impostors.dino, references.train.dino))

    def pair_rows(
        self, kind: Literal["values", "ceiling"], generated: Features, references: References
    ) -> Tensor | None:
        """The ceiling's embeddings, which are compared with each other."""
        return references.train.dino
