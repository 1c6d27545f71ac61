"""Tables of a study with curves of the usual shape and no training behind them, and a browser to open their pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.runs import samples
from diffusion_lab.runs.reading import MetricInfo
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.table import Table

WOMEN, MEN = ("anna", "bea", "carla", "dora", "emma"), ("adam", "ben", "carl", "dan", "emil")
METRICS = {  # label, unit, higher is better, range, floor, ceiling
    "similarity": ("Similarity to the training photos", "cosine", True, (0.0, 0.8), 0.2, 0.82),
    "aesthetics": ("Aesthetics", "0 to 1", True, (0.2, 0.8), 0.75, 0.73),
    "diversity": ("Diversity", "cosine distance", True, (0.2, 1.0), 0.8, 0.4),
    "clip_text": ("Faithfulness to the prompt", "cosine", True, (0.3, 0.5), 0.48, None),
    "clip_image": ("Similarity of the whole image", "cosine", True, (0.1, 0.6), 0.15, 0.55),
    "memorisation": ("Similarity to the nearest training photo", "cosine", False, (0.2, 0.8), 0.25, 0.7),
}


def make_run(
    folder: Path, name: str, subject: str, n: int, *, method: str = "lora", model: str = "miniature", seed: int = 0,
    steps: tuple[int, ...] = tuple(range(0, 401, 50)), prompts: int = 24, faces: bool = True, sheets: bool = False,
    status: str = "completed", settings: dict[str, Any] | None = None, quality: float = 0.0, **more: Any,
) -> StudyRun:  # fmt: skip
    """One run: similarity rises and the rest falls, faster with fewer photos; `quality` is added to similarity."""
    rng = np.random.default_rng([seed, n, sum(map(ord, subject + method + model))])
    speed = np.array(steps) / (12.0 * n + 60)
    change = {"similarity": 0.45 * (1 - np.exp(-2 * speed)) + quality, "aesthetics": -0.06 * speed**2, "diversity": -0.1 * speed,
              "clip_text": -0.02 * speed, "clip_image": 0.25 * (1 - np.exp(-2 * speed)), "memorisation": 0.3 * (1 - np.exp(-speed))}  # fmt: skip
    by_prompt, values = {}, {}
    for metric, (_, _, _, _, floor, _) in METRICS.items():
        noise = rng.normal(0, 0.05, prompts) + rng.normal(0, 0.03, (len(steps), prompts))
        by_prompt[metric] = (floor + rng.normal(0, 0.02) + change[metric][:, None] + noise).astype(np.float32)
        values[metric] = by_prompt[metric].mean(axis=1).astype(float)
    if not faces:
        values["similarity"] = np.full(len(steps), np.nan)
        del by_prompt["similarity"]
    where = folder / name
    if sheets:
        for i, step in enumerate(steps):
            images = [
                np.full((16, 16, 3), (40 * k % 256, 25 * i % 256, n * 9 % 256), np.uint8)
                for k in range(prompts)
            ]
            sheet = samples.sheet(images, [f"{k}" for k in range(prompts)], title=f"step {step}")
            path = where / "samples" / f"step-{step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(sheet))
    noun = "woman" if subject in WOMEN else "man"
    flat = {
        "data.subject": subject, "data.class_noun": noun, "data.n_images": n, "method.name": method,
        "model.path": model, "seed": seed, "prompts.images_per_prompt": 1, **(settings or {}),
    }  # fmt: skip
    return StudyRun(
        id=f"{abs(hash((name, subject, n, method, model, seed))):016x}"[:16], name=name, folder=where, status=status,
        subject=subject, class_noun=noun, gender=noun, n_images=n, method=method, model=model, seed=seed,
        settings=flat, steps=tuple(steps), values=values,
        low={m: v - 0.03 for m, v in values.items()}, high={m: v + 0.03 for m, v in values.items()},
        by_prompt=by_prompt, prompts=tuple(f"p{i:03d}" for i in range(prompts)),
        references={m: {"floor": METRICS[m][4], "ceiling": METRICS[m][5], "impostor": 0.3 if m == "similarity" else None} for m in METRICS},
        costs={"training_seconds": 60.0 + n, "evaluation_seconds": 30.0, "training_memory": None, "artefact_size": 1.5},
        **more,
    )  # fmt: skip


def _png(image: Image.Image) -> bytes:
    from diffusion_lab.system.images import png

    return png(image)


def make_table(runs: list[StudyRun], **more: Any) -> Table:
    return Table(
        runs=tuple(runs),
        metrics={n: MetricInfo(n, "1", label, unit, up) for n, (label, unit, up, _, _, _) in METRICS.items()},
        ranges={name: metric[3] for name, metric in METRICS.items()},
        weights={"similarity": 1 / 3, "aesthetics": 1 / 3, "diversity": 1 / 3},
        **more,
    )


def counts_table(folder: Path, **more: Any) -> Table:
    """Ten subjects, four numbers of photos."""
    return make_table(
        [
            make_run(folder, f"subject={s},n_images={n}", s, n, **more)
            for s in (*WOMEN, *MEN)
            for n in (4, 8, 14, 20)
        ]
    )


@pytest.fixture(scope="session")
def run_of() -> Callable[..., StudyRun]:
    return make_run


@pytest.fixture(scope="session")
def table_of() -> Callable[..., Table]:
    return make_table


@pytest.fixture(scope="session")
def counts() -> Callable[..., Table]:
    return counts_table


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page from its file; in the end there must be no error, and no request beyond files beside it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    troubles: list[str] = []
    opened: list[str] = []

    def go(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type != "log" else None)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda r: opened.append(r.url))
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
        return page

    go.opened = opened  # type: ignore[attr-defined]
    yield go
    context.close()
    assert troubles == []
    assert [url for url in opened if not url.startswith(("file:", "data:", "blob:"))] == []
