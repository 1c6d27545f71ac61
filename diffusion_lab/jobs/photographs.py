"""What a job records about the photos of its subject: the contact sheet, the chosen faces, and warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffusion_lab.data.pictures import center_crop_resize
from diffusion_lab.runs.samples import FaceBox

if TYPE_CHECKING:
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.photographs import Photograph
    from diffusion_lab.records import AnyMetric, Subject
    from diffusion_lab.runs.files import FileTracker

log = logging.getLogger(__name__)


def record_photographs(
    subject: Subject, bank: EncoderBank, resolution: int, metrics: Sequence[AnyMetric], files: FileTracker
) -> dict[str, list[Photograph]] | None:
    """Chooses the subject's face in each photo, if a metric uses faces, and records the choice.

    Returns the chosen faces, for `reference_features`. The sheet of training photos is always written.
    """
    from diffusion_lab.evaluation.encoders.photographs import describe, report, subject_faces
    from diffusion_lab.evaluation.evaluate import fields_needed

    faces = subject_faces(subject, bank, resolution) if "face" in fields_needed(metrics) else None
    files.training_pictures(
        [center_crop_resize(picture.pixels, resolution) for picture in subject.train],
        [picture.path.name for picture in subject.train],
        [] if faces is None else [frames(one, resolution) for one in faces["train"]],
    )
    if faces is not None:
        files.photographs(describe(faces))
        for warning in report(faces):
            log.warning("%s", warning)
    return faces


def frames(photograph: Photograph, side: int) -> list[FaceBox]:
    """The boxes of the faces in a photo, for the sheet. ``side``: that of the square crop in pixels."""
    found = []
    for number, face in enumerate(photograph.faces):
        left, top, right, bottom = (min(1.0, max(0.0, value / side)) for value in face.box)
        found.append(FaceBox((left, top, right, bottom), number == photograph.chosen))
    return found
