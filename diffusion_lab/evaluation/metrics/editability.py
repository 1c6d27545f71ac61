"""Distortion and editability, for prompt sets with and without the identifier.

A set like `paper` has a plain prompt ("a photo of customcls dog", slot `edit` empty), edits of it ("... in a
forest") and all of them again without the identifier ("a photo of a dog in a forest", slot `identifier` =
"without"). Cosines are CLIP's. NaN for images to which the metric does not apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import all_nan, leave_one_out, mean_cosine, or_none

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References

EDIT = "edit"  # the slot: "" for the plain prompt


class ImageSimilarity:
    """Images of the plain prompt against the training photos: the mean cosine over all pairs."""

    name = "image_similarity"
    version = "1-clip"
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Image similarity (plain prompt against training photos)"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset({"ceiling"})
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        values = mean_cosine(generated.clip_image, references.train.clip_image)
        for row, prompt in enumerate(generated.prompts or ()):
            if prompt.slots.get(EDIT) != "":
                values[row] = float("nan")
        return values if generated.prompts else all_nan(generated.n, values)

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


class PromptSimilarity:
    """Images of an edit prompt against those of the same prompt without the identifier, by the same model."""

    name = "prompt_similarity"
    version = "1-clip"
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Prompt similarity (edits with and without the identifier)"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        values = all_nan(generated.n, generated.clip_image)
        if references.without is None or references.without.clip_image is None:
            return values
        rows = _by_prompt(references.without)
        for row, prompt in enumerate(generated.prompts or ()):
            twins = rows.get(prompt.plain, []) if prompt.slots.get(EDIT) else []
            if twins:
                others = references.without.clip_image[twins]
                values[row] = mean_cosine(generated.clip_image[row : row + 1], others)[0]
        return values

    def ceiling(self, references: References) -> Tensor | None:
        """None: the baseline is `prompt_baseline`, which needs generated images."""
        return None

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None


class PromptBaseline:
    """The prompt-only baseline: images without the identifier against the others of their own prompt."""

    name = "prompt_baseline"
    version = "1-clip"
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Baseline of prompt similarity (images without the identifier)"
    unit = "cosine"
    can_miss = False
    pairwise: frozenset[str] = frozenset()  # pairs stay within a prompt, and the interval clusters by prompt
    over: Literal["subject", "class"] = "class"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.clip_image is not None
        values = all_nan(generated.n, generated.clip_image)
        for rows in _by_prompt(generated).values():
            among = leave_one_out(generated.clip_image[rows])
            if among is not None:
                values[rows] = among
        return values

    def ceiling(self, references: References) -> Tensor | None:
        """None: no photo has a prompt."""
        return None

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None


def _by_prompt(features: Features) -> dict[str, list[int]]:
    """Rows of each prompt's images."""
    found: dict[str, list[int]] = {}
    for row, prompt in enumerate(features.prompts or ()):
        found.setdefault(prompt.plain, []).append(row)
    return found
