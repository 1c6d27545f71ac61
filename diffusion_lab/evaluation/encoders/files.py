"""Checks the local files of the encoders by their headers, before torch is imported.

The content of a pickled file (.pt) is not read, only its type. The encoders check again when they load, and
compare every shape.
"""

from __future__ import annotations

import re
from collections.abc import Set
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Metrics

FACE_LAYER = ("last_linear.weight", (512, 1792))  # of InceptionResnetV1
INCEPTION_LAYER = "Mixed_7c.branch_pool.conv.weight"  # in the published files of FID and of torchvision
DINO_KINDS = ("vit", "dinov2", "dinov2_with_registers")  # dino.py's, which imports torch
MAGIC = (b"PK", b"\x80", b"\x1f\x8b")  # torch's zip, its older pickle, a compressed one


def check_files(metrics: Metrics, needs: Set[str]) -> None:
    """UserError, naming the key, for a file or folder that has the wrong content."""
    full = metrics.encoders == "full"
    if full and "face" in needs:
        shapes = _shapes("metrics.face_weights", metrics.face_weights)
        name, shape = FACE_LAYER
        if shapes is not None and shapes.get(name) != shape:
            raise UserError(
                f"metrics.face_weights={metrics.face_weights}: does not contain InceptionResnetV1 (no {name} of shape "
                f"{' x '.join(map(str, shape))}); give weights of facenet-pytorch, or vggface2"
            )
    if "inception" in needs and metrics.inception_weights is not None:
        shapes = _shapes("metrics.inception_weights", metrics.inception_weights)
        if shapes is not None and INCEPTION_LAYER not in shapes:
            raise UserError(
                f"metrics.inception_weights={metrics.inception_weights}: does not contain Inception v3 (no "
                f"{INCEPTION_LAYER}); give the file that pytorch-fid publishes"
            )
    if "aesthetics" in needs and metrics.aesthetics_weights is not None:
        _check_head(metrics)
    if full and needs & {"clip_image", "clip_text", "aesthetics"}:
        _shapes("metrics.clip_weights", metrics.clip_weights)
        _check_folder("metrics.clip_model", metrics.clip_model, ("preprocessor_config.json",))
    if "dino" in needs:
        kind = _check_folder("metrics.dino_model", metrics.dino_model, ())
        if kind is not None and kind not in DINO_KINDS:
            raise UserError(
                f"metrics.dino_model={metrics.dino_model}: is a model of type {kind or 'unknown'}, and DINO is one of "
                f"{', '.join(DINO_KINDS)}"
            )


def _shapes(key: str, value: str) -> dict[str, tuple[int, ...]] | None:
    """The header of a safetensors file; None for anything else. UserError for a file that is neither this nor torch's."""
    path = Path(value).expanduser()
    if not path.is_file():
        return None  # a published name, or refused by the check of names
    if path.suffix == ".safetensors":
        return dict(read_header(path, f"{key}={value}").shapes)
    with path.open("rb") as file:
        first = file.read(2)
    if not first.startswith(MAGIC):
        raise UserError(f"{key}={value}: is not a weights file, or is damaged; copy or download it again")
    return None


def _check_head(metrics: Metrics) -> None:
    """Checks for a chain of linear layers with one output, whose input width is that of the CLIP in use."""
    key, value = "metrics.aesthetics_weights", str(metrics.aesthetics_weights)
    shapes = _shapes(key, value)
    if shapes is None:
        return
    names = [name for name, shape in shapes.items() if name.endswith("weight") and len(shape) == 2]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    chain = [shapes[name] for name in names]
    if not chain or chain[-1][0] != 1 or any(one[0] != other[1] for one, other in pairwise(chain)):
        raise UserError(
            f"{key}={value}: is not a chain of linear layers with one output; give an aesthetics head, as "
            "written by job=train_aesthetics"
        )
    width = _clip_width(metrics)
    if width is not None and chain[0][1] != width:
        raise UserError(
            f"{key}={value}: expects embeddings of width {chain[0][1]}, but the CLIP in use gives {width}; give a "
            "head that was trained on this CLIP"
        )


def _clip_width(metrics: Metrics) -> int | None:
    """Of the embeddings, where a config at hand tells."""
    from diffusion_lab.miniature.shipped import WEIGHTS

    if metrics.encoders == "miniature":
        folder = WEIGHTS / "clip" / "text"
    else:
        folder = Path(metrics.clip_model).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return None
    width = read_json(file, "metrics.clip_model").get("projection_dim")
    return width if isinstance(width, int) else None


def _check_folder(key: str, value: str, files: tuple[str, ...]) -> str | None:
    """The model type in a transformers folder, by its config; None if `value` is not a local folder."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        return None
    config = read_json(folder / "config.json", f"{key}={value}", name="config.json")
    for name in files:
        read_json(folder / name, f"{key}={value}", name=name)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{key}={value}: contains no .safetensors file; copy or download the model again")
    for path in weights:
        read_header(path, f"{key}={value}", name=path.name)
    return str(config.get("model_type") or "")
