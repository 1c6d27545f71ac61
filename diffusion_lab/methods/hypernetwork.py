"""Hypernetworks as in AUTOMATIC1111's web UI: small residual networks before the keys and values.

For each context width d there are two networks, one before the keys and one before the values,

    context + f(context),   f = Linear(d, 2 d), Linear(2 d, d) for `layers` 1, 2, 1,

shared by all attention layers whose context has width d. The width of the text embeddings is used for the
cross-attention; with `self_attention`, the U-Net's own widths get a pair each as well (in the web UI: 320,
640 and 1280 in addition to 768). The last layer is initialised to zero, so the model is unchanged at step 0;
in the web UI it is initialised like the others.

The tensor names in `hypernetwork.safetensors` follow the nesting of the web UI's file:

    {width}.{0: keys, 1: values}.linear.{index}.{weight, bias}

where `index` also counts activations, layer norms and dropouts. The header contains the settings under the
web UI's names (JSON values), so `{int(width): (keys' state dict, values' state dict), **settings}` is the web
UI's `.pt` file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffusion_lab.families.batch import Batch
from diffusion_lab.families.small import is_small
from diffusion_lab.methods.freeze import freeze
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_tensors
from diffusion_lab.values.bounds import MOST_LAYERS
from diffusion_lab.values.checks import bounded, flag, one_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffusion_lab.families.family import Family, Sizes

FILE_NAME = "hypernetwork.safetensors"
ACTIVATIONS = {  # the web UI's name -> torch class
    "linear": "", "relu": "ReLU", "leakyrelu": "LeakyReLU", "elu": "ELU", "swish": "Hardswish",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "GELU", "mish": "Mish", "softsign": "Softsign",
}  # fmt: skip
INITS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")  # the web UI's names


@dataclass(kw_only=True, slots=True)
class Hypernetwork:
    # Full size: guides for the web UI start from 5e-6 at batch size 1 and 10,000 or more steps. Ours is
    # initialised to zero and trains for a tenth of the steps.
    learning_rates: ClassVar[tuple[float, float]] = (3e-4, 5e-5)  # miniature, full-size models

    name: str = "hypernetwork"
    layers: list[float] = field(default_factory=lambda: [1.0, 2.0, 1.0])  # multiples of the context width
    activation: str = "linear"  # linear, relu, leakyrelu, elu, swish, tanh, sigmoid, gelu, mish, softsign
    activate_output: bool = False  # also apply the activation after the last layer
    layer_norm: bool = False  # after each layer
    dropout: float = 0.0  # after each layer except the last
    init: str = (
        "Normal"  # Normal, XavierUniform, XavierNormal, KaimingUniform, KaimingNormal; the last layer is zero
    )
    self_attention: bool = False  # also before the keys and values of the self-attention
    learning_rate: float | None = None  # null: 3e-4 on the miniature, 5e-5 on full-size models
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if len(self.layers) > MOST_LAYERS:
            raise UserError(f"method.layers: has {len(self.layers)} widths; at most {MOST_LAYERS}")
        for width in self.layers:
            bounded("method.layers", width)
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            raise UserError(
                f"method.layers={self.layers}: must begin and end with 1, such as method.layers=[1,2,1]"
            )
        one_of("method.activation", self.activation, ACTIVATIONS)
        one_of("method.init", self.init, INITS)
        for key in ("activate_output", "layer_norm", "self_attention"):
            flag(f"method.{key}", getattr(self, key))
        bounded("method.dropout", self.dropout)
        if self.learning_rate is not None:
            bounded("method.learning_rate", self.learning_rate)
        bounded("method.weight_decay", self.weight_decay)

    @property
    def traits(self) -> Traits:
        # sigmoid(0) = 0.5; a layer norm comes after the activation, and its weights are zero
        shifted = self.activation == "sigmoid" and self.activate_output and not self.layer_norm
        return Traits(trains=frozenset({"hypernetwork"}), starts_unchanged=not shifted)

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Fills in the learning rate; see `Method.fill`."""
        if self.learning_rate is None:
            self.learning_rate = 1.0 if free else self.learning_rates[0 if small else 1]

    def trained_numbers(self, sizes: Sizes) -> float:
        """Size of the two networks (keys and values) for the text embedding width."""
        widths = [float(share) * sizes.context_width for share in self.layers]
        return 2 * sum(first * second for first, second in itertools.pairwise(widths))

    def attach(self, pipe: Any, strength: float = 1.0) -> list[ParamGroup]:
        """Adds `hypernetwork` to the U-Net in float32; everything else is frozen. `strength` multiplies f.

        Weights are drawn from torch's global generator, in ascending order of width, keys before values.
        """
        from torch import nn

        freeze(pipe)
        rate = self.learning_rate or self.learning_rates[0 if is_small(pipe.unet) else 1]
        places = _places(pipe.unet, self.self_attention)
        device = pipe.unet.device
        networks = nn.ModuleDict(
            {
                str(width): nn.ModuleList([self._network(width), self._network(width)])
                for width in sorted({width for width, _ in places})
            }
        ).to(device)
        pipe.unet.add_module("hypernetwork", networks)
        for width, attention in places:
            pair: Any = networks[str(width)]
            for network, layer in zip(pair, (attention.to_k, attention.to_v), strict=True):
                layer.register_forward_pre_hook(_residual(network, strength))
        pipe.unet.train(pipe.unet.training)  # new layers are created in training mode, with dropout enabled
        return [ParamGroup("hypernetwork", list(networks.parameters()), rate, self.weight_decay)]

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of one micro-batch, float32 scalar."""
        from diffusion_lab.families.losses import batch_loss

        return batch_loss(pipe, batch, generator)

    def after_step(self, pipe: Any) -> None:
        """Nothing to do."""

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes `hypernetwork.safetensors` atomically, with `notes` in its header."""
        from diffusion_lab.system import tensors

        unet: Any = pipe.unet
        header = {
            "format": "pt",
            "method": self.name,
            **{key: json.dumps(value) for key, value in self._settings().items()},
            **(notes or {}),
        }
        tensors.write(folder / FILE_NAME, unet.hypernetwork.state_dict(), header)
        return [folder / FILE_NAME]

    def load(self, pipe: Any, folder: Path) -> None:
        """Loads what `save` wrote into a pipe attached with the same settings; UserError if they differ."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"{path} is missing: no hypernetwork was saved there")
        saved = from_file(path)
        for key in ("layers", "activation", "activate_output", "layer_norm", "self_attention"):
            theirs, ours = getattr(saved, key), getattr(self, key)
            if theirs != ours:
                raise UserError(f"{path}: saved with method.{key}={theirs}, this run has {ours}")
        unet: Any = pipe.unet
        try:
            unet.hypernetwork.load_state_dict(read_tensors(path, "the artefact"))
        except RuntimeError as error:
            raise UserError(f"{path}: made for another model ({error})") from error

    def _settings(self) -> dict[str, Any]:
        """Settings under the names of the web UI's file, and those that it has no name for."""
        n = len(self.layers)
        return {
            "layer_structure": self.layers,
            "activation_func": self.activation,
            "is_layer_norm": self.layer_norm,
            "weight_initialization": self.init,
            "use_dropout": self.dropout > 0,
            "dropout_structure": [0.0, *[self.dropout] * (n - 2), 0.0],
            "activate_output": self.activate_output,
            "last_layer_dropout": self.dropout > 0,  # web UI: of the second-to-last layer
            "self_attention": self.self_attention,
        }

    def _network(self, width: int) -> nn.Module:
        """The network f for one context width: [..., width] -> [..., width], initially zero."""
        from collections import OrderedDict

        from torch import nn

        linear = nn.Sequential()
        for i, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            last = i == len(self.layers) - 2
            linear.append(self._start(nn.Linear(int(width * before), int(width * after))))
            if self.activation != "linear" and (self.activate_output or not last):
                linear.append(getattr(nn, ACTIVATIONS[self.activation])())
            if self.layer_norm:
                linear.append(nn.LayerNorm(int(width * after)))
            if self.dropout and not last:
                linear.append(nn.Dropout(self.dropout))
        final: Any = [layer for layer in linear if isinstance(layer, nn.Linear | nn.LayerNorm)][-1]
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        return nn.Sequential(OrderedDict(linear=linear))

    def _start(self, layer: nn.Linear) -> nn.Linear:
        from torch import nn

        slope: Literal["leaky_relu", "relu"] = "leaky_relu" if self.activation == "leakyrelu" else "relu"
        if self.init == "Normal":
            nn.init.normal_(layer.weight, std=0.01)
        elif self.init.startswith("Kaiming"):
            draw = nn.init.kaiming_uniform_ if self.init == "KaimingUniform" else nn.init.kaiming_normal_
            draw(layer.weight, nonlinearity=slope)
        else:
            (nn.init.xavier_uniform_ if self.init == "XavierUniform" else nn.init.xavier_normal_)(
                layer.weight
            )
        nn.init.zeros_(layer.bias)
        return layer


