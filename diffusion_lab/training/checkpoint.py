"""Checkpoints contain everything that a run changes, so that it can be resumed exactly.

Their files are::

checkpoints/step-000120/
    state.pt         tensors, numbers, text, lists and dicts; read with weights_only=True, no pickles
    unet/...         files of networks that train as a whole, shared with the step's adapter (hard links)
    checksum.json    schema of state.pt and the SHA-256 of every file

A folder is written under a temporary name and then renamed, so it is either complete or absent. What does not
change (the frozen weights, the encoded photos) is not saved: it is rebuilt, and `identity` is used to verify
that it is the same. This also holds for trained weights that still equal the base model's.
(`Accelerator.save_state` saves neither a sampler's position nor our own generators, and pickles the rest.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion_lab.methods.method import SavesNetworks, Stateful
from diffusion_lab.models.load import modules
from diffusion_lab.records import UserError
from diffusion_lab.system import tensors
from diffusion_lab.system.atomic import write_json, writing
from diffusion_lab.system.failures import is_memory
from diffusion_lab.system.folders import replace_folder
from diffusion_lab.system.rng import RngState, preserved_rng
from diffusion_lab.training.meter import Since

if TYPE_CHECKING:
    from diffusion_lab.training.state import TrainingState

PLAIN, SHARED = 1, 2  # schemas of state.pt: containing all tensors; with references to other files
AS_BUILT = "as built"  # replaces a tensor that a freshly built run already has
REFERENCE = "tensor in"  # {REFERENCE: file, "named": name} replaces a tensor
STATE, CHECKSUM = "state.pt", "checksum.json"
_NAME = re.compile(r"step-(\d{6,})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    folder: Path
    step: int
    values: dict[str, Any]  # what `capture` returned


def capture(state: TrainingState) -> dict[str, Any]:
    """Everything that the run changes.

    With several processes, all of them must call it; each has its own streams.
    """
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
        **_shared(state),
    }


def _shared(state: TrainingState) -> dict[str, Any]:
    """What need not be in `state.pt`: tensors that are in the method's own files or in the base model."""
    method = state.method
    if not isinstance(method, SavesNetworks):
        return {}
    unchanged = method.unchanged(state.pipe)
    return {"unchanged": unchanged, "files": {} if unchanged else method.files(state.pipe)}


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Restores the state of the checkpoint in a freshly built run.

    Raises UserError if it belongs to another run: other photos, another model, other parameters, or
    another number of processes.
    """
    values = checkpoint.values
    _check_identity(state, checkpoint)
    if any(map(_as_built, values["weights"])):
        _back_to_base(state)
    with torch.no_grad():
        for parameter, weight in zip(state.trained, values["weights"], strict=True):
            if not _as_built(weight):
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
        own = {name: value for name, value in values["method"].items() if not _as_built(value)}
        state.method.load_state_dict(state.pipe, own)
    state.step = values["step"]
    state.kept = (state.step, checkpoint.folder)


def _back_to_base(state: TrainingState) -> None:
    """Resets the trained networks to the base model's weights, if they have changed since they were built."""
    method: Any = state.method
    if method.unchanged(state.pipe):
        return
    assert state.load_base is not None
    for network, base in zip(modules(state.pipe), modules(state.load_base()), strict=True):
        if network in state.trained_modules:
            network.load_state_dict(base.state_dict())


def _check_identity(state: TrainingState, checkpoint: Checkpoint) -> None:
    theirs = checkpoint.values["identity"]
    # Entries that an earlier version did not record cannot be compared.
    changed = [
        name
        for name, value in state.identity.items()
        if theirs.get(name, value) not in {value, *state.earlier.get(name, ())}
    ]
    weights, trained = checkpoint.values["weights"], state.trained
    fits = len(weights) == len(trained) and all(
        _as_built(weight) or weight.shape == parameter.shape
        for weight, parameter in zip(weights, trained, strict=True)
    )
    if not changed and not fits:
        changed = ["the trained parameters"]
    if changed:
        raise UserError(
            f"{checkpoint.folder}: cannot go on, for these have changed since: {', '.join(changed)}; "
            "start again in another folder with hydra.run.dir=FOLDER"
        )


# --- on the disk --------------------------------------------------------------------------------------


