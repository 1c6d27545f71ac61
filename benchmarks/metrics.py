"""Measures the time to compute the metrics for 5000 images from given features.

    python -m benchmarks.metrics [--n 5000] [--dimensions 768]

Computes every metric's summary or values as in an evaluation: KID with a bootstrap of 400, Vendi with its
influence function, FID with a jackknife of 20. Features are random; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import time

import torch

from diffusion_lab.analysis.intervals import summarise
from diffusion_lab.evaluation.metrics import METRICS
from diffusion_lab.records import Features, Metric, References

NAMES = (
    "similarity", "diversity", "clip_text", "clip_image", "memorisation", "kid_clip", "vendi", "fid_clip",
)  # fmt: skip


def random_features(n: int, dimensions: int, seed: int) -> Features:
    """Unit vectors."""
    draw = torch.Generator().manual_seed(seed)

    def rows() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, dimensions, generator=draw), dim=1)

    return Features(n=n, face=rows(), clip_image=rows(), clip_text=rows(), dino=rows())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--dimensions", type=int, default=768)
    asked = parser.parse_args()
    generated = random_features(asked.n, asked.dimensions, 0)
    references = References(train=random_features(14, asked.dimensions, 1), heldout=None, impostors=None)
    prompts = [f"p{i}" for i in range(asked.n)]
    print(f"{asked.n} images, {asked.dimensions} dimensions, {torch.get_num_threads()} threads")
    for name in NAMES:
        metric = METRICS[name]
        started, worked = time.perf_counter(), time.process_time()
        if isinstance(metric, Metric):
            summarise(metric(generated, references), prompts, pairwise="values" in metric.pairwise)
        else:
            metric.summary(generated, references, prompts)
        print(
            f"{name:14} {time.perf_counter() - started:6.2f} s, {time.process_time() - worked:6.2f} s of CPU"
        )


if __name__ == "__main__":
    main()
