"""A small evaluation with everything in it: images without a value, slots, an empty phrase."""

from __future__ import annotations

import numpy as np

from diffusion_lab.records import Evaluation, Prompt, PromptSet, ScoreRow, Summary

CONFIG = {
    "seed": 3,
    "data": {"subject": "anna", "n_images": 14},
    "method": {"rank": 8},
    "note": "café, naïve",
}


def prompt_set(n: int = 6) -> PromptSet:
    prompts = tuple(
        Prompt(
            id=f"p{number:03d}",
            text=f"a photo of customcls woman, number {number}",
            plain=f"a photo of a woman, number {number}",
            slots={"place": f"in place {number}", "accessory": "" if number % 2 else "with a hat"},
        )
        for number in range(n)
    )
    return PromptSet("cases", prompts, "blurry", "0" * 64)


def evaluation(step: int, n: int = 6, size: int = 64) -> Evaluation:
    """n images; `similarity` is undefined for the first, `aesthetics` never."""
    rng = np.random.default_rng(step)
    images = tuple(rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n))
    prompts = prompt_set(n)
    rows = tuple(
        ScoreRow(step, prompt.id, 0, 2**63 + number, metric, "1", value, prompt.slots)
        for metric, values in (
            ("similarity", [None, *(rng.normal() for _ in range(n - 1))]),
            ("aesthetics", [float(np.float32(rng.uniform(0, 10))) for _ in range(n)]),
        )
        for number, (prompt, value) in enumerate(zip(prompts, values, strict=True))
    )
    summaries = {
        "similarity": Summary(0.25 + step / 1000, n - 1, 1, 0.01, 0.2, 0.3, 0.2),
        "aesthetics": Summary(5.5, n, 0, 0.1, 5.3, 5.7),
        "nowhere": Summary(None, 0, n, None, None, None),
    }
    return Evaluation(step, images, rows, summaries, {"sampling": 1.5, "encoding": 0.5})
