"""Would people rate the image as good?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import concatenate

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class Aesthetics:
    """The head's rating of 0 to 10, divided by 10. NaN if no head is configured."""

    name = "aesthetics"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("aesthetics",)
    label = "Aesthetics"
    unit = "0 to 1"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        if generated.aesthetics is None:
            import torch

            return torch.full((generated.n,), torch.nan)
        return generated.aesthetics / 10

    def ceiling(self, references: References) -> Tensor | None:
        """Scores of the reference photos, training and held out. Generated images may exceed them."""
        ratings = concatenate(
            references.train.aesthetics, references.heldout.aesthetics if references.heldout else None
        )
        return None if ratings is None else ratings / 10

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None
