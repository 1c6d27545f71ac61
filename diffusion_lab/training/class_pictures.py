"""Pictures of the class, drawn by the untouched model, for prior preservation (Ruiz et al. 2022, section 3.2).

They are drawn once and kept under a name that says everything they depend on, so that later runs, of other
subjects too, find them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import Picture, Prompt, PromptSet, UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from diffusion_lab.config.schema import Prompts

log = logging.getLogger(__name__)


def class_prompt(class_noun: str) -> str:
    """ "a photo of a woman", the caption of every picture of the class."""
    article = "an" if class_noun[:1].lower() in "aeiou" else "a"
    return f"a photo of {article} {class_noun}"


def class_pictures(
    pipe: StableDiffusionPipeline,
    class_noun: str,
    n: int,
    settings: Prompts,
    *,
    resolution: int,
    seed: int,
    cache: Path | None = None,
) -> tuple[Picture, ...]:
    """``n`` pictures of the class by ``pipe`` as it is; sampler and guidance are the evaluation's.

    A set half drawn by a killed run is completed, and a damaged picture is drawn again. The global random streams
    stay as they were.
    """
    from diffusion_lab.data.pictures import read_pictures
    from diffusion_lab.models.fingerprints import loaded_fingerprint
    from diffusion_lab.system.cache import default_cache

    text = class_prompt(class_noun)
    facts = {
        "model": loaded_fingerprint(pipe), "prompt": text, "resolution": resolution, "seed": seed,
        "steps": settings.sampling_steps, "guidance": settings.guidance_scale, "batch": settings.batch_size,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache or default_cache()) / "class_pictures" / key
    paths = [folder / f"{i:05d}.png" for i in range(n)]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    damaged = [i for i, path in enumerate(paths) if i not in missing and not _is_whole(path, resolution)]
    if damaged:
        names = ", ".join(paths[i].name for i in damaged[:5])
        log.warning("%s: %d pictures are damaged (%s) and are drawn again", folder, len(damaged), names)
    if missing or damaged:
        log.info(
            "drawing %d pictures of %r for prior preservation, kept in %s",
            len(missing) + len(damaged),
            text,
            folder,
        )
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
        _draw(pipe, text, sorted([*missing, *damaged]), settings, resolution, seed, folder)
    return tuple(read_pictures(paths))


def _is_whole(path: Path, resolution: int) -> bool:
    """Whether it decodes, and to the size it was drawn in."""
    from diffusion_lab.data.pictures import read_picture

    try:
        return read_picture(path).pixels.shape[:2] == (resolution, resolution)
    except UserError:
        return False


def _draw(
    pipe: StableDiffusionPipeline,
    text: str,
    missing: list[int],
    settings: Prompts,
    resolution: int,
    seed: int,
    folder: Path,
) -> None:
    import io

    from PIL import Image

    from diffusion_lab.sampling.sample import sample
    from diffusion_lab.system.atomic import write_bytes
    from diffusion_lab.system.rng import stream_seed

    # Whole batches from the first one missing on: a picture's last bits depend on its batch.
    size = settings.batch_size
    for start in range(missing[0] // size * size, missing[-1] + 1, size):
        noise_seed = stream_seed(seed, f"class {start}") % 2**32
        chosen = dataclasses.replace(settings, n=size, images_per_prompt=1, noise_seed=noise_seed)
        prompts = PromptSet("class", (Prompt(id="class", text=text, plain=text),), "", "")
        images = sample(pipe, prompts, chosen, resolution=resolution)
        for i, image in enumerate(images, start):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            write_bytes(folder / f"{i:05d}.png", buffer.getvalue())
