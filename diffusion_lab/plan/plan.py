"""The plan of a job: a summary shown before anything slow is loaded, and checks of the folder to write to."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.models.wanted import Wanted
from diffusion_lab.plan.costs import Cost
from diffusion_lab.plan.shown import duration, room
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import FolderStatus

if TYPE_CHECKING:
    from rich.console import Console

WORDS: dict[FolderStatus, str] = {
    "empty": "no run",
    "unfinished": "an unfinished run, which is resumed",
    "extended": "the same run with fewer steps, which is extended",
    "incomplete": "a run that is fully trained; what is missing in its folder is restored",
    "finished": "a finished run, which is left alone",
    "diverged": "a run that diverged, which is left alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job will do. `rows` is displayed; the numbers are set for fine-tuning only."""

    rows: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    images: int = 0  # training photos
    prompts: int = 0
    steps: int = 0
    evaluations: tuple[int, ...] = ()  # the steps at which the model is evaluated
    images_sampled: int = 0  # in all evaluations
    forwards: int = 0  # images through the denoiser while sampling; counted twice with guidance
    cost: Cost | None = None
    downloads: tuple[Wanted, ...] = ()  # files to download, including those already present
    folder_status: FolderStatus = "empty"  # of the run folder
    needed_bytes: int = 0  # disk space, in addition to what the folder already contains

    def summary(self) -> str:
        """One line for the log."""
        if self.cost is None:
            return "; ".join(f"{name}: {value}" for name, value in self.rows)
        return (
            f"{self.steps} steps on {self.images} pictures, {len(self.evaluations)} evaluations of "
            f"{self.images_sampled // len(self.evaluations)} images, about {duration(self.cost.seconds)}"
        )


def check_new_folder(run_folder: Path) -> None:
    if (run_folder / "result.json").exists():
        raise UserError(
            f"{run_folder}: a run is recorded there already; choose another folder with hydra.run.dir "
            "(hydra.sweep.dir with -m)"
        )


def check_place(folder: Path, needed: int, key: str, less: str = "") -> None:
    """Checks that `folder` can be created and written, with `needed` bytes free. Writes nothing.

    `less`: a setting that would need less.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}={folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: {existing} cannot be written; choose another folder")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{key}={folder}: {room(free)} are free and the run needs about {room(needed)}; "
            f"free some space or choose another folder{less and f', or set {less}'}"
        )


def check_downloads(files: list[Wanted]) -> tuple[Wanted, ...]:
    """The files, after checking that there is space for those to download."""
    needed = sum(file.size or 0 for file in files if file.path is None and file.repo)
    if needed:
        from huggingface_hub import constants

        check_place(Path(constants.HF_HUB_CACHE), int(needed), "HF_HOME")
    return tuple(files)


def show(plan: Plan, console: Console) -> None:
    """Prints the plan as a table, followed by its warnings."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in plan.rows:
        table.add_row(name, escape(value))  # a folder may be named [b]
    console.print(table)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
