"""DreamBooth (Ruiz et al. 2022, arXiv:2208.12242): fine-tunes the whole denoiser on the subject.

Prior preservation keeps the model from turning the whole class into the subject: each photo of the subject is
paired with an image of the class that the model generated before training (eq. 2, lambda = `prior_weight`).

With `ema`, a moving average of the weights is maintained (diffusers' EMAModel). The average is evaluated and
saved; it does not affect training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion_lab.families import of
from diffusion_lab.families.batch import Batch
from diffusion_lab.families.small import is_small
from diffusion_lab.methods.freeze import freeze
from diffusion_lab.methods.method import ParamGroup, Traits
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_json, read_tensors
from diffusion_lab.values.checks import bounded, flag

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffusion_lab.families.family import Family, Sizes

RECORD = "dreambooth.json"
UNCHANGED = (
    "unchanged"  # in the record: "true" if the weights are still those of the base model and are not saved
)


@dataclass(kw_only=True, slots=True)
class DreamBooth:
    # Full size: the paper's value for Stable Diffusion, also used in diffusers' example.
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 5e-6)  # miniature, full-size models
    # The miniature's text encoder hardly distinguishes the identifier from no word, so the subject and
    # its class are in conflict.
    prior_weights: ClassVar[tuple[float, float]] = (0.1, 1.0)

    name: str = "dreambooth"
    text_encoder: bool = False
    prior_weight: float | None = None  # lambda; 0: no prior preservation; null: 0.1 or 1, see `prior_weights`
    prior_images: int = 100  # images of the class, generated once and cached
    ema: bool = False  # evaluate and save a moving average of the weights
    ema_decay: float = 0.99  # after diffusers' warm-up, (1 + step) / (10 + step), of a few hundred steps
    learning_rate: float | None = None  # null: 1e-4 on the miniature, 5e-6 on full-size models
    text_encoder_learning_rate: float | None = None  # null: a tenth of the denoiser's
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

    @property
    def traits(self) -> Traits:
        weight = self.prior_weights[1] if self.prior_weight is None else self.prior_weight
        return Traits(
            trains=frozenset({"network"}),
            text_encoder=self.text_encoder,
            class_images=self.prior_images if weight else 0,
            prior_weight=weight,
            average=self.ema,
            starts_unchanged=True,
        )

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Fills in the learning rates and the prior weight; see `Method.fill`."""
        if self.learning_rate is None:
            self.learning_rate = 1.0 if free else self.learning_rates[0 if small else 1]
        if self.prior_weight is None:
            self.prior_weight = self.prior_weights[0 if small else 1]
        if self.text_encoder_learning_rate is None:
            self.text_encoder_learning_rate = 1.0 if free else self.learning_rate / 10

    def trained_numbers(self, sizes: Sizes) -> float:
        """Number of parameters of the denoiser and, if they are trained, of the text encoders."""
        return sizes.parameters[sizes.denoiser] + (sizes.trained_text if self.text_encoder else 0.0)

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Trains the denoiser and optionally the text encoders, in float32; everything else is frozen."""
        freeze(pipe)
        denoiser = self._denoiser(pipe)
        rate = self.learning_rate or self.learning_rates[0 if is_small(denoiser) else 1]
        first, *others = self._parts(pipe)
        groups = [ParamGroup(first, _train(denoiser), rate, self.weight_decay)]
        text_rate = self.text_encoder_learning_rate or rate / 10
        for part in others:
            groups.append(ParamGroup(part, _train(getattr(pipe, part)), text_rate, self.weight_decay))
        if self.ema:
            from diffusers.training_utils import EMAModel

            # Stored on the pipe, like everything else that a run changes: a method holds only settings.
            denoiser.average = EMAModel(self._trained(pipe), decay=self.ema_decay, foreach=True)
        denoiser.as_loaded = [_bits(parameter) for parameter in self._trained(pipe)]
        return groups

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss of the subject's photos plus `prior_weight` times that of the class images."""
        from diffusion_lab.families.losses import batch_loss

        return batch_loss(pipe, batch, generator, self.traits.prior_weight)

    def after_step(self, pipe: Any) -> None:
        """Updates the moving average, if there is one."""
        if self.ema:
            self._denoiser(pipe).average.step(self._trained(pipe))

    @contextmanager
    def evaluating(self, pipe: Any) -> Iterator[None]:
        """Replaces the weights by their average inside the context, if there is one. May be nested."""
        if not self.ema or self._denoiser(pipe).average.temp_stored_params is not None:
            yield
            return
        average, parameters = self._denoiser(pipe).average, self._trained(pipe)
        average.store(parameters)
        try:
            average.copy_to(parameters)
            yield
        finally:
            average.restore(parameters)

    def state_dict(self, pipe: Any) -> dict[str, Any]:
        """What a resumed run needs besides the trained weights: the average and its number of steps."""
        if not self.ema:
            return {}
        average = self._denoiser(pipe).average
        tensors = {f"average.{i}": value for i, value in enumerate(average.shadow_params)}
        return {"optimization_step": average.optimization_step, **tensors}

    def load_state_dict(self, pipe: Any, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned into an attached pipe."""
        if not self.ema:
            return
        average = self._denoiser(pipe).average
        average.optimization_step = int(state["optimization_step"])
        for i, (value, parameter) in enumerate(zip(average.shadow_params, self._trained(pipe), strict=True)):
            value.copy_(state.get(f"average.{i}", parameter.detach()))  # missing: both are the base model's

    def unchanged(self, pipe: Any) -> bool:
        """Whether the weights (and their average, if any) are bit-identical to the base model's."""
        if self.ema and self._denoiser(pipe).average.optimization_step > 0:
            return False
        return all(
            _bits(p) == before
            for p, before in zip(self._trained(pipe), self._denoiser(pipe).as_loaded, strict=True)
        )

    def files(self, pipe: Any) -> dict[str, dict[str, Tensor]]:
        """The tensors (not copies) of each weights file that `save` writes, by path and by tensor name."""
        from diffusion_lab.families.networks import file_name, named_tensors

        found = {}
        average = self._denoiser(pipe).average.shadow_params if self.ema else self._trained(pipe)
        saved = dict(zip(map(id, self._trained(pipe)), average, strict=True))
        for part in self._parts(pipe):
            network = getattr(pipe, part)
            # state_dict() returns new objects that share memory: parameters are identified by their address.
            own = {parameter.data_ptr(): saved[id(parameter)] for parameter in network.parameters()}
            found[f"{part}/{file_name(network)}"] = {
                name: own.get(value.data_ptr(), value).detach()
                for name, value in named_tensors(network).items()
            }
        return found

    def save(
        self,
        pipe: Any,
        folder: Path,
        notes: Mapping[str, str] | None = None,
        ready: Path | None = None,
    ) -> list[Path]:
        """Writes the changed parts to diffusers' folders, such as `unet/`, and the notes as JSON.

        If the weights are still the base model's, only the notes are written, and they say so. `complete`
        adds the rest of the pipeline. Existing parts are replaced as a whole. `ready`: a folder that already
        contains the same `files`, such as the checkpoint of this step; they are hard-linked if the file
        system supports it.
        """
        from diffusion_lab.families.networks import save_network
        from diffusion_lab.system import tensors
        from diffusion_lab.system.atomic import write_json
        from diffusion_lab.system.folders import replace_folder

        notes = {"method": self.name, **(notes or {})}
        if self.unchanged(pipe):
            for name in self._parts(pipe):
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(folder / RECORD, {**notes, UNCHANGED: "true"})
            return [folder / RECORD]
        paths = []
        for path, weights in self.files(pipe).items():
            part, name = path.split("/")
            with replace_folder(folder / part) as beside:
                save_network(getattr(pipe, part), beside, weights=False)
                if ready is None or not (ready / path).is_file():
                    tensors.write(beside / name, weights, {"format": "pt"})
                else:
                    _link(ready / path, beside / name)
            paths.append(folder / path)
        write_json(folder / RECORD, notes)
        return [*paths, folder / RECORD]

    def complete(self, pipe: Any, folder: Path) -> None:
        """Adds the parts that `save` leaves out, so that diffusers' `from_pretrained(folder)` can load it.

        Frozen parts are saved in float32 too: parts are loaded in their saved format, and mixed formats do
        not work together. Nothing is added if the notes describe the unchanged base model.
        """
        import torch

        from diffusion_lab.families.networks import save_pipeline

        if not is_unchanged(folder):
            with self.evaluating(pipe):
                save_pipeline(pipe, folder, dtype=torch.float32)

    def load(self, pipe: Any, folder: Path) -> None:
        """Loads what `save` wrote into an attached pipe; UserError if that is not possible."""
        if is_unchanged(folder):
            if not self.unchanged(pipe):
                raise UserError(
                    f"{folder}: is the unchanged base model; load it into a freshly loaded pipeline"
                )
            return
        for name in self._parts(pipe):
            files = sorted((folder / name).glob("*.safetensors"))
            if not files:
                raise UserError(f"{folder / name} is missing: no such part was saved there")
            weights = {
                key: value for file in files for key, value in read_tensors(file, "the artefact").items()
            }
            try:
                getattr(pipe, name).load_state_dict(weights)
            except RuntimeError as error:
                raise UserError(f"{folder / name}: holds another model's weights ({error})") from error
        if self.ema:
            for value, parameter in zip(
                self._denoiser(pipe).average.shadow_params, self._trained(pipe), strict=True
            ):
                value.copy_(parameter.detach())

    def _trained(self, pipe: Any) -> list[nn.Parameter]:
        return [p for name in self._parts(pipe) for p in getattr(pipe, name).parameters()]

    def _denoiser(self, pipe: Any) -> Any:
        return getattr(pipe, of(pipe).denoiser)

    def _parts(self, pipe: Any) -> tuple[str, ...]:
        family = of(pipe)
        return (family.denoiser, *(family.lora_text_encoders if self.text_encoder else ()))


def notes_of(folder: Path) -> dict[str, str]:
    """The notes that `save` wrote to `folder`."""
    found: dict[str, str] = read_json(folder / RECORD, "the artefact")
    return found


def is_unchanged(folder: Path) -> bool:
    """Whether `folder` contains only notes because nothing differed from the base model they name."""
    return (folder / RECORD).exists() and notes_of(folder).get(UNCHANGED) == "true"


def _bits(parameter: nn.Parameter) -> int:
    """The sum of a float32 tensor's bit patterns: all sums are equal only if no weight has changed."""
    import torch

    return int(parameter.detach().view(torch.int32).sum(dtype=torch.int64))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a different file system, or one without hard links
        shutil.copyfile(source, target)


def _train(module: nn.Module) -> list[nn.Parameter]:
    import torch

    module.requires_grad_(True)
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    # Stable Diffusion 3's position embeddings, if loaded in half precision: the file has a single format.
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.float32)
    return parameters
