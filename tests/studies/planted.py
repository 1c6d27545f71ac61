"""Studies with a known truth: tables in memory, and run folders as the program writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from diffusion_lab.runs.reading import MetricInfo
from diffusion_lab.runs.resume import bound_flat, run_id
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.table import Table, common_ranges, common_weights
from diffusion_lab.values.mappings import flatten

WOMEN = ("anna", "bea", "carla", "dora", "emma")
MEN = ("adam", "ben", "carl", "dan", "emil")
STEPS = tuple(range(0, 401, 50))
INFOS = {
    "similarity": MetricInfo("similarity", "1", "Similarity to the training photos", "cosine", True),
    "similarity_heldout": MetricInfo(
        "similarity_heldout", "1", "Similarity to held-out photos", "cosine", True
    ),
    "face_rate": MetricInfo("face_rate", "1", "Images with a face", "share", True),
    "aesthetics": MetricInfo("aesthetics", "1", "Aesthetics", "0 to 1", True),
    "diversity": MetricInfo("diversity", "1-clip", "Diversity", "cosine distance", True),
    "image_similarity": MetricInfo("image_similarity", "1", "Image similarity", "cosine", True),
    "prompt_similarity": MetricInfo("prompt_similarity", "1", "Prompt similarity", "cosine", True),
    "memorisation": MetricInfo("memorisation", "1", "Nearest training photo", "cosine", False),
}
RANGES = {"similarity": [0.0, 0.8], "aesthetics": [0.2, 0.8], "diversity": [0.2, 1.0]}
RATES = {"lora": 1.5e-3, "dreambooth": 1e-4, "textual_inversion": 2e-2, "hypernetwork": 3e-4}
Truth = Callable[[Mapping[str, Any], np.ndarray], Mapping[str, np.ndarray]]
"""(run's "subject", "gender", "n", "method", "model"; steps) -> each metric's true curve."""


def usual(run: Mapping[str, Any], steps: np.ndarray) -> dict[str, np.ndarray]:
    """The sources' claims as curves: peak of the weighted score at 10 n (men 12 n, women 15 n is not possible here)."""
    x = steps / (400 * run["n"] / 20)
    woman = run["gender"] == "woman"
    speed = 0.8 if woman else 1.0
    learned = 1 - np.exp(-4 * x * speed)
    fade = np.maximum(0, x * speed - 0.5)
    return {
        "similarity": 0.25 + 0.45 * learned + (0.0 if woman else 0.04),
        "similarity_heldout": 0.24 + 0.4 * learned,
        "face_rate": np.clip(0.97 - 0.02 * x, 0, 1),
        "aesthetics": 0.62 - 0.3 * fade - 0.02 * x + (0.05 if woman else 0.0),
        "diversity": 0.8 - 0.3 * fade - 0.02 * x,
        "memorisation": 0.3 + 0.3 * learned,
    }


def configuration(
    subject: str, n: int, method: str = "lora", model: str = "miniature", seed: int = 0, **more: Any
) -> dict[str, Any]:
    gender = "woman" if subject in WOMEN or subject.startswith("w") else "man"
    config: dict[str, Any] = {
        "seed": seed,
        "job": {"name": "finetune", "dry_run": False},
        "model": {"path": model},
        "method": {"name": method, "learning_rate": RATES.get(method, 1e-3)},
        "data": {"source": "miniature", "subject": subject, "class_noun": gender, "n_images": n},
        "steps": {"total": 400, "every": 50, "batch_size": 4},
        "prompts": {"name": "miniature", "n": 48},
        "metrics": {"encoders": "miniature", "weights": {}, "ranges": dict(RANGES)},
    }
    for key, value in more.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    return config


class Noise:
    """Effects of subjects, of prompts (alike for all runs) and of single images, normal with these deviations."""

    def __init__(
        self, seed: int, prompts: int = 48, subject: float = 0.03, prompt: float = 0.05, image: float = 0.1
    ) -> None:
        self.rng, self.prompts = np.random.default_rng(seed), prompts
        self.sizes = subject, prompt, image
        self.of_prompts: dict[str, np.ndarray] = {}
        self.of_subjects: dict[tuple[str, str], float] = {}

    def scores(self, metric: str, subject: str, curve: np.ndarray) -> np.ndarray:
        """[steps, prompts]"""
        between, of_prompt, of_image = self.sizes
        if metric not in self.of_prompts:
            self.of_prompts[metric] = of_prompt * self.rng.normal(size=self.prompts)
        if (metric, subject) not in self.of_subjects:
            self.of_subjects[metric, subject] = between * float(self.rng.normal())
        noise = of_image * self.rng.normal(size=(len(curve), self.prompts))
        return curve[:, None] + self.of_subjects[metric, subject] + self.of_prompts[metric] + noise


def study_run(
    config: Mapping[str, Any],
    truth: Truth,
    noise: Noise,
    steps: Sequence[int] = STEPS,
    status: str = "completed",
) -> StudyRun:
    flat = flatten(config)
    subject, noun = flat["data.subject"], flat["data.class_noun"]
    known = {
        "subject": subject,
        "gender": noun,
        "n": flat["data.n_images"],
        "method": flat["method.name"],
        "model": flat["model.path"],
        "settings": flat,
    }
    curves = truth(known, np.asarray(steps, float))
    by_prompt = {m: noise.scores(m, subject, curve).astype(np.float32) for m, curve in curves.items()}
    values = {m: scores.astype(float).mean(1) for m, scores in by_prompt.items()}
    half = {m: 1.96 * s.astype(float).std(1, ddof=1) / np.sqrt(noise.prompts) for m, s in by_prompt.items()}
    return StudyRun(
        id=run_id(config),
        name=f"subject={subject},n={known['n']},method={known['method']},model={known['model']},seed={flat['seed']}",
        folder=Path("nowhere"),
        status=status,
        subject=subject,
        class_noun=noun,
        gender=noun,
        n_images=known["n"],
        method=known["method"],
        model=known["model"],
        seed=flat["seed"],
        settings=flat,
        steps=tuple(steps),
        values=values,
        low={m: values[m] - half[m] for m in values},
        high={m: values[m] + half[m] for m in values},
        by_prompt=by_prompt,
        prompts=tuple(f"p{i:03d}" for i in range(noise.prompts)),
        references={m: {"floor": float(v[0]), "ceiling": 0.9, "impostor": 0.3} for m, v in values.items()},
        costs={"training_seconds": 60.0, "evaluation_seconds": 200.0, "training_memory": 1000.0, "artefact_size": 4.0},
        chosen=tuple((key, str(value)) for key, value in bound_flat(flat).items()),
        ranges={m: (a, b) for m, (a, b) in RANGES.items() if m in values},
    )  # fmt: skip


def table_of(runs: Sequence[StudyRun]) -> Table:
    metrics = {name: INFOS[name] for run in runs for name in run.values}
    return Table(tuple(runs), metrics, common_ranges(runs), common_weights(runs))


def planted(
    truth: Truth = usual,
    *,
    seed: int = 0,
    subjects: Sequence[str] = WOMEN + MEN,
    counts: Sequence[int] = (4, 8, 14, 20),
    methods: Sequence[str] = ("lora",),
    models: Sequence[str] = ("miniature",),
    steps: Sequence[int] = STEPS,
    more: Sequence[Mapping[str, Any]] = ({},),
    **noise: Any,
) -> Table:
    """One run of each combination; `more`: further settings ("prompts__negative"), one run each."""
    drawn = Noise(seed, **noise)
    return table_of(
        [
            study_run(configuration(s, n, method, model, **extra), truth, drawn, steps)
            for s in subjects
            for n in counts
            for method in methods
            for model in models
            for extra in more
        ]
    )


# --- folders ------------------------------------------------------------------------------------------


def write_run(
    folder: Path, run: StudyRun, config: Mapping[str, Any], *, missing: float = 0.0, recorded: bool = True
) -> Path:
    """`result.json`, `config.yaml` and `scores.parquet` of a run. `missing`: share of faces that are not found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from diffusion_lab.analysis.intervals import BOUNDS, summarise

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = sorted(run.by_prompt)
    columns: dict[str, list[Any]] = {"step": [], "prompt_id": [], "index": [], "metric": [], "value": []}
    evaluations = []
    for i, step in enumerate(run.steps):
        metrics = {}
        for name in names:
            scores = run.by_prompt[name][i].astype(float)
            can_miss = name.startswith("similarity")
            if can_miss and missing:
                scores[rng.random(len(scores)) < missing] = np.nan
            found = summarise(
                scores, run.prompts, can_miss=can_miss, bounds=BOUNDS.get(INFOS[name].unit, (None, None))
            )
            metrics[name] = {k: getattr(found, k) for k in found.__slots__}
            columns["step"] += [step] * len(scores)
            columns["prompt_id"] += run.prompts
            columns["index"] += [0] * len(scores)
            columns["metric"] += [name] * len(scores)
            columns["value"] += [None if np.isnan(v) else v for v in scores]
        evaluations.append({"step": step, "metrics": metrics, "seconds": {"sampling": 20.0}})
    pq.write_table(pa.table(columns), folder / "scores.parquet", compression="zstd")
    result = {
        "schema": 1,
        "run": run.id,
        "status": run.status,
        "error": None,
        "config": config,
        "evaluations": evaluations,
        "references": {m: {"ceiling": metrics[m], "impostor": None} for m in names},
        "cost": {"training": {"seconds": 60.0, "peak_memory_bytes": 2**30}, "evaluation": {"seconds": 200.0}},
        "metrics": {
            m: {"version": INFOS[m].version, "label": INFOS[m].label, "unit": INFOS[m].unit, "higher_is_better": INFOS[m].higher_is_better}
            for m in names
        },
        "encoders": {"face": "miniature-face 0"},
        "prompts": {"name": "miniature", "n": len(run.prompts), "negative": ""},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T01:00:00+00:00" if run.status == "completed" else None,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return folder


def course(
    *,
    stop: Callable[[Mapping[str, Any]], float] = lambda run: 10 * run["n"],
    gain: float = 0.4,
    late: float = 0.1,
    fall: float = 0.4,
    women_aesthetics: float = 0.1,
    men_similarity: float = 0.1,
    similarity_of_n: Callable[[int], float] = lambda n: 0.0,
    gap_of_n: Callable[[int], float] = lambda n: 0.05,
    quality_of_n: Callable[[int], float] = lambda n: 0.0,
    memorised: float = 0.3,
    of_model: Mapping[str, float] | None = None,
    of_method: Mapping[str, tuple[float, float]] | None = None,
    of_negative: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Truth:
    """Curves whose weighted score is best at `stop`: similarity rises until there by `gain` and after it by `late`; from
    there on aesthetics and diversity fall by `fall` until the end.
    """

    def truth(run: Mapping[str, Any], steps: np.ndarray) -> dict[str, np.ndarray]:
        peak, end, n = stop(run), float(steps[-1]), run["n"]
        rising = np.minimum(steps, peak) / max(peak, 1e-9) if peak > 0 else np.ones(len(steps))
        after = np.maximum(0.0, steps - peak) / max(end - peak, 1.0)
        woman = run["gender"] == "woman"
        learned = rising * (1 + (of_model or {}).get(run["model"], 0.0))
        image, prompt = (of_method or {}).get(run["method"], (0.0, 0.0))
        negative = of_negative if run["settings"].get("prompts.negative") else (0.0, 0.0, 0.0)
        similarity = 0.2 + gain * learned + late * after + men_similarity * (not woman) + similarity_of_n(n)
        faces = 0.9 + negative[2] + 0.0 * steps
        return {
            "similarity": similarity + negative[1],
            "similarity_heldout": similarity - gap_of_n(n),
            "face_rate": faces,
            "aesthetics": 0.6 - fall * after + women_aesthetics * woman + quality_of_n(n) + negative[0],
            "diversity": 0.8 - fall * after + quality_of_n(n),
            "memorisation": 0.3 + memorised * after,
            "image_similarity": 0.3 + image + 0.3 * rising + 0.1 * after,
            "prompt_similarity": 0.6 + prompt - 0.2 * rising - 0.1 * after,
        }

    return truth
