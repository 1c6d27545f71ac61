"""Estimates the time and memory of a run with a model of a few constants, for the plan only.

Miniature: the seconds of a step and of a U-Net pass were measured on two CPU cores in float32; scoring, start
and a GPU's advantage are assumed. Full size: FLOPs of the denoiser (`Family.work`) at the run's resolution,
divided by the share of a device's published peak that a U-Net reaches. That share is assumed, so the plan
states how far the estimate may be off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffusion_lab.config.schedule import sampler
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models import devices
from diffusion_lab.models.devices import cores, has_gpu
from diffusion_lab.plan import footprint
from diffusion_lab.plan.numbers import passes_a_step
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.families.family import Family
    from diffusion_lab.plan.numbers import PlannedEvaluations

# Miniature, two cores
STEP_SECONDS = 0.2  # training step at batch 4
FORWARD_SECONDS = 0.012  # one image through the U-Net
SCORE_SECONDS = 0.04  # one image through VAE decoder, detector and encoders
START_SECONDS = 15.0  # imports, model, encoders, reference photos
# Full size: four times that, plus the bytes of a model beyond Stable Diffusion 1.5's 5 GB, loaded at this
# rate (assumed) from disk through main memory to the GPU.
STARTED_BYTES, LOADED_BYTES = 5e9, 0.5e9

ENCODE_TFLOP, DECODE_TFLOP = 1.12, 2.51  # the VAE, one image of 512 pixels
SCORE_TFLOP = 0.25  # detector, face embedder, CLIP ViT-L/14: independent of the image size
BACKWARD = 2.0  # cost of the backward pass, in forward passes
RECOMPUTING = 1.0  # additional cost with gradient checkpointing, in forward passes
LORA_FLOP = 24.0  # per unit of rank and of `Work.transformer`: two small products at seven layers
PROCESS_BYTES = 1.2e9  # on the CPU: Python and the libraries themselves
# The share of the peak that a U-Net reaches in eager mode: of tensor cores, of float32 arithmetic. Assumed;
# published timings of SD 1.5 lie between a fifth and a half of the peak.
TENSOR_SHARE, FLOAT_SHARE = 0.3, 0.6
CALL_SECONDS = 0.025  # minimum duration of a U-Net call on a GPU: 900 kernels, launched one after another
# One CPU core, TFLOP/s in float32: a 3x3 convolution of 640 channels at 64x64 ran at 0.11 on an AMD EPYC with
# AVX-512 (docs/benchmarks.md); a whole U-Net reaches less.
CORE_TFLOPS = 0.06
BF16_GAIN = 2.0  # of a CPU with bf16 support, over float32: the same convolution
# Seconds of an optimizer step per trained parameter, on one CPU core; 8-bit AdamW is intended for GPUs.
# Measured on a busy machine, so probably too high.
OPTIMIZER_SECONDS = {"adamw": 1e-8, "adamw8bit": 1e-7, "prodigy": 3e-8}
WITHIN = {"card": 2.0, "unknown card": 4.0, "cpu": 3.0}  # factor by which the estimate may be off


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimates. `seconds` includes the start."""

    device: str
    training_seconds: float
    evaluation_seconds: float
    start_seconds: float
    memory_bytes: float
    disk_bytes: int
    peaks: Mapping[str, float] = field(default_factory=dict)  # bytes, for training and for evaluation
    process_bytes: float = 0.0  # memory of the process itself, in addition to the peaks
    within: float = 1.5  # factor by which the true time may be higher or lower
    assumed: str = ""  # stated in the plan if the device is not known

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.evaluation_seconds + self.start_seconds


