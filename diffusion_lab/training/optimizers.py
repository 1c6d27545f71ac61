"""The optimizers of `steps.optimizer`, each from the library that keeps it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from diffusion_lab.methods.method import ParamGroup
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import one_of


def build_optimizer(
    name: str, groups: Sequence[ParamGroup], device: torch.device, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """An optimizer over `groups`, whose names it keeps in `param_groups`. `scaled`: fp16's loss scale is at work.

    adamw: torch's, fused unless scaled; adamw8bit: bitsandbytes' (Dettmers et al. 2021, arXiv:2110.02861), its
    moments in 8 bits for tensors of 4096 numbers or more; prodigy: prodigyopt's (Mishchenko and Defazio 2023, arXiv:2306.06101),
    which finds the rate itself: the learning rates are factors on it, equal for all groups.

    UserError where its package is missing, or Prodigy is given different rates.
    """
    options: list[dict[str, Any]] = [
        {
            "name": group.name,
            "params": list(group.params),
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if name == "adamw":
        # fused: one kernel for all of the many small matrices. It skips an overflowing step inside that kernel, and
        # accelerate, which watches whether `step` is called at all, would not hear of it.
        return torch.optim.AdamW(options, fused=device.type in ("cuda", "cpu") and not scaled)
    if name == "adamw8bit":
        bitsandbytes = _imported("bitsandbytes", name)
        eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(options)
        return eight_bit
    one_of("steps.optimizer", name, ("adamw", "adamw8bit", "prodigy"))
    rates = {group.name: group.learning_rate for group in groups}
    if len(set(rates.values())) > 1:
        raise UserError(
            f"steps.optimizer=prodigy: finds one rate for all, and these differ: {rates}; leave "
            "method.learning_rate and its like null, or set them to the same number"
        )
    prodigyopt = _imported("prodigyopt", name)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):  # it prints about weight decay
        # The two settings that its authors recommend for diffusion models.
        found: torch.optim.Optimizer = prodigyopt.Prodigy(
            options, use_bias_correction=True, safeguard_warmup=True
        )
    return found


def _imported(package: str, optimizer: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:  # the plan has looked whether it is there; it may still not load
        raise UserError(
            f"steps.optimizer={optimizer}: {package} cannot be loaded ({error}); "
            "pip install 'diffusion-lab[optimizers]', or use steps.optimizer=adamw"
        ) from error
