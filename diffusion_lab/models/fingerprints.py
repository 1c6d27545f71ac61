"""Fingerprints of loaded weights, without hashing gigabytes in every run.

`load_pipeline` records the files a pipeline was loaded from, with their paths, sizes and times. The hash of
its weights is cached under this key and is computed again if any of them changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import of
from diffusion_lab.models.parts import weight_parts
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import nn

    from diffusion_lab.config.schema import Model

_WEIGHTS = ("*.safetensors", "*.bin", "*.ckpt", "*.json")


def source_of(model: Model) -> str | None:
    """Everything that a model's loaded weights depend on, as text; None if its files are not on this machine.

    Must be called before the model is loaded, so that a file that changes in the meantime is detected.
    """
    from diffusion_lab.models.place import model_folder
    from diffusion_lab.models.single_file import config_folder
    from diffusion_lab.system.provenance import versions

    try:
        place = model_folder(model)
        if place is None:
            return None
        parts = weight_parts(which_family(model))
        files = [place] if place.is_file() else _files(place, parts)
        configs = config_folder(model) if place.is_file() else None
        found = [_stamp(file) for file in [*files, *(_files(configs, parts) if configs else [])]]
    except (OSError, UserError):
        return None
    settings = {"variant": model.variant, "allow_pickle": model.allow_pickle, "config": model.config}
    if which_family(model).loads_half:  # the loaded weights depend on it
        settings["precision"] = model.precision
    libraries = {name: versions().get(name) for name in ("diffusers", "transformers", "torch")}
    return (
        json.dumps({"files": found, "settings": settings, "libraries": libraries}, sort_keys=True)
        if found
        else None
    )


def _files(folder: Path, parts: Sequence[str]) -> list[Path]:
    return sorted({file for part in parts for kind in _WEIGHTS for file in (folder / part).glob(kind)})


def _stamp(file: Path) -> list[Any]:
    """Includes the inode change time, which changes even if the modification time is set back."""
    real = file.resolve()
    status = real.stat()
    return [str(real), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def loaded_fingerprint(pipe: Any) -> str:
    """`fingerprint` of a pipeline with the weights that `load_pipeline` returned, from the cache if possible.

    If the cache cannot be read or written, the hash is computed.
    """
    return remembered(getattr(pipe, "loaded_from", None), lambda: fingerprint(pipe))


def stamps(files: Sequence[Path]) -> str | None:
    """Path, size and times of files, as text, to be taken before they are loaded; None if there is no such file."""
    try:
        return json.dumps([_stamp(file) for file in sorted(files)]) if files else None
    except OSError:
        return None


def remembered(source: str | None, compute: Callable[[], str]) -> str:
    """The hash, in hexadecimal, that ``compute()`` returned for the same ``source``; None is not remembered.

    ``source``: everything the hash depends on, as text. Stored in the cache folder, for all processes.
    """
    from diffusion_lab.system.atomic import write_json
    from diffusion_lab.system.cache import default_cache

    if source is None:
        return compute()
    path = default_cache() / "fingerprints" / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        if kept["source"] == source and re.fullmatch(r"[0-9a-f]{12,16}", kept["fingerprint"]):
            return str(kept["fingerprint"])
    found = compute()
    with contextlib.suppress(OSError, UserError):
        write_json(path, {"source": source, "fingerprint": found})
    return found


def configs_digest(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of the configs of a pipeline's parts, without paths and versions: 16 hex digits."""
    left_out = ("_name_or_path", "_diffusers_version", "transformers_version")
    kept = {
        part: {key: value for key, value in config.items() if key not in left_out}
        for part, config in configs.items()
    }
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(pipe: Any) -> str:
    """SHA-256 of the loaded weights of all networks: 16 hex digits."""
    return weights_hash(of(pipe).networks(pipe))


def weights_hash(networks: Mapping[str, nn.Module]) -> str:
    """SHA-256 of names and weights: 16 hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, network in networks.items():
        for key, value in sorted(network.state_dict().items()):
            digest.update(f"{name}.{key}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
