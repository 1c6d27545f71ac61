"""The trials of an Optuna study: their storage, and what a run reports to it while it trains.

The storage is a file in the sweep's folder (Optuna's journal, safe for several processes, also on network file
systems), so that a killed sweep is continued, and runs report from any process that a launcher starts.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.cli.engines import install
from diffusion_lab.jobs.ending import SoFar, also_asking
from diffusion_lab.records import Pruned, UserError
from diffusion_lab.studies.record import study_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study

    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.config.schema import Config

log = logging.getLogger("diffusion_lab")

JOURNAL = "trials.journal"
NOT_INSTALLED = f"hydra/sweeper=optuna: Optuna is not installed; install it with {install('optuna')}"


def chosen(hydra: Any) -> bool:
    """Whether Optuna chooses the values. `hydra`: Hydra's part of the configuration."""
    return str(hydra.sweeper.get("_target_", "")).endswith("OptunaSweeper")


def check(config: Config) -> None:
    """Raises UserError if Optuna is not installed, or if scores of different runs could not be compared."""
    import importlib.util

    from diffusion_lab.analysis.stop import DEFAULT_WEIGHTED
    from diffusion_lab.evaluation.metrics import select

    if importlib.util.find_spec("optuna") is None:
        raise UserError(NOT_INSTALLED)
    names = [metric.name for metric in select(config.metrics.names)]
    weights = config.metrics.weights
    weighted = [name for name in names if weights.get(name, 0) > 0] if weights else DEFAULT_WEIGHTED
    for name in weighted:
        if name in names and name not in config.metrics.ranges:
            raise UserError(
                f"metrics.ranges.{name} is not set: a run would be scaled to its own values, and hydra/sweeper=optuna "
                f"compares scores of different runs; give it, metrics.ranges.{name}=[LOW,HIGH]"
            )


def storage(folder: Path) -> Any:
    """The storage in a study's folder. UserError if Optuna is not installed."""
    try:
        from optuna import logging as messages
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError(NOT_INSTALLED) from error
    messages.set_verbosity(messages.WARNING)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def pruner(settings: Any) -> Any:
    """Optuna's pruner for `hydra.sweeper`'s settings."""
    from optuna.pruners import MedianPruner, NopPruner

    if not settings.prune:
        return NopPruner()
    return MedianPruner(
        n_startup_trials=settings.prune_after_trials, n_warmup_steps=settings.prune_after_steps
    )


@contextlib.contextmanager
def reporting(hydra: Any) -> Iterator[None]:
    """Inside, a run of an Optuna sweep reports its scores after each evaluation, and ends if it is pruned.

    `hydra`: Hydra's part of the run's configuration; the job's number is the trial's. Nothing changes for other
    sweepers. A pruned run is interrupted, not completed: another sweep may resume it to its end. A failure to
    report is logged and does not stop the run.
    """
    if not chosen(hydra):
        yield
        return
    folder = study_folder(Path(hydra.sweep.dir), hydra.sweeper.study)

    def rule(so_far: SoFar) -> str | None:
        found, planned = so_far.recommendation, so_far.findings.planned
        if found is None:
            return None
        try:
            why = report(folder, int(hydra.job.num), found, hydra.sweeper)
        except Exception:
            log.exception("the scores could not be reported to the Optuna study in %s", folder)
            return None
        if why is not None and planned is not None and so_far.step < max(planned.evaluations):
            raise Pruned(why)
        return None

    with also_asking("pruned", rule):
        yield


def report(folder: Path, number: int, found: Recommendation, settings: Any) -> str | None:
    """Reports the scores of all evaluations to the trial; returns why the run ends, or None."""
    import optuna

    study = optuna.load_study(
        study_name=settings.study, storage=storage(folder), pruner=pruner(settings),
        sampler=optuna.samplers.RandomSampler(),
    )  # fmt: skip
    trial = trial_of(study, number)
    known = study.trials[number].intermediate_values
    for score in found.scores:
        if score.score is not None and score.step not in known:
            trial.report(score.score, score.step)
    if not trial.should_prune():
        return None
    return (
        f"ended after step {found.scores[-1].step}: the best score so far, {_best(found):.3f}, is below the "
        "median of earlier runs at this step"
    )


def _best(found: Recommendation) -> float:
    return max(score.score for score in found.scores if score.score is not None)


def trial_of(study: Study, number: int) -> Any:
    """A trial that was asked for before, in this process or another."""
    from optuna.trial import Trial

    known = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return Trial(study, known)


def scores_of(run_folder: Path) -> tuple[float | None, dict[int, float]]:
    """The weighted score at a run's recommended stop, and that of every evaluation by step; from its record."""
    try:
        found = json.loads((run_folder / "result.json").read_text(encoding="utf-8")).get("recommendation")
    except (OSError, ValueError, AttributeError):
        return None, {}
    if not isinstance(found, dict):
        return None, {}
    by_step = {int(s["step"]): float(s["score"]) for s in found["scores"] if s["score"] is not None}
    return by_step.get(int(found["step"])), by_step
