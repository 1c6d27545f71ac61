"""Settings that are valid but rarely intended: one line each for the plan, with a suggestion."""

from __future__ import annotations

from typing import Any

from diffusion_lab.config.schedule import number_of_evaluations, sampler
from diffusion_lab.config.schema import Config
from diffusion_lab.plan.defaults import SMALL
from diffusion_lab.plan.shown import counted
from diffusion_lab.runs.extension import CONSTANT
from diffusion_lab.values.bounds import MANY_EVALUATIONS

FAR = 30.0  # factor from the default at which a learning rate is reported
SATURATED = 20.0  # guidance scale from which images look oversaturated


def unlikely(config: Config) -> list[str]:
    """Warnings about a fine-tuning run; `config` has its defaults filled."""
    return [*_schedule(config), *_batches(config), *_rates(config), *_others(config)]


def _schedule(config: Config) -> list[str]:
    steps, said = config.steps, []
    total, every = steps.total or 1, steps.every or 1
    if every > total:
        said.append(
            f"steps.every={every}: the run has {counted(total, 'step')}, so only its beginning and its end are evaluated and no "
            f"step between can be recommended; set steps.every={max(1, total // 6)}"
        )
    found = number_of_evaluations(total, every)
    if found > MANY_EVALUATIONS:
        said.append(
            f"steps.every={every}: {found:,} evaluations, each with all its images; the report shows every one. "
            f"steps.every={-(-total // 20)} makes about 20"
        )
    if steps.lr_warmup >= total:
        said.append(
            f"steps.lr_warmup={steps.lr_warmup}: the run ends after {counted(total, 'step')}, before the learning rate has reached "
            f"its value; set steps.lr_warmup={total // 10}"
        )
    elif steps.lr_warmup > total / 2:
        said.append(
            f"steps.lr_warmup={steps.lr_warmup}: more than half of the {total} steps have a learning rate below its "
            f"value; set steps.lr_warmup={total // 10}"
        )
    if steps.checkpoint_every is not None and steps.checkpoint_every > total:
        said.append(
            f"steps.checkpoint_every={steps.checkpoint_every}: the run has {counted(total, 'step')}, so a run that is stopped "
            "starts again from step 0; set it lower, or null for one at every evaluation"
        )
    if steps.log_every > total:
        said.append(
            f"steps.log_every={steps.log_every}: the run has {counted(total, 'step')}, so its curves are one point"
        )
    said += _early_end(config, found)
    switch = getattr(config.method, "switch", None)
    if switch is not None and round(switch * total) in (0, total):
        said.append(
            f"method.switch={switch:g}: of {total} steps one of the two phases has none; use more steps"
        )
    return said


def _early_end(config: Config, evaluations: int) -> list[str]:
    """Of `steps.stop=auto`, whose earliest end is after a best step and the evaluations that settle it."""
    steps, said = config.steps, []
    if steps.stop != "auto":
        return []
    if evaluations < steps.stop_evaluations + 2:
        said.append(
            f"steps.stop=auto: never ends a run of {evaluations} evaluations early, because the newest "
            f"{steps.stop_evaluations} (steps.stop_evaluations) must follow the recommended one; set steps.every lower"
        )
    if steps.lr_scheduler not in CONSTANT:
        said.append(
            f"steps.stop=auto: with steps.lr_scheduler={steps.lr_scheduler} the learning rates depend on steps.total, "
            "and a run that ends early has not reached the last of them; set steps.lr_scheduler=constant"
        )
    return said


def _batches(config: Config) -> list[str]:
    steps, data, said = config.steps, config.data, []
    if data.n_images == 1:
        said.append(
            "data.n_images=1: one picture is learnt by heart, background and all, and has no other to be compared with; "
            "use 4 or more"
        )
    elif steps.batch_size > max(4, data.n_images):
        said.append(
            f"steps.batch_size={steps.batch_size}: larger than the {data.n_images} training pictures, so a batch has the "
            f"same picture several times; set steps.batch_size={data.n_images} or less"
        )
    seen = steps.batch_size * steps.gradient_accumulation * (steps.total or 1) / data.n_images
    if seen < 1:
        said.append(
            f"steps.total={steps.total}: not every one of the {data.n_images} training pictures is seen once; set it to "
            f"{-(-data.n_images // (steps.batch_size * steps.gradient_accumulation))} or more"
        )
    return said


def _rates(config: Config) -> list[str]:
    """Learning rates far from the method's default, and a weight decay that the rate makes too strong."""
    method: Any = config.method
    said = []
    small = config.model.resolution is not None and config.model.resolution < SMALL
    for key, pair in (("learning_rate", "learning_rates"), ("token_learning_rate", "token_learning_rates")):
        rate, own = getattr(method, key, None), getattr(method, pair, None)
        if rate is None or own is None:
            continue
        usual = 1.0 if config.steps.optimizer == "prodigy" else own[0 if small else 1]
        if rate > FAR * usual:
            said.append(
                f"method.{key}={rate:g}: {rate / usual:.4g} times the usual {usual:g} for this method and model; "
                "training may diverge"
            )
        elif rate < usual / FAR:
            said.append(
                f"method.{key}={rate:g}: {usual / rate:,.0f} times below the usual {usual:g} for this method and model; "
                "little will be learnt"
            )
    if config.steps.optimizer == "prodigy":
        return said  # Prodigy estimates its rate itself
    decay = getattr(method, "weight_decay", 0.0) * (getattr(method, "learning_rate", None) or 0.0)
    if decay * (config.steps.total or 1) > 1 and method.weight_decay > 0.1:
        said.append(
            f"method.weight_decay={method.weight_decay:g}: with this learning rate it takes the weights to zero within "
            f"{1 / decay:.0f} steps; set method.weight_decay=0.01"
        )
    return said


def _others(config: Config) -> list[str]:
    method: Any = config.method
    steps, said = config.steps, []
    _, scale = sampler(config.prompts)
    if scale == 0:
        said.append("prompts.guidance_scale=0: the same as 1, without guidance; the models expect 3 to 10")
    elif scale > SATURATED:
        said.append(
            f"prompts.guidance_scale={scale:g}: colours are burnt beyond {SATURATED:g}; the models "
            "expect 3 to 10"
        )
    if steps.noise_offset > 0.3:
        said.append(
            f"steps.noise_offset={steps.noise_offset:g}: 0.05 to 0.1 are usual; more spoils all pictures"
        )
    if 0 < steps.max_grad_norm < 1e-3:
        said.append(
            f"steps.max_grad_norm={steps.max_grad_norm:g}: every step is cut to almost nothing; 1 is usual"
        )
    if getattr(method, "dropout", 0.0) > 0.9:
        said.append(f"method.dropout={method.dropout:g}: hardly anything trains; 0 to 0.3 are usual")
    if getattr(method, "ema", False) and (1 - method.ema_decay) * (steps.total or 1) < 1:
        said.append(
            f"method.ema_decay={method.ema_decay:g}: averages over more steps than the {steps.total} of the run, so "
            "the average stays near the untouched model; set method.ema_decay=0.99"
        )
    alpha, rank = getattr(method, "alpha", None), getattr(method, "rank", None)
    if alpha and rank and not 1 / FAR < alpha / rank < FAR:
        said.append(
            f"method.alpha={alpha:g}: with method.rank={rank} the change is scaled by {alpha / rank:.3g}; "
            f"null scales it by 1"
        )
    return said
