"""Search spaces in Hydra's override grammar, as Optuna's distributions.

`key=a,b` and `choice(a,b)` are categories, `range(1,9,2)` numbers at a fixed distance, `interval(0,1)` any number
between two, `int(interval(1,8))` any whole number, `tag(log,interval(1e-5,1e-3))` the same with a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def parsed(words: Sequence[str]) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
    """The search space and the fixed values (in the grammar of overrides), by key.

    Raises UserError for an empty search space or range.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(words)):
        key = override.get_key_element()  # a repeated key has its last value
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = _distribution(override)
        else:
            fixed[key] = override.get_value_element_as_str()
    if not space:
        raise UserError(
            "hydra/sweeper=optuna: no key has several values; give some, such as "
            "'method.learning_rate=tag(log,interval(1e-5,1e-3))' or method.rank=4,8,16"
        )
    return space, fixed


def _distribution(override: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if override.is_interval_sweep():
        value = override.value()
        kind = IntDistribution if _whole(value.start, value.end) else FloatDistribution
        try:
            return kind(value.start, value.end, log="log" in value.tags)
        except ValueError as error:
            raise UserError(f"{override.input_line}: {error}") from error
    if override.is_range_sweep() and not override.value().shuffle:
        values = sorted(override.sweep_iterator())
        if len(values) > 1:
            step = values[1] - values[0]
            if _whole(*values):
                return IntDistribution(values[0], values[-1], step=step)
            return FloatDistribution(float(values[0]), float(values[-1]), step=float(step))
    texts = list(override.sweep_string_iterator())
    if not texts:
        raise UserError(f"{override.input_line}: has no value, so there is nothing to choose from")
    return CategoricalDistribution(texts)


def _whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def overrides(values: Mapping[str, Any], fixed: Mapping[str, str]) -> list[str]:
    """The overrides of one run. Categories are texts in the grammar of overrides already."""
    return [*(f"{key}={text}" for key, text in fixed.items()), *(f"{key}={v}" for key, v in values.items())]


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], study: str) -> None:
    """Raises UserError if a study is continued with other fixed values or categories: its scores do not compare.

    Both arguments are results of `described`. Ends of intervals and ranges may change.
    """
    changed = [
        key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
    ]  # fmt: skip
    if changed:
        told = "; ".join(
            f"{key} was {before.get(key, 'not there')}, is {now.get(key, 'not there')}" for key in changed
        )
        raise UserError(
            f"hydra.sweeper.study={study}: was begun with other values: {told}. Give the same values to "
            "continue it, or another name with hydra.sweeper.study=NAME"
        )


def described(space: Mapping[str, BaseDistribution], fixed: Mapping[str, str]) -> dict[str, Any]:
    """What must not change when a study is continued: plain values for a JSON file."""
    from optuna.distributions import CategoricalDistribution

    from diffusion_lab.runs.resume import FREE

    shapes = {
        key: list(kind.choices) if isinstance(kind, CategoricalDistribution) else "an interval"
        for key, kind in space.items()
    }
    return {**{key: text for key, text in fixed.items() if not key.startswith(FREE)}, **shapes}
