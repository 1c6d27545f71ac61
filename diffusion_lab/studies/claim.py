"""A claim of the sources, and what a study's data say about it.

A claim holds only if its interval lies wholly on the claimed side, and does not hold if it lies wholly on the other side
or if even its far end is smaller than the smallest effect that counts. Otherwise, if an end touches the bound, and with
a single subject, one cannot tell. Claims with "about" or "near" have a stated band: the interval has to lie within it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffusion_lab.studies.bootstrap import NEITHER, PROMPTS, SUBJECTS, Interval
from diffusion_lab.studies.run import StudyRun

Verdict = Literal["holds", "does not hold", "cannot tell"]
HOLDS: Verdict = "holds"
NOT: Verdict = "does not hold"
UNCLEAR: Verdict = "cannot tell"
MANY_CENSORED = 0.1  # share of runs whose stop is the last evaluation, above which stops say too little


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the claims page."""

    id: str  # "aesthetics_falls"
    text: str  # the claim, in the sources' sense
    source: str  # "000, How do the metrics change"
    study: str  # the study that answers it: `--sweep NAME`
    verdict: Verdict
    effect: float | None  # None if there are no data
    low: float | None  # 95 % limits
    high: float | None
    unit: str
    wanted: str  # what the interval is compared with: "above 0", "between 75 and 125"
    measured: str  # what the effect is
    smallest: float | None  # smallest true effect that such data show with a probability of 80 %
    subjects: int
    runs: int
    prompts: int
    data: str  # "miniature (drawn portraits), lora, 10 subjects"
    note: str = ""
    claimed: tuple[float, float] | None = (
        None  # the claimed side: infinite where it has no end; None without data
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A claim before it is checked."""

    id: str
    text: str
    source: str
    study: str
    unit: str
    measured: str

    def missing(self, why: str) -> Claim:
        """Cannot tell, for want of data."""
        advice = f"{why}; run --sweep {self.study}" if self.study else why
        return Claim(
            self.id, self.text, self.source, self.study, UNCLEAR, None, None, None, self.unit, "", self.measured,
            None, 0, 0, 0, "no data", advice,
        )  # fmt: skip

    def above(
        self,
        interval: Interval,
        runs: Sequence[StudyRun],
        *,
        bound: float = 0.0,
        least: float = 0.0,
        note: str = "",
    ) -> Claim:
        """The claim that the effect is greater than ``bound``.

        ``least``: the smallest effect that counts. If the whole interval is below bound + least, the claim does not hold.
        """
        wanted = f"above {bound:g}" + (f"; less than {least:g} counts as none" if least else "")
        return self._checked(interval, runs, (bound, math.inf), (bound + least, math.inf), wanted, note)

    def below(
        self,
        interval: Interval,
        runs: Sequence[StudyRun],
        *,
        bound: float = 0.0,
        least: float = 0.0,
        note: str = "",
    ) -> Claim:
        """The claim that the effect is less than ``bound``; see `above`."""
        wanted = f"below {bound:g}" + (f"; less than {least:g} counts as none" if least else "")
        return self._checked(interval, runs, (-math.inf, bound), (-math.inf, bound - least), wanted, note)

    def within(
        self, interval: Interval, runs: Sequence[StudyRun], low: float, high: float, *, note: str = ""
    ) -> Claim:
        """The claim that the effect is between ``low`` and ``high``."""
        return self._checked(
            interval, runs, (low, high), (low, high), f"between {low:.3g} and {high:.3g}", note
        )

    def _checked(
        self,
        interval: Interval,
        runs: Sequence[StudyRun],
        claimed: tuple[float, float],
        possible: tuple[float, float],
        wanted: str,
        note: str,
    ) -> Claim:
        if not math.isfinite(interval.value):
            return self.missing("no runs have what it needs")
        verdict = UNCLEAR
        if interval.known and interval.over != PROMPTS:
            if interval.high < possible[0] or interval.low > possible[1]:
                verdict = NOT
            elif claimed[0] < interval.low and interval.high < claimed[1]:
                verdict = HOLDS
        floor = -1.0 if self.unit == "correlation" else -math.inf
        notes = [note, limits_note(interval), unfinished_note(runs)]
        smallest = interval.smallest()
        return Claim(
            id=self.id, text=self.text, source=self.source, study=self.study, verdict=verdict, effect=interval.value,
            low=max(interval.low, floor) if interval.known else None,
            high=min(interval.high, -floor) if interval.known else None,
            unit=self.unit, wanted=wanted, measured=self.measured,
            smallest=smallest if math.isfinite(smallest) else None, subjects=interval.subjects, runs=len(runs),
            prompts=interval.prompts, data=described(runs), note="; ".join(part for part in notes if part), claimed=claimed,
        )  # fmt: skip


def limits_note(interval: Interval) -> str:
    """What the interval leaves out."""
    if interval.over == PROMPTS:
        return "one subject says nothing about others: the interval is over prompts only"
    if interval.over == SUBJECTS:
        return "the interval is over subjects only"
    if interval.over == NEITHER:
        return "no interval: nothing varies, or there is too little data"
    return ""


def unfinished_note(runs: Sequence[StudyRun]) -> str:
    unfinished = sum(not run.finished for run in runs)
    return f"{unfinished} of {len(runs)} runs are unfinished" if unfinished else ""


def doubtful(claim: Claim, why: str) -> Claim:
    """The same effect, but the verdict is withheld for a reason that the interval does not show."""
    return replace(claim, verdict=UNCLEAR, note="; ".join(part for part in (why, claim.note) if part))


def described(runs: Sequence[StudyRun]) -> str:
    """Model, method and subjects of the data."""
    if not runs:
        return "no data"

    def several(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    models = several([said_model(run.model) for run in runs])
    counts = sorted({run.n_images for run in runs})
    subjects = len({run.subject for run in runs})
    return (
        f"{models}; {several([run.method for run in runs])}; {subjects} subject{'s' * (subjects != 1)}; "
        f"n = {', '.join(map(str, counts))}"
    )


def said_model(model: str) -> str:
    """The miniature's portraits are drawn, which has to be said beside each result."""
    return f"{model} (drawn portraits)" if model.startswith("miniature") else model
