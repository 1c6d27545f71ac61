"""How many prompts and images are enough? Each metric's standard error against their numbers, out of a run's scores.

    python -m diffusion_lab.analysis.precision outputs/RUN

For a run with several images a prompt (`prompts.images_per_prompt=4`). An image's value is taken as mean + what its
prompt adds + what its noise adds, and the variances of both are estimated by the one-way analysis of variance with
random effects (Searle, Casella and McCulloch 1992, "Variance Components", section 3.6). The error of the mean of n
prompts with k images each is then sqrt((between + within / k) / n).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_lab.interfaces import Metric, UserError
from diffusion_lab.metrics import METRICS
from diffusion_lab.tracking.scores import read

NUMBERS = ((25, 1), (50, 1), (100, 1), (200, 1), (50, 2), (25, 4), (100, 4))  # prompts, images a prompt


@dataclass(frozen=True, slots=True)
class Parts:
    """Variances of one metric's values at one step: between prompts, and between images of one prompt."""

    between: float
    within: float
    prompts: int
    images: int

    def error(self, prompts: int, images_per_prompt: int, *, pairwise: bool = False) -> float:
        """Standard error of the mean. ``pairwise``: a mean over pairs of images, whose error is twice that of
        the mean of the images' own means (Hoeffding 1948).
        """
        single = math.sqrt((self.between + self.within / images_per_prompt) / prompts)
        return 2 * single if pairwise else single


def variances(values: Mapping[str, Sequence[float]]) -> Parts:
    """Of values by prompt; groups may differ in size. Raises ValueError for fewer than two prompts, or where no
    prompt has two values.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in values.values() if len(group)]
    a, n = len(groups), sum(map(len, groups))
    if a < 2 or n == a:
        raise ValueError("two prompts and a prompt with two images are needed")
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    whole = float((sizes * means).sum() / n)
    between_square = float((sizes * (means - whole) ** 2).sum() / (a - 1))
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups) / (n - a))
    each = (n - float((sizes**2).sum()) / n) / (a - 1)  # the groups' size, where all are equal
    return Parts(max(0.0, (between_square - within) / each), within, a, n)


def differences(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float]
) -> dict[str, list[float]]:
    """Second minus first of the images that both have (same prompt, same noise), by prompt."""
    found: dict[str, list[float]] = {}
    for key in sorted(first.keys() & second.keys()):
        found.setdefault(key[0], []).append(second[key] - first[key])
    return found


def tables(run_folder: Path, numbers: Sequence[tuple[int, int]] = NUMBERS) -> str:
    """Two Markdown tables: errors of a mean at the last step, and of its paired difference from the first step.

    Raises UserError where the run has one image a prompt, or no scores.
    """
    path = run_folder / "scores.parquet"
    if not path.is_file():
        raise UserError(f"{run_folder}: there is no scores.parquet")
    by_step: dict[str, dict[int, dict[tuple[str, int], float]]] = {}
    for row in read(path):
        if row.value is not None:
            by_step.setdefault(row.metric, {}).setdefault(row.step, {})[row.prompt_id, row.index] = row.value
    blocks = []
    for title, paired in (("of a mean", False), ("of a paired difference", True)):
        lines = [
            f"| metric | share between prompts | {' | '.join(f'{n} x {k}' for n, k in numbers)} |",
            "|---" * (len(numbers) + 2) + "|",
        ]
        for metric, steps in by_step.items():
            first, last = min(steps), max(steps)
            values = (
                differences(steps[first], steps[last])
                if paired
                else differences(dict.fromkeys(steps[last], 0.0), steps[last])
            )
            try:
                parts = variances(values)
            except ValueError as error:
                raise UserError(
                    f"{run_folder}: {metric}: {error}; run with prompts.images_per_prompt=4"
                ) from error
            pairwise = is_pairwise(metric)
            share = parts.between / ((parts.between + parts.within) or 1)
            errors = " | ".join(f"{parts.error(n, k, pairwise=pairwise):.4f}" for n, k in numbers)
            lines.append(f"| `{metric}` | {share:.0%} | {errors} |")
        blocks.append(f"Standard error {title}, prompts x images a prompt:\n\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def is_pairwise(metric: str) -> bool:
    """Whether a metric's values are means over pairs of generated images."""
    known = METRICS.get(metric)
    return isinstance(known, Metric) and "values" in known.pairwise


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="standard errors against the number of prompts and images")
    parser.add_argument("run", type=Path)
    print(tables(parser.parse_args().run))


if __name__ == "__main__":
    main()
