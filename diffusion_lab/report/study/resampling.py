"""What the page needs to make its intervals in the browser: every value again for other draws of the prompts.

`studies.bootstrap` makes an interval from each subject's quantity and its replicates, in which prompts are drawn again,
alike for all runs. The page stores by how much each value changes in a replicate, and computes stops, means and
slopes from these. The replicates are the first ones of `studies.bootstrap.prompt_weights`. Up to about 60 runs they
are all there; their number falls as runs are added, so that the page stays small.

A change is stored as one byte, a 127th of the greatest change of that run and metric: about 2 % of its standard
deviation, and less than 0.1 % of an interval's width.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.intervals import student_t
from diffusion_lab.studies.bootstrap import DRAWS
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import curve

BUDGET = 1_600_000  # bytes of all replicates; a third more as base64
FEWEST = 12  # replicates
TABLE = 1024  # intervals of the table of Student's t


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one run. `deltas` is int8 [metrics, replicates, steps]; times `scales` it is the change of a value."""

    scales: Mapping[str, float]
    deltas: NDArray[np.int8]

    def text(self) -> str:
        """The deltas in base64."""
        return base64.b64encode(np.ascontiguousarray(self.deltas).tobytes()).decode()


def replicates_for(runs: Sequence[StudyRun]) -> int:
    """How many replicates fit; 0 if no run has scores of several prompts."""
    cells = sum(len(run.steps) * len(run.by_prompt) for run in runs)
    if not cells or not any(len(run.prompts) > 1 for run in runs):
        return 0
    return max(FEWEST, min(DRAWS, BUDGET // cells))


def noise_of(run: StudyRun, replicates: int) -> Noise:
    """The changes of a run's metrics when its prompts are drawn again. Metrics without scores by prompt have none."""
    scales: dict[str, float] = {}
    parts: list[NDArray[np.int8]] = []
    for name in run.by_prompt:
        if replicates == 0 or name not in run.values:
            continue
        along = curve(run, name)  # [1 + draws, steps]
        change = np.nan_to_num(along[1 : replicates + 1] - along[0])
        scale = float(np.abs(change).max()) / 127 if change.size else 0.0
        scales[name] = scale
        parts.append(np.round(change / scale if scale else change).astype(np.int8))
    deltas = np.stack(parts) if parts else np.zeros((0, replicates, len(run.steps)), np.int8)
    return Noise(scales, deltas)


def student_table() -> list[float]:
    """Student's t for 95 % at degrees of freedom 1 / x, for x from 0 to 1."""
    return [1.959964, *(round(student_t(TABLE / i), 5) for i in range(1, TABLE + 1))]
