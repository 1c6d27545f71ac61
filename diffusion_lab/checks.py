"""Checks of configuration values. Each raises `UserError`: the key, what was given, what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from diffusion_lab.interfaces import UserError


def closest(given: object, allowed: Iterable[str]) -> str:
    """Returns a suggestion such as "; did you mean 'lora'?", or nothing."""
    found = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.55)
    return f"; did you mean {found[0]!r}?" if found else ""


def one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of the words `allowed`."""
    words = list(allowed)
    if value not in words:
        several = isinstance(value, str) and "," in value and all(part in words for part in value.split(","))
        hint = "; several values, one job each, need -m" if several else closest(value, words)
        raise UserError(f"{key}={value}: must be one of {', '.join(words)}{hint}")


def whole(key: str, value: object, low: int, high: int | None = None) -> None:
    """Raises UserError unless `value` is an integer with low <= value <= high."""
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value
    if not fits or (high is not None and isinstance(value, int) and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{key}={value}: must be a whole number {bounds}")


def number(
    key: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raises UserError unless `value` is finite and in [low, high]; `above`, `below`: open at that end."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if fits:
        assert isinstance(value, int | float)
        fits = (value > low if above else value >= low) and (value < high if below else value <= high)
    if not fits:
        bounds = []
        if low > -math.inf:
            bounds.append(f"{'above' if above else 'at least'} {low:g}")
        if high < math.inf:
            bounds.append(f"{'below' if below else 'at most'} {high:g}")
        raise UserError(f"{key}={value}: must be a number {' and '.join(bounds) or 'that is finite'}")


def text(key: str, value: object) -> None:
    """Raises UserError unless `value` is a string with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}={value!r}: must be a text that is not empty")


def words(key: str, value: object, allowed: Iterable[str] | None = None) -> None:
    """Raises UserError unless `value` is a list of different texts, each one of `allowed` if given."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"{key}={value}: must be a list of texts, such as {key}=[a,b]")
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise UserError(f"{key}={value}: {', '.join(repeated)} stands there more than once")
    if allowed is not None:
        for item in value:
            one_of(key, item, allowed)


def flag(key: str, value: Any) -> None:
    """Raises UserError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key}={value}: must be true or false")
