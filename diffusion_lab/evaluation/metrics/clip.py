"""Does the image show what the prompt says, and does it resemble the training photos? Two CLIP cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import leave_one_out, mean_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class ClipText:
    """cos(image, prompt), the prompt with the class noun alone, since CLIP does not know the identifier.

    The plain cosine, without the factors 100 or 2.5 that other tools apply.
    """

    name = "clip_text"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image", "clip_text")
    label = "Faithfulness to the prompt"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        assert generated.clip_text is not None
        return (generated.clip_image.double() * generated.clip_text.double()).sum(dim=1).float()

    def ceiling(self, references: References) -> Tensor | None:
        """None: photos have no prompt."""
        return None

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None


class ClipImage:
    """Mean over the training photos t of cos(image, t): the whole image, not the face."""

    name = "clip_image"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Similarity of the whole image"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset({"ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        return mean_cosine(generated.clip_image, references.train.clip_image)

    def ceiling(self, references: References) -> Tensor | None:
        """Each training photo against the others."""
        return leave_one_out(references.train.clip_image)

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects against the training photos."""
        if references.impostors is None or references.impostors.clip_image is None:
            return None
        return or_none(mean_cosine(references.impostors.clip_image, references.train.clip_image))

    def pair_rows(
        self, kind: Literal["values", "ceiling"], generated: Features, references: References
    ) -> Tensor | None:
        """The ceiling's embeddings, which are compared with each other."""
        return references.train.clip_image
