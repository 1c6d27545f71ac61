"""Records and protocols that are shared between packages.

Importing this module imports neither torch nor diffusers, so that errors on the command line are reported
before anything slow is loaded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Pixels = NDArray[np.uint8]  # [height, width, 3], RGB


class UserError(Exception):
    """An error that the user can fix: the message names the config key and the remedy.

    Shown without a traceback; the process ends with status 2.
    """


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM: handled like Ctrl-C, but with exit status 143."""


class Pruned(KeyboardInterrupt):
    """A sweeper stops a run whose scores are worse than those of earlier runs. The run can be resumed."""


class TrainingDiverged(Exception):
    """The loss or a gradient is not finite. Earlier results are kept; the process ends with status 3."""


# --- data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """A photo, decoded upright as RGB with its original aspect ratio (not yet cropped)."""

    path: Path
    sha256: str  # of the file's bytes
    pixels: Pixels  # uint8 [height, width, 3]
    caption: str | None = None  # its content, from a caption file; None: the instance prompt
    caption_from: Path | None = None  # the caption file


@dataclass(frozen=True, slots=True)
class Subject:
    """The photos that a model is fine-tuned on, and those that it is compared with."""

    name: str
    class_noun: str  # "woman"
    identifier: str  # "customcls"; the instance prompt's subject is f"{identifier} {class_noun}"
    train: tuple[Picture, ...]  # the first n of the nested order
    heldout: tuple[Picture, ...]  # the same for every n; never trained on
    impostors: tuple[Picture, ...] = ()  # other subjects with the same class noun, if any
    instance_prompt: str = ""  # "a photo of customcls woman"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A validation prompt; `slots` contains the phrase for each slot of the template."""

    id: str  # "p000"
    text: str  # input of the model, with the identifier; determines the noise, with the image's index
    plain: str  # the same with the class noun only; input of CLIP
    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptSet:
    name: str
    prompts: tuple[Prompt, ...]
    negative: str  # "" for none
    sha256: str  # of the texts, slots and the negative prompt

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)


# --- measuring ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Encoder outputs for n images; each encoder runs once, and its output is shared by all metrics.

    Rows are NaN in `face` for images without a face, and in `clip_text` for images without a prompt.
    Otherwise rows have unit length, except in `inception`. A field is None if no metric needs the encoder.
    """

    n: int
    face: Tensor | None = (
        None  # float32 [n, d], of the most prominent face; [n, 1] if faces are only detected
    )
    faces: Tensor | None = None  # float32 [n], number of detected faces
    clip_image: Tensor | None = None  # float32 [n, d]
    clip_text: Tensor | None = None  # float32 [n, d], of the plain prompts; None for photos
    aesthetics: Tensor | None = None  # float32 [n], 0..10
    dino: Tensor | None = None  # float32 [n, d]
    inception: Tensor | None = None  # float32 [n, 2048], pool features, not normalised
    inception_logits: Tensor | None = None  # float32 [n, classes]; None if the weights have no classifier
    prompts: tuple[Prompt, ...] | None = None  # of generated images, if a metric needs them
    more: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # float32 [n, d] for each encoder in IMAGE_ENCODERS

    def __post_init__(self) -> None:
        if self.prompts is not None and len(self.prompts) != self.n:
            raise ValueError(f"features.prompts has {len(self.prompts)} entries for {self.n} images")
        for name in (
            "face",
            "faces",
            "clip_image",
            "clip_text",
            "aesthetics",
            "dino",
            "inception",
            "inception_logits",
        ):
            value = getattr(self, name)
            if value is not None and value.shape[0] != self.n:
                raise ValueError(f"features.{name} has {value.shape[0]} rows for {self.n} images")
        for name, rows in self.more.items():
            if rows.shape[0] != self.n:
                raise ValueError(f"features.more[{name!r}] has {rows.shape[0]} rows for {self.n} images")


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Features of the subject's photos, and of other subjects (None if there are none).

    `without` and `base` belong to one evaluation: its images for prompts without the identifier, and the same
    images, in the same order, generated by the base model.
    """

    train: Features
    heldout: Features | None
    impostors: Features | None
    without: Features | None = None
    base: Features | None = None


