"""Does a diffusers folder have all its parts? Asked before anything slow is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.checks import closest
from diffusion_lab.interfaces import UserError
from diffusion_lab.models.shipped import MINIATURES, shipped_folder

if TYPE_CHECKING:
    from diffusion_lab.config import Model

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")  # owner/name
VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.safetensors\.index)?\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|json)"
)
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PICKLED = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "pytorch_model",
}


def check_model(model: Model, warnings: list[str]) -> Path | None:
    """Refuses a model that lacks a part. Returns the folder with its configs, None where only a hub has them."""
    from diffusion_lab.models.single_file import check_file, config_folder

    place = model_folder(model)
    if place is not None and place.is_dir():
        check_folder(place, model)
        return place
    if place is not None:
        check_file(place, model)
        configs = config_folder(model)
        if configs is None:
            warnings.append("model.config names no folder: the model's configs may be downloaded (kilobytes)")
        return configs
    warnings.append(f"model.path={model.path} is taken for a hub id: it may be downloaded (gigabytes)")
    return None


def model_folder(model: Model) -> Path | None:
    """The model's diffusers folder or single file, None for a hub id. UserError where it can be none."""
    if model.path in MINIATURES:
        return shipped_folder(model.path)
    folder = Path(model.path).expanduser()
    if folder.exists():
        return folder
    if folder.suffix in (".safetensors", ".ckpt"):
        raise UserError(f"model.path={model.path}: there is no such file")
    if not HUB_ID.fullmatch(model.path):
        raise UserError(
            f"model.path={model.path}: there is no such folder, nor is it a hub id (owner/name)"
            f"{closest(model.path, MINIATURES)}"
        )
    return None


def check_folder(folder: Path, model: Model) -> None:
    """UserError naming `model.path` (or `model.variant`) and the first part that is missing or cannot be read."""

    def fail(what: str, remedy: str = "copy or download the folder again") -> UserError:
        return UserError(f"model.path={model.path}: {what}; {remedy}")

    check_configs(folder, fail)
    if model.variant and not any(variant_of(folder, part, model.variant) for part in WEIGHTS):
        raise UserError(
            f"model.variant={model.variant}: no part of {folder} has such weights; set model.variant=null"
        )
    for part in WEIGHTS:
        _check_weights(folder, part, model, fail)


def check_configs(folder: Path, fail: _Fail) -> None:
    """What describes the model, whether or not its weights are there; raises what `fail` makes."""
    index = _read_json(folder / "model_index.json", fail)
    kind = str(index.get("_class_name", ""))
    if kind != "StableDiffusionPipeline":
        found = f"model_index.json names a {kind or 'nameless pipeline'}"
        raise fail(found, "a StableDiffusionPipeline is needed")
    for part in (*WEIGHTS, "tokenizer", "scheduler"):
        if not isinstance(index.get(part), list) or index[part][0] is None:
            raise fail(f"model_index.json lists no {part}")
        if not (folder / part).is_dir():
            raise fail(f"the part {part}/ is missing")
    _read_json(folder / "scheduler" / "scheduler_config.json", fail)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer / name).is_file():
                raise fail(f"tokenizer/{name} is missing")
    for part in WEIGHTS:
        _read_json(folder / part / "config.json", fail)


def _read_json(path: Path, fail: _Fail) -> dict[str, list[str | None]]:
    name = path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise fail(f"{name} is missing") from None
    except (OSError, ValueError) as error:
        raise fail(f"{name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise fail(f"{name} is not a JSON object")
    return content


def variant_of(folder: Path, part: str, variant: str | None) -> str | None:
    """`variant` where the part has weights of it, else None: a model may have a variant of some parts only.

    So diffusers does: what is not there in the variant is taken without.
    """
    return (
        variant
        if variant and any(name in _names(folder / part) for name in _weights(part, variant))
        else None
    )


def _weights(part: str, variant: str | None) -> tuple[str, str, str]:
    """Names of one safetensors file, of an index of several, and of pickled weights."""
    suffix = f".{variant}" if variant else ""
    return (
        f"{WEIGHTS[part]}{suffix}.safetensors",
        f"{WEIGHTS[part]}.safetensors.index{suffix}.json",
        f"{PICKLED[part]}{suffix}.bin",
    )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def _check_weights(folder: Path, part: str, model: Model, fail: _Fail) -> None:
    """One whole safetensors file, or an index and all its shards; pickled ones only where allowed."""
    single, index, pickled = _weights(part, variant_of(folder, part, model.variant))
    present = _names(folder / part)
    if single in present:
        _check_header(folder / part / single, f"{part}/{single}", fail)
        return
    if index in present:
        shards = set(json.loads((folder / part / index).read_text("utf-8")).get("weight_map", {}).values())
        for shard in sorted(shards):
            if not (folder / part / shard).is_file():
                raise fail(f"{part}/{shard} is missing")
            _check_header(folder / part / shard, f"{part}/{shard}", fail)
        return
    if pickled in present:
        if model.allow_pickle:
            return
        raise fail(
            f"{part}/{single} is missing, there is only {pickled}",
            "pickled weights can run code: set model.allow_pickle=true if you trust their source",
        )
    others = {match[1] for name in present if (match := VARIANT.fullmatch(name))}
    hint = " or ".join(f"model.variant={name}" for name in sorted(others))
    raise fail(f"{part}/{single} is missing", f"set {hint}" if hint else "copy or download the folder again")


def _check_header(path: Path, name: str, fail: _Fail) -> None:
    """The file is as long as its header says: finds an interrupted download without reading it all."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise fail(f"{name} is damaged ({error})") from error


if TYPE_CHECKING:
    from collections.abc import Callable

    _Fail = Callable[..., UserError]
