"""The page of a sweep that was killed at random times equals that of an uninterrupted sweep."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests import killed_sweeps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    return killed_sweeps.uninterrupted(tmp_path_factory.mktemp("sweep") / "uninterrupted", "joblib")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(killed_sweeps.LAUNCHERS))
def test_a_killed_sweep_ends_with_the_same_page(
    launcher: str, tmp_path: Path, uninterrupted: tuple[dict[str, Any], float]
) -> None:
    """Two kills; `python tests/killed_sweeps.py joblib 20 FOLDER` tries more."""
    if launcher == "submitit_local" and importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    assert killed_sweeps.same(tmp_path, launcher, 2, *uninterrupted) > 0