def from_file(path: Path) -> Hypernetwork:
    """The settings in a file's header: `from_file(path).attach(pipe)` adds networks that fit its weights."""
    header = read_header(path, "the artefact").metadata
    try:
        found = {
            key: json.loads(header[key]) for key in ("layer_structure", "activation_func", "activate_output")
        }
        return Hypernetwork(
            layers=found["layer_structure"],
            activation=found["activation_func"],
            activate_output=found["activate_output"],
            layer_norm=json.loads(header["is_layer_norm"]),
            init=json.loads(header["weight_initialization"]),
            dropout=max(json.loads(header["dropout_structure"])),
            self_attention=json.loads(header["self_attention"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not a hypernetwork that this program saved ({error})") from error


def _places(unet: nn.Module, self_attention: bool) -> list[tuple[int, Any]]:
    """Pairs of context width and attention layer, in the U-Net's order."""
    from diffusers.models.attention_processor import Attention

    found = []
    for module in unet.modules():
        if isinstance(module, Attention) and (module.is_cross_attention or self_attention):
            layer: Any = module
            found.append((int(layer.to_k.in_features), layer))
    if not found:
        raise UserError("model.path: the U-Net has no cross-attention for method=hypernetwork to work on")
    return found


def _residual(network: nn.Module, strength: float) -> Any:
    """A forward pre-hook: context -> context + strength f(context), with f always computed in float32."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context, *rest = inputs
        weight = next(network.parameters())
        change = strength * network(context.to(weight.dtype))
        return (context + change.to(context.dtype), *rest)

    return hook
