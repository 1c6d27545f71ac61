"""Where a run goes on that was begun before, and what is adapted if it is extended to more steps."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.schedule import evaluation_steps
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.records import UserError
from diffusion_lab.runs.extension import usable_steps
from diffusion_lab.runs.folder_record import CHECKPOINTS, ENDED
from diffusion_lab.runs.resume import FolderStatus, extensions, find_record
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.mappings import flatten

if TYPE_CHECKING:
    from diffusion_lab.runs.files import FileTracker
    from diffusion_lab.training.checkpoint import Checkpoint
    from diffusion_lab.training.state import TrainingState

log = logging.getLogger(__name__)

PRODUCED = ("adapters", "samples")  # folders with an entry for every evaluated step


def find_checkpoint(
    config: Config, run_folder: Path, stands: FolderStatus
) -> tuple[Checkpoint | None, list[dict[str, Any]]]:
    """The checkpoint from which an unfinished or extended run goes on, and its earlier extensions.

    None: it begins again. For an extended run, checkpoints that the longer run would not have are removed.
    Raises UserError if a finished run that is extended has no intact checkpoint.
    """
    from diffusion_lab.training import checkpoint

    found = find_record(config, run_folder)
    result = {} if found is None else found.result
    root = run_folder / CHECKPOINTS
    if stands == "extended":
        usable = usable_steps(run_folder, result, flatten(plain(as_plain_dict(config))))
        for step in set(checkpoint.found(root)) - set(usable):
            shutil.rmtree(root / f"step-{step:06d}", ignore_errors=True)
    newest = checkpoint.latest(root)
    if stands == "extended" and newest is None and result.get("status") in ENDED:
        raise UserError(
            f"steps.total={config.steps.total}: the run in {run_folder} cannot be extended: all of its checkpoints are "
            "damaged; train the longer run from its start, in another folder, with hydra.run.dir=FOLDER"
        )
    where = (
        "from its beginning: there is no whole checkpoint" if newest is None else f"after step {newest.step}"
    )
    if stands == "extended":
        log.info("extending the run in %s to %s steps, %s", run_folder, config.steps.total, where)
    else:
        log.info("resuming the run in %s, %s", run_folder, where)
    if result.get("status") == "failed":
        log.info("it failed before, and is tried again: %s", result.get("error"))
    return newest, extensions(result, as_plain_dict(config))


def adapt_extended(config: Config, run_folder: Path, files: FileTracker, state: TrainingState) -> None:
    """Makes the files of an extended run those of the longer run from its start.

    Removes what it does not evaluate, and writes its settings into the headers of earlier adapters.
    """
    if not files.result.get("extended"):
        return
    due = {f"step-{step:06d}" for step in evaluation_steps(config.steps)}
    for name in PRODUCED:
        for path in sorted((run_folder / name).glob("step-*")):
            if path.with_suffix("").name not in due:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings = {"hyperparameters": state.notes["hyperparameters"]}
    for folder in sorted((run_folder / "adapters").glob("step-*")):
        if _settings_of(folder) != settings["hyperparameters"]:
            from diffusion_lab.artefacts.notes import annotate

            annotate(folder, settings)
            files.record_checksums(folder.relative_to(run_folder).as_posix())


def _settings_of(folder: Path) -> str | None:
    """The settings in the header of an adapter; None if there are none."""
    from safetensors import safe_open

    from diffusion_lab.artefacts.notes import NOTES

    if (folder / NOTES).is_file():
        found = json.loads((folder / NOTES).read_text("utf-8")).get("hyperparameters")
        return None if found is None else str(found)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")]):
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("hyperparameters")
    return None
