"""Computes how an adapter's tensors change a layer, in float32, with the formulas of the formats' authors.

LoRA: up x down x alpha / rank (Hu et al. 2021, arXiv:2106.09685). LoHa: (w1_a w1_b) * (w2_a w2_b) x alpha /
rank (Hyeon-Woo et al. 2021, arXiv:2108.06098). LoKr: kron(w1, w2) x alpha / rank (Yeh et al. 2023,
arXiv:2309.14859). With a core tensor (`lora_mid`, `hada_t1`, `lokr_t2`): Tucker decomposition of a
convolution. DoRA (Liu et al. 2024, arXiv:2402.09353): the changed weight is rescaled to the magnitudes
`dora_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LORA = frozenset({"up", "down", "mid"})
LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"})
LOKR = frozenset(
    {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
)  # fmt: skip
FULL = frozenset({"diff", "diff_b"})
LENGTHS = frozenset({"dora_scale", "magnitude"})
BESIDE = LENGTHS | {"alpha", "bias"}  # accompanies another change and is none by itself


class Misfit(ValueError):
    """The tensors of a layer are inconsistent with each other or with the layer's weight."""


def problem(roles: Mapping[str, tuple[int, ...]]) -> str | None:
    """Describes what is wrong with a layer's tensors, judged by their shapes; None if they are valid."""
    have = set(roles) - BESIDE
    kinds = [kind for kind in (LORA, LOHA, LOKR, FULL) if have & kind]
    if len(kinds) != 1:
        return "has tensors of several kinds" if kinds else f"has only {', '.join(sorted(roles))}"
    if kinds[0] is LORA:
        needed = [{"up", "down"}]
    elif kinds[0] is LOHA:
        needed = [{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}]
        if len(have & {"hada_t1", "hada_t2"}) == 1:
            return "has one of hada_t1 and hada_t2 only"
    elif kinds[0] is LOKR:
        needed = [{full} if full in have else {f"{full}_a", f"{full}_b"} for full in ("lokr_w1", "lokr_w2")]
    else:
        needed = [set()]
    if math.prod(roles.get("alpha", ())) != 1:
        return f"has an alpha of {math.prod(roles['alpha'])} numbers, and one is needed"
    if empty := sorted(role for role, shape in roles.items() if not math.prod(shape)):
        return f"has no numbers in {', '.join(empty)}"
    missing = sorted(set().union(*needed) - have)
    if missing:
        return f"lacks {', '.join(missing)}"
    if "bias" in roles and kinds[0] is not LORA:
        return "has a bias that is not a LoRA's"
    if len(LENGTHS & set(roles)) > 1 or (LENGTHS & set(roles) and kinds[0] is FULL):
        return "has lengths (dora_scale) that do not go with the rest"
    if kinds[0] is LORA and "mid" not in have and roles["up"][1:2] != roles["down"][:1]:
        return f"has ranks that differ: up {list(roles['up'])}, down {list(roles['down'])}"
    return None


def rank(tensors: Mapping[str, Tensor]) -> int | None:
    """The divisor of alpha; None if nothing is decomposed, in which case alpha has no meaning."""
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in tensors:
            return int(tensors[role].shape[0])
    return None


def scale(tensors: Mapping[str, Tensor], *, stabilised: bool = False) -> float:
    """alpha / rank, or alpha / sqrt(rank) if rank-stabilised; 1 without an alpha or without a rank."""
    number = rank(tensors)
    if number is None or "alpha" not in tensors:
        return 1.0
    alpha = float(tensors["alpha"])
    return alpha / (math.sqrt(number) if stabilised else number)


