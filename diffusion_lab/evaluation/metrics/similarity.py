"""Does the image look like the subject? Cosine similarity of faces with every training photo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import all_nan, leave_one_out, mean_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class Similarity:
    """s(x) = mean over the training photos t of cos(face(x), face(t)).

    NaN for an image without a face, and for all images where no training photo has one. Training photos
    without a face are excluded from the pairs; the ceiling has a NaN for each, so that its summary counts
    them.
    """

    name = "similarity"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("face",)
    label = "Similarity to the training photos"
    unit = "cosine"
    can_miss = True
    pairwise: frozenset[str] = frozenset({"ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.face is not None
        return mean_cosine(generated.face, references.train.face)

    def ceiling(self, references: References) -> Tensor | None:
        """Each training photo against the others."""
        return leave_one_out(references.train.face)

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects against the training photos."""
        if references.impostors is None or references.impostors.face is None:
            return None
        return or_none(mean_cosine(references.impostors.face, references.train.face))

    def pair_rows(
        self, kind: Literal["values", "ceiling"], generated: Features, references: References
    ) -> Tensor | None:
        """The ceiling's embeddings, which are compared with each other."""
        return references.train.face


class SimilarityHeldout:
    """The same against photos that were never trained on, the same ones for every n.

    `similarity` depends on the number of training photos, because it compares with them; this metric does
    not.
    """

    name = "similarity_heldout"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("face",)
    label = "Similarity to held-out photos"
    unit = "cosine"
    can_miss = True
    pairwise: frozenset[str] = frozenset({"ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.face is not None
        if references.heldout is None:
            return all_nan(generated.n, generated.face)
        return mean_cosine(generated.face, references.heldout.face)

    def ceiling(self, references: References) -> Tensor | None:
        """Held-out photos against each other; a single one with a face against the training photos."""
        if references.heldout is None or references.heldout.face is None:
            return None
        among = leave_one_out(references.heldout.face)
        return (
            among
            if among is not None
            else or_none(mean_cosine(references.heldout.face, references.train.face))
        )

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects against the held-out photos."""
        if references.heldout is None or references.impostors is None or references.impostors.face is None:
            return None
        return or_none(mean_cosine(references.impostors.face, references.heldout.face))

    def pair_rows(
        self, kind: Literal["values", "ceiling"], generated: Features, references: References
    ) -> Tensor | None:
        """The ceiling's embeddings, which are compared with each other; None if only one has a face."""
        found = None if references.heldout is None else references.heldout.face
        return found if leave_one_out(found) is not None else None
