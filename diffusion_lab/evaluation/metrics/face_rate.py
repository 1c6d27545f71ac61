"""Is there a face at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion_lab.evaluation.metrics.cosines import concatenate

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Features, References


class FaceRate:
    """1 where the detector finds a face, 0 elsewhere; its mean is the share of images with a face."""

    name = "face_rate"
    version = "1"
    higher_is_better = True
    needs: tuple[str, ...] = ("face_found",)  # no embedder where this is the only metric of faces
    label = "Images with a face"
    unit = "share"
    can_miss = False
    pairwise: frozenset[str] = frozenset()
    over: Literal["subject", "class"] = "subject"

    def __call__(self, generated: Features, references: References) -> Tensor:
        assert generated.face is not None
        if generated.faces is not None:  # a face is there even where nothing could be made of it
            return (generated.faces > 0).float()
        return _has_face(generated.face)

    def ceiling(self, references: References) -> Tensor | None:
        """The subject's own photographs, trained on or held out."""
        faces = concatenate(references.train.face, references.heldout.face if references.heldout else None)
        return None if faces is None else _has_face(faces)

    def impostor(self, references: References) -> Tensor | None:
        """None: a face is a face."""
        return None


def _has_face(faces: Tensor) -> Tensor:
    return (~faces.isnan().any(dim=1)).float()
