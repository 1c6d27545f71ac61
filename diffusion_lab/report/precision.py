"""Standard error of each metric for several numbers of prompts and images, estimated from a run's scores.

    python -m diffusion_lab.report.precision outputs/RUN

For a run with several images of each prompt (`prompts.images_per_prompt=4`). An image's value is modelled as mean +
effect of the prompt + effect of the noise, and the variances of both effects are estimated by the one-way analysis of variance with
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

from diffusion_lab.evaluation.metrics import METRICS
from diffusion_lab.records import Metric, ScoreRow, UserError
from diffusion_lab.runs.scores import read

NUMBERS = ((25, 1), (50, 1), (100, 1), (200, 1), (50, 2), (25, 4), (100, 4))  # prompts, images per prompt


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
    """From values by prompt; groups may differ in size. Raises ValueError for fewer than two prompts, or if no
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
    each = (n - float((sizes**2).sum()) / n) / (a - 1)  # the groups' size, if all are equal
    return Parts(max(0.0, (between_square - within) / each), within, a, n)


def paired_differences(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float]
) -> dict[str, list[float]]:
    """Second minus first value of the images in both (same prompt, same noise), by prompt."""
    found: dict[str, list[float]] = {}
    for key in sorted(first.keys() & second.keys()):
        found.setdefault(key[0], []).append(second[key] - first[key])
    return found


def tables(run_folder: Path, numbers: Sequence[tuple[int, int]] = NUMBERS) -> str:
    """Two Markdown tables: errors of a mean at the last step, and of its paired difference from the first step.

    A metric without enough values has a dash, with the reason below. Metrics of whole sets (KID, FID, Vendi) have
    no values per image and are not listed.
    Raises UserError if no metric has enough values: no scores, one prompt, one image per prompt.
    """
    rows = _rows(run_folder)
    steps = sorted({row.step for row in rows})
    names = list(dict.fromkeys(row.metric for row in rows))
    values: dict[str, dict[int, dict[tuple[str, int], float]]] = {name: {} for name in names}
    for row in rows:
        if row.value is not None:
            values[row.metric].setdefault(row.step, {})[row.prompt_id, row.index] = row.value
    blocks = [_block("of a mean", numbers, values, None, steps[-1])]
    if len(steps) > 1:
        blocks.append(_block("of a paired difference", numbers, values, steps[0], steps[-1]))
    if all(text is None for text, _ in blocks):
        raise UserError(f"{run_folder}: {_advice(rows, steps[-1])}")
    shown = [text for text, _ in blocks if text is not None]
    if len(steps) == 1:
        shown.append("One step was evaluated, so there is no difference between steps.")
    without = dict.fromkeys(name for _, names in blocks for name in names)
    if without:
        shown.append(
            f"No error for {', '.join(without)}: too few prompts with two values or more (at both steps, for a difference)."
        )
    return "\n\n".join(shown)


def _rows(run_folder: Path) -> list[ScoreRow]:
    path = run_folder / "scores.parquet"
    if not path.is_file():
        raise UserError(
            f"{run_folder}: there is no scores.parquet; give the folder of a run or of a job=score"
        )
    try:
        rows = read(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path}: it contains no scores")
    return rows


def _block(
    title: str,
    numbers: Sequence[tuple[int, int]],
    by_metric: Mapping[str, Mapping[int, Mapping[tuple[str, int], float]]],
    first: int | None,
    last: int,
) -> tuple[str | None, list[str]]:
    """A table of the errors at step ``last``, or of differences from step ``first`` if given; and the metrics
    without an error. No table if no metric has an error.
    """
    lines, without = [], []
    for metric, steps in by_metric.items():
        end = steps.get(last, {})
        start = dict.fromkeys(end, 0.0) if first is None else steps.get(first, {})
        try:
            parts = variances(paired_differences(start, end))
        except ValueError:
            without.append(metric)
            continue
        share = parts.between / ((parts.between + parts.within) or 1)
        errors = " | ".join(f"{parts.error(n, k, pairwise=is_pairwise(metric)):.4f}" for n, k in numbers)
        lines.append(f"| `{metric}` | {share:.0%} | {errors} |")
    if not lines:
        return None, without
    lines += [f"| `{metric}` |{' - |' * (len(numbers) + 1)}" for metric in without]
    heads = [
        f"| metric | variance between prompts | {' | '.join(f'{n} x {k}' for n, k in numbers)} |",
        "|---" * (len(numbers) + 2) + "|",
    ]
    return f"Standard error {title}, prompts x images per prompt:\n\n" + "\n".join([*heads, *lines]), without


def _advice(rows: Sequence[ScoreRow], step: int) -> str:
    """What is missing, and how to get it."""
    images = {(row.prompt_id, row.index) for row in rows if row.step == step}
    prompts = {prompt for prompt, _ in images}
    scored = any("file" in row.slots for row in rows)
    if all(row.value is None for row in rows if row.step == step):
        return f"no metric has a value at step {step}"
    if len(prompts) < 2:
        how = "score images of several prompts" if scored else "run with prompts.n=20 or more"
        return f"all images have the same prompt, so the effect of prompts cannot be estimated; {how}"
    if len(images) == len(prompts):
        how = (
            "score a folder with several images of each prompt"
            if scored
            else "run with prompts.images_per_prompt=4"
        )
        return f"there is one image per prompt, so the effect of noise cannot be estimated; {how}"
    return "no metric has two values for one prompt and values for two prompts"


def is_pairwise(metric: str) -> bool:
    """Whether a metric's values are means over pairs of generated images."""
    known = METRICS.get(metric)
    return isinstance(known, Metric) and "values" in known.pairwise


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="standard errors against the number of prompts and images")
    parser.add_argument("run", type=Path, help="the folder of a run with several images of each prompt")
    print(tables(parser.parse_args().run))


if __name__ == "__main__":
    from diffusion_lab.values.checks import command

    raise SystemExit(command(main))
