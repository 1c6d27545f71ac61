"""The complete state of a training run in one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_lab.artefacts import kohya
from diffusion_lab.artefacts.notes import notes as artefact_notes
from diffusion_lab.data.pictures import framing
from diffusion_lab.families import of
from diffusion_lab.families.batch import Batch
from diffusion_lab.methods.method import Method, ParamGroup, SavesNetworks
from diffusion_lab.models.fingerprints import loaded_fingerprint
from diffusion_lab.models.load import (
    cast_frozen,
    load_pipeline,
    modules,
    resolution_of,
)
from diffusion_lab.records import Picture, Subject, UserError
from diffusion_lab.system.environment import neutral
from diffusion_lab.system.modes import eval_mode
from diffusion_lab.system.rng import RngState, generator, preserved_rng, seeded, stream_seed
from diffusion_lab.training.accelerator import build_accelerator
from diffusion_lab.training.activations import recompute_activations
from diffusion_lab.training.digest import digest
from diffusion_lab.training.latents import Latents, encode_pictures, encode_text, tokenize
from diffusion_lab.training.meter import Meter, Since
from diffusion_lab.training.optimizers import build_optimizer
from diffusion_lab.training.sampler import EpochSampler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from diffusion_lab.config.schema import Config
    from diffusion_lab.families.family import Conditioning, NoiseProcess, Tokens


@dataclass(slots=True)
class Prior:
    """Class images and their caption, for prior preservation."""

    latents: Latents
    tokens: Tokens  # of their caption, one row
    conditioning: Conditioning | None  # one row; None if a text encoder is trained
    extras: Conditioning  # one row per image
    sampler: EpochSampler


@dataclass(slots=True)
class TrainingState:
    """One run. The parts that change: weights, optimizer, schedule, random streams, sampler, step, meter."""

    pipe: Any
    method: Method
    groups: Sequence[ParamGroup]
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    process: NoiseProcess
    latents: Latents
    tokens: Tokens  # the photos' captions, one row each; one row if all are the same
    conditioning: Conditioning | None  # likewise; None if a text encoder is trained or nothing is cached
    extras: Conditioning  # additional conditioning of the denoiser, one row per photo
    text_anew: bool  # whether frozen text encoders encode the captions at every step, without a cache
    sampler: EpochSampler
    prior: Prior | None  # class images, if the method uses prior preservation
    snr_gamma: float | None
    noise_offset: float
    latent_stream: torch.Generator  # CPU: samples of the posterior, mirroring
    noise_stream: torch.Generator  # CPU: noise and timesteps of the loss
    global_streams: RngState  # Python, NumPy and torch, as this run last left them: dropout
    meter: Meter
    total: int  # optimizer steps of the whole run
    identity: dict[str, str] = field(default_factory=dict)  # what must be the same when the run is resumed
    earlier: Mapping[str, frozenset[str]] = field(
        default_factory=dict
    )  # accepted in checkpoints, by `identity`'s name
    since: Since = field(default_factory=Since)
    notes: dict[str, str] = field(default_factory=dict)  # for the artefact's header
    step: int = 0  # optimizer steps done
    kept: tuple[int, Path] | None = None  # the newest checkpoint's step and folder
    load_base: Callable[[], Any] | None = None  # loads the model again, as it was before `attach`

    @property
    def device(self) -> torch.device:
        return self.latents.device

    @property
    def processes(self) -> int:
        """Number of processes that train together, each on its share of every batch."""
        return int(self.accelerator.num_processes)

    @property
    def trained(self) -> list[nn.Parameter]:
        """All trained parameters, in the order of the groups."""
        return [parameter for group in self.groups for parameter in group.params]

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The networks that have trained parameters."""
        return [m for m in modules(self.pipe) if any(p.requires_grad for p in m.parameters())]

    def next_batch(self, size: int) -> Batch:
        """The next `size` photos, and as many class images; advances the samplers and the latents' stream.

        With several processes, each samples for all of them and keeps its share, so that all streams stay in
        sync.
        """
        n_all, before = size * self.processes, size * self.accelerator.process_index
        own = slice(before, before + size)
        numbers = self.sampler.take(n_all)
        latents = self.latents.sample(numbers, self.latent_stream)[own]
        tokens: Tokens = _rows(self.tokens, numbers[own])
        conditioning: Conditioning | None = None
        if self.conditioning is not None:
            conditioning = _rows(self.conditioning, numbers[own])
        extras: Conditioning = _rows(self.extras, numbers[own])
        if self.prior is not None:
            of_class = self.prior.sampler.take(n_all)
            latents = torch.cat([latents, self.prior.latents.sample(of_class, self.latent_stream)[own]])
            tokens = _joined(tokens, _rows(self.prior.tokens, of_class[own]))
            extras = _joined(extras, _rows(self.prior.extras, of_class[own]))
            if conditioning is not None and self.prior.conditioning is not None:
                conditioning = _joined(conditioning, _rows(self.prior.conditioning, of_class[own]))
        if self.text_anew:
            conditioning = encode_text(self.pipe, tokens)
        return Batch(
            latents=latents,
            tokens=tokens,
            conditioning=conditioning,
            extras=extras,
            process=self.process,
            n_class=0 if self.prior is None else size,
            snr_gamma=self.snr_gamma,
            noise_offset=self.noise_offset,
            progress=self.step / self.total,
            **({} if self.processes == 1 else self._share(own, n_all)),
        )

    def _share(self, own: slice, n_all: int) -> dict[str, Any]:
        """Positions of this process's images among all: first the subject's, then the class images."""
        rows = range(n_all)[own]
        of_class = [] if self.prior is None else [n_all + row for row in rows]
        return {"rows": (*rows, *of_class), "n_all": n_all if self.prior is None else 2 * n_all}

    def save(self, folder: Path, told: Mapping[str, str] | None = None) -> list[Path]:
        """Saves the method's artefact in a standard format; its header has the notes, the step and `told`."""
        words = {**self.notes, "step": str(self.step), **(told or {})}
        more: dict[str, Any] = {}
        if self.kept is not None and self.kept[0] == self.step and isinstance(self.method, SavesNetworks):
            more = {"ready": self.kept[1]}  # this step's checkpoint contains the same files
        paths = self.method.save(self.pipe, folder, words, **more)
        lora = folder / kohya.SOURCE_NAME
        return (
            [*paths, *kohya.export(of(self.pipe), lora, folder / kohya.FILE_NAME)] if lora in paths else paths
        )


