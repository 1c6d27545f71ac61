"""Nested mappings as flat ones."""

from __future__ import annotations

import pytest

from diffusion_lab.values.mappings import flatten


@pytest.mark.parametrize("separator", [".", "/"])
def test_keys_are_joined_at_any_depth(separator: str) -> None:
    flat = flatten({"a": {"b": {"c": 1}, "d": None}, "e": [{"f": 2}], "g": {}}, separator)
    assert flat == {f"a{separator}b{separator}c": 1, f"a{separator}d": None, "e": [{"f": 2}], "g": {}}
    assert list(flat) == [f"a{separator}b{separator}c", f"a{separator}d", "e", "g"]


def test_keys_become_text() -> None:
    assert flatten({1: {2: "x"}}) == {"1.2": "x"}  # type: ignore[dict-item]
