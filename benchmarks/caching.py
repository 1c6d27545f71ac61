"""Measures how much time caching latents and text embeddings saves in a LoRA step.

    python -m benchmarks.caching [--model miniature|FOLDER] [--device auto] [--steps 10] [--rounds 4]

Four runs from the same weights use the same photos and the same random numbers: with both cached, with one of
them, and with neither (`memory.cache=off`: every photo is encoded by the VAE and its caption by the text
encoder at every step). They alternate step by step, so that other load on the machine slows all; ratios are
of the median step. The exit status is 1 if a loss differs by more than rounding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from time import perf_counter
from typing import Any

TOLERANCE = 1e-5  # relative, of each step's loss: the text encoder reads a batch at once, or one caption
NEITHER, BOTH = "neither", "both (the default)"


def variants(config: Any, device: Any, subject: Any) -> dict[str, Any]:
    """A run at step 0 for each way of keeping things."""
    import copy
    import dataclasses

    from diffusion_lab.models.load import load_pipeline, resolution_of
    from diffusion_lab.training.latents import encode_pictures
    from diffusion_lab.training.state import build_state

    def build(cache: str) -> Any:
        settings = copy.deepcopy(config)
        settings.memory.cache = cache
        return build_state(settings, load_pipeline(settings.model, device), subject)

    latents, text = build("memory"), build("memory")
    resolution = resolution_of(text.pipe, config.model)
    encoded = encode_pictures(text.pipe, subject.train, resolution, keep="off")
    return {
        NEITHER: build("off"),
        "latents": dataclasses.replace(latents, conditioning=None, text_anew=True),
        "text embeddings": dataclasses.replace(text, latents=encoded),
        BOTH: build("memory"),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="miniature", help="miniature, or a diffusers folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--rounds", type=int, default=4, help="the one that warms up apart")
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args(arguments)

    import torch

    from diffusion_lab.config.schema import Config, Data, Model, Steps
    from diffusion_lab.data.subjects import load_subject
    from diffusion_lab.models.load import resolve_device
    from diffusion_lab.plan.defaults import fill_defaults
    from diffusion_lab.system.modes import training_mode
    from diffusion_lab.training.loop import training_step

    device = resolve_device(options.device)
    steps = Steps(total=options.steps * (options.rounds + 1), batch_size=options.batch_size)
    config = fill_defaults(Config(model=Model(path=options.model), data=Data(n_images=14), steps=steps))
    states = variants(config, device, load_subject(config.data))
    times: dict[str, list[float]] = {name: [] for name in states}
    losses: dict[str, list[float]] = {name: [] for name in states}
    for number in range(options.rounds + 1):  # the first round warms up and is not timed
        for _ in range(options.steps):
            for name, state in states.items():
                start = perf_counter()
                with training_mode(*state.trained_modules):
                    losses[name].append(training_step(state, config.steps)[0])  # waits for the device
                if number:
                    times[name].append(perf_counter() - start)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(
        f"{options.model}, batch {options.batch_size}, LoRA, float32, {where}, {torch.get_num_threads()} threads"
    )
    print(f"{'kept':24}{'seconds a step':>16}{'shorter by':>12}{'loss differs by':>18}")
    slow, worst = statistics.median(times[NEITHER]), 0.0
    for name, found in times.items():
        pairs = zip(losses[name], losses[NEITHER], strict=True)
        apart = max(abs(a - b) / b for a, b in pairs)
        worst, median = max(worst, apart), statistics.median(found)
        print(f"{name:24}{median:16.4f}{slow / median:11.2f}x{apart:18.1e}")
    print(
        f"losses {'equal' if worst <= TOLERANCE else 'NOT equal'}: {worst:.1e} relative, {TOLERANCE:.0e} allowed"
    )
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