def build_state(config: Config, pipe: Any, subject: Subject) -> TrainingState:
    """A run at step 0 on a freshly loaded pipe (float32, frozen), which is modified: adapters, precision.

    The process's random streams are left unchanged. UserError if a setting does not fit the model.
    """
    if config.steps.total is None:
        raise ValueError("steps.total is not filled in: see config.fill_defaults")
    device = pipe.device
    prompt = subject.instance_prompt or f"a photo of {subject.identifier} {subject.class_noun}"
    resolution = resolution_of(pipe, config.model)
    family = of(pipe)
    text_encoders = [getattr(pipe, part) for part in family.text_encoders if part in family.networks(pipe)]
    accelerator = build_accelerator(device, config.model.precision)
    identity = _identity(pipe, subject, accelerator.num_processes)
    with preserved_rng(), eval_mode(*modules(pipe)):
        with accelerator.main_process_first():  # the main process fills the cache for the others
            class_images = _class_pictures(config, pipe, subject, resolution)
        with seeded(stream_seed(config.seed, "weights")):
            groups = config.method.attach(pipe)
        keep = config.memory.cache
        latents = encode_pictures(pipe, subject.train, resolution, flip=config.data.flip, keep=keep)
        text_trains = any(p.requires_grad for encoder in text_encoders for p in encoder.parameters())
        text_runs = keep == "off" or text_trains
        tokens, conditioning = _captions(pipe, subject.train, prompt, text_runs)
        extras = _extras(pipe, subject.train, resolution)
        prior = _prior(config, pipe, subject, resolution, class_images, text_runs)
        own = f"global {accelerator.process_index}" if accelerator.process_index else "global"
        with seeded(stream_seed(config.seed, own)):  # each process has its own dropout
            global_streams = RngState.capture()
    text_anew = text_runs and not text_trains
    cast_frozen(
        pipe,
        config.model.precision,
        but=[*[pipe.vae] * (keep == "off"), *(text_encoders if text_anew else ())],
    )
    recompute_activations(pipe, config.memory)
    scaled = accelerator.scaler is not None
    optimizer = build_optimizer(config.steps.optimizer, groups, device, scaled=scaled)
    # Before accelerate, which stores the `step` method that it finds.
    lr_scheduler = _lr_scheduler(config, optimizer)
    with neutral():
        prepared = accelerator.prepare(optimizer)
    return TrainingState(
        pipe=pipe,
        method=config.method,
        groups=groups,
        accelerator=accelerator,
        optimizer=prepared,
        lr_scheduler=lr_scheduler,
        process=family.process(pipe, (resolution, resolution)),
        latents=latents,
        tokens=tokens,
        conditioning=conditioning,
        extras=extras,
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


def _identity(pipe: Any, subject: Subject, processes: int) -> dict[str, str]:
    """Descriptions and checksums of what a run depends on and does not change."""
    pictures = [*subject.train, *subject.heldout, *subject.impostors]
    return {
        "the model's weights": loaded_fingerprint(pipe),
        "the subject's pictures": digest([picture.sha256 for picture in pictures]),
        "their captions": digest([picture.caption or "" for picture in subject.train]),
        "the number of processes": str(processes),
    }


def _rows(values: Mapping[str, Tensor], numbers: Sequence[int]) -> dict[str, Tensor]:
    """The rows of the given photos, or the one that all of them share."""
    return {
        name: value.expand(len(numbers), *value.shape[1:]) if len(value) == 1 else value[list(numbers)]
        for name, value in values.items()
    }


def _joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


def _extras(pipe: Any, pictures: Sequence[Picture], resolution: int) -> Conditioning:
    """Additional conditioning of the denoiser, one row per photo."""
    return of(pipe).training_extras(pipe, [framing(picture.pixels, resolution) for picture in pictures])


def _captions(
    pipe: Any, pictures: Sequence[Picture], prompt: str, text_runs: bool
) -> tuple[Tokens, Conditioning | None]:
    """Tokens and conditioning of the photos' captions, each text encoded once and on its own.

    On its own, so that a photo's values do not depend on the other captions.
    """
    tokens: dict[str, Tokens] = {}
    for picture in pictures:
        text = picture.caption or prompt
        if text not in tokens:
            where = picture.caption_from or picture.path
            remedy = {"remedy": f"shorten {where}"} if picture.caption else {}
            found = tokenize(pipe, text, **remedy)
            tokens[text] = {name: ids.to(pipe.device) for name, ids in found.items()}
    conditioning = {} if text_runs else {text: encode_text(pipe, row) for text, row in tokens.items()}
    order = list(tokens) if len(tokens) == 1 else [picture.caption or prompt for picture in pictures]
    states = None if text_runs else _stacked([conditioning[text] for text in order])
    return _stacked([tokens[text] for text in order]), states


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _class_pictures(config: Config, pipe: Any, subject: Subject, resolution: int) -> tuple[Picture, ...]:
    """Class images generated by the base model, if the method uses them."""
    from diffusion_lab.training.class_pictures import class_pictures

    wanted = config.method.traits.class_images
    if not wanted:
        return ()
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
    pipe: Any,
    subject: Subject,
    resolution: int,
    pictures: Sequence[Picture],
    text_runs: bool,
) -> Prior | None:
    from diffusion_lab.training.class_pictures import class_prompt

    if not pictures:
        return None
    tokens = tokenize(pipe, class_prompt(subject.class_noun))
    tokens = {name: ids.to(pipe.device) for name, ids in tokens.items()}
    return Prior(
        latents=encode_pictures(pipe, pictures, resolution, flip=config.data.flip, keep=config.memory.cache),
        tokens=tokens,
        conditioning=None if text_runs else encode_text(pipe, tokens),
        extras=_extras(pipe, pictures, resolution),
        sampler=EpochSampler(n=len(pictures), seed=stream_seed(config.seed, "class") % 2**32),
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
