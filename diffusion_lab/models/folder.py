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
    """Refuses a model that lacks a part. Returns the folder with its configs, None where only the hub has them."""
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
    if model.local_files_only:
        raise UserError(
            f"model.path={model.path}: it is not whole in the hub's cache on this machine; set "
            "model.local_files_only=false to fetch it"
        )
    warnings.append(f"model.path={model.path} is taken for a hub id: it will be downloaded (gigabytes)")
    return None


def model_folder(model: Model) -> Path | None:
    """The model's diffusers folder or single file; of a hub id its folder in the hub's cache, None where it is not
    all there. UserError where it can be none of them.
    """
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
    from diffusion_lab.models.hub import cached_model

    return cached_model(model)


def check_folder(folder: Path, model: Model) -> None:
    """UserError naming `model.path` and the first part that is missing or cannot be read."""

    def fail(what: str, remedy: str = "copy or download the folder again") -> UserError:
        return UserError(f"model.path={model.path}: {what}; {remedy}")

    check_configs(folder, fail)
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


def _check_weights(folder: Path, part: str, model: Model, fail: _Fail) -> None:
    """One whole safetensors file, or an index and all its shards; pickled ones only where allowed."""
    variant = f".{model.variant}" if model.variant else ""
    stem = f"{WEIGHTS[part]}{variant}"
    single = folder / part / f"{stem}.safetensors"
    index = folder / part / f"{WEIGHTS[part]}.safetensors.index{variant}.json"
    if single.is_file():
        _check_header(single, f"{part}/{single.name}", fail)
        return
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        for shard in sorted(shards):
            if not (folder / part / shard).is_file():
                raise fail(f"{part}/{shard} is missing")
            _check_header(folder / part / shard, f"{part}/{shard}", fail)
        return
    pickled = folder / part / f"{PICKLED[part]}{variant}.bin"
    if pickled.is_file():
        if model.allow_pickle:
            return
        raise fail(
            f"{part}/{single.name} is missing, there is only {pickled.name}",
            "pickled weights can run code: set model.allow_pickle=true if you trust their source",
        )
    others = sorted(p.name for p in (folder / part).glob("*.safetensors"))
    hint = f"found {', '.join(others)}: see model.variant" if others else "copy or download the folder again"
    raise fail(f"{part}/{single.name} is missing", hint)


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
