"""How many different images are there, in effect?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from diffusion_lab.interfaces import Features, References, Summary


class Vendi:
    """exp of the entropy of the eigenvalues of the cosine matrix / n (Friedman & Dieng 2022), on CLIP.

    1 where all images are the same, n where all are orthogonal, so it depends on the number of images:
    compare evaluations of equal size. The standard error is that of its influence function.
    """

    name = "vendi"
    version = "1-clip"  # the embeddings are part of the definition
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Effective number of different images (Vendi)"
    unit = "images"
    over: Literal["subject", "class"] = "subject"

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        from diffusion_lab.analysis.intervals import influence_error, of_set
        from diffusion_lab.metrics.distances import vendi_influence

        assert generated.clip_image is not None
        value, influences = vendi_influence(generated.clip_image)
        error, groups = influence_error(influences.tolist(), prompt_ids)
        note = f"of {generated.n} images: compare equal numbers only"
        return of_set(value, generated.n, error, groups, note=note)

    def ceiling_summary(self, references: References) -> Summary | None:
        """None: a score of a few photographs does not compare with that of many images."""
        return None

    def impostor_summary(self, references: References) -> Summary | None:
        """None: it compares with no reference."""
        return None
