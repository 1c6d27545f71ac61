"""DreamBooth (Ruiz et al. 2022, arXiv:2208.12242): the whole U-Net learns the subject.

Prior preservation keeps the class from becoming the subject: beside every picture of the subject the model sees
one of the class that it drew itself before training (eq. 2, lambda = `prior_weight`).

With `ema` a moving average of the weights is kept beside them (diffusers' EMAModel): it is what is evaluated and
saved, and the training itself never sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion_lab.checks import bounded, flag
from diffusion_lab.interfaces import Batch, ParamGroup, UserError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn

SMALL_UNET = 100_000_000  # parameters; below, a model is taken for a miniature and learns at its rate


@dataclass(kw_only=True, slots=True)
class DreamBooth:
    # Full size: the paper's for Stable Diffusion, and that of diffusers' example.
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 5e-6)  # miniature, full-size models
    # The miniature's text tower hardly tells the identifier from nothing, so that subject and class are at odds.
    prior_weights: ClassVar[tuple[float, float]] = (0.1, 1.0)

    name: str = "dreambooth"
    text_encoder: bool = False
    prior_weight: float | None = None  # lambda; 0: no prior preservation; null: 0.1 or 1, see `prior_weights`
    prior_images: int = 100  # pictures of the class, drawn once and kept
    ema: bool = False  # evaluate and save a moving average of the weights
    ema_decay: float = 0.99  # after some hundred steps; before, diffusers' warm-up: (1 + step) / (10 + step)
    learning_rate: float | None = None  # null: 1e-4 on the miniature, 5e-6 on full-size models
    text_encoder_learning_rate: float | None = None  # null: a tenth of the U-Net's
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        flag("method.text_encoder", self.text_encoder)
        flag("method.ema", self.ema)
        bounded("method.ema_decay", self.ema_decay)
        if self.prior_weight is not None:
            bounded("method.prior_weight", self.prior_weight)
        bounded("method.prior_images", self.prior_images)
        for key in ("learning_rate", "text_encoder_learning_rate"):
            if getattr(self, key) is not None:
                bounded(f"method.{key}", getattr(self, key))
        bounded("method.weight_decay", self.weight_decay)

    def attach(self, pipe: StableDiffusionPipeline) -> list[ParamGroup]:
        """The U-Net, and where asked the text encoder, train in float32; everything else is frozen."""
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False)
        small, full = self.learning_rates
        parameters = sum(p.numel() for p in pipe.unet.parameters())
        rate = self.learning_rate or (small if parameters < SMALL_UNET else full)
        groups = [ParamGroup("unet", _train(pipe.unet), rate, self.weight_decay)]
        if self.text_encoder:
            text_rate = self.text_encoder_learning_rate or rate / 10
            groups.append(ParamGroup("text_encoder", _train(pipe.text_encoder), text_rate, self.weight_decay))
        if self.ema:
            from diffusers.training_utils import EMAModel

            # On the pipe, where everything else is that a run changes: a method has settings only.
            pipe.unet.average = EMAModel(self._trained(pipe), decay=self.ema_decay, foreach=True)
        return groups

    def loss(self, pipe: StableDiffusionPipeline, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of the subject's pictures plus `prior_weight` times that of the class's."""
        from diffusion_lab.training.losses import batch_loss

        full = self.prior_weights[1]
        return batch_loss(pipe, batch, generator, full if self.prior_weight is None else self.prior_weight)

    def after_step(self, pipe: StableDiffusionPipeline) -> None:
        """Moves the average, where there is one."""
        if self.ema:
            pipe.unet.average.step(self._trained(pipe))

    @contextmanager
    def evaluating(self, pipe: StableDiffusionPipeline) -> Iterator[None]:
        """The average stands in the weights' place inside, where there is one. May be nested."""
        if not self.ema or pipe.unet.average.temp_stored_params is not None:
            yield
            return
        average, parameters = pipe.unet.average, self._trained(pipe)
        average.store(parameters)
        try:
            average.copy_to(parameters)
            yield
        finally:
            average.restore(parameters)

    def state_dict(self, pipe: StableDiffusionPipeline) -> dict[str, Any]:
        """What a resumed run needs beside the trained weights: the average and its number of steps."""
        if not self.ema:
            return {}
        average = pipe.unet.average
        tensors = {f"average.{i}": value for i, value in enumerate(average.shadow_params)}
        return {"optimization_step": average.optimization_step, **tensors}

    def load_state_dict(self, pipe: StableDiffusionPipeline, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, into an attached pipe."""
        if not self.ema:
            return
        average = pipe.unet.average
        average.optimization_step = int(state["optimization_step"])
        for i, value in enumerate(average.shadow_params):
            value.copy_(state[f"average.{i}"])

    def save(
        self, pipe: StableDiffusionPipeline, folder: Path, notes: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Writes what has changed, in diffusers' folders: `unet/`, `text_encoder/`, and the notes as JSON.

        `complete` adds the rest of the pipeline. Parts are replaced whole.
        """
        from diffusion_lab.models.load import quiet_loading
        from diffusion_lab.tracking.atomic import replace_folder, write_json

        paths = []
        for name in self._parts():
            with self.evaluating(pipe), quiet_loading(), replace_folder(folder / name) as beside:
                getattr(pipe, name).save_pretrained(beside, safe_serialization=True)
            paths += sorted((folder / name).glob("*.safetensors"))
        write_json(folder / "dreambooth.json", {"method": self.name, **(notes or {})})
        return [*paths, folder / "dreambooth.json"]

    def complete(self, pipe: StableDiffusionPipeline, folder: Path) -> None:
        """Writes the whole pipeline: plain diffusers reads it with `from_pretrained(folder)`.

        In float32, frozen parts too: read back as they are saved, parts of two formats do not work together.
        """
        from diffusion_lab.models.load import modules, quiet_loading

        halved = [
            (parameter, parameter.dtype)
            for module in modules(pipe)
            for parameter in module.parameters()
            if parameter.is_floating_point()
        ]
        try:
            for parameter, _ in halved:
                parameter.data = parameter.data.float()
            with quiet_loading():
                pipe.save_pretrained(folder, safe_serialization=True)
        finally:
            for parameter, dtype in halved:
                parameter.data = parameter.data.to(dtype)

    def load(self, pipe: StableDiffusionPipeline, folder: Path) -> None:
        """Reads what `save` wrote into an attached pipe; else UserError."""
        from safetensors.torch import load_file

        for name in self._parts():
            files = sorted((folder / name).glob("*.safetensors"))
            if not files:
                raise UserError(f"{folder / name} is missing: no such part was saved there")
            weights = {key: value for file in files for key, value in load_file(file).items()}
            try:
                getattr(pipe, name).load_state_dict(weights)
            except RuntimeError as error:
                raise UserError(f"{folder / name}: holds another model's weights ({error})") from error
        if self.ema:
            for value, parameter in zip(pipe.unet.average.shadow_params, self._trained(pipe), strict=True):
                value.copy_(parameter.detach())

    def _trained(self, pipe: StableDiffusionPipeline) -> list[nn.Parameter]:
        return [p for name in self._parts() for p in getattr(pipe, name).parameters()]

    def _parts(self) -> tuple[str, ...]:
        return ("unet", "text_encoder") if self.text_encoder else ("unet",)


def notes_of(folder: Path) -> dict[str, str]:
    """What `save` noted in `folder`."""
    found: dict[str, str] = json.loads((folder / "dreambooth.json").read_text("utf-8"))
    return found


def _train(module: nn.Module) -> list[nn.Parameter]:
    import torch

    module.requires_grad_(True)
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    return parameters
