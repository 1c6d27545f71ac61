"""The few records and protocols that cross rooms.

Importing this module imports neither torch nor diffusers: a wrong word on the command line must be
answered before anything slow is loaded.
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
    """Something the person who started the run can mend: the message names the config key and the remedy.

    Shown without a traceback; the process ends with status 2.
    """


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): like Ctrl-C, but it ends with status 143."""


class TrainingDiverged(Exception):
    """The loss or a gradient is not finite. What was measured before is kept; the process ends with status 3."""


# --- data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """One photograph, decoded upright as RGB with its aspect kept (not yet cropped)."""

    path: Path
    sha256: str  # of the file's bytes
    pixels: Pixels  # uint8 [height, width, 3]
    caption: str | None = None  # what it shows, from a file beside it; None: the instance prompt
    caption_from: Path | None = None  # that file


@dataclass(frozen=True, slots=True)
class Subject:
    """What a model is tuned on, and what it is compared with."""

    name: str
    class_noun: str  # "woman"
    identifier: str  # "customcls"; the instance prompt's subject is f"{identifier} {class_noun}"
    train: tuple[Picture, ...]  # the first n of the nested order
    heldout: tuple[Picture, ...]  # the same for every n; never trained on
    impostors: tuple[Picture, ...] = ()  # other subjects of the same noun where there are any
    instance_prompt: str = ""  # "a photo of customcls woman"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One validation prompt; `slots` remembers which phrase filled which slot."""

    id: str  # "p000"
    text: str  # what the model is given, identifier included; with the image's index it fixes the noise
    plain: str  # the same with the class noun alone: what CLIP is asked
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
    """What the encoders saw in n images; each encoder runs once and every metric shares it.

    Rows of an image without a face are NaN in `face`, of an image without a prompt in `clip_text`. Rows are
    unit length otherwise, but for `inception`. A field is None where no metric asked for that encoder.
    """

    n: int
    face: Tensor | None = (
        None  # float32 [n, d], of the most prominent face; [n, 1] where only faces were looked for
    )
    faces: Tensor | None = None  # float32 [n], how many were found
    clip_image: Tensor | None = None  # float32 [n, d]
    clip_text: Tensor | None = None  # float32 [n, d], of the plain prompts; None for photographs
    aesthetics: Tensor | None = None  # float32 [n], 0..10
    dino: Tensor | None = None  # float32 [n, d]
    inception: Tensor | None = None  # float32 [n, 2048], pool features as they are
    inception_logits: Tensor | None = None  # float32 [n, classes]; None where the weights have no classifier
    prompts: tuple[Prompt, ...] | None = None  # of generated images, where a metric asks for them
    more: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # float32 [n, d] of each encoder in IMAGE_ENCODERS

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
    """Features of the subject's photographs, and of other subjects (None where there are none).

    `without` and `base` belong to one evaluation: its images of prompts without the identifier, and the same
    images, in the same order, as the untouched model drew them.
    """

    train: Features
    heldout: Features | None
    impostors: Features | None
    without: Features | None = None
    base: Features | None = None


@runtime_checkable
class Metric(Protocol):
    """Arithmetic on features. One value an image; the averaging is done in one place for all."""

    name: str
    version: str  # changes whenever the value's definition does
    higher_is_better: bool
    needs: tuple[str, ...]  # fields of Features
    label: str  # "Similarity to the training pictures"
    unit: str  # "cosine", "share", "0 to 1"
    can_miss: bool  # images without a face have no value: the penalised mean counts them all the same
    pairwise: frozenset[str]  # of {"values", "ceiling"}: which are means over pairs within one set of images
    over: Literal["subject", "class"]  # images of prompts with the identifier, or of those without it

    def __call__(self, generated: Features, references: References) -> Tensor:
        """float32 [n], NaN where undefined (an image without a face)."""

    def ceiling(self, references: References) -> Tensor | None:
        """The same measure among real photographs, leave-one-out: float32 [m], or None where it has none."""

    def impostor(self, references: References) -> Tensor | None:
        """What photographs of other subjects would score: float32 [m], or None."""


@runtime_checkable
class SetMetric(Protocol):
    """A number that only a whole set of images has (a distance between sets): no value an image, no rows."""

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
        """Value and interval, clustered by prompt; mean None and a `note` that says why where undefined."""

    def ceiling_summary(self, references: References) -> Summary | None:
        """The same of photographs that were held out, or None."""

    def impostor_summary(self, references: References) -> Summary | None:
        """The same of other subjects' photographs, or None."""


AnyMetric = Metric | SetMetric


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean of one metric over the images of one evaluation.

    An interval that cannot be estimated is None, and `note` says why.
    """

    mean: float | None  # over the images where it is defined; None where it is defined nowhere
    n: int  # images with a value
    missing: int  # images without (no face found)
    standard_error: float | None  # of the mean; None where it cannot be estimated
    low: float | None  # 95 % interval, within the metric's range
    high: float | None
    penalised: float | None = None  # mean with missing images counted as `imputed`; None where none can miss
    note: str | None = None  # what a reader has to know: why there is no value or interval, or what biases it
    penalised_low: float | None = None  # 95 % interval of `penalised`
    penalised_high: float | None = None
    imputed: float | None = None  # what an image without a face counts; None in records that counted 0
    within_one_prompt: bool = False  # the interval speaks of the noise of a single prompt only


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of scores.parquet: one image, one metric."""

    step: int
    prompt_id: str
    index: int  # which of the prompt's images
    seed: int  # of the image's noise
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
    several_faces: int | None = None  # images with more than one face; None where none was looked for


# --- record -------------------------------------------------------------------------------------------

Status = Literal["completed", "interrupted", "diverged", "failed"]


class Tracker(Protocol):
    """Where numbers and pictures go while a run is under way."""

    def start(self, config: Mapping[str, Any]) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Training curves: `train/loss`, `train/learning_rate`, ..."""

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None: ...

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None: ...
