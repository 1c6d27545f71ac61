"""A study's page after its sweep was killed at random moments equals that of an undisturbed sweep."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests import killed_sweeps


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(killed_sweeps.LAUNCHERS))
def test_a_killed_sweep_ends_with_the_same_page(launcher: str, tmp_path: Path) -> None:
    """Two kills; `python tests/killed_sweeps.py joblib 20 FOLDER` tries more."""
    if launcher == "submitit_local" and importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    assert killed_sweeps.same(tmp_path, launcher, kills=2) > 0
