"""Peak memory of a training step with Stable Diffusion 1.5's architecture: the plan's estimate, and measured.

    python -m benchmarks.memory [--steps 3] [--only lora]

The networks are built from their configs with random weights, so nothing is downloaded: memory does not depend
on the values. Measured is torch's peak of allocated bytes on a CUDA device over the steps, after everything has
been prepared; without one the estimates are printed alone. The table is Markdown. The exit status is 1 where a
measured peak is above its goal.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

GIB = 2**30
# (words of the command line, goal in GiB): each method as experiment=small_card has it, then without savings.
SMALL = ["experiment=small_card"]
PLAIN = ["experiment=full", "steps.batch_size=4"]
CASES: dict[str, tuple[list[str], float | None]] = {
    "dreambooth": ([*SMALL, "method=dreambooth", "method.prior_weight=0"], 11.0),
    "lora": ([*SMALL, "method=lora"], 7.0),
    "textual_inversion": ([*SMALL, "method=textual_inversion"], 7.0),
    "dreambooth, prior preservation": ([*SMALL, "method=dreambooth", "method.prior_images=1"], None),
    "dreambooth, batch 4": ([*PLAIN, "method=dreambooth", "method.prior_weight=0"], None),
    "lora, batch 4": ([*PLAIN, "method=lora"], None),
    "textual_inversion, batch 4": ([*PLAIN, "method=textual_inversion"], None),
}
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip


def build(device: Any) -> Any:
    """A StableDiffusionPipeline of SD 1.5's size on `device`, float32, frozen; the miniature's tokenizer."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from diffusion_lab.miniature.shipped import shipped_folder
    from diffusion_lab.models.load import modules

    with torch.device(device):
        unet = UNet2DConditionModel(**UNET)
        vae = AutoencoderKL(**VAE)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    pipe = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(shipped_folder("miniature") / "tokenizer"),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for module in modules(pipe):
        module.requires_grad_(False)
        module.eval()
    return pipe.to(device)


def configured(words: list[str]) -> Any:
    """The configuration of a case, on a subject that is never read."""
    from diffusion_lab.cli.compose import compose
    from diffusion_lab.plan.defaults import fill_defaults

    data = ["data=folder", "data.folder=.", "data.class_noun=dog", "data.n_images=4"]
    return fill_defaults(compose([*words, *data]))


def estimated(config: Any) -> float:
    """GiB of training, as the plan says before anything is loaded."""
    from diffusion_lab.plan.footprint import SD15, peaks

    return peaks(config, SD15)["training"] / GIB


def measured(config: Any, steps: int) -> float:
    """GiB allocated at the peak of `steps` training steps."""
    import hashlib
    from pathlib import Path

    import numpy as np
    import torch

    from diffusion_lab.records import Picture, Subject
    from diffusion_lab.system.modes import training_mode
    from diffusion_lab.training.loop import training_step
    from diffusion_lab.training.memory import awake
    from diffusion_lab.training.state import build_state

    device = torch.device("cuda")
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (512, 512, 3), dtype=np.uint8) for _ in range(4)]
    train = tuple(
        Picture(Path(f"{i}.png"), hashlib.sha256(pixels.tobytes()).hexdigest(), pixels)
        for i, pixels in enumerate(pictures)
    )
    subject = Subject("noise", "dog", "customcls", train, (), (), "a photo of customcls dog")
    state = build_state(config, build(device), subject)
    with awake(state, None, config.memory):
        pass
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with training_mode(*state.trained_modules):
        for _ in range(steps):
            training_step(state, config.steps)
    return float(torch.cuda.max_memory_allocated() / GIB)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args(arguments)

    import gc

    import torch

    has_card = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if has_card else "no CUDA device here: nothing was measured"
    print(f"Stable Diffusion 1.5's architecture, 512 pixels, GiB at the peak of a training step ({where})\n")
    print("| case | words | goal | estimated | measured |\n|---|---|---|---|---|")
    missed = 0
    for name, (words, goal) in CASES.items():
        if options.only not in name:
            continue
        config = configured(words)
        found = measured(config, options.steps) if has_card else None
        missed += goal is not None and found is not None and found > goal
        cells = [
            name, f"`{' '.join(words)}`", "" if goal is None else f"{goal:.1f}", f"{estimated(config):.1f}",
            "-" if found is None else f"{found:.2f}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        gc.collect()
        if has_card:
            torch.cuda.empty_cache()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
