"""Maps each layer of a LoRA file to a layer of the pipeline; the file is rejected if one has no match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import changes, peft_settings
from diffusion_lab.artefacts.adapter_file import Layer, for_family, spelling, text_width
from diffusion_lab.artefacts.made_for import CROSS, OTHER_FILE, REMEDY, no_fit, other_width
from diffusion_lab.families import of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import Header, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Change:
    """A layer of the file together with the layer of the pipeline that it changes."""

    part: str
    name: str  # of the module
    module: Any  # linear or convolution, without adapter wrappers
    tensors: dict[str, Tensor]  # with alpha, if the file or its header contains one
    stabilised: bool
    is_plain: bool


def read_changes(path: Path, header: Header, pipe: Any, where: str) -> list[Change]:
    """All layers of the file with their layers of the pipeline.

    UserError if one has no match or another size.
    """
    family = of(pipe)
    found = for_family(header, family, where)
    width = text_width(header, found)
    ours = getattr(pipe, family.denoiser).config.get("cross_attention_dim")
    if width is not None and isinstance(ours, int) and width != ours:
        raise other_width(where, CROSS, width, ours)
    for layer in found:
        if getattr(pipe, layer.part) is None:
            key = next(iter(layer.keys.values()))
            raise no_fit(where, f"it changes the {layer.part} ({key}), which this model lacks")
    places = {part: _modules(getattr(pipe, part)) for part in {layer.part for layer in found}}
    _check_places(found, {part: frozenset(places[part]) for part in places}, where)
    settings = peft_settings.read(header, where)
    tensors = read_tensors(path, where, name="the file")
    made = []
    for layer in found:
        name, module = places[layer.part][spelling(layer.name)]
        own = {role: tensors[key] for role, key in layer.keys.items()}
        if settings.get(f"{layer.part}.use_dora") and not changes.LENGTHS & set(own):
            raise UserError(f"{where}: is a DoRA, and the layer {layer.name} lacks its lengths; {OTHER_FILE}")
        stabilised = peft_settings.add_alpha(own, settings, layer.part, name)
        is_plain = layer.is_plain
        if layer.together:
            modules = {one: places[layer.part][spelling(one)][1] for one in layer.together}
            try:
                own = _taken_apart(own, layer, modules)
            except changes.Misfit as error:
                raise no_fit(
                    where, f"{layer.part}.{name}, of {next(iter(layer.keys.values()))}: {error}"
                ) from error
            if _has_scale_first(getattr(pipe, layer.part), name):
                own = changes.swapped(own)
        made.append(Change(layer.part, name, module, own, stabilised, is_plain))
    return made


def _taken_apart(tensors: dict[str, Tensor], layer: Layer, modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """The rows of the original code's matrix that belong to this layer."""
    sizes = {name: _outputs(module) for name, module in modules.items()}
    before = layer.together[: layer.together.index(layer.name)]
    start = sum(sizes[name] for name in before)
    return changes.rows(tensors, start, start + sizes[layer.name], sum(sizes.values()))


def _has_scale_first(network: nn.Module, name: str) -> bool:
    """Whether the layer's rows are scale and shift, which the original code stores in the opposite order."""
    from diffusers.models.normalization import AdaLayerNormContinuous

    return isinstance(network.get_submodule(name.rpartition(".")[0]), AdaLayerNormContinuous)


def check_names(found: list[Layer], names: Mapping[str, Iterable[str]], where: str) -> None:
    """UserError if the file has layers that the model lacks.

    `names`: the model's by network; empty if unknown.
    """
    _check_places(
        found, {part: frozenset(map(spelling, names[part])) for part in names if names[part]}, where
    )


def check_sizes(
    found: Sequence[Layer], header: Header, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], where: str
) -> None:
    """UserError if a pair's size differs from its layer's.

    `shapes`: of the model's weights, by network and name.

    Checks separate linear layers only; the others are checked when they are read.
    """
    known = {(part, spelling(name)): shape for part in shapes for name, shape in shapes[part].items()}
    for layer in found:
        ours = known.get((layer.part, spelling(layer.name)), ())
        up, down = (header.shapes[layer.keys[role]] if role in layer.keys else () for role in ("up", "down"))
        if len(ours) != 2 or len(up) != 2 or len(down) != 2 or len(layer.together) > 1:
            continue
        if (up[0], down[1]) != ours:
            raise no_fit(
                where,
                f"{layer.keys['up']} and its pair change a layer of {[up[0], down[1]]}, and this model's is {list(ours)}",
            )


def _check_places(found: list[Layer], keys: Mapping[str, frozenset[str]], where: str) -> None:
    homeless = [
        layer for layer in found if layer.part in keys and spelling(layer.name) not in keys[layer.part]
    ]
    if not homeless:
        return
    first = homeless[0]
    told = f"such as {first.name} of the {first.part}"
    if len(homeless) == len(found):
        raise UserError(
            f"{where}: none of its {len(found)} layers is in this model, {told}: it is for another architecture, or "
            f"its tool names layers in a way that is not known here; convert it to kohya's or diffusers' names, or {REMEDY}"
        )
    raise no_fit(where, f"{len(homeless)} of its {len(found)} layers are not in this model, {told}")


def _modules(network: nn.Module) -> dict[str, tuple[str, Any]]:
    """Name with underscores -> name and module of every linear layer and convolution, unwrapped."""
    from torch import nn

    found: dict[str, tuple[str, Any]] = {}
    for name, module in network.named_modules():
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if isinstance(base, nn.Linear | nn.Conv2d) and "base_layer" not in name and ".lora_" not in name:
            found[spelling(name)] = (name, base)
    return found


def _outputs(module: Any) -> int:
    """Number of outputs of a linear layer or a convolution; a 4-bit layer's weight has another shape."""
    return int(getattr(module, "out_features", None) or module.out_channels)
