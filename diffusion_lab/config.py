"""The schema of the configuration: one dataclass a group, which is also what the program receives.

Hydra and OmegaConf are imported here and in `__main__.py` only. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_lab.interfaces import UserError
from diffusion_lab.methods.lora import Lora


@dataclass(kw_only=True, slots=True)
class Job:
    name: str = "finetune"  # finetune, report, pretrain, subjects
    dry_run: bool = False  # print the plan and stop
    runs: str = ""  # report: a run's folder, or a folder of runs
    output: str = ""  # pretrain, subjects: where to write
    stages: list[str] = field(default_factory=list)  # pretrain: which stages; empty: all
    scale: float = 1.0  # pretrain: multiplies steps and pictures


@dataclass(kw_only=True, slots=True)
class Model:
    path: str = "miniature"  # "miniature", a diffusers folder, or a hub id
    revision: str | None = None
    variant: str | None = None
    resolution: int | None = None  # pixels; null: the model's own
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "fp32"  # fp32, bf16, fp16: of the forward pass; what trains stays fp32
    allow_pickle: bool = False  # load .bin weights too; only from people you trust
    local_files_only: bool = False


@dataclass(kw_only=True, slots=True)
class Data:
    source: str = "miniature"  # miniature, folder
    subject: str = "anna"  # a miniature subject, or a name for the folder's
    folder: str | None = None  # folder: where the pictures are
    class_noun: str | None = None  # "dog"; the miniature's subjects know theirs
    identifier: str = "customcls"
    n_images: int = 14
    n_heldout: int | None = None  # null: 8, or a fifth of a smaller folder, at least 1
    subset_seed: int = 0  # with the subject's name it fixes the nested order
    impostors: str | None = None  # a folder of folders with other subjects
    on_corrupt: str = "error"  # error, skip
    flip: bool = False  # random horizontal flips; off for faces


@dataclass(kw_only=True, slots=True)
class Steps:
    total: int | None = None  # optimizer steps; null: 300 for the miniature, else 100 * n_images
    every: int | None = None  # steps between evaluations; null: total / 6, at least 1
    batch_size: int = 4  # pictures a micro-batch and process
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0  # 0: no clipping
    lr_scheduler: str = "constant"  # a name of diffusers.optimization.SchedulerType
    lr_warmup: int = 0
    log_every: int = 10


@dataclass(kw_only=True, slots=True)
class Prompts:
    name: str = "miniature"
    n: int = 100
    images_per_prompt: int = 1
    seed: int = 0  # which prompts are drawn
    noise_seed: int = 0  # which noise they get
    negative: str | None = None  # null: the set's own; "": none
    sampling_steps: int = 12
    guidance_scale: float = 4.0
    batch_size: int = 25  # images a batch; changes the speed, not the images


@dataclass(kw_only=True, slots=True)
class Metrics:
    encoders: str = "miniature"  # miniature, full
    names: list[str] = field(
        default_factory=lambda: [
            "similarity", "similarity_heldout", "face_rate", "aesthetics", "diversity",
            "clip_text", "clip_image", "memorisation",
        ]
    )  # fmt: skip
    weights: dict[str, float] = field(default_factory=dict)  # stop rule; empty: equal, and said so
    ranges: dict[str, list[float]] = field(default_factory=dict)  # stop rule and plots: [low, high] a metric
    face_weights: str = "vggface2"  # full: a name of facenet-pytorch, or a local file
    clip_model: str = "ViT-L-14"  # full: open_clip's name
    clip_weights: str = "openai"  # full: open_clip's tag, or a local file
    aesthetics_weights: str | None = None  # full: a head's safetensors; null: no aesthetics metric
    batch_size: int = 50


@dataclass(kw_only=True, slots=True)
class Tracking:
    wandb: str = "auto"  # auto (online with credentials, else offline), online, offline, disabled
    project: str = "diffusion_lab"
    entity: str | None = None
    group: str | None = None
    run_name: str | None = None
    tags: list[str] = field(default_factory=list)
    images: int = 16  # pictures a step in the tracker's table
    progress: str = "auto"  # auto (bars on a terminal, lines elsewhere), bars, lines, off


@dataclass(kw_only=True, slots=True)
class Config:
    seed: int = 0
    job: Job = field(default_factory=Job)
    model: Model = field(default_factory=Model)
    method: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    steps: Steps = field(default_factory=Steps)
    prompts: Prompts = field(default_factory=Prompts)
    metrics: Metrics = field(default_factory=Metrics)
    tracker: Tracking = field(default_factory=Tracking)


__all__ = ["Config", "Data", "Job", "Lora", "Metrics", "Model", "Prompts", "Steps", "Tracking", "UserError", "Any"]
