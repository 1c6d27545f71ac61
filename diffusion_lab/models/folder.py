"""Checks that a diffusers folder is complete, before anything slow is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import FAMILIES, by_pipeline
from diffusion_lab.models.parts import pickled_stem, stem, weight_parts
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import Key, read_header, read_json, refuse

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model
    from diffusion_lab.families.family import Family

VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.safetensors\.index)?\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|json)"
)
BYTES = 520  # tokens that do not result from a merge: 512 in CLIP, and manually added words


def check_folder(folder: Path, model: Model) -> None:
    """UserError naming `model.path` (or `model.variant`) and the first part that is missing or unreadable."""

    def fail(what: str, remedy: str = "copy or download the folder again") -> UserError:
        return UserError(f"model.path={model.path}: {what}; {remedy}")

    _, parts = check_configs(folder, fail, model)
    if model.variant and not any(variant_of(folder, part, model.variant) for part in parts):
        raise UserError(
            f"model.variant={model.variant}: no part of {folder} has such weights; set model.variant=null"
        )
    for part in parts:
        _check_weights(folder, part, model, fail)


def check_configs(folder: Path, fail: _Fail, model: Model | None = None) -> tuple[Family, tuple[str, ...]]:
    """Checks the configs of a model, with or without its weights; raises the error that `fail` creates.

    Returns the family and the model's parts that have weights. If `model` is given, the family must be the
    same.
    """
    index = _read_json(folder / "model_index.json", fail)
    kind = str(index.get("_class_name", ""))
    family = by_pipeline(kind)
    if family is None:
        known = ", ".join(known.pipeline for known in FAMILIES.values())
        raise fail(f"model_index.json names a {kind or 'nameless pipeline'}", f"one of {known} is needed")
    if model is not None and model.family not in (None, family.name):
        raise fail(f"model_index.json names a {kind}", f"set model.family={family.name}, or null")
    parts = []
    for part in (*weight_parts(family), *family.tokenizers, "scheduler"):
        listed = index.get(part)
        absent = not isinstance(listed, list) or not listed or listed[0] is None
        if absent and part in family.optional:
            continue
        if absent:
            raise fail(f"model_index.json lists no {part}")
        if not (folder / part).is_dir():
            raise fail(f"the part {part}/ is missing")
        if part in weight_parts(family):
            parts.append(part)
    _read_json(folder / "scheduler" / "scheduler_config.json", fail)
    for part in family.tokenizers:
        if (folder / part).is_dir():
            _check_tokenizer(folder / part, fail)
    for part in parts:
        _read_json(folder / part / "config.json", fail)
    return family, tuple(parts)


def part_configs(folder: Path, family: Family) -> dict[str, dict[str, Any]]:
    """The configs of all parts, the scheduler and `model_index`, as far as they can be read."""
    files = {part: folder / part / "config.json" for part in weight_parts(family)}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    files["model_index"] = folder / "model_index.json"
    found = {}
    for part, path in files.items():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # reported when the folder is checked
        if isinstance(content, dict):
            found[part] = content
    return found


def _check_tokenizer(folder: Path, fail: _Fail) -> None:
    """All existing JSON files must be valid, and tokenizer.json or vocabulary and merges must be usable."""
    for path in sorted(folder.glob("*.json")):
        _read_json(path, fail)
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library has no exception type of its own
            raise fail(
                f"{folder.name}/tokenizer.json is no tokenizer ({' '.join(str(error).split())[:100]})"
            ) from error
        return
    if (folder / "spiece.model").is_file():  # T5's
        return
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise fail(f"{folder.name}/{name} is {'a folder' if (folder / name).is_dir() else 'missing'}")
    vocabulary = _read_json(folder / "vocab.json", fail)
    try:
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise fail(f"{folder.name}/merges.txt cannot be read ({error})") from error
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    # With a truncated list, words would silently be tokenized differently than in the model's training.
    if any(len(line.split(" ")) != 2 or line.replace(" ", "", 1) not in vocabulary for line in merges):
        raise fail(f"{folder.name}/merges.txt is damaged, or of another vocabulary")
    if len(vocabulary) > len(merges) + BYTES:
        raise fail(f"{folder.name}/merges.txt is cut: {len(merges)} merges for {len(vocabulary)} pieces")


def _read_json(path: Path, fail: _Fail) -> dict[str, Any]:
    name = path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"
    found: dict[str, Any] = read_json(path, fail, name=name)
    return found


def variant_of(folder: Path, part: str, variant: str | None) -> str | None:
    """`variant` if the part has weights of this variant, else None: a model may have it for some parts only.

    Same as diffusers: parts without the variant are loaded from their default weights.
    """
    return (
        variant
        if variant and any(name in _names(folder / part) for name in _weights(part, variant))
        else None
    )


def _weights(part: str, variant: str | None) -> tuple[str, str, str]:
    """File names of unsharded safetensors weights, of the index of sharded ones, and of pickled weights."""
    suffix = f".{variant}" if variant else ""
    return (
        f"{stem(part)}{suffix}.safetensors",
        f"{stem(part)}.safetensors.index{suffix}.json",
        f"{pickled_stem(part)}{suffix}.bin",
    )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def _check_weights(folder: Path, part: str, model: Model, fail: _Fail) -> None:
    """Requires a safetensors file, or an index and all its shards; pickled weights only if allowed."""
    single, index, pickled = _weights(part, variant_of(folder, part, model.variant))
    present = {path.name for path in (folder / part).iterdir()}  # non-files are reported later
    if single in present:
        read_header(folder / part / single, fail, name=f"{part}/{single}")
        return
    if index in present:
        for shard in shards(folder / part / index, fail):
            read_header(folder / part / shard, fail, name=f"{part}/{shard}")
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


def shards(index: Path, key: Key) -> list[str]:
    """The files in an index of sharded weights. UserError if it is damaged or points outside its folder."""
    name = f"{index.parent.name}/{index.name}"
    table = read_json(index, key, name=name).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        refuse(key, f"{name} has no weight_map, the table of its files")
    found = sorted(set(table.values()))
    for file in found:
        if file in ("", ".", "..") or "/" in file or "\\" in file:
            refuse(key, f"{name} names {file!r}, which is no file of its own folder")
        if not (index.parent / file).is_file():
            refuse(key, f"{index.parent.name}/{file} is missing, which {name} names")
    return found


if TYPE_CHECKING:
    from collections.abc import Callable

    _Fail = Callable[..., UserError]
