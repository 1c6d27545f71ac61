"""How much do the images of an evaluation differ from each other?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import all_nan, concatenate, leave_one_out, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class Diversity:
    """d(s) = mean over e in S without s of 1 - cos(s, e), on CLIP's image embeddings; the score is the mean
    of d.

    An image's value depends on the other images of its evaluation. NaN for a single image, and for embeddings that are
    zero or not finite, which are also excluded from the means of the others.
    """

    name = "diversity"
    version = "1-clip"  # the embeddings are part of the definition
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Diversity"
    unit = "cosine distance"
    can_miss = False
    least_images = 2
    pairwise: frozenset[str] = frozenset({"values", "ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        return _of_those_there(generated.clip_image)

    def ceiling(self, references: References) -> Tensor | None:
        """The reference photos among each other; None for a single one."""
        rows = self.pair_rows("ceiling", references.train, references)
        return None if rows is None else or_none(_of_those_there(rows))

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not use references."""
        return None

    def pair_rows(
        self, kind: Literal["values", "ceiling"], generated: Features, references: References
    ) -> Tensor | None:
        """The embeddings that are compared with each other."""
        if kind == "values":
            return generated.clip_image
        heldout = references.heldout
        return concatenate(references.train.clip_image, heldout.clip_image if heldout else None)


def _of_those_there(rows: Tensor) -> Tensor:
    there = rows.isfinite().all(dim=1) & (rows != 0).any(dim=1)
    values = all_nan(len(rows), rows)
    if int(there.sum()) > 1:
        values[there] = diversity(rows[there])
    return values


def diversity(embeddings: Tensor) -> Tensor:
    """d of every row: float32 [n], 0 to 2, of nonzero embeddings [n, d]."""
    if len(embeddings) < 2:
        raise ValueError("diversity of one image is not defined: set prompts.n to 2 or more")
    lengths = embeddings.double().norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()) or not bool(lengths.isfinite().all()):
        raise ValueError("diversity needs finite embeddings that are not zero")
    others = leave_one_out(embeddings.double() / lengths)
    assert others is not None
    return (1 - others.double()).float()
