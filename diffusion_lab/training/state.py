"""Everything one run changes while it trains, in one object: no part of a run lives anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_lab.artefacts import kohya
from diffusion_lab.artefacts.artefact import notes as artefact_notes
from diffusion_lab.models.fingerprints import loaded_fingerprint
from diffusion_lab.models.load import (
    cast_frozen,
    load_pipeline,
    modules,
    resolution_of,
    training_scheduler,
)
from diffusion_lab.records import Batch, Method, ParamGroup, Picture, Subject, UserError
from diffusion_lab.system.environment import neutral
from diffusion_lab.system.modes import eval_mode
from diffusion_lab.system.processes import WAIT
from diffusion_lab.system.rng import RngState, generator, preserved_rng, seeded, stream_seed
from diffusion_lab.training.activations import recompute_activations
from diffusion_lab.training.digest import digest
from diffusion_lab.training.latents import Latents, encode_pictures, encode_text, tokenize
from diffusion_lab.training.meter import Meter, Since
from diffusion_lab.training.optimizers import build_optimizer
from diffusion_lab.training.sampler import EpochSampler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from diffusion_lab.config.schema import Config


@dataclass(slots=True)
class Prior:
    """Pictures of the class and their caption, for prior preservation."""

    latents: Latents
    input_ids: Tensor  # int64 [1, tokens]
    hidden: Tensor | None  # float32 [1, tokens, d]; None where the text encoder trains
    sampler: EpochSampler


@dataclass(slots=True)
class TrainingState:
    """One run. What changes: weights, optimizer, schedule, random streams, sampler, step, meter."""

    pipe: StableDiffusionPipeline
    method: Method
    groups: Sequence[ParamGroup]
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    noise_scheduler: DDPMScheduler
    latents: Latents
    input_ids: Tensor  # int64 [n, tokens], the pictures' captions; [1, tokens] where all have the same
    hidden: Tensor | None  # float32 [n or 1, tokens, d]; None where it trains or nothing is cached
    text_anew: bool  # a frozen text encoder reads the captions at every step: nothing is cached
    sampler: EpochSampler
    prior: Prior | None  # pictures of the class, where the method preserves it
    snr_gamma: float | None
    noise_offset: float
    latent_stream: torch.Generator  # CPU: samples of the posterior, mirroring
    noise_stream: torch.Generator  # CPU: noise and timesteps of the loss
    global_streams: RngState  # Python, NumPy, torch as this run last left them: dropout
    meter: Meter
    total: int  # optimizer steps of the whole run
    identity: dict[str, str] = field(default_factory=dict)  # what must be the same where the run goes on
    since: Since = field(default_factory=Since)
    notes: dict[str, str] = field(default_factory=dict)  # for the artefact's header
    step: int = 0  # optimizer steps done
    kept: tuple[int, Path] | None = None  # the newest checkpoint's step and folder
    load_base: Callable[[], StableDiffusionPipeline] | None = (
        None  # the model anew, as it was before `attach`
    )

    @property
    def device(self) -> torch.device:
        return self.latents.device

    @property
    def processes(self) -> int:
        """How many train together, each on its share of every batch."""
        return int(self.accelerator.num_processes)

    @property
    def trained(self) -> list[nn.Parameter]:
        """All parameters that train, in the order of the groups."""
        return [parameter for group in self.groups for parameter in group.params]

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The networks with something to train in them."""
        return [m for m in modules(self.pipe) if any(p.requires_grad for p in m.parameters())]

    def next_batch(self, size: int) -> Batch:
        """The next `size` pictures, and as many of the class: moves the samplers and the latents' stream.

        Of several processes each draws for all and keeps its share, so that all streams stay the same.
        """
        n_all, before = size * self.processes, size * self.accelerator.process_index
        own = slice(before, before + size)
        numbers = self.sampler.take(n_all)
        latents = self.latents.sample(numbers, self.latent_stream)[own]
        hidden = None if self.hidden is None else _rows(self.hidden, numbers[own])
        input_ids = _rows(self.input_ids, numbers[own])
        if self.prior is not None:
            of_class = self.prior.latents.sample(self.prior.sampler.take(n_all), self.latent_stream)
            latents = torch.cat([latents, of_class[own]])
            input_ids = torch.cat([input_ids, self.prior.input_ids.expand(size, -1)])
            if hidden is not None and self.prior.hidden is not None:
                hidden = torch.cat([hidden, self.prior.hidden.expand(size, -1, -1)])
        if self.text_anew:
            hidden = encode_text(self.pipe, input_ids)
        return Batch(
            latents=latents,
            input_ids=input_ids,
            encoder_hidden_states=hidden,
            noise_scheduler=self.noise_scheduler,
            n_class=0 if self.prior is None else size,
            snr_gamma=self.snr_gamma,
            noise_offset=self.noise_offset,
            progress=self.step / self.total,
            **({} if self.processes == 1 else self._share(own, n_all)),
        )

    def _share(self, own: slice, n_all: int) -> dict[str, Any]:
        """Where this process's pictures stand among all: the subject's come first, then the class's."""
        rows = range(n_all)[own]
        of_class = [] if self.prior is None else [n_all + row for row in rows]
        return {"rows": (*rows, *of_class), "n_all": n_all if self.prior is None else 2 * n_all}

    def save(self, folder: Path, told: Mapping[str, str] | None = None) -> list[Path]:
        """The method's artefact in the ecosystem's format; its header has the notes, the step, and what is `told`."""
        words = {**self.notes, "step": str(self.step), **(told or {})}
        more: dict[str, Any] = {}
        if self.kept is not None and self.kept[0] == self.step and hasattr(self.method, "files"):
            more = {"ready": self.kept[1]}  # this step's checkpoint has the same files
        paths = self.method.save(self.pipe, folder, words, **more)
        lora = folder / kohya.SOURCE_NAME
        return [*paths, *kohya.export(lora, folder / kohya.FILE_NAME)] if lora in paths else paths


