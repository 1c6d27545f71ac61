"""Published identity scores, to set beside ours where model, embedder and data allow it.

Cosine similarities of different embedders are not comparable: for two different people FaceNet can give up to .76,
ArcFace up to .35. Numbers are therefore compared only with runs whose faces were embedded by InceptionResnetV1 trained on VGGFace2 after MTCNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_lab.studies.bootstrap import Interval
from diffusion_lab.studies.claim import described
from diffusion_lab.studies.pool import Pool, over_subjects
from diffusion_lab.studies.run import StudyRun

EMBEDDER = "MTCNN + FaceNet (InceptionResnetV1), cosine"


@dataclass(frozen=True, slots=True)
class Published:
    """A number of a paper, with what it was measured on."""

    name: str
    source: str
    embedder: str
    setting: str
    images: str
    value: float
    spread: float  # as printed, "+-"


W2W = "weights2weights (Dravid et al. 2024, arXiv 2406.09413, tables 2 and 5)"
SETTING = "RealisticVision 5.1 (from SD 1.5), DreamBooth-LoRA of rank 1 on Q and V of cross-attention, 100 people of FFHQ"
PUBLISHED: Sequence[Published] = (
    Published("DreamBooth-LoRA, about 10 images", W2W, EMBEDDER, SETTING, "about 10, synthetic", 0.69, 0.01),
    Published("DreamBooth-LoRA, 1 image", W2W, EMBEDDER, SETTING, "1", 0.43, 0.03),
)


@dataclass(frozen=True, slots=True)
class Beside:
    """A published number and ours, or the reason why there is none of ours beside it."""

    published: Published
    ours: Interval | None
    data: str
    remark: str


def same_embedder(run: StudyRun) -> bool:
    """Whether the run's faces were embedded by the full-size network trained on VGGFace2."""
    settings = run.settings
    full = settings.get("metrics.encoders") == "full" and settings.get("metrics.face_weights") == "vggface2"
    return full and not run.model.startswith("miniature")


def beside_published(pool: Pool) -> list[Beside]:
    """Each published number, with ours for about as many images (8 to 12, or 1) if the embedder is the same."""
    runs = [run for run in pool.runs("similarity", "face_rate") if same_embedder(run)]
    found = []
    for number in PUBLISHED:
        counts = range(1, 2) if number.images == "1" else range(8, 13)
        some = [run for run in runs if run.n_images in counts]
        if some:
            ours = over_subjects(some, pool.at_stop("similarity_of_faces"))
            remark = "same embedder; the base model, the photos and the rank differ"
        elif runs:
            ours, remark = None, f"no runs with {number.images} images"
        else:
            ours, remark = (
                None,
                "not comparable: our faces are embedded by another network, or there are none",
            )
        found.append(Beside(number, ours, described(some), remark))
    return found
