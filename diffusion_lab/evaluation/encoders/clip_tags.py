"""The models and weights of open_clip, read from its source, because importing it would import torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest


@cache
def models() -> tuple[str, ...]:
    """Names of open_clip's own models, "ViT-L-14"."""
    return tuple(sorted(file.stem for file in (_folder() / "model_configs").glob("*.json")))


@cache
def tags() -> Mapping[str, Mapping[str, str]]:
    """Model -> tag -> the hub's repository followed by a slash and possibly a file name, "" if there is none."""
    tree = ast.parse((_folder() / "pretrained.py").read_text("utf-8"))
    seen: dict[str, dict[str, ast.expr]] = {}
    by_model: dict[str, dict[str, str]] = {}
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name = statement.targets[0].id
        if name == "_PRETRAINED" and isinstance(statement.value, ast.Dict):
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    entries = seen.get(value.id, {}) if isinstance(value, ast.Name) else _keywords(value)
                    by_model[key.value] = {tag: _text(entry, "hf_hub") for tag, entry in entries.items()}
                    quick = {tag: by_model[key.value][tag] for tag, entry in entries.items() if _quick(entry)}
                    if quick:
                        by_model[f"{key.value}-quickgelu"] = quick
        else:
            seen[name] = _keywords(statement.value)
    return by_model


def repository(model: str, tag: str) -> tuple[str, str] | None:
    """The hub's repository and the file's name, "" for open_clip's default one; None for an unknown tag."""
    place = tags().get(model.replace("/", "-"), {}).get(tag.lower().replace("-", "_"))
    if place is None:
        return None
    repo, _, name = place.rpartition("/")
    return repo, name


def check(model: str, weights: str) -> None:
    """UserError (metrics.clip_model, metrics.clip_weights) for a model or weights that open_clip does not know."""
    name = model.replace("/", "-")
    if name not in models():
        raise UserError(
            f"metrics.clip_model={model}: is neither a model of open_clip nor a folder or hub id (owner/name) of "
            f"transformers{closest(name, models())}"
        )
    if Path(weights).expanduser().is_file() or repository(name, weights) is not None:
        return
    known = ", ".join(tags().get(name, ())) or "none"
    raise UserError(f"metrics.clip_weights={weights}: is neither a file nor a tag of {name}: {known}")


def _folder() -> Path:
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _keywords(call: ast.expr) -> dict[str, ast.expr]:
    return {k.arg: k.value for k in call.keywords if k.arg} if isinstance(call, ast.Call) else {}


def _text(call: ast.expr, key: str) -> str:
    value = _keywords(call).get(key)
    return str(value.value) if isinstance(value, ast.Constant) else ""


def _quick(call: ast.expr) -> bool:
    value = _keywords(call).get("quick_gelu")
    return isinstance(value, ast.Constant) and bool(value.value)