def build_state(config: Config, pipe: StableDiffusionPipeline, subject: Subject) -> TrainingState:
    """A run at step 0 on a freshly loaded pipe (float32, frozen), which it changes: adapters, precision.

    The process's random streams are left as they were. UserError where a setting does not fit the model.
    """
    if config.steps.total is None:
        raise ValueError("steps.total is not filled in: see config.fill_defaults")
    device = pipe.device
    prompt = subject.instance_prompt or f"a photo of {subject.identifier} {subject.class_noun}"
    resolution = resolution_of(pipe, config.model)
    accelerator = _accelerator(device, config.model.precision)
    identity = _identity(pipe, subject, accelerator.num_processes)
    with preserved_rng(), eval_mode(*modules(pipe)):
        with accelerator.main_process_first():  # which keeps them for the others
            class_images = _class_pictures(config, pipe, subject, resolution)
        with seeded(stream_seed(config.seed, "weights")):
            groups = config.method.attach(pipe)
        keep = config.memory.cache
        latents = encode_pictures(pipe.vae, subject.train, resolution, flip=config.data.flip, keep=keep)
        text_trains = any(p.requires_grad for p in pipe.text_encoder.parameters())
        text_runs = keep == "off" or text_trains
        input_ids, hidden = _captions(pipe, subject.train, prompt, text_runs)
        prior = _prior(config, pipe, subject, resolution, class_images, text_runs)
        own = f"global {accelerator.process_index}" if accelerator.process_index else "global"
        with seeded(stream_seed(config.seed, own)):  # every process has dropout of its own
            global_streams = RngState.capture()
    text_anew = text_runs and not text_trains
    cast_frozen(
        pipe, config.model.precision, but=[*[pipe.vae] * (keep == "off"), *[pipe.text_encoder] * text_anew]
    )
    recompute_activations(pipe, config.memory)
    scaled = accelerator.scaler is not None
    optimizer = build_optimizer(config.steps.optimizer, groups, device, scaled=scaled)
    lr_scheduler = _lr_scheduler(config, optimizer)  # before accelerate, which keeps the `step` that it finds
    with neutral():
        prepared = accelerator.prepare(optimizer)
    return TrainingState(
        pipe=pipe,
        method=config.method,
        groups=groups,
        accelerator=accelerator,
        optimizer=prepared,
        lr_scheduler=lr_scheduler,
        noise_scheduler=training_scheduler(pipe),
        latents=latents,
        input_ids=input_ids,
        hidden=hidden,
        text_anew=text_anew,
        sampler=EpochSampler(n=len(subject.train), seed=config.seed),
        prior=prior,
        snr_gamma=config.steps.snr_gamma,
        noise_offset=config.steps.noise_offset,
        latent_stream=generator(config.seed, "latents"),
        noise_stream=generator(config.seed, "noise"),
        global_streams=global_streams,
        meter=Meter(device),
        total=config.steps.total,
        identity=identity,
        notes=artefact_notes(config, pipe, subject, prompt),
        load_base=lambda: load_pipeline(config.model, device),
    )