def write(values: Mapping[str, Any], root: Path) -> Path:
    """Writes what `capture` returned to `root`/step-NNNNNN atomically; returns that folder.

    Every file is hashed while it is written; none is read again.
    """
    folder = root / f"step-{values['step']:06d}"
    plain = {name: value for name, value in values.items() if name not in ("files", "unchanged")}
    files: Mapping[str, Mapping[str, Tensor]] = values.get("files") or {}
    with preserved_rng(), replace_folder(folder) as beside:
        sha256 = {path: tensors.write(beside / path, own, {"format": "pt"}) for path, own in files.items()}
        places = {
            _address(value): {REFERENCE: path, "named": name}
            for path, own in files.items()
            for name, value in own.items()
        }
        shared = bool(places) or bool(values.get("unchanged"))
        for name in ("weights", "method") if shared else ():
            plain[name] = _without(plain[name], None if values["unchanged"] else places)
        with writing(beside / STATE) as sink:
            torch.save(plain, cast("IO[bytes]", sink))
        schema = SHARED if shared else PLAIN
        write_json(beside / CHECKSUM, {"schema": schema, "sha256": sink.sha256, "files": sha256})
    return folder


def _address(value: Tensor) -> tuple[Any, ...]:
    return (value.device, value.data_ptr(), value.dtype, tuple(value.shape))


def _without(value: Any, places: Mapping[tuple[Any, ...], Any] | None) -> Any:
    """`value` with tensors replaced by their entries in `places`, by address; None: all are as built."""
    if isinstance(value, Tensor):
        return AS_BUILT if places is None else places.get(_address(value), value)
    if isinstance(value, dict):
        return {key: _without(item, places) for key, item in value.items()}
    return [_without(item, places) for item in value] if isinstance(value, list) else value


def read(folder: Path) -> Checkpoint:
    """Raises ValueError if it is damaged, UserError if another version of the program wrote it."""
    try:
        told = json.loads((folder / CHECKSUM).read_text("utf-8"))
        if told["schema"] not in (PLAIN, SHARED):
            raise UserError(
                f"{folder}: a checkpoint of schema {told['schema']}, this version reads {PLAIN} and {SHARED}; resume "
                "it with the version that wrote it, or begin again in another folder with hydra.run.dir=FOLDER"
            )
        files = told.get("files") or {}
        for path, sha256 in {STATE: told["sha256"], **files}.items():
            if _sha256(folder / path) != sha256:
                raise ValueError(f"the checksum of {path} is wrong")
        values: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if lacking := {"step", "identity", "weights", "optimizer"} - values.keys():
            raise ValueError(f"it is no checkpoint of this program: it lacks {', '.join(sorted(lacking))}")
        if told["schema"] == SHARED:
            weights = {path: load_file(folder / path) for path in files}
            values |= {name: _with(values[name], weights) for name in ("weights", "method")}
        return Checkpoint(folder, int(values["step"]), values)
    except UserError:
        raise
    except Exception as error:
        if is_memory(error):
            raise
        # JSON, KeyError, OSError, errors of unpickling: damaged in any case
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _with(value: Any, files: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """`value` with its references replaced by the tensors."""
    if isinstance(value, dict):
        if value.keys() == {REFERENCE, "named"}:
            return files[value[REFERENCE]][value["named"]]
        return {key: _with(item, files) for key, item in value.items()}
    return [_with(item, files) for item in value] if isinstance(value, list) else value


def _as_built(value: Any) -> bool:
    return isinstance(value, str) and value == AS_BUILT


def latest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint; damaged ones are logged and skipped."""
    for step in sorted(found(root), reverse=True):
        try:
            return read(root / f"step-{step:06d}")
        except ValueError as error:
            log.warning("%s is damaged (%s): going back to the one before", root / f"step-{step:06d}", error)
    return None


def found(root: Path) -> list[int]:
    """Steps of the checkpoints in `root`, ascending, complete or not."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(int(match[1]) for folder in folders if (match := _NAME.fullmatch(folder.name)))


def prune(root: Path, now: int, *, keep: int, best: int | None) -> None:
    """Removes all checkpoints except the last `keep` up to step `now` and the best one.

    Those beyond `now` are removed first: a run that fell back behind a damaged one will reach these steps
    again.
    """
    steps = found(root)
    kept = {*[step for step in steps if step <= now][-keep:], best}
    for step in steps:
        if step not in kept:
            shutil.rmtree(root / f"step-{step:06d}", ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
