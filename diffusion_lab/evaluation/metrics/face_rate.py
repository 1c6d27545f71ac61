"""Is there a face in the image?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import concatenate

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class FaceRate:
    """1 if the detector finds a face, else 0. The mean is the fraction of images with a face."""

    name = "face_rate"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("face_found",)  # no embedder if this is the only face metric
    label = "Images with a face"
    unit = "share"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.face is not None
        if generated.faces is not None:  # a face counts even if it could not be embedded
            return (generated.faces > 0).float()
        return _has_face(generated.face)

    def ceiling(self, references: References) -> Tensor | None:
        """The reference photos, training and held out."""
        faces = concatenate(references.train.face, references.heldout.face if references.heldout else None)
        return None if faces is None else _has_face(faces)

    def impostor(self, references: References) -> Tensor | None:
        """None: it does not depend on the subject."""
        return None


def _has_face(faces: Tensor) -> Tensor:
    return (~faces.isnan().any(dim=1)).float()