def _identity(pipe: StableDiffusionPipeline, subject: Subject, processes: int) -> dict[str, str]:
    """What a run rests on and does not change, in words for a person: checksums."""
    pictures = [*subject.train, *subject.heldout, *subject.impostors]
    return {
        "the model's weights": loaded_fingerprint(pipe),
        "the subject's pictures": digest([picture.sha256 for picture in pictures]),
        "their captions": digest([picture.caption or "" for picture in subject.train]),
        "the number of processes": str(processes),
    }


def _rows(values: Tensor, numbers: Sequence[int]) -> Tensor:
    """The pictures' own rows, or the one that all of them share."""
    return values.expand(len(numbers), *values.shape[1:]) if len(values) == 1 else values[list(numbers)]


def _captions(
    pipe: StableDiffusionPipeline, pictures: Sequence[Picture], prompt: str, text_runs: bool
) -> tuple[Tensor, Tensor | None]:
    """Tokens and hidden states of the pictures' captions, each text once and by itself.

    By itself so that a picture's numbers do not depend on the others' captions.
    """
    ids: dict[str, Tensor] = {}
    for picture in pictures:
        text = picture.caption or prompt
        if text not in ids:
            where = picture.caption_from or picture.path
            remedy = {"remedy": f"shorten {where}"} if picture.caption else {}
            ids[text] = tokenize(pipe, text, **remedy).to(pipe.device)
    hidden = {} if text_runs else {text: encode_text(pipe, row) for text, row in ids.items()}
    order = list(ids) if len(ids) == 1 else [picture.caption or prompt for picture in pictures]
    states = None if text_runs else torch.cat([hidden[text] for text in order])
    return torch.cat([ids[text] for text in order]), states


def _class_pictures(
    config: Config, pipe: StableDiffusionPipeline, subject: Subject, resolution: int
) -> tuple[Picture, ...]:
    """What the untouched model draws of the class, where the method asks for it."""
    from diffusion_lab.training.class_pictures import class_pictures

    if getattr(config.method, "prior_weight", 0.0) == 0.0:
        return ()
    wanted: int = config.method.prior_images  # type: ignore[attr-defined]
    return class_pictures(
        pipe,
        subject.class_noun,
        wanted,
        config.prompts,
        resolution=resolution,
        seed=config.prompts.noise_seed,
    )


def _prior(
    config: Config,
    pipe: StableDiffusionPipeline,
    subject: Subject,
    resolution: int,
    pictures: Sequence[Picture],
    text_runs: bool,
) -> Prior | None:
    from diffusion_lab.training.class_pictures import class_prompt

    if not pictures:
        return None
    input_ids = tokenize(pipe, class_prompt(subject.class_noun)).to(pipe.device)
    return Prior(
        latents=encode_pictures(
            pipe.vae, pictures, resolution, flip=config.data.flip, keep=config.memory.cache
        ),
        input_ids=input_ids,
        hidden=None if text_runs else encode_text(pipe, input_ids),
        sampler=EpochSampler(n=len(pictures), seed=stream_seed(config.seed, "class") % 2**32),
    )


def _accelerator(device: torch.device, precision: str) -> Accelerator:
    """Accelerate for this device and precision, whatever an earlier run of this process asked for."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    # Accelerate keeps its settings in process-wide singletons, and refuses a second run with others.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    mixed = "no" if precision == "fp32" else precision
    with neutral():  # what is not said here accelerate takes from the environment, and some of what is
        return Accelerator(
            mixed_precision=mixed,
            cpu=device.type == "cpu",
            device_placement=False,
            # The loop divides and counts itself. A plugin, since the environment beats gradient_accumulation_steps=1.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(
                backend="no", mode="default", fullgraph=False, use_regional_compilation=False
            ),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )


def _lr_scheduler(config: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    from diffusers.optimization import get_scheduler

    try:
        scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            config.steps.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=config.steps.lr_warmup,
            num_training_steps=config.steps.total,
        )
        return scheduler
    except ValueError as error:
        raise UserError(f"steps.lr_scheduler={config.steps.lr_scheduler}: {error}") from error
