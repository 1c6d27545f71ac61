"""The schema of the configuration: one dataclass per group (method, job); the program receives its instances.

Values are validated on creation (`__post_init__`), with errors in terms of the command line: an invalid value
raises `UserError` with its key. Importing this module imports neither torch nor hydra; the
files under `conf/` are composed in `cli/compose.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.jobs import Finetune
from diffusion_lab.config.schedule import number_of_evaluations
from diffusion_lab.config.wandb_names import check_names
from diffusion_lab.families import FAMILIES
from diffusion_lab.methods.lora import Lora
from diffusion_lab.records import UserError
from diffusion_lab.values.bounds import MOST_EVALUATIONS, MOST_IMAGES, NARROWEST
from diffusion_lab.values.checks import bounded, closest, flag, one_of, text, text_list

if TYPE_CHECKING:
    from diffusion_lab.config.jobs import Job
    from diffusion_lab.methods.method import Method

    AnyMethod = Method  # the interface of a method; each method defines its own fields
    AnyJob = Job  # common to all jobs; `jobs.as_job` gives access to a job's own keys
else:
    AnyMethod = AnyJob = Any  # OmegaConf keeps the type of the default dataclass

CAPTIONS = ("auto", "always", "never")
LR_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
)  # fmt: skip
RESUME = ("auto", "never", "must")
KEPT_ADAPTERS = ("auto", "all", "best")
STOPS = ("total", "auto")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


@dataclass(kw_only=True, slots=True)
class Model:
    path: str = "miniature"  # or miniature_v, a diffusers folder, a hub id, or one .safetensors checkpoint
    family: str | None = None  # sd, sdxl, sd3, flux; null: according to the model's model_index.json, else sd
    config: str | None = None  # of a single file: folder or hub id with its configs; weights unused
    revision: str | None = None
    variant: str | None = None
    resolution: int | None = None  # pixels; null: the model's own
    device: str = "auto"  # auto, cpu, cuda, mps
    # of the forward pass: auto (best for the device), fp32, bf16, fp16; trained weights: fp32
    precision: str = "fp32"
    quantise: str | None = None  # nf4: the frozen denoiser in 4 bits, with bitsandbytes; requires a CUDA GPU
    allow_pickle: bool = False  # also load .bin weights; only from trusted sources
    local_files_only: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError(
                "model.path is missing: model=folder model.path=FOLDER, or a hub id such as owner/name"
            )
        if self.family is not None:
            one_of("model.family", self.family, FAMILIES)
        if self.config is not None:
            text("model.config", self.config)
        if self.resolution is not None:
            bounded("model.resolution", self.resolution)
            if self.resolution % 8:
                raise UserError(f"model.resolution={self.resolution}: must be a multiple of 8 pixels")
        kind, _, index = self.device.partition(":")
        if not (kind == "cuda" and index.isdigit()):
            one_of("model.device", self.device, ("auto", "cpu", "cuda", "mps"))
        one_of("model.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.quantise is not None:
            one_of("model.quantise", self.quantise, ("nf4",))
        flag("model.allow_pickle", self.allow_pickle)
        flag("model.local_files_only", self.local_files_only)


@dataclass(kw_only=True, slots=True)
class Data:
    source: str = "miniature"  # miniature, folder
    subject: str = "anna"  # a miniature subject, or a name for the folder's ("": the folder's own)
    folder: str | None = None  # folder: where the photos are
    class_noun: str | None = None  # "dog"; defined by the miniature for its subjects
    identifier: str = "customcls"
    n_images: int = 14
    n_heldout: int | None = None  # null: 8, or a fifth of a smaller folder, at least 1
    subset_seed: int = 0  # determines the nested order, together with the subject's name
    impostors: str | None = None  # a folder with a folder of photos for each other subject
    on_corrupt: str = "error"  # error, skip
    captions: str = "auto"  # auto (captions next to the photos, else the instance prompt), always, never
    flip: bool = False  # random horizontal flips; off for faces

    def __post_init__(self) -> None:
        one_of("data.source", self.source, ("miniature", "folder"))
        text("data.identifier", self.identifier)
        bounded("data.n_images", self.n_images)
        if self.n_heldout is not None:
            bounded("data.n_heldout", self.n_heldout)
        bounded("data.subset_seed", self.subset_seed)
        one_of("data.on_corrupt", self.on_corrupt, ("error", "skip"))
        one_of("data.captions", self.captions, CAPTIONS)
        flag("data.flip", self.flip)
        if self.source == "folder":
            if not self.folder:
                raise UserError(
                    "data.folder is missing: data=folder data.folder=PICTURES data.class_noun=dog"
                )
        else:
            text("data.subject", self.subject)
            if self.captions == "always":
                raise UserError(
                    "data.captions=always: the miniature's people have no captions; use data=folder"
                )
            if self.folder is not None:
                raise UserError(f"data.folder={self.folder}: is read only with data=folder; add data=folder")


@dataclass(kw_only=True, slots=True)
class Steps:
    total: int | None = None  # optimizer steps; null: 300 for the miniature, else 100 * n_images
    every: int | None = None  # steps between evaluations; null: total / 6, at least 1
    batch_size: int = 4  # photos per micro-batch and process
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0  # 0: no clipping
    optimizer: str = "adamw"  # adamw, adamw8bit (bitsandbytes), prodigy (estimates the learning rate itself)
    lr_scheduler: str = "constant"  # a name of diffusers.optimization.SchedulerType
    lr_warmup: int = 0
    snr_gamma: float | None = None  # Min-SNR weighting, 5 in the paper; null: none
    noise_offset: float = 0.0  # 0.05 to 0.1 lets a model learn very dark and very bright images
    log_every: int = 10
    checkpoint_every: int | None = None  # steps between checkpoints; null: at every evaluation; 0: none
    keep_checkpoints: int = 2  # number of latest checkpoints to keep, in addition to the best one
    # all, best (and the last), auto: best if whole networks are trained, else all
    keep_adapters: str = "auto"
    # total, auto: end earlier, once the recommended stop is settled
    stop: str = "total"
    stop_evaluations: int = 2  # auto: newest evaluations that must all be surely below the recommended one
    stop_level: float = 0.95  # auto: confidence level of the paired intervals that decide it

    def __post_init__(self) -> None:
        if self.total is not None:
            bounded("steps.total", self.total)
        if self.every is not None:
            bounded("steps.every", self.every)
        if self.total is not None and self.every is not None:
            check_evaluations(self.total, self.every)
        bounded("steps.batch_size", self.batch_size)
        bounded("steps.gradient_accumulation", self.gradient_accumulation)
        bounded("steps.max_grad_norm", self.max_grad_norm)
        one_of("steps.optimizer", self.optimizer, OPTIMIZERS)
        one_of("steps.lr_scheduler", self.lr_scheduler, LR_SCHEDULERS)
        bounded("steps.lr_warmup", self.lr_warmup)
        bounded("steps.log_every", self.log_every)
        if self.checkpoint_every is not None:
            bounded("steps.checkpoint_every", self.checkpoint_every)
        bounded("steps.keep_checkpoints", self.keep_checkpoints)
        one_of("steps.keep_adapters", self.keep_adapters, KEPT_ADAPTERS)
        one_of("steps.stop", self.stop, STOPS)
        bounded("steps.stop_evaluations", self.stop_evaluations)
        bounded("steps.stop_level", self.stop_level)
        if self.snr_gamma is not None:
            bounded("steps.snr_gamma", self.snr_gamma)
        bounded("steps.noise_offset", self.noise_offset)
        if self.lr_warmup and self.lr_scheduler == "constant":
            raise UserError(
                f"steps.lr_warmup={self.lr_warmup}: steps.lr_scheduler=constant has no warm-up; "
                "use steps.lr_scheduler=constant_with_warmup"
            )


def check_evaluations(total: int, every: int) -> None:
    """Raises UserError for a run with more evaluations than its record and its report support."""
    found = number_of_evaluations(total, every)
    if found > MOST_EVALUATIONS:
        raise UserError(
            f"steps.every={every}: {found:,} evaluations in steps.total={total} steps; at most {MOST_EVALUATIONS:,} "
            f"(each has a sheet, a table and an adapter): set steps.every={-(-total // 100)} or more"
        )


@dataclass(kw_only=True, slots=True)
class Prompts:
    name: str = "miniature"
    path: str | None = (
        None  # file: a text file with one prompt per line, or a CSV with a column "prompt"; table: YAML
    )
    n: int = 100
    images_per_prompt: int = 1
    seed: int = 0  # selects the prompts
    noise_seed: int = 0  # selects the initial noise
    negative: str | None = None  # null: the prompt set's own; "": none
    sampling_steps: int | None = 12  # null: the value recommended by the model's authors
    guidance_scale: float | None = 3.0  # likewise
    batch_size: int = 25  # images per batch; affects the speed, not the images

    def __post_init__(self) -> None:
        text("prompts.name", self.name)
        bounded("prompts.n", self.n)
        bounded("prompts.images_per_prompt", self.images_per_prompt)
        if self.n * self.images_per_prompt > MOST_IMAGES:
            raise UserError(
                f"prompts.images_per_prompt={self.images_per_prompt}: times prompts.n={self.n} makes "
                f"{self.n * self.images_per_prompt:,} images an evaluation, all in memory at once; at most "
                f"{MOST_IMAGES:,}: lower one of the two"
            )
        bounded("prompts.seed", self.seed)
        bounded("prompts.noise_seed", self.noise_seed)
        for key in ("sampling_steps", "guidance_scale"):
            if getattr(self, key) is not None:
                bounded(f"prompts.{key}", getattr(self, key))
        bounded("prompts.batch_size", self.batch_size)


@dataclass(kw_only=True, slots=True)
class Metrics:
    encoders: str = "miniature"  # miniature, full
    names: list[str] = field(
        default_factory=lambda: [
            "similarity", "similarity_heldout", "face_rate", "aesthetics", "diversity",
            "clip_text", "clip_image", "memorisation",
        ]
    )  # fmt: skip
    # stop rule; empty: equal weights, which is reported
    weights: dict[str, float] = field(default_factory=dict)
    # stop rule and plots: [low, high] per metric
    ranges: dict[str, list[float]] = field(default_factory=dict)
    face_weights: str = "vggface2"  # full: a name of facenet-pytorch, or a local file
    clip_model: str = "ViT-L-14"  # full: open_clip's name, or a folder or hub id of transformers
    clip_weights: str = "openai"  # full: open_clip's tag, or a local file
    aesthetics_weights: str | None = None  # a head's safetensors; null: the miniature's own, full: none
    dino_model: str = "facebook/dino-vits16"  # metric dino: a folder or hub id of transformers
    inception_weights: str | None = None  # metrics fid and kid: a file; null: torch's cache
    batch_size: int = 50

    def __post_init__(self) -> None:
        one_of("metrics.encoders", self.encoders, ("miniature", "full"))
        text_list("metrics.names", self.names)
        if not self.names:
            raise UserError("metrics.names=[]: name at least one metric")
        for name, weight in self.weights.items():
            if name not in self.names:
                raise UserError(
                    f"metrics.weights.{name}: is not among metrics.names{closest(name, self.names)}"
                )
            bounded(f"metrics.weights.{name}", weight, of="metrics.weights")
        if self.weights and not any(self.weights.values()):
            raise UserError(f"metrics.weights={self.weights}: at least one weight must be above 0")
        for name, bounds in self.ranges.items():
            for value in bounds:
                bounded(f"metrics.ranges.{name}", value, of="metrics.ranges")
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise UserError(
                    f"metrics.ranges.{name}={list(bounds)}: must be two numbers, [low, high], low < high"
                )
            if bounds[1] - bounds[0] < NARROWEST:
                raise UserError(
                    f"metrics.ranges.{name}={list(bounds)}: they differ by less than {NARROWEST:g}, so a "
                    "difference that nobody could measure would decide; take ends that are further apart"
                )
        for key in ("face_weights", "clip_model", "clip_weights", "dino_model"):
            text(f"metrics.{key}", getattr(self, key))
        bounded("metrics.batch_size", self.batch_size)


@dataclass(kw_only=True, slots=True)
class Memory:
    gradient_checkpointing: bool = False  # recompute activations in the backward pass instead of storing them
    # memory, disk, off: latents of the photos and, if the text encoder is frozen, text embeddings
    cache: str = "memory"
    offload: bool = False  # keep parts that a step does not need in main memory
    compile: bool = False  # torch.compile on the denoiser's blocks, if its gradients prove correct

    def __post_init__(self) -> None:
        flag("memory.gradient_checkpointing", self.gradient_checkpointing)
        one_of("memory.cache", self.cache, ("memory", "disk", "off"))
        flag("memory.offload", self.offload)
        flag("memory.compile", self.compile)
        if self.offload and self.cache == "off":
            raise UserError(
                "memory.offload=true: needs memory.cache=memory or disk; without a cache every step needs the VAE"
            )


@dataclass(kw_only=True, slots=True)
class Tracking:
    wandb: str = "auto"  # auto (online with credentials, else offline), online, offline, disabled
    project: str = "diffusion_lab"
    entity: str | None = None
    group: str | None = None
    run_name: str | None = None
    tags: list[str] = field(default_factory=list)
    images: int = 16  # images per step in the tracker's table
    keep_images: bool = False  # also save every image of every evaluation as a separate file
    progress: str = "auto"  # auto (bars on a terminal, lines elsewhere), bars, lines, off

    def __post_init__(self) -> None:
        one_of("tracker.wandb", self.wandb, ("auto", "online", "offline", "disabled"))
        text("tracker.project", self.project)
        text_list("tracker.tags", self.tags)
        check_names(
            project=self.project, entity=self.entity, group=self.group, run_name=self.run_name, tags=self.tags
        )
        bounded("tracker.images", self.images)
        flag("tracker.keep_images", self.keep_images)
        one_of("tracker.progress", self.progress, ("auto", "bars", "lines", "off"))


@dataclass(kw_only=True, slots=True)
class Config:
    seed: int = 0
    job: AnyJob = field(default_factory=Finetune)
    model: Model = field(default_factory=Model)
    method: AnyMethod = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    steps: Steps = field(default_factory=Steps)
    memory: Memory = field(default_factory=Memory)
    prompts: Prompts = field(default_factory=Prompts)
    metrics: Metrics = field(default_factory=Metrics)
    tracker: Tracking = field(default_factory=Tracking)
    resume: str = "auto"  # auto, never, must: whether to resume a run in the run folder
    as_typed: dict[str, str] = field(default_factory=dict)  # paths as they were given; filled at the start

    def __post_init__(self) -> None:
        bounded("seed", self.seed)
        one_of("resume", self.resume, RESUME)
        if self.steps.optimizer == "prodigy" and self.method.name == "pivotal":
            raise UserError(
                "steps.optimizer=prodigy: finds one learning rate for a run, and method=pivotal trains two things, "
                "one after the other; use steps.optimizer=adamw"
            )


def as_plain_dict(config: Config) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, for JSON, YAML and the tracker."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The configuration as YAML, groups in the order of the schema."""
    import yaml  # type: ignore[import-untyped]

    plain = as_plain_dict(config)
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None))
