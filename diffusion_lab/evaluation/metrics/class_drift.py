"""How fine-tuning changed the class itself: images of prompts without the identifier, slot `identifier` =
"without".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import all_nan, mean_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class ClassDrift:
    """1 - cos(image, the base model's image of the same prompt and noise), on CLIP: 0 at step 0.

    NaN if there are no images of the base model (step 0 was not evaluated).
    """

    name = "class_drift"
    version = "1-clip"
    higher_is_better = False
    needs: tuple[str, ...] = ("clip_image",)
    label = "Distance of the class from the base model"
    unit = "cosine distance"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "class"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        base = None if references.base is None else references.base.clip_image
        if base is None:
            return all_nan(generated.n, generated.clip_image)
        if base.shape != generated.clip_image.shape:
            raise ValueError(f"{len(base)} images of the base model for {generated.n}: not the same prompts")
        # Half the squared chord of two unit vectors is 1 - cos, and exactly 0 for equal ones.
        moved = (generated.clip_image.double() - base.double()).square().sum(1).div(2).float()
        return moved.where(moved.isfinite(), float("nan"))

    def ceiling(self, references: References) -> Tensor | None:
        """None: photos do not change."""
        return None

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None


class ClassLeak:
    """Mean over the training photos t of cos(class image, t), on CLIP: the class turned into the subject as far
    as this rises above its value at step 0.
    """

    name = "class_leak"
    version = "1-clip"
    higher_is_better = False
    needs: tuple[str, ...] = ("clip_image",)
    label = "Similarity of the class to the subject"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "class"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        return mean_cosine(generated.clip_image, references.train.clip_image)

    def ceiling(self, references: References) -> Tensor | None:
        """None: no value is to be reached; compare with step 0."""
        return None

    def impostor(self, references: References) -> Tensor | None:
        """Photos of other subjects against the training photos: real examples of the class."""
        if references.impostors is None or references.impostors.clip_image is None:
            return None
        return or_none(mean_cosine(references.impostors.clip_image, references.train.clip_image))
