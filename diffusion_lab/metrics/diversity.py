"""Do the images differ from each other?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.metrics.cosines import joined, leave_one_out

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.interfaces import Features, References


class Diversity:
    """d(s) = mean over e in S without s of 1 - cos(s, e), on CLIP's image embeddings; the score is the mean
    of d.

    A value belongs to an image only together with the others of its evaluation. ValueError for one image and
    for embeddings of length zero: there is no number that would be true.
    """

    name = "diversity"
    version = "1-clip"  # the embeddings are part of the definition
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Diversity"
    unit = "cosine distance"
    can_miss = False
    pairwise: frozenset[str] = frozenset({"values", "ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        return diversity(generated.clip_image)

    def ceiling(self, references: References) -> Tensor | None:
        """The subject's own photographs among each other; None for one alone."""
        rows = joined(
            references.train.clip_image, references.heldout.clip_image if references.heldout else None
        )
        return diversity(rows) if rows is not None and len(rows) > 1 else None

    def impostor(self, references: References) -> Tensor | None:
        """None: it compares with no reference."""
        return None


def diversity(embeddings: Tensor) -> Tensor:
    """d of every row: float32 [n], 0 to 2, of embeddings [n, d] of any length but zero."""
    if len(embeddings) < 2:
        raise ValueError("diversity of one image is not defined: set prompts.n to 2 or more")
    lengths = embeddings.double().norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()) or not bool(lengths.isfinite().all()):
        raise ValueError("diversity needs embeddings that are finite and not zero")
    others = leave_one_out(embeddings.double() / lengths)
    assert others is not None
    return (1 - others.double()).float()
