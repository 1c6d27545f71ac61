"""hydra/sweeper=optuna: Optuna chooses the values of each run, and ends runs that fall behind.

`hydra-optuna-sweeper` is not used: its version 1.3.0 requires optuna<3, and it has no pruning.

A trial is one run. Its value is the weighted score at the recommended stop, which is maximised; the score of each
evaluation is an intermediate value. Scores are read from the runs' records, so that any launcher can be used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from diffusion_lab.cli import optuna_space as spaces
from diffusion_lab.cli import optuna_trials as trials
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import locked
from diffusion_lab.studies.record import study_folder

log = logging.getLogger("diffusion_lab")


class OptunaSweeper(Sweeper):
    """Asks Optuna for values, launches the runs in batches of `n_jobs`, and tells their scores."""

    def __init__(self, **settings: Any) -> None:
        """`settings`: the keys of conf/hydra/sweeper/optuna.yaml."""
        self.params = settings.pop("params", None)
        self.settings = OmegaConf.create(settings)
        self.config: Any = None
        self.launcher: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from hydra.core.plugins import Plugins

        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until `n_trials` have ended. Raises UserError for a study that cannot be continued."""
        space, fixed = spaces.parsed([f"{k}={v}" for k, v in (self.params or {}).items()] + arguments)
        sweep_dir = Path(self.config.hydra.sweep.dir)
        folder = study_folder(sweep_dir, self.settings.study)
        with locked(folder):
            study = self._study(folder)
            now = spaces.described(space, fixed)
            spaces.refuse_changes(study.user_attrs.get("values") or now, now, self.settings.study)
            study.set_user_attr("values", now)
            _again(study)
            try:
                self._all(study, space, fixed, sweep_dir)
            finally:
                self._page(folder, sweep_dir)

    def _study(self, folder: Path) -> Any:
        storage = trials.storage(folder)
        import optuna

        settings = self.settings
        known = storage.get_all_studies()
        begun = sum(len(storage.get_all_trials(study._study_id, deepcopy=False)) for study in known)
        sampler = optuna.samplers.TPESampler(
            seed=settings.seed + begun,  # a continued study must not draw the same random values again
            n_startup_trials=settings.startup_trials,
            constant_liar=settings.n_jobs > 1,
        )
        return optuna.create_study(
            study_name=settings.study, storage=storage, sampler=sampler, pruner=trials.pruner(settings),
            direction="maximize", load_if_exists=True,
        )  # fmt: skip

    def _all(self, study: Any, space: Any, fixed: Any, sweep_dir: Path) -> None:
        failures = 0
        left_over = [trial.number for trial in study.trials if trial.state.name == "RUNNING"]
        if left_over:
            log.info("trials of an earlier command are continued: %s", ", ".join(map(str, left_over)))
        while failures < self.settings.max_failures:
            to_come = self.settings.n_trials - _ended(study)
            if not left_over and to_come <= 0:
                return
            batch, left_over = left_over[: self.settings.n_jobs], left_over[self.settings.n_jobs :]
            while len(batch) < min(self.settings.n_jobs, to_come - len(left_over)):
                batch.append(study.ask(fixed_distributions=space).number)
            for numbers in _consecutive(batch):
                failures += self._launch(study, numbers, fixed, sweep_dir)
        raise UserError(
            f"hydra.sweeper.max_failures={self.settings.max_failures}: as many runs failed; their folders have "
            "the errors. The same command tries them again"
        )

    def _launch(self, study: Any, numbers: Sequence[int], fixed: Any, sweep_dir: Path) -> int:
        """Runs the trials and tells Optuna how they ended. Returns the number of failures."""
        jobs = [spaces.overrides(study.trials[number].params, fixed) for number in numbers]
        returned = self.launcher.launch(jobs, initial_job_idx=numbers[0])
        failures = 0
        for number, job in zip(numbers, returned, strict=True):
            ended = job.return_value
            failures += not _tell(study, number, ended, sweep_dir / str(ended["name"]))
        return failures

    def _page(self, folder: Path, sweep_dir: Path) -> None:
        """Writes the results. A failure must not hide how the sweep ended."""
        from diffusion_lab.report.optuna_page import write_results

        try:
            page = write_results(trials.storage(folder), self.settings.study, folder, sweep_dir)
            log.info("Optuna's results: %s", page)
        except Exception:
            log.exception("Optuna's results could not be written to %s", folder)


def _tell(study: Any, number: int, ended: Any, run_folder: Path) -> bool:
    """Records a trial's end; returns whether it is one that counts: completed, pruned or diverged."""
    from optuna.trial import TrialState

    trial = trials.trial_of(study, number)
    score, by_step = trials.scores_of(run_folder)
    known = study.trials[number].intermediate_values
    for step in by_step.keys() - known.keys():  # of a run that an earlier sweep has made
        trial.report(by_step[step], step)
    trial.set_user_attr("run", run_folder.name)
    trial.set_user_attr("status", ended["status"])
    if ended["status"] == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    elif ended["status"] == "completed" and score is not None:
        study.tell(trial, score)
    else:
        study.tell(trial, state=TrialState.FAIL)
    return ended["status"] in ("pruned", "diverged") or (ended["status"] == "completed" and score is not None)


def _ended(study: Any) -> int:
    """Trials that count: a diverged run would diverge again, other failures are tried again."""
    return sum(
        trial.state.name in ("COMPLETE", "PRUNED")
        or (trial.state.name == "FAIL" and trial.user_attrs.get("status") == "diverged")
        for trial in study.trials
    )


def _again(study: Any) -> None:
    """Failed trials of earlier commands are tried again first, once for each command."""
    done = set(study.user_attrs.get("again") or [])
    for trial in study.trials:
        failed = trial.state.name == "FAIL" and trial.user_attrs.get("status") != "diverged"
        if failed and trial.number not in done:
            study.enqueue_trial(trial.params)
            done.add(trial.number)
    study.set_user_attr("again", sorted(done))


def _consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Groups of consecutive numbers: a launcher numbers its jobs from the first one."""
    group: list[int] = []
    for number in numbers:
        if group and number != group[-1] + 1:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
