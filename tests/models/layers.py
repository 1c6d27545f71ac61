"""Layers of a pipeline before and after an adapter, and the changes that adapters make by formulas of the tests' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Tensors = dict[str, torch.Tensor]
NETWORKS = ("unet", "text_encoder")
SPREAD = 0.05  # of the tensors: changes as large as the weights themselves, about


def originals(
    pipe: Any, parts: tuple[str, ...] = NETWORKS
) -> dict[tuple[str, str], tuple[Any, torch.Tensor, torch.Tensor | None]]:
    """(network, layer) -> module, weight, bias before anything is put on."""
    return {
        (part, name): (
            module,
            module.weight.detach().clone(),
            None if module.bias is None else module.bias.detach().clone(),
        )
        for part in parts
        for name, module in getattr(pipe, part).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def answers(module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a layer of these numbers makes of an input that is always the same."""
    generator = torch.Generator().manual_seed(7)
    if weight.ndim == 2:
        return functional.linear(torch.randn(8, weight.shape[1], generator=generator), weight, bias)
    x = torch.randn(2, weight.shape[1], 6, 6, generator=generator)
    return functional.conv2d(x, weight, bias, module.stride, module.padding)


def seen(network: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """What the layer of the pipeline makes of the same input, adapter and all."""
    generator = torch.Generator().manual_seed(7)
    shape = (8, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], 6, 6)
    with torch.no_grad():
        return network.get_submodule(name)(torch.randn(*shape, generator=generator))


def check_every_layer(
    pipe: Any, before: Mapping[Any, Any], wanted: Mapping[Any, torch.Tensor], biases: Mapping[Any, torch.Tensor] = {}
) -> None:  # fmt: skip
    """All layers of the networks: those in `wanted` have that weight, all others are as they were."""
    assert wanted.keys() <= before.keys()
    wrong = []
    for (part, name), (module, weight, bias) in before.items():
        expected = answers(module, wanted.get((part, name), weight), biases.get((part, name), bias))
        found = seen(getattr(pipe, part), name, weight)
        worst = float((found - expected).abs().max())
        is_changed = (part, name) in wanted and not torch.equal(wanted[part, name], weight)
        if worst > (2e-4 * float(expected.abs().max()) if is_changed else 0.0):
            wrong.append(f"{part}.{name}: {worst:.2e} of {float(expected.abs().max()):.2e}")
    assert not wrong, wrong


def draw(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator) * SPREAD


