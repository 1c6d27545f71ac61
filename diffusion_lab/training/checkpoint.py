"""Checkpoints: all that a run changes, so that it goes on after any kill as if nothing had happened::

checkpoints/step-000120/
    state.pt         tensors, numbers, text, lists and dicts; read with weights_only=True, no pickled objects
    checksum.json    schema of state.pt and its SHA-256

A folder is written beside its place and renamed, so it is whole or not there. What does not change (the frozen
weights, the encoded pictures) is not in it: it is built again, and `identity` says whether it is the same.
(`Accelerator.save_state` holds neither a sampler's position nor our own generators, and pickles the rest.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion_lab.interfaces import Stateful, UserError
from diffusion_lab.tracking.atomic import replace_folder, write_json
from diffusion_lab.training.meter import Since
from diffusion_lab.training.rng import RngState, preserved_rng

if TYPE_CHECKING:
    from diffusion_lab.training.state import TrainingState

SCHEMA = 1  # of state.pt
STATE, CHECKSUM = "state.pt", "checksum.json"
_NAME = re.compile(r"step-(\d{6,})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that was read and is whole."""

    folder: Path
    step: int
    values: dict[str, Any]  # what `capture` gave


def capture(state: TrainingState) -> dict[str, Any]:
    """All that the run changes. With several processes all of them call it; each has its own streams."""
    streams = state.global_streams.as_plain()
    if state.processes > 1:
        from accelerate.utils import gather_object

        gathered = gather_object([streams])
    else:
        gathered = [streams]
    scaler = state.accelerator.scaler
    samplers = [state.sampler] if state.prior is None else [state.sampler, state.prior.sampler]
    return {
        "step": state.step,
        "identity": dict(state.identity),
        "weights": [parameter.detach() for parameter in state.trained],
        "optimizer": state.optimizer.state_dict(),
        "lr_scheduler": state.lr_scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "samplers": [[sampler.epoch, sampler.position] for sampler in samplers],
        "latent_stream": state.latent_stream.get_state(),
        "noise_stream": state.noise_stream.get_state(),
        "global_streams": gathered,
        "meter": {"seconds": dict(state.meter.seconds), "peak_bytes": state.meter.peaks()},
        "since": dataclasses.asdict(state.since),
        "method": state.method.state_dict(state.pipe) if isinstance(state.method, Stateful) else None,
    }


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Puts a freshly built run where the checkpoint's was.

    Raises UserError where it belongs to another run: other pictures, another model, other parameters, or
    another number of processes.
    """
    values = checkpoint.values
    _check_identity(state, checkpoint)
    with torch.no_grad():
        for parameter, weight in zip(state.trained, values["weights"], strict=True):
            parameter.copy_(weight)
    state.optimizer.load_state_dict(values["optimizer"])
    state.lr_scheduler.load_state_dict(values["lr_scheduler"])
    if state.accelerator.scaler is not None and values["scaler"] is not None:
        state.accelerator.scaler.load_state_dict(values["scaler"])
    samplers = [state.sampler] if state.prior is None else [state.sampler, state.prior.sampler]
    for sampler, (epoch, position) in zip(samplers, values["samplers"], strict=True):
        sampler.epoch, sampler.position = epoch, position
    state.latent_stream.set_state(values["latent_stream"])
    state.noise_stream.set_state(values["noise_stream"])
    state.global_streams = RngState.from_plain(values["global_streams"][state.accelerator.process_index])
    state.meter.seconds = dict(values["meter"]["seconds"])
    state.meter.peak_bytes = dict(values["meter"]["peak_bytes"])
    state.since = Since(**values["since"])
    if isinstance(state.method, Stateful) and values["method"] is not None:
        state.method.load_state_dict(state.pipe, values["method"])
    state.step = values["step"]


def _check_identity(state: TrainingState, checkpoint: Checkpoint) -> None:
    theirs = checkpoint.values["identity"]
    # What an earlier version did not note cannot tell.
    changed = [name for name, value in state.identity.items() if theirs.get(name, value) != value]
    shapes = [tuple(weight.shape) for weight in checkpoint.values["weights"]]
    if not changed and shapes != [tuple(parameter.shape) for parameter in state.trained]:
        changed = ["the trained parameters"]
    if changed:
        raise UserError(
            f"{checkpoint.folder}: cannot go on, for these have changed since: {', '.join(changed)}; "
            "begin anew in another folder with hydra.run.dir=FOLDER"
        )


# --- on the disk --------------------------------------------------------------------------------------


def write(values: Mapping[str, Any], root: Path) -> Path:
    """Writes what `capture` gave to `root`/step-NNNNNN, whole or not at all; returns that folder."""
    folder = root / f"step-{values['step']:06d}"
    with preserved_rng(), replace_folder(folder) as beside:
        torch.save(dict(values), beside / STATE)
        write_json(beside / CHECKSUM, {"schema": SCHEMA, "sha256": _sha256(beside / STATE)})
    return folder


def read(folder: Path) -> Checkpoint:
    """Raises ValueError where it is damaged, UserError where another version of the program wrote it."""
    try:
        told = json.loads((folder / CHECKSUM).read_text("utf-8"))
        if told["schema"] != SCHEMA:
            raise UserError(
                f"{folder}: a checkpoint of schema {told['schema']}, this version reads {SCHEMA}; go on with "
                "the version that wrote it, or begin anew in another folder with hydra.run.dir=FOLDER"
            )
        if _sha256(folder / STATE) != told["sha256"]:
            raise ValueError("its checksum is wrong")
        values: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(folder, int(values["step"]), values)
    except UserError:
        raise
    except Exception as error:  # JSON, KeyError, OSError, what unpickling raises: damaged in any case
        raise ValueError(f"{type(error).__name__}: {error}") from error


def latest(root: Path) -> Checkpoint | None:
    """The newest one that is whole; damaged ones are named in the log and passed over."""
    for step in sorted(found(root), reverse=True):
        try:
            return read(root / f"step-{step:06d}")
        except ValueError as error:
            log.warning("%s is damaged (%s): going back to the one before", root / f"step-{step:06d}", error)
    return None


def found(root: Path) -> list[int]:
    """Steps of the checkpoints there, ascending, whole or not."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(int(match[1]) for folder in folders if (match := _NAME.fullmatch(folder.name)))


def prune(root: Path, now: int, *, keep: int, best: int | None) -> None:
    """Removes all but the last `keep` up to step `now` and the best one.

    Those beyond `now` go first: a run that fell behind a damaged one will come there again.
    """
    steps = found(root)
    kept = {*[step for step in steps if step <= now][-keep:], best}
    for step in steps:
        if step not in kept:
            shutil.rmtree(root / f"step-{step:06d}", ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(words: Sequence[str]) -> str:
    """SHA-256 over texts, in their order."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
