"""Checks of configuration values. Each raises `UserError`: the key, what was given, what is allowed."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.values.bounds import BOUNDS


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


def whole(key: str, value: object, low: int, high: int | None = None, why: str = "") -> None:
    """Raises UserError unless `value` is an integer with low <= value <= high. `why`: it ends at `high`."""
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value
    if not fits or (high is not None and isinstance(value, int) and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(
            f"{key}={_printable(value)}: must be a whole number {bounds}{_reason(value, high, why)}"
        )


def number(
    key: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    why: str = "",
) -> None:
    """Raises UserError unless `value` is finite and in [low, high]; `above`, `below`: open at that end.

    `why`: it ends at `high`.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if fits:
        assert isinstance(value, int | float)
        # Not with isfinite, which fails for an integer beyond the range of floats.
        fits = -math.inf < value < math.inf
        fits = (
            fits and (value > low if above else value >= low) and (value < high if below else value <= high)
        )
    if not fits:
        bounds = []
        if low > -math.inf:
            bounds.append(f"{'above' if above else 'at least'} {low:g}")
        if high < math.inf:
            bounds.append(f"{'below' if below else 'at most'} {high:g}")
        range_text = " and ".join(bounds) or "that is finite"
        raise UserError(
            f"{key}={_printable(value)}: must be a number {range_text}{_reason(value, high, why)}"
        )


def bounded(key: str, value: object, *, of: str | None = None) -> None:
    """Raises UserError unless `value` lies in the range that `bounds.BOUNDS` has for `key` (or for `of`)."""
    bound = BOUNDS[of or key]
    if bound.whole:
        whole(key, value, int(bound.low), int(bound.high), bound.why)
    else:
        number(key, value, bound.low, bound.high, above=bound.above, below=bound.below, why=bound.why)


def _reason(value: object, high: float | None, why: str) -> str:
    """The reason for an upper bound, if that is the bound exceeded."""
    too_large = isinstance(value, int | float) and high is not None and not value < high
    return f" ({why})" if why and too_large and value == value else ""


def _printable(value: object) -> str:
    """The given value, truncated if too long. Python does not convert integers of more than 4300 digits."""
    try:
        told = str(value)
    except ValueError:
        return "a number of thousands of digits"
    return told if len(told) <= 40 else f"{told[:30]}... ({len(told)} characters)"


def text(key: str, value: object) -> None:
    """Raises UserError unless `value` is a non-blank string."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}={value!r}: must be a text that is not empty")


def text_list(key: str, value: object, allowed: Iterable[str] | None = None) -> None:
    """Raises UserError unless `value` is a list of distinct strings, all in `allowed` if given."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"{key}={value}: must be a list of texts, such as {key}=[a,b]")
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise UserError(f"{key}={value}: {', '.join(repeated)} is given more than once")
    if allowed is not None:
        for item in value:
            one_of(key, item, allowed)


def flag(key: str, value: Any) -> None:
    """Raises UserError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key}={value}: must be true or false")


def command(main: Callable[[], object]) -> int:
    """Runs a module's command line; returns its exit status: 2, and one line, for errors the user can fix."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