def pair(generator: torch.Generator, weight: torch.Tensor, rank: int) -> Tensors:
    up = (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    return {
        "down": draw(generator, rank, *weight.shape[1:]) * 3,
        "up": draw(generator, *up) * 3,
    }


def product(tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
    """up x down, number by number."""
    down, up = tensors["down"].double().numpy(), tensors["up"].double().numpy()
    if "mid" in tensors:
        mid = tensors["mid"].double().numpy()
        found = np.zeros(weight.shape)
        for h in range(weight.shape[2]):
            for w in range(weight.shape[3]):
                found[:, :, h, w] = up[:, :, 0, 0] @ mid[:, :, h, w] @ down[:, :, 0, 0]
        return torch.from_numpy(found).float()
    found = np.tensordot(up.reshape(up.shape[:2]), down, axes=(1, 0))
    return torch.from_numpy(found).float().reshape(weight.shape)


def loha(generator: torch.Generator, own: torch.Tensor, number: int) -> tuple[Tensors, torch.Tensor]:
    rank, (out, into) = 2 + number % 2, own.shape[:2]
    if own.ndim == 4 and own.shape[-1] > 1 and number % 2:  # with core tensors
        made = {
            f"hada_w{n}_{s}": draw(generator, rank, d) * 6
            for n in (1, 2)
            for s, d in (("a", out), ("b", into))
        }
        made |= {f"hada_t{n}": draw(generator, rank, rank, *own.shape[2:]) * 6 for n in (1, 2)}
        factors = [
            torch.einsum("io,jn,ijhw->onhw", made[f"hada_w{n}_a"], made[f"hada_w{n}_b"], made[f"hada_t{n}"]) for n in (1, 2)
        ]  # fmt: skip
        return made, factors[0] * factors[1] / rank
    rest = own[0].numel()
    made = {
        f"hada_w{n}_{s}": draw(generator, *d) * 6
        for n in (1, 2)
        for s, d in (("a", (out, rank)), ("b", (rank, rest)))
    }
    change = torch.zeros(out, rest)
    for i in range(rank):
        for j in range(rank):
            first = torch.outer(made["hada_w1_a"][:, i], made["hada_w1_b"][i])
            change += first * torch.outer(made["hada_w2_a"][:, j], made["hada_w2_b"][j])
    return made, change.reshape(own.shape) / rank


def lokr(generator: torch.Generator, own: torch.Tensor, number: int) -> tuple[Tensors, torch.Tensor]:
    (out, into), kernel = own.shape[:2], own.shape[2:]
    a, b = (2 if out % 2 == 0 else 1), (2 if into % 2 == 0 else 1)
    rank = 3
    whole_first, whole_second = number % 2 == 0, number % 3 == 0
    made: Tensors = {}
    if whole_first:
        first = made["lokr_w1"] = draw(generator, a, b) * 6
    else:
        made |= {"lokr_w1_a": draw(generator, a, rank) * 6, "lokr_w1_b": draw(generator, rank, b) * 6}
        first = made["lokr_w1_a"] @ made["lokr_w1_b"]
    if whole_second:
        second = made["lokr_w2"] = draw(generator, out // a, into // b, *kernel)
    elif kernel and kernel[0] > 1 and number % 2:
        made |= {
            "lokr_w2_a": draw(generator, rank, out // a) * 6,
            "lokr_w2_b": draw(generator, rank, into // b) * 6,
        }
        made["lokr_t2"] = draw(generator, rank, rank, *kernel) * 6
        second = torch.einsum("io,jn,ijhw->onhw", made["lokr_w2_a"], made["lokr_w2_b"], made["lokr_t2"])
    else:
        made |= {"lokr_w2_a": draw(generator, out // a, rank) * 6}
        made["lokr_w2_b"] = draw(generator, rank, into // b * int(np.prod(kernel or (1,)))) * 3
        second = (made["lokr_w2_a"] @ made["lokr_w2_b"]).reshape(out // a, into // b, *kernel)
    change = torch.zeros(own.shape)
    for i in range(a):
        for j in range(b):
            block = (
                slice(i * (out // a), (i + 1) * (out // a)),
                slice(j * (into // b), (j + 1) * (into // b)),
            )
            change[block] = first[i, j] * second
    scale = 1.0 if whole_first and whole_second else 1 / rank
    return made, change * scale


def diff(generator: torch.Generator, own: torch.Tensor, number: int) -> tuple[Tensors, torch.Tensor]:
    change = draw(generator, *own.shape)
    return {"diff": change}, change


def with_lengths(make: Any, of_inputs: bool) -> Any:
    def made(generator: torch.Generator, own: torch.Tensor, number: int) -> tuple[Tensors, torch.Tensor]:
        tensors, change = make(generator, own, number)
        whole = own + change * 2.0 if "alpha" in tensors else own + change
        axes = [0, *range(2, own.ndim)] if of_inputs else [*range(1, own.ndim)]
        norm = whole.double().pow(2).sum(dim=axes, keepdim=True).sqrt().float()
        lengths = norm * (1 + 0.3 * torch.rand(norm.shape, generator=generator))
        return {**tensors, "dora_scale": lengths}, whole * lengths / norm - own

    return made


def lora(generator: torch.Generator, own: torch.Tensor, number: int) -> tuple[Tensors, torch.Tensor]:
    tensors = pair(generator, own, 4)
    return tensors, product(tensors, own) / 4


KINDS = {
    "loha": loha, "lokr": lokr, "diff": diff, "dora": with_lengths(lora, False),
    "dora of inputs": with_lengths(lora, True), "loha, dora": with_lengths(loha, False),
}  # fmt: skip