def estimate(config: Config, *, forwards: int, sampled: int, evaluations: int) -> Cost:
    """Cost of a fine-tuning run; `config` has its defaults filled.

    `forwards`: images through the denoiser in sampling.
    """
    found = speeds(config)
    traits = config.method.traits
    whole = traits.whole_networks
    model = footprint.architecture(config.model)
    peaks = footprint.peaks(config, model)
    process = 0.0 if found.gpu else PROCESS_BYTES
    memory = max(peaks.values()) + process
    if config.model.path in MINIATURES:
        training, evaluation = _miniature(config, forwards, sampled, found)
        disk = _disk(config, evaluations, sampled, 64, 50e6 if whole else 2e6, 150e6 if whole else 6e6)
        return Cost(found.device, training, evaluation, START_SECONDS, memory, disk, peaks, process)
    training, evaluation = _full_size(config, model, forwards, sampled, found)
    start = 4 * START_SECONDS + max(0.0, footprint.loaded_bytes(config, model) - STARTED_BYTES) / LOADED_BYTES
    trained = footprint.trained_numbers(config, model)
    average = trained * footprint.FULL if traits.average else 0.0
    checkpoint = trained * (footprint.FULL + footprint.OPTIMIZER_BYTES[config.steps.optimizer]) + average
    adapter = trained * footprint.FULL * (1 if whole else 2)  # a LoRA is also saved with kohya's keys
    rest = footprint.FULL * sum(model.parameters.values()) - adapter if whole else 0.0
    disk = _disk(config, evaluations, sampled, _pixels(config, model), adapter, checkpoint, rest)
    return Cost(
        found.device, training, evaluation, start, memory, disk, peaks, process, found.within,
        found.assumed,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speeds:
    """Assumed speeds of the device in TFLOP/s: in the run's precision, and in float32."""

    device: str
    gpu: bool
    chosen: float
    float32: float
    call: float = 0.0  # minimum seconds of a U-Net call
    within: float = 2.0
    assumed: str = ""  # a note for the plan


def speeds(config: Config) -> Speeds:
    """Speeds by the GPU's name or the number of CPU cores; for an unknown GPU, by its generation."""
    if config.model.device == "cpu" or not has_gpu():
        number = cores()
        float32 = CORE_TFLOPS * number
        slower = devices.bf16_slowdown()
        factor = {"bf16": BF16_GAIN if slower == 1.0 else 1 / slower}.get(config.model.precision, 1.0)
        name = f"{number} CPU core{'s' if number != 1 else ''}"
        return Speeds(name, False, float32 * factor, float32, within=WITHIN["cpu"])
    card = devices.card(config.model.device)
    half, single = card.tflops if card is not None else devices.UNKNOWN
    float32 = single * FLOAT_SHARE
    if config.model.precision == "fp32" or half <= single:
        chosen = float32
    elif (
        config.model.precision == "bf16"
        and card is not None
        and 0 < card.capability < devices.BF16_CAPABILITY
    ):
        chosen = float32 / 2
    else:
        chosen = max(half * TENSOR_SHARE, float32)
    if card is None:
        told = f"a card that nvidia-smi does not describe is taken to do {chosen:.0f} TFLOP/s"
        return Speeds("a GPU", True, chosen, float32, CALL_SECONDS, WITHIN["unknown card"], told)
    told = "" if card.known else f"{card.name} is in no table here and is taken to do {chosen:.0f} TFLOP/s"
    within = WITHIN["card" if card.known else "unknown card"]
    return Speeds(card.name, True, chosen, float32, CALL_SECONDS, within, told)


def _miniature(config: Config, forwards: int, sampled: int, found: Speeds) -> tuple[float, float]:
    """Seconds of training and of evaluation."""
    steps = (config.steps.total or 0) * config.steps.gradient_accumulation
    speed = 10.0 if found.gpu else min(cores(), 8) / 2
    training = steps * STEP_SECONDS * config.steps.batch_size / 4 / speed
    return training, (forwards * FORWARD_SECONDS + sampled * SCORE_SECONDS) / speed


def _full_size(
    config: Config, model: footprint.Architecture, forwards: int, sampled: int, found: Speeds
) -> tuple[float, float]:
    """Seconds of training and of evaluation."""
    steps = (config.steps.total or 0) * config.steps.gradient_accumulation
    side = _pixels(config, model) // model.factor
    area = (_pixels(config, model) / 512) ** 2
    traits, work = config.method.traits, model.work(side)
    passed = work.tflop
    prior = traits.class_images > 0
    pictures = config.steps.batch_size * (2 if prior else 1)
    ways = 1 + BACKWARD + (RECOMPUTING if config.memory.gradient_checkpointing else 0.0)
    adapters = LORA_FLOP * traits.rank * work.transformer / 1e12
    step = max(pictures * (passed + adapters) * ways / found.chosen, ways * found.call)
    if not found.gpu:
        update = footprint.trained_numbers(config, model) * OPTIMIZER_SECONDS[config.steps.optimizer]
        step += update / cores() / config.steps.gradient_accumulation
    training = steps * step + config.data.n_images * ENCODE_TFLOP * area / found.float32
    if prior:
        # Class images, generated by the loaded model unless an earlier run has generated them.
        guided = passes_a_step(config, model.family)
        drawn = sampler(config.prompts)[0] * guided * passed + (DECODE_TFLOP + ENCODE_TFLOP) * area
        training += traits.class_images * drawn / found.float32
    # Networks that are trained as a whole are sampled in float32.
    speed = found.float32 if traits.whole_networks else found.chosen
    together = max(1, config.prompts.batch_size) * passes_a_step(config, model.family)
    evaluation = forwards * max((passed + adapters) / speed, found.call / together)
    evaluation += sampled * (DECODE_TFLOP * area / found.chosen + SCORE_TFLOP / found.float32)
    return training, evaluation


def _pixels(config: Config, model: footprint.Architecture) -> int:
    """Side length of the images in pixels."""
    return config.model.resolution or model.side * model.factor


def keeps_best_only(config: Config) -> bool:
    """Whether adapters that can no longer be recommended are removed; see `steps.keep_adapters`."""
    whole = config.method.traits.whole_networks
    return config.steps.keep_adapters == "best" or (config.steps.keep_adapters == "auto" and whole)


def _disk(
    config: Config, evaluations: int, sampled: int, resolution: int, adapter: float, checkpoint: float,
    rest: float = 0.0,
) -> int:  # fmt: skip
    """Bytes of adapters, checkpoints, image grids (at most 128 pixels per image), tables and the report.

    `rest`: what artefact/ contains besides the recommended adapter, which it shares with adapters/. In
    addition to the checkpoints that are kept, there are the best one and one being written; in addition to
    the adapters, one more or artefact/ while it is assembled. For whole networks, the adapters of the best
    and the newest step are the files of their checkpoints.
    """
    side = min(resolution, 128)
    kept = min(evaluations, 2) if keeps_best_only(config) else evaluations
    checkpoints = config.steps.keep_checkpoints + 2 if config.steps.checkpoint_every != 0 else 0
    shared = 2 if config.method.traits.whole_networks and config.steps.checkpoint_every is None else 0
    large = (kept + 1 - min(kept, shared)) * adapter + rest + checkpoints * checkpoint
    return int(large + sampled * (side * side * 3 + 2000) * 2 + 20e6)


def device_bytes(config: Config) -> float | None:
    """Memory of the run's device: of a GPU by nvidia-smi, else of the machine; None if unknown."""
    if config.model.device == "cpu" or not has_gpu():
        import psutil

        return (
            None if config.model.device.startswith(("cuda", "mps")) else float(psutil.virtual_memory().total)
        )
    card = devices.card(config.model.device)
    return card.memory_bytes or None if card is not None else None


# What reduces the memory of a run, in ascending order of cost.
SAVINGS = (
    "memory.offload=true", "memory.gradient_checkpointing=true", "steps.optimizer=adamw8bit", "model.quantise=nf4",
    "steps.batch_size=1", "prompts.batch_size=1",
)  # fmt: skip
HOPELESS = 8.0  # multiple of the device's memory beyond any error of the estimate


def remedies(config: Config) -> tuple[list[str], float]:
    """Unused settings that lower the peak, each added to the previous ones, and the peak with all of them."""
    changed, found = copy.deepcopy(config), list[str]()
    model = footprint.architecture(config.model)
    best = max(footprint.peaks(changed, model).values())
    precision = devices.best_precision(config.model.device)
    savings = [] if precision == "fp32" else [f"model.precision={precision}"]
    may_quantise = can_quantise(config, model.family)
    savings += [saving for saving in SAVINGS if may_quantise or not saving.startswith("model.quantise=")]
    for saving in savings * 2:  # a setting without effect may help later, when another phase is the peak
        key, _, value = saving.partition("=")
        group, _, name = key.partition(".")
        trial = copy.deepcopy(changed)
        setattr(getattr(trial, group), name, {"true": True, "1": 1}.get(value, value))
        if trial.memory.cache == "off":
            trial.memory.cache = "memory"
        peak = max(footprint.peaks(trial, model).values())
        if saving not in found and peak < 0.99 * best:
            changed, best, found = trial, peak, [*found, saving]
    return found, best


def can_quantise(config: Config, family: Family) -> bool:
    """Whether the denoiser can be quantised to 4 bits: frozen, of a large family, on an NVIDIA GPU."""
    on_card = config.model.device.partition(":")[0] in ("auto", "cuda") and has_gpu()
    return family.loads_half and on_card and not config.method.traits.whole_networks


def memory_row(cost: Cost) -> str:
    """The peak memory of the run and of its phases."""
    parts = ", ".join(
        f"{name} {(size + cost.process_bytes) / footprint.GIB:.1f}" for name, size in cost.peaks.items()
    )
    return f"about {cost.memory_bytes / footprint.GIB:.1f} GiB, estimated ({parts})"


def time_rows(cost: Cost, duration: Callable[[float], str]) -> tuple[str, ...]:
    """The plan's rows about time: the estimate, how far it may be off, and what was assumed."""
    told = (
        f"about {duration(cost.seconds)} on {cost.device}, within a factor of {cost.within:g} (estimated): "
        f"training {duration(cost.training_seconds)}, evaluation {duration(cost.evaluation_seconds)}"
    )
    return (told, f"{cost.assumed}; the run measures it at its start") if cost.assumed else (told,)


def memory_warnings(config: Config, cost: Cost) -> list[str]:
    """Warnings if the run will not fit the device, with settings that help. UserError if none would."""
    there = device_bytes(config)
    if there is None or cost.memory_bytes < 0.95 * there or not cost.peaks:
        return []
    found, best = remedies(config)
    told = f"about {cost.memory_bytes / footprint.GIB:.1f} GiB of memory are needed, and there are {there / footprint.GIB:.1f}"
    if found:
        with_all = best + cost.process_bytes
        told += f"; {' '.join(found)} bring it to about {with_all / footprint.GIB:.1f}"
        told += ", still too much" if with_all >= 0.95 * there else ""
    if config.method.traits.whole_networks:
        told += "; method=lora needs less"
    if cost.memory_bytes > HOPELESS * there:
        raise UserError(f"{_culprit(config, cost)}: {told}")
    return [told]


def _culprit(config: Config, cost: Cost) -> str:
    """The setting that requires most of the memory."""
    model = footprint.architecture(config.model)
    phase = max(cost.peaks, key=lambda name: cost.peaks[name])
    least: dict[str, float] = {}
    for key in ("steps.batch_size", "prompts.batch_size", "method.rank", "model.resolution"):
        group, _, name = key.partition(".")
        trial = copy.deepcopy(config)
        value = getattr(getattr(trial, group), name, None)
        if value is not None:
            setattr(getattr(trial, group), name, min(value, 64) if key == "model.resolution" else 1)
            least[f"{key}={value}"] = footprint.peaks(trial, model)[phase]
    return min(least, key=lambda key: least[key])


def of_run(config: Config, numbers: PlannedEvaluations) -> Cost:
    """`estimate` for a run with these evaluations."""
    return estimate(
        config,
        forwards=numbers.forwards,
        sampled=numbers.sampled,
        evaluations=len(numbers.evaluations),
    )


def phases(config: Config, numbers: PlannedEvaluations) -> dict[str, dict[str, float]]:
    """The estimated seconds and bytes of each phase, recorded next to the measured ones."""
    cost = of_run(config, numbers)
    seconds = {
        "start": cost.start_seconds,
        "training": cost.training_seconds,
        "evaluation": cost.evaluation_seconds,
    }
    return {
        phase: {"seconds": spent, "peak_memory_bytes": cost.peaks[phase] + cost.process_bytes}
        for phase, spent in seconds.items()
    }
