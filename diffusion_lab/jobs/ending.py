"""Reasons to end a run before its last planned step; the main process asks for them after every evaluation.

`steps.stop=auto` is one. Other parts of the program add their own for the runs in this process::

    with also_asking("pruned", rule):  # rule(so_far) returns a reason (a sentence), or None to go on
        perform(config, run_folder)

A run that is ended this way is completed: it has a recommendation, an artefact and a report, and its record says
at which step and why it ended.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import SETTLED, Ended

if TYPE_CHECKING:
    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.config.schema import Config
    from diffusion_lab.jobs.conclude import Findings


@dataclass(frozen=True)
class SoFar:
    """A run directly after an evaluation."""

    config: Config
    run_folder: Path
    step: int  # of that evaluation
    findings: Findings  # with the summaries of every evaluation so far

    @functools.cached_property
    def recommendation(self) -> Recommendation | None:
        """The recommended step so far, with the weighted score of every evaluation."""
        from diffusion_lab.jobs.conclude import recommendation

        return recommendation(self.config, self.findings)


Rule = Callable[[SoFar], str | None]

_rules: list[tuple[str, Rule]] = []


@contextlib.contextmanager
def also_asking(kind: str, rule: Rule) -> Iterator[None]:
    """Inside, `rule` is asked after every evaluation of every run in this process, including the last.

    The run ends if the rule returns a reason; the last evaluation ends it in any case. A resumed run asks
    again at the step from which it is resumed, so a rule should depend on the evaluations alone. `kind`: one
    word for the record, such as "pruned". What the rule raises stops the run.
    """
    entry = (kind, rule)
    _rules.append(entry)
    try:
        yield
    finally:
        _rules.remove(entry)


def ended(so_far: SoFar) -> Ended | None:
    """Why the run ends at this evaluation, or None. All rules are asked; the first reason counts."""
    reasons = [(SETTLED, _settled)] if so_far.config.steps.stop == "auto" else []
    said = [(kind, rule(so_far)) for kind, rule in [*reasons, *_rules]]
    return next((Ended(so_far.step, kind, reason) for kind, reason in said if reason), None)


def _settled(so_far: SoFar) -> str | None:
    """The rule of steps.stop=auto, from the record alone."""
    from diffusion_lab.analysis.differences import values_by_step
    from diffusion_lab.analysis.settled import settled
    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.runs import backup
    from diffusion_lab.runs.scores import read

    config, findings, scores = so_far.config, so_far.findings, so_far.run_folder / backup.SCORES
    found = settled(
        findings.summaries,
        config.metrics.weights,
        config.metrics.ranges,
        select(config.metrics.names),
        evaluations=config.steps.stop_evaluations,
        level=config.steps.stop_level,
        references=findings.references,
        paired=values_by_step(read(scores)) if scores.is_file() else None,
    )
    return None if found is None else found.reason
