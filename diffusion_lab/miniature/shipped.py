"""The models that ship with the package, as ordinary diffusers folders.

`miniature` lies there whole. Of `miniature_v`, the same world with v-prediction, only the U-Net and the scheduler
are its own (together the weights stay under 60 MB); its folder is put together in the cache at the first use.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

from diffusion_lab.records import UserError

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent / "weights"
MINIATURES = ("miniature", "miniature_v")


def shipped_folder(name: str) -> Path:
    """The diffusers folder of `miniature` or `miniature_v`. UserError where it is missing or cannot be written."""
    places = {"miniature": [WEIGHTS / "sd"], "miniature_v": [WEIGHTS / "sd", WEIGHTS / "sd_v"]}[name]
    for place in places:
        if not place.is_dir():
            raise UserError(
                f"model.path={name}: the shipped weights are missing in {place}; "
                "install the package again, or make them with job=pretrain"
            )
    return places[0] if len(places) == 1 else _together(name, *places)


def _together(name: str, base: Path, own: Path) -> Path:
    """`base` with the parts that `own` has in their place. Two processes may do so at once."""
    from diffusion_lab.system.cache import default_cache
    from diffusion_lab.system.folders import fresh_folder

    files = {path.relative_to(place): path for place in (base, own) for path in _files(place)}
    digest = hashlib.sha256()
    for relative, path in sorted(files.items()):
        digest.update(f"{relative.as_posix()}\0".encode() + path.read_bytes())
    folder = default_cache() / f"{name}-{digest.hexdigest()[:12]}"
    if all(_same_size(folder / relative, path) for relative, path in files.items()):
        return folder
    if folder.exists():
        log.warning("%s is damaged and is put together again", folder)
        _remove(folder)
    try:
        with fresh_folder(folder, keep=Path.is_dir) as beside:
            for relative, path in files.items():
                (beside / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, beside / relative)
    except OSError as error:
        raise UserError(
            f"model.path={name} cannot be written to {folder} ({error.strerror or error}): free some space, or set "
            "the environment variable DIFFUSION_LAB_CACHE to another folder"
        ) from error
    return folder


def _same_size(path: Path, source: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size == source.stat().st_size
    except OSError:
        return False


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