def pair(tensors: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """LoRA's down [r, in, ...] and up [out, r, ...], float32, shaped for the layer's kind of weight.

    A core tensor is merged into down. Raises Misfit.
    """
    import torch

    down, up = tensors["down"].float(), tensors["up"].float()
    if "mid" in tensors:  # [r, r, kh, kw] between two 1x1 convolutions
        core = tensors["mid"].float()
        try:
            down = torch.einsum("pqhw,qi->pihw", core, down.flatten(1))
        except RuntimeError as error:
            raise Misfit(_shapes(tensors, weight)) from error
    if weight.ndim == 2:
        down, up = _flat(down), _flat(up)
    elif weight.ndim == 4:
        down, up = (part.reshape(*part.shape, 1, 1) if part.ndim == 2 else part for part in (down, up))
    wanted = ((len(down), *weight.shape[1:]), (len(weight), len(down), *[1] * (weight.ndim - 2)))
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        raise Misfit(_shapes(tensors, weight))
    return down, up


def changed(tensors: Mapping[str, Tensor], weight: Tensor, *, stabilised: bool = False) -> Tensor:
    """The fully changed weight, float32, in the shape of `weight` [out, in, ...]. Raises Misfit."""
    try:
        change = _change(tensors, weight).reshape(weight.shape)
    except (RuntimeError, IndexError) as error:
        raise Misfit(_shapes(tensors, weight)) from error
    whole: Tensor = weight.float() + change * scale(tensors, stabilised=stabilised)
    lengths = next((tensors[role] for role in LENGTHS if role in tensors), None)
    if lengths is None:
        return whole
    return _with_lengths(whole, lengths.float(), of_outputs="magnitude" in tensors)


# Roles of tensors with one row per output of the layer.
BY_OUTPUT = frozenset({"up", "hada_w1_a", "hada_w2_a", "diff", "diff_b", "bias"}) | LENGTHS


def rows(tensors: Mapping[str, Tensor], start: int, stop: int, total: int) -> dict[str, Tensor]:
    """The change of the outputs `start` to `stop` of a layer with `total` outputs. Raises Misfit."""
    import torch

    if (start, stop) == (0, total):
        return dict(tensors)
    tensors = _by_output(tensors)
    if {"hada_t1", "hada_t2"} & set(tensors):
        raise Misfit("a core tensor, which is a convolution's, in a layer that is taken apart")
    found = {}
    for role, value in tensors.items():
        if role not in BY_OUTPUT:
            found[role] = value
        elif value.ndim and len(value) == total:
            found[role] = torch.as_tensor(value[start:stop])
        else:
            raise Misfit(f"{role} {list(value.shape)} for a layer of {total} outputs")
    return found


def swapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The change of a layer whose outputs are two halves, for the same layer with the halves swapped."""
    return {
        role: value.roll(len(value) // 2, 0) if role in BY_OUTPUT else value
        for role, value in _by_output(tensors).items()
    }


def _by_output(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Expands LoKr, whose factors do not have one row per output."""
    if not set(tensors) & LOKR:
        return dict(tensors)
    whole = _kronecker(tensors) * scale(tensors)
    return {"diff": whole, **{role: value for role, value in tensors.items() if role in LENGTHS}}


def _change(tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    import torch

    if "down" in tensors:
        down, up = pair(tensors, weight)
        return up.flatten(1) @ down.flatten(1)
    if "diff" in tensors:
        return tensors["diff"].float()
    if "hada_w1_a" in tensors:
        return torch.mul(*(_product(tensors, f"hada_w{n}", f"hada_t{n}") for n in (1, 2)))
    if "lokr_w1" in tensors or "lokr_w1_a" in tensors:
        return _kronecker(tensors)
    return torch.zeros_like(weight, dtype=torch.float32)  # only a bias


def _kronecker(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    first, second = _product(tensors, "lokr_w1", ""), _product(tensors, "lokr_w2", "lokr_t2")
    while first.ndim < second.ndim:
        first = first.unsqueeze(-1)
    return torch.kron(first.contiguous(), second.contiguous())


def _product(tensors: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """`name` itself, or a x b, or with a core t: sum over i, j of t[i, j] a[i, out] b[j, in]."""
    import torch

    if name in tensors:
        return tensors[name].float()
    first, second = tensors[f"{name}_a"].float(), tensors[f"{name}_b"].float()
    if core in tensors:
        return torch.einsum("ijkl,jr,ip->prkl", tensors[core].float(), second, first)
    return first @ second.flatten(1)


def _with_lengths(whole: Tensor, lengths: Tensor, *, of_outputs: bool) -> Tensor:
    """Rescales to magnitudes per output [out, 1, ...], or per input [1, in, ...] as in old LyCORIS files.

    `of_outputs`: the magnitudes are peft's, which are per output in any shape.
    """
    outputs, inputs = whole.shape[:2]
    if lengths.numel() == outputs and (of_outputs or lengths.ndim == 1 or lengths.shape[0] == outputs):
        axes = tuple(range(1, whole.ndim))
        shape: tuple[int, ...] = (outputs, *[1] * (whole.ndim - 1))
    elif lengths.numel() == inputs and lengths.shape[:2] == (1, inputs):
        axes = (0, *range(2, whole.ndim))
        shape = (1, inputs, *[1] * (whole.ndim - 2))
    else:
        raise Misfit(f"lengths {list(lengths.shape)} for a weight of {list(whole.shape)}")
    return whole * (lengths.reshape(shape) / whole.square().sum(dim=axes, keepdim=True).sqrt())


def _flat(part: Tensor) -> Tensor:
    return part.flatten(1) if part.shape[2:].numel() == 1 else part


def _shapes(tensors: Mapping[str, Tensor], weight: Tensor) -> str:
    told = ", ".join(f"{role} {list(value.shape)}" for role, value in tensors.items() if role != "alpha")
    return f"{told} for a weight of {list(weight.shape)}"
