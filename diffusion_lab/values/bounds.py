"""The range of every number in the configuration, and the reason for its upper bound.

The dataclasses check their values against this table (`checks.bounded`), and a test tries zero, negative, very large
and non-finite numbers for each entry. An upper bound is not a recommendation. Larger values can only be mistakes (an
extra digit, 1e12 for 1e2), or would need lists, files or memory in proportion that take too long to check.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_SEED = 2**32 - 1
MOST_STEPS = 10_000_000
MOST_EVALUATIONS = 10_000  # of a run; each has a sheet of images, rows in a table and an adapter
MANY_EVALUATIONS = 200  # above this the plan warns
MOST_LAYERS = 16  # of the small networks that are configured layer by layer
NARROWEST = 1e-6  # width of metrics.ranges: metrics are not measured more precisely
MOST_IMAGES = 50_000  # of an evaluation; all are in memory until they are scored

_SEED = "NumPy accepts no larger seeds"
_STEPS = "almost two weeks at ten steps per second"
_BATCH = "no device has memory for larger batches"
_RATE = "the largest float32 number; much smaller values already diverge, and the plan says so"
_FOLDER = "the photos of one subject are kept in memory"


@dataclass(frozen=True, slots=True)
class Bound:
    """`low` to `high`, both included unless `above` (low is not) or `below` (high is not)."""

    low: float
    high: float
    why: str  # reason for `high`
    whole: bool = True
    above: bool = False
    below: bool = False


def _real(low: float, high: float, why: str, *, above: bool = False, below: bool = False) -> Bound:
    return Bound(low, high, why, whole=False, above=above, below=below)


BOUNDS: dict[str, Bound] = {
    "seed": Bound(0, LARGEST_SEED, _SEED),
    "job.weight": _real(-100, 100, "beyond it the adapter dominates the model completely"),
    "job.scale": _real(0, 100, "100 times the recipe takes a year on a CPU", above=True),
    "job.exponent": _real(0, 2, "2 already favours rare ratings over common ones"),
    "job.hidden": Bound(1, 16_384, "wider than any embedding that is used"),
    "job.epochs": Bound(1, 100_000, "training stops long before"),
    "job.learning_rate": _real(0, 3e38, _RATE, above=True),
    "model.resolution": Bound(16, 4096, "pixels per side; attention grows with their fourth power"),
    "data.n_images": Bound(1, 100_000, _FOLDER),
    "data.n_heldout": Bound(0, 100_000, _FOLDER),
    "data.subset_seed": Bound(0, LARGEST_SEED, _SEED),
    "steps.total": Bound(1, MOST_STEPS, _STEPS),
    "steps.every": Bound(1, MOST_STEPS, _STEPS),
    "steps.batch_size": Bound(1, 4096, _BATCH),
    "steps.gradient_accumulation": Bound(1, 10_000, "one step would take hours"),
    "steps.max_grad_norm": _real(0, 1e9, "clips nothing; 0 has the same effect"),
    "steps.lr_warmup": Bound(0, MOST_STEPS, _STEPS),
    "steps.snr_gamma": _real(0, 1e6, "weights all timesteps equally; null has the same effect", above=True),
    "steps.noise_offset": _real(0, 1, "as large as the noise itself"),
    "steps.log_every": Bound(1, MOST_STEPS, _STEPS),
    "steps.checkpoint_every": Bound(0, MOST_STEPS, _STEPS),
    "steps.keep_checkpoints": Bound(1, MOST_STEPS, _STEPS),
    "steps.stop_evaluations": Bound(1, MOST_EVALUATIONS, "a run has no more evaluations"),
    "steps.stop_level": _real(0.5, 1, "at 1 nothing is ever settled", below=True),
    "prompts.n": Bound(1, MOST_IMAGES, "published FIDs use this many images; all are in memory at once"),
    "prompts.images_per_prompt": Bound(1, MOST_IMAGES, "all images of an evaluation are in memory at once"),
    "prompts.seed": Bound(0, LARGEST_SEED, _SEED),
    "prompts.noise_seed": Bound(0, LARGEST_SEED, _SEED),
    "prompts.sampling_steps": Bound(1, 1000, "the models' noise schedules have 1000 steps"),
    "prompts.guidance_scale": _real(0, 100, "images are saturated far below this value"),
    "prompts.batch_size": Bound(1, 4096, _BATCH),
    "metrics.weights": _real(0, 1e6, "only the proportions of the weights matter"),
    "metrics.ranges": _real(-1e9, 1e9, "no metric has such values"),
    "metrics.batch_size": Bound(1, 16_384, _BATCH),
    "tracker.images": Bound(0, 10_000, "a larger table is not readable"),
    "method.rank": Bound(1, 4096, "wider than any layer of Stable Diffusion"),
    "method.alpha": _real(0, 1e6, "the change is multiplied by alpha / rank", above=True),
    "method.dropout": _real(0, 1, "at 1 nothing would be left", below=True),
    "method.learning_rate": _real(0, 3e38, _RATE, above=True),
    "method.text_encoder_learning_rate": _real(0, 3e38, _RATE, above=True),
    "method.token_learning_rate": _real(0, 3e38, _RATE, above=True),
    "method.weight_decay": _real(0, 10, "AdamW's decay: a fraction of each weight per unit of learning rate"),
    "method.prior_weight": _real(0, 1000, "the subject would no longer matter"),
    "method.prior_images": Bound(1, 100_000, "all are generated and stored before training starts"),
    "method.ema_decay": _real(0, 1, "at 1 the average never moves", below=True),
    "method.vectors": Bound(1, 32, "a prompt has 75 tokens in total"),
    "method.switch": _real(0, 1, "a fraction of the steps", above=True, below=True),
    "method.layers": _real(0.05, 64, "64 times the text width 768 is 49,152 for Stable Diffusion 1.x"),
}  # fmt: skip
