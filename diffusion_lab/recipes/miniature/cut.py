"""A U-Net that begins as slices of a wider one, instead of from nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

INNER = ("to_q", "to_k", "to_v")  # their rows are heads, as are the columns of to_out


def cut(
    wide: Mapping[str, Tensor], narrow: Mapping[str, Tensor], *, groups: int = 32, heads: int = 8
) -> dict[str, Tensor]:
    """`wide`'s weights in `narrow`'s shapes, for U-Nets whose last level alone differs in width.

    Of every group of a group norm, every head, and every half of a gated feed-forward layer the first channels
    stay; where a layer reads two stacked tensors, only the wider one is cut. ValueError where shapes do not fit.
    """
    sides = {
        (w.shape[0], n.shape[0])
        for w, n in ((wide[k], narrow[k]) for k in narrow if k.endswith("to_q.weight"))
        if w.shape != n.shape
    }
    if len(sides) > 1:
        raise ValueError(f"more than one level differs in width: {sorted(sides)}")
    if not sides:
        return {key: wide[key].clone() for key in narrow}
    (before, after), cut_state = sides.pop(), {}
    for key, target in narrow.items():
        tensor = wide[key]
        for axis, (old, new) in enumerate(zip(tensor.shape, target.shape, strict=True)):
            if old != new:
                parts = heads if _is_inner(key, axis) else groups
                kept = _kept(old, new, before, after, parts)
                tensor = tensor.index_select(axis, kept)
        cut_state[key] = tensor.clone()
    return cut_state


def _is_inner(key: str, axis: int) -> bool:
    if any(name in key for name in INNER):
        return axis == 0
    return "to_out" in key and key.endswith("weight") and axis == 1


def _kept(old: int, new: int, before: int, after: int, parts: int) -> Tensor:
    """Which of `old` channels stay, `new` in all; a level's width falls from `before` to `after`."""

    def first(of: int, to: int, groups: int) -> Tensor:
        return (torch.arange(groups)[:, None] * (of // groups) + torch.arange(to // groups)).reshape(-1)

    if (old, new) == (before, after):
        return first(old, new, parts)
    if (old, new) == (2 * before, 2 * after):  # two of the level's tensors, stacked
        return torch.cat([first(before, after, parts), before + first(before, after, parts)])
    if old - new == before - after and old > before:  # one of them and a narrower level's
        return torch.cat([first(before, after, parts), torch.arange(before, old)])
    if old % before == 0 and new == old // before * after:  # feed-forward: values and gates, or their product
        return first(old, new, 2 if old == 8 * before else 1)
    raise ValueError(f"{old} channels cannot be cut to {new}")
