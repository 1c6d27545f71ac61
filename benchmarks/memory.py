"""Peak memory of a training step with a published model's architecture: estimated and measured.

    python -m benchmarks.memory [--model sd15] [--steps 3] [--only lora]

The networks are built from their configs with random weights, so nothing is downloaded: memory does not
depend on the values. The measured value is torch's peak of allocated bytes on a CUDA device over the steps,
after all preparations; without a CUDA device only the estimates are printed. The table is Markdown. The exit
status is 1 if a measured peak exceeds its goal.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.full_size import MODELS, pipeline

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


def cases(model: str) -> dict[str, tuple[list[str], float | None]]:
    """Overrides and goal of each case, for the methods of the model's family; goals are for sd15."""
    from diffusion_lab.families import FAMILIES

    family = FAMILIES[MODELS[model][0]]
    found = {
        name: case
        for name, case in CASES.items()
        if model == "sd15" or "word" in family.trainable or "inversion" not in name
    }
    if model == "sd15":
        return found
    return {name: ([*words, f"model={model}"], None) for name, (words, _) in found.items()}


def configured(words: list[str]) -> Any:
    """The configuration of a case, on a subject that is never read."""
    from diffusion_lab.cli.compose import compose
    from diffusion_lab.plan.defaults import fill_defaults

    data = ["data=folder", "data.folder=.", "data.class_noun=dog", "data.n_images=4"]
    return fill_defaults(compose([*words, *data]))


def estimated(config: Any) -> float:
    """GiB of training, as the plan says before anything is loaded."""
    from diffusion_lab.plan.footprint import architecture, peaks

    return peaks(config, architecture(config.model))["training"] / GIB


def measured(config: Any, model: str, steps: int) -> float:
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
    side = config.model.resolution
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(4)]
    train = tuple(
        Picture(Path(f"{i}.png"), hashlib.sha256(pixels.tobytes()).hexdigest(), pixels)
        for i, pixels in enumerate(pictures)
    )
    subject = Subject("noise", "dog", "customcls", train, (), (), "a photo of customcls dog")
    state = build_state(config, pipeline(model, device, half=config.model.precision != "fp32"), subject)
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
    parser.add_argument("--model", choices=list(MODELS), default="sd15")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args(arguments)

    import gc

    import torch

    has_card = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if has_card else "no CUDA device here: nothing was measured"
    print(f"the architecture of model={options.model}, GiB at the peak of a training step ({where})\n")
    print("| case | words | goal | estimated | measured |\n|---|---|---|---|---|")
    missed = 0
    for name, (words, goal) in cases(options.model).items():
        if options.only not in name:
            continue
        config = configured(words)
        found = measured(config, options.model, options.steps) if has_card else None
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
