"""Is the image a copy of a training photo?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import nearest_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class Memorisation:
    """max over the training photos t of cos(image, t), on CLIP's image embeddings: 1 is a copy.

    A copy has a high similarity but is not useful. The maximum of n cosines grows with n: compare it with the
    ceiling, the same value for photos that were not trained on, before concluding that images are copied.
    """

    name = "memorisation"
    version = "1-clip"  # the embeddings are part of the definition
    higher_is_better = False
    needs: tuple[str, ...] = ("clip_image",)
    label = "Similarity to the nearest training photo"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        return nearest_cosine(generated.clip_image, references.train.clip_image)

    def ceiling(self, references: References) -> Tensor | None:
        """Each held-out photo and its nearest training photo: the values without copying."""
        if references.heldout is None or references.heldout.clip_image is None:
            return None
        return or_none(nearest_cosine(references.heldout.clip_image, references.train.clip_image))

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects and their nearest training photo."""
        if references.impostors is None or references.impostors.clip_image is None:
            return None
        return or_none(nearest_cosine(references.impostors.clip_image, references.train.clip_image))
