"""What repeats over the runs of a sweep is computed once: the images at step 0, their features, and the features
of the reference photos.

The images of a method that starts as the base model depend only on the model, the prompts, their noise and the
sampler. The features of images depend only on the images and the encoders. Both are stored under a digest of
everything they depend on (`system.store`). Scores are always computed from them and the run's own references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.schedule import sampler
from diffusion_lab.evaluation.encoders.blocks import BlockCache
from diffusion_lab.families import of
from diffusion_lab.models.fingerprints import configs_digest, loaded_fingerprint
from diffusion_lab.models.load import configs_of_pipe
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.sampling.sample import encode_planned, plan, sample
from diffusion_lab.system.numerics import code_digest, numerics
from diffusion_lab.system.store import Store, checksum, key_of, open_store
from diffusion_lab.values.jsonable import plain

if TYPE_CHECKING:
    import torch

    from diffusion_lab.config.schema import Config, Prompts
    from diffusion_lab.records import Pixels, PromptSet
    from diffusion_lab.sampling.sample import PlannedImage
    from diffusion_lab.system.progress import Progress

IMAGES_CODE = ("sampling", "families", "methods", "models", "config", "system")
FEATURES_CODE = ("evaluation/encoders", "models", "miniature", "system")


@dataclass(frozen=True, slots=True)
class Shared:
    """The stored results that a run may use and add to."""

    store: Store
    blocks: BlockCache  # features of images
    model: Mapping[str, Any] | None  # facts about the base model; None: its images are not shared

    def images_key(
        self,
        pipe: Any,
        planned: Sequence[PlannedImage],
        negative: str,
        settings: Prompts,
        resolution: int | None,
        cache: PromptEmbeddings,
    ) -> str | None:
        """The digest of everything that the images of `sample` depend on; None if they cannot be shared.

        For ``pipe`` with a method attached that has not been trained yet. The prompts enter by their embeddings,
        as encoded now, and by the noise.
        """
        if self.model is None or not planned:
            return None
        denoiser = getattr(pipe, of(pipe).denoiser)
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules()):
            return None  # compiled together with the method's layers: other roundings
        known = encode_planned(pipe, planned, negative, settings, cache)
        return key_of(
            {
                **self.model,
                "embeddings": checksum(known),
                "negative": negative,
                "noise": [[item.prompt.text, item.index, item.seed] for item in planned],
                "noise_seed": settings.noise_seed,
                "sampler": list(sampler(settings)),
                "batch": settings.batch_size,
                "resolution": resolution,
                "numbers": _numbers(pipe),
                "layers": _layers(denoiser),
            }
        )

    def read_images(self, key: str | None, n: int) -> list[Pixels] | None:
        """``n`` images, uint8 [h, w, 3] each; None if they are not there."""
        entry = None if key is None else self.store.read(key)
        if entry is None or "images" not in entry or len(entry["images"]) != n:
            return None
        return list(entry["images"].numpy())

    def write_images(self, key: str | None, images: Sequence[Pixels]) -> None:
        import numpy as np
        import torch

        if key is not None:
            self.store.write(key, {"images": torch.from_numpy(np.stack(images))})


def open_shared(config: Config, pipe: Any, device: torch.device) -> Shared | None:
    """What the run shares with others; None if this is turned off. To be called before the method is attached."""
    store = open_store()
    if store is None:
        return None
    around = numerics(str(device))
    # metrics.batch_size needs no entry: each batch is a list of images of its own.
    blocks = BlockCache(store, {"kind": "features", **around, "code": code_digest(FEATURES_CODE)})
    if not config.method.traits.starts_unchanged:
        return Shared(store, blocks, None)
    model = {
        "kind": "images",
        **around,
        "code": code_digest(IMAGES_CODE),
        "weights": loaded_fingerprint(pipe),
        "configs": configs_digest(configs_of_pipe(pipe)),
        "precision": config.model.precision,
        "quantise": config.model.quantise,
    }
    return Shared(store, blocks, plain(model))


def images_of(
    pipe: Any,
    prompts: PromptSet,
    settings: Prompts,
    *,
    progress: Progress | None = None,
    cache: PromptEmbeddings | None = None,
    resolution: int | None = None,
    shared: Shared | None = None,
) -> tuple[list[Pixels], tuple[str, ...]]:
    """The images of `sample`, and ("images",) if they were stored by another run, else ()."""
    planned = plan(prompts, settings)
    cache = PromptEmbeddings() if cache is None else cache
    key = None
    if shared is not None:
        key = shared.images_key(pipe, planned, prompts.negative, settings, resolution, cache)
        stored = shared.read_images(key, len(planned))
        if stored is not None:
            return stored, ("images",)
    with progress.task("sampling", len(planned)) if progress else nullcontext() as bar:
        images = sample(
            pipe,
            prompts,
            settings,
            prompt_embeds=cache,
            progress=bar.advance if bar else None,
            resolution=resolution,
        )
    if shared is not None:
        shared.write_images(key, images)
    return images, ()


def _numbers(pipe: Any) -> dict[str, list[str]]:
    """The number formats of each network's parameters, which decide how it computes."""
    return {
        part: sorted({str(parameter.dtype) for parameter in network.parameters()})
        for part, network in of(pipe).networks(pipe).items()
    }


def _layers(denoiser: torch.nn.Module) -> list[str] | None:
    """The kinds of layers in the denoiser, if runs with other kinds may compute other last bits; else None.

    In float32 on the CPU an untrained adapter adds exactly 0 to the output of a layer that is computed as
    without it. In mixed precision and on a GPU this has not been verified, so only runs with the same kinds of
    layers share.
    """
    import torch

    parameters = list(denoiser.parameters())
    if all(one.dtype == torch.float32 and one.device.type == "cpu" for one in parameters):
        return None
    return sorted({f"{type(one).__module__}.{type(one).__qualname__}" for one in denoiser.modules()})