@runtime_checkable
class Metric(Protocol):
    """A function of features with one value per image. Averaging is done in one place for all metrics."""

    name: str
    version: str  # changes whenever the definition of the value changes
    higher_is_better: bool
    needs: tuple[str, ...]  # fields of Features
    label: str  # "Similarity to the training pictures"
    unit: str  # "cosine", "share", "0 to 1"
    can_miss: bool  # images without a face have no value, but count in the penalised mean
    pairwise: frozenset[str]  # subset of {"values", "ceiling"}: those averaged over pairs within one set
    over: Literal["subject", "class"]  # images for prompts with the identifier or without it

    def __call__(self, generated: Features, references: References) -> Tensor:
        """float32 [n], NaN where undefined (such as for an image without a face)."""

    def ceiling(self, references: References) -> Tensor | None:
        """The same measure among real photos, leave-one-out: float32 [m], or None if there is none."""

    def impostor(self, references: References) -> Tensor | None:
        """The scores of photos of other subjects: float32 [m], or None."""


@runtime_checkable
class SetMetric(Protocol):
    """A metric of a whole set of images, such as a distance between sets, without values per image."""

    name: str
    version: str
    higher_is_better: bool
    needs: tuple[str, ...]
    label: str
    unit: str
    over: Literal["subject", "class"]

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        """Value and interval, clustered by prompt. If undefined, the mean is None and `note` says why."""

    def ceiling_summary(self, references: References) -> Summary | None:
        """The same for held-out photos, or None."""

    def impostor_summary(self, references: References) -> Summary | None:
        """The same for photos of other subjects, or None."""


AnyMetric = Metric | SetMetric


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean of a metric over the images of one evaluation.

    If an interval cannot be estimated, it is None and `note` says why.
    """

    mean: float | None  # over the images where it is defined; None if there are none
    n: int  # images with a value
    missing: int  # images without a value (no face found)
    standard_error: float | None  # of the mean; None if it cannot be estimated
    low: float | None  # 95 % interval, within the metric's range
    high: float | None
    penalised: float | None = None  # mean with missing images as `imputed`; None if none can be missing
    note: str | None = None  # for the reader: why there is no value or interval, or what biases it
    penalised_low: float | None = None  # 95 % interval of `penalised`
    penalised_high: float | None = None
    imputed: float | None = None  # the value of an image without a face; None in records that used 0
    within_one_prompt: bool = False  # the interval covers only the noise within a single prompt


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of scores.parquet: one image and one metric."""

    step: int
    prompt_id: str
    index: int  # index among the prompt's images
    seed: int  # seed of the image's noise
    metric: str
    version: str
    value: float | None  # None: undefined for this image
    slots: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured at one step."""

    step: int
    images: tuple[Pixels, ...]
    rows: tuple[ScoreRow, ...]
    summaries: Mapping[str, Summary]  # by metric name
    seconds: Mapping[str, float]  # "sampling", "encoding", "metrics"
    several_faces: int | None = None  # images with more than one face; None if faces were not detected
    shared: tuple[str, ...] = ()  # "images", "features": taken from what another run has stored


# --- record -------------------------------------------------------------------------------------------

Status = Literal["completed", "interrupted", "diverged", "failed"]


SETTLED = "settled"  # the kind of an end by steps.stop=auto


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a run ended before its last planned step."""

    step: int  # optimizer steps done
    kind: str  # SETTLED, or the name of another rule
    reason: str  # a sentence


class Tracker(Protocol):
    """Receives values and images during a run."""

    def start(self, config: Mapping[str, Any]) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Training curves: `train/loss`, `train/learning_rate`, ..."""

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None: ...

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None: ...
