"""A sweep that is repeated with more steps goes on from the runs that it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = [
    "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.every=1", "prompts.n=2", "steps.batch_size=1",
    "model.device=cpu", "tracker=files",
]  # fmt: skip


def test_the_same_points_with_more_steps_train_only_these(
    run_main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.training import loop

    trained: list[int] = []
    real = loop.training_step

    def step(state: object, steps: object) -> tuple[float, float]:
        trained.append(1)
        return real(state, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "training_step", step)
    words = ["-m", *WORDS, f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=0,1"]
    assert run_main(*words, "steps.total=1") == 0
    assert len(trained) == 2
    assert run_main(*words, "steps.total=3") == 0
    assert len(trained) == 2 + 2 * 2
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/result.json"))]
    longer = [record for record in records if record["config"]["steps"]["total"] == 3]
    assert sorted(record["config"]["seed"] for record in longer) == [0, 1]
    assert all([entry["total"] for entry in record["extended"]] == [1] for record in longer)
    assert run_main(*words, "steps.total=3") == 0
    assert len(trained) == 6
