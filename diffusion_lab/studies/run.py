"""One run of a study, as its files say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run. Arrays are along `steps`; a value that the run does not have is NaN."""

    id: str  # resume.run_id
    name: str  # the folder, relative to the folder of the table
    folder: Path
    status: str  # "completed", "running", "interrupted", "diverged", "failed"
    subject: str
    class_noun: str
    gender: str | None  # "woman", "man", or None if the class noun says neither
    n_images: int
    method: str  # "lora", "lora dora", "dreambooth": the name, and what is not usual about it
    model: str  # "miniature", "sd15", or the last part of its path
    seed: int
    settings: Mapping[str, Any]  # the flat configuration; prompts.negative as it was used
    steps: tuple[int, ...]
    values: Mapping[
        str, Floats
    ]  # metric -> [steps], images without a face counted (analysis.limits.value_of)
    low: Mapping[str, Floats]  # its 95 % limits in this run: another draw of prompts
    high: Mapping[str, Floats]
    by_prompt: Mapping[str, NDArray[np.float32]]
    """Metric -> [steps, prompts]: the mean over the prompt's images, those without a face counted as in `values`.

    Of a metric that compares the images with each other (diversity) these are the jackknife's pseudo-values: their mean
    is the metric, and their variance over prompts is right for it. NaN: no value for this prompt. Metrics of whole sets
    (KID, FID) have none.
    """
    prompts: tuple[str, ...]  # ids, along the second axis of `by_prompt`
    references: Mapping[str, Mapping[str, float | None]]  # metric -> "floor" (step 0), "ceiling", "impostor"
    costs: Mapping[str, float | None]  # by the names of costs.COSTS
    weights: Mapping[str, float] = field(default_factory=dict)  # of the run's own stop rule; empty: equal
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # the same
    chosen: tuple[tuple[str, str], ...] = ()  # settings that are not the defaults, without paths; sorted
    encoders: Mapping[str, Any] = field(default_factory=dict)  # identity by role, as recorded

    @property
    def finished(self) -> bool:
        return self.status == "completed"
