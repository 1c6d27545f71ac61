"""Trackers for numbers and images: files, which are the record, and views of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import Evaluation, PromptSet, Status, Tracker, UserError

if TYPE_CHECKING:
    from diffusion_lab.config import schema as config

log = logging.getLogger(__name__)


def build_trackers(
    tracking: config.Tracking,
    run_folder: Path | str,
    *,
    device: str = "cpu",
    job_type: str = "finetune",
    tags: Sequence[str] = (),
    group: str | None = None,
    resume_step: int | None = None,
) -> list[Tracker]:
    """The files first, then W&B unless it is disabled. `tags` and `group` add to what the config says.

    `group` is a sweep's name; `tracker.group` takes precedence. `resume_step`: the step after which the run
    in the folder is resumed. Raises UserError for settings that cannot be satisfied.
    """
    from diffusion_lab.runs.files import FileTracker

    files = FileTracker(run_folder, device=device, keep_images=tracking.keep_images, resume_step=resume_step)
    trackers: list[Tracker] = [files]
    if tracking.wandb != "disabled":
        try:
            from diffusion_lab.trackers.wandb import WandbTracker

            view = WandbTracker(
                run_folder,
                mode=tracking.wandb,
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group or group,
                name=tracking.run_name,
                job_type=job_type,
                tags=list(dict.fromkeys([*tracking.tags, *tags])),
                images=tracking.images,
                resumed=resume_step is not None,
            )
        except UserError:
            raise
        except Exception as error:  # wandb is broken or not installed
            log.warning("Weights & Biases cannot be used, the run continues without it: %s", _one_line(error))
        else:
            trackers.append(view)
    return trackers


class Fanout:
    """Forwards calls to all trackers.

    If a tracker whose `essential` is False fails, a warning is logged, only `finish` is still forwarded to
    it, and the run continues. Failures of the others stop the run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self._silenced: list[Tracker] = []

    def start(self, config: Mapping[str, Any]) -> None:
        self._tell(lambda tracker: tracker.start(config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.scalars(step, values))

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None:
        self._tell(lambda tracker: tracker.evaluation(evaluation, prompts))

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None:
        """Closes every tracker, even if an earlier one fails; the first failure is raised at the end."""
        failure: Exception | None = None
        for tracker in self.trackers:
            try:
                tracker.finish(status, summary)
            except Exception as error:
                if getattr(tracker, "essential", True):
                    failure = failure or error
                elif tracker not in self._silenced:
                    self._silence(tracker, error)
        if failure is not None:
            raise failure

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            if tracker in self._silenced:
                continue
            try:
                call(tracker)
            except Exception as error:
                if getattr(tracker, "essential", True):
                    raise
                self._silence(tracker, error)

    def _silence(self, tracker: Tracker, error: Exception) -> None:
        self._silenced.append(tracker)
        name = getattr(tracker, "label", type(tracker).__name__)
        log.warning("%s stopped, the run continues without it: %s", name, _one_line(error))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
