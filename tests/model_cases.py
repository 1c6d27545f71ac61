"""Every model family with every method that it has: the table, and runs of it through the entry point.

Each run is as small as a run can be: three drawn pictures, four steps, two prompts, evaluations at 0, 2 and 4.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

METHODS: dict[str, tuple[str, ...]] = {
    "sd": ("lora", "dreambooth", "textual_inversion", "pivotal", "hypernetwork"),
    "sdxl": ("lora", "dreambooth", "textual_inversion", "pivotal"),
    "sd3": ("lora", "dreambooth"),
    "flux": ("lora", "dreambooth"),
}
CASES = [(family, method) for family, methods in METHODS.items() for method in methods]
LARGE = ("sdxl", "sd3", "flux")
TEXTS = (
    "method.text_encoder=true", "data.flip=true", "steps.gradient_accumulation=2", "memory.cache=off",
    "memory.gradient_checkpointing=true",
)  # fmt: skip
HALF = (
    "method.prior_weight=1", "method.prior_images=2", "model.precision=bf16", "memory.cache=disk",
    "steps.gradient_accumulation=2",
)  # fmt: skip
# Family, method, further settings, pictures: what is killed and started again.
KILLED = {
    # tests/test_resume.py kills the other methods of Stable Diffusion, at random moments.
    **{
        f"{family}-{method}": (family, method, (), "plain")
        for family, method in CASES
        if family != "sd" or method == "lora"
    },
    **{f"{family}-lora-texts": (family, "lora", TEXTS, "captioned") for family in LARGE},
    **{f"{family}-dreambooth-half": (family, "dreambooth", HALF, "plain") for family in LARGE},
}
# High enough that four steps change the images visibly.
RATES = {
    "lora": ["method.learning_rate=1e-2"],
    "dreambooth": ["method.learning_rate=1e-3", "method.prior_weight=0"],
    "textual_inversion": ["method.learning_rate=1e-1"],
    "pivotal": ["method.learning_rate=1e-2", "method.token_learning_rate=1e-1"],
    "hypernetwork": ["method.learning_rate=1e-2"],
}
PROMPTS = ("{subject} in the snow", "a {subject} on the man")
STEPS, GUIDANCE = 2, 3.0  # of sampling
SIZES = ((90, 120), (80, 64), (64, 64), (64, 100))  # height, width; one of the pictures is held out


def prepare(root: Path) -> None:
    """The models, the pictures, once without and once with captions, and the prompts."""
    from tests.families.tiny import FAMILY

    for family, build in FAMILY.items():
        build(root / "models" / family)
    for name in ("plain", "captioned"):
        folder = root / "pictures" / name
        folder.mkdir(parents=True)
        for number, (height, width) in enumerate(SIZES):
            y, x = np.mgrid[:height, :width]
            ball = (x - 20 - 9 * number) ** 2 + (y - 35) ** 2 < 500
            colour = [90 + 60 * number, 120, 200 - 80 * number]
            pixels = np.where(ball[..., None], [200, 40, 30], colour).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            if name == "captioned":
                text = f"customcls dog, {('in the snow', 'at the man', 'portrait', 'a photo')[number]}"
                (folder / f"{number}.txt").write_text(text)
    (root / "prompts.txt").write_text("\n".join(PROMPTS))


def words(
    root: Path, family: str, method: str, folder: Path, *more: str, pictures: str = "plain"
) -> list[str]:
    """The command line of a run into `folder`; `more` wins."""
    return [
        "experiment=debug", "model=folder", f"model.path={root / 'models' / family}", "model.device=cpu",
        "model.precision=fp32", "data=folder", f"data.folder={root / 'pictures' / pictures}", "data.class_noun=dog",
        "data.n_images=3", "prompts=file", "prompts.n=2", f"prompts.path={root / 'prompts.txt'}", f"prompts.sampling_steps={STEPS}",
        f"prompts.guidance_scale={GUIDANCE}", "metrics=debug", "metrics.names=[diversity]",
        "tracker.keep_images=true", f"method={method}", *RATES[method], *more, f"hydra.run.dir={folder}",
    ]  # fmt: skip


def start(argv: list[str]) -> int:
    """The entry point in this process; the logging that Hydra sets up does not outlive it."""
    from diffusion_lab.__main__ import main

    with plain_logging():
        return main(argv)


@contextlib.contextmanager
def plain_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("diffusion_lab")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return found


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss, as recorded."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    return [(e["step"], e["values"]["train/loss"]) for e in events if e["event"] == "scalars"]


def image(path: Path) -> np.ndarray[Any, Any]:
    """Signed, for differences: [height, width, 3], 0..255."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def weights(folder: Path) -> dict[str, Any]:
    """All tensors below `folder`, by file and name."""
    from safetensors.torch import load_file

    return {
        f"{file.relative_to(folder)}:{name}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }
