"""Conversion of values to the types of JSON and YAML."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON (no NaN), with paths and other unknown values as strings, tuples and sets as lists."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` converted to the types of JSON and YAML: mappings, lists, strings, numbers, None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy's and torch's scalars
        return plain(value.item())
    if hasattr(value, "keys"):  # other mappings
        return {str(key): plain(value[key]) for key in value.keys()}  # noqa: SIM118
    return str(value)
