"""A single run: checks and shows its plan, claims its folder, runs its job."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab import jobs
from diffusion_lab.cli.compose import to_config
from diffusion_lab.cli.endings import complain, of_outcome
from diffusion_lab.cli.folders import claim, refuse_reference, shown
from diffusion_lab.cli.hand_over import hand_over
from diffusion_lab.config import paths
from diffusion_lab.config.schema import Config
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.runs import resume
from diffusion_lab.system import processes
from diffusion_lab.values.checks import text
from diffusion_lab.values.quoting import always_quoted

log = logging.getLogger("diffusion_lab")


def run(flags: Sequence[str], overrides: Sequence[str], composed: Any) -> int:
    """Runs the job of the composed configuration; returns the exit status."""
    from diffusion_lab.plan.fetch import fetch
    from diffusion_lab.plan.plan import WORDS

    config, wanted = _prepared(composed)
    if not processes.is_main():
        finetunes = config.job.name in jobs.WITH_RUN_FOLDER and not config.job.dry_run
        return of_outcome(jobs.perform(config, wanted)) if finetunes else 0
    plan = jobs.check(config, wanted)
    if config.job.dry_run:
        _show(plan)
        return 0
    if plan.folder_status == "finished" and processes.count() == 1:
        print(f"{shown(wanted)}: {WORDS['finished']}")
        return 0
    if plan.folder_status == "diverged" and processes.count() == 1:
        return complain(f"{shown(wanted)}: {WORDS['diverged']}: {resume.error_of(config, wanted)}", 3)
    fetch(config, plan.downloads)
    if config.job.name not in jobs.WITH_RUN_FOLDER:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        log.setLevel(logging.INFO)
        return of_outcome(jobs.perform(config, wanted))

    run_folder = claim(wanted, "hydra.run.dir", overrides, plan.needed_bytes)
    outcomes: list[jobs.Outcome] = []
    where = shown(run_folder)  # before hydra.job.chdir changes the working folder

    def task(_: Any) -> None:
        for warning in plan.warnings:
            log.warning("warning: %s", warning)
        log.info("%s; %s", plan.summary(), where)
        outcomes.append(jobs.perform(config, run_folder))

    hand_over([*flags, *overrides, f"hydra.run.dir={always_quoted(str(run_folder))}"], task)
    return of_outcome(outcomes[0])


def dry_run(composed: Any) -> None:
    """Checks everything and prints the plan."""
    if processes.is_main():
        _show(jobs.check(*_prepared(composed)))


def _prepared(composed: Any) -> tuple[Config, Path]:
    """The configuration with defaults and absolute paths, and the run's folder."""
    text("hydra.run.dir", composed.hydra.run.dir)
    wanted = Path(paths.absolute(composed.hydra.run.dir, Path.cwd()))
    refuse_reference(wanted, "hydra.run.dir")
    return paths.resolve(fill_defaults(to_config(composed), wanted), Path.cwd()), wanted


def _show(plan: Any) -> None:
    from rich.console import Console

    from diffusion_lab.plan.plan import show

    show(plan, Console(soft_wrap=False))
