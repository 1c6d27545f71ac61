"""A run's folder as the real writers leave it, with curves of the usual shape and no training behind them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffusion_lab.analysis import stop
from diffusion_lab.records import Evaluation, Prompt, PromptSet, ScoreRow, Summary
from diffusion_lab.runs.files import FileTracker

N = 20  # images an evaluation
LABELS = {
    "similarity": ("Similarity to the training pictures", "cosine"),
    "similarity_heldout": ("Similarity to held-out pictures", "cosine"),
    "face_rate": ("Images with a face", "share"),
    "aesthetics": ("Aesthetics", "0 to 1"),
    "diversity": ("Diversity", "cosine distance"),
    "clip_text": ("Likeness to the prompt", "cosine"),
    "clip_image": ("Likeness to the training pictures", "cosine"),
    "memorisation": ("Likeness to the nearest training picture", "cosine"),
}
CEILINGS = {
    "similarity": 0.82,
    "similarity_heldout": 0.8,
    "aesthetics": 0.61,
    "diversity": 0.34,
    "clip_image": 0.9,
}
IMPOSTORS = {"similarity": 0.3, "similarity_heldout": 0.29, "clip_image": 0.62}


def summarise(values: np.ndarray) -> Summary:
    """Mean and normal interval; the program has its own, which these tests do not judge."""
    known = values[~np.isnan(values)]
    n, missing = len(known), int(np.isnan(values).sum())
    if n == 0:
        return Summary(None, 0, missing, None, None, None, 0.0 if missing else None)
    mean = float(known.mean())
    error = float(known.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    low, high = (None, None) if error is None else (mean - 1.96 * error, mean + 1.96 * error)
    penalised = float(np.nan_to_num(values).mean()) if missing else None
    return Summary(mean, n, missing, error, low, high, penalised)


def means_at(progress: float) -> dict[str, float]:
    """The usual course: likeness saturates, the rest fades, faster near the end."""
    learned = 1 - math.exp(-3.2 * progress)
    return {
        "similarity": 0.22 + 0.5 * learned,
        "similarity_heldout": 0.21 + 0.47 * learned,
        "face_rate": 0.97 - 0.05 * progress,
        "aesthetics": 0.56 - 0.1 * progress**2,
        "diversity": 0.6 - 0.25 * progress**1.5,
        "clip_text": 0.3 - 0.06 * progress**2,
        "clip_image": 0.55 + 0.25 * learned,
        "memorisation": 0.3 + 0.55 * learned,
    }


def write(
    folder: Path,
    *,
    status: str = "completed",
    error: str | None = None,
    steps: tuple[int, ...] = (0, 50, 100, 150, 200, 250, 300),
    faces: float = 0.97,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    finish: bool = True,
    prompt_text: str = "a photo of customcls woman",
) -> Path:
    """Writes a run's folder; `faces` is the share of images in which a face is found."""
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {
        "seed": seed,
        "model": {"path": "miniature"},
        "method": {"name": "lora", "rank": 8, "learning_rate": 2e-3},
        "data": {"subject": "anna", "class_noun": "woman", "identifier": "customcls", "n_images": 4},
        "steps": {"total": steps[-1] if steps else 300},
        "metrics": {"weights": {}, "ranges": {}},
    }
    for key, value in (config or {}).items():
        group, _, name = key.partition(".")
        settings = {**settings, group: {**settings.get(group, {}), name: value} if name else value}
    infos = [
        SimpleNamespace(
            name=name, version="1", label=label, unit=unit, higher_is_better=name != "memorisation", needs=()
        )
        for name, (label, unit) in LABELS.items()
    ]
    prompts = PromptSet(
        "test",
        tuple(Prompt(f"p{i:03d}", f"{prompt_text} {i}", f"a photo of woman {i}") for i in range(N)),
        "",
        "0" * 64,
    )
    tracker = FileTracker(folder)
    tracker.start(settings)
    tracker.metrics(infos)
    pictures = rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    tracker.training_pictures(list(pictures), [f"{i:02d}.png" for i in range(4)])
    made = lambda values: {  # noqa: E731
        name: summarise(rng.normal(mean, 0.03, 28)) for name, mean in values.items()
    }
    ceilings, impostors = made(CEILINGS), made(IMPOSTORS)
    tracker.references(ceilings, impostors)
    noise = {name: rng.normal(0, 0.08, N) for name in LABELS}  # the same at every step: paired
    summaries: dict[int, dict[str, Summary]] = {}
    for step in steps:
        values = {n: m + noise[n] for n, m in means_at(step / 300).items()}
        faceless = rng.permutation(N) >= round(faces * N)
        for name in ("similarity", "similarity_heldout"):
            values[name] = np.where(faceless, np.nan, values[name])
        values["face_rate"] = 1.0 - faceless
        summaries[step] = {name: summarise(v) for name, v in values.items()}
        rows = tuple(
            ScoreRow(step, p.id, 0, i, name, "1", None if math.isnan(v[i]) else float(v[i]), {})
            for i, p in enumerate(prompts)
            for name, v in values.items()
        )
        images = tuple(rng.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2))
        spent = {"sampling": 21.0, "encoding": 1.4, "metrics": 0.05}
        tracker.evaluation(Evaluation(step, images, rows, summaries[step], spent), prompts)
    for step in range(10, (steps[-1] if steps else 20) + 1, 10):
        loss = 0.2 * math.exp(-step / 200) + 0.05 * rng.random()
        tracker.scalars(step, {"train/loss": loss, "train/learning_rate": 2e-3 * min(1, step / 50)})
    references = {n: {"ceiling": ceilings.get(n), "impostor": impostors.get(n)} for n in LABELS}
    found = stop.recommend(
        summaries, settings["metrics"]["weights"], settings["metrics"]["ranges"], infos,
        references=references, n_images=4, class_noun="woman",
    )  # fmt: skip
    cost = {
        "training": {"seconds": 61.2, "peak_memory_bytes": 2**30},
        "evaluation": {"seconds": 161.0, "peak_memory_bytes": 2**31},
    }
    plain = None if found is None else dataclasses.asdict(found)
    tracker.conclusion(plain, cost, tracker.result["steps_done"])
    artefact = folder / "artefact"
    artefact.mkdir()
    (artefact / "pytorch_lora_weights.safetensors").write_bytes(bytes(64))
    if finish:
        tracker.finish(status, {"error": error})  # type: ignore[arg-type]
    return folder


@pytest.fixture
def write_run() -> Callable[..., Path]:
    return write
