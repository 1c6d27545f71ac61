"""What a run cost: seconds, memory, and the size of its artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.runs.resume import folder_size

COSTS: Mapping[str, tuple[str, str]] = {  # name -> label, unit
    "training_seconds": ("Training", "s"),
    "evaluation_seconds": ("Evaluation", "s"),
    "training_memory": ("Peak memory of training", "MiB"),
    "artefact_size": ("Artefact", "MiB"),
}


def run_costs(folder: Path, cost: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds, and MiB (2^20 bytes), by the names of `COSTS`; None if the record has none.

    ``cost``: as in `result.json`.
    """
    training, evaluation = (cost.get(part) or {} for part in ("training", "evaluation"))
    memory, size = training.get("peak_memory_bytes"), folder_size(folder / "artefact")
    return {
        "training_seconds": training.get("seconds"),
        "evaluation_seconds": evaluation.get("seconds"),
        "training_memory": memory / 2**20 if memory else None,
        "artefact_size": size / 2**20 if size else None,
    }
