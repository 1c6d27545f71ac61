"""The optimizers of `steps.optimizer`, each from its own library."""

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
    """An optimizer over `groups`, whose names are kept in `param_groups`.

    `scaled`: whether fp16 loss scaling is used.

    adamw: torch's, fused unless scaled; adamw8bit: bitsandbytes' (Dettmers et al. 2021, arXiv:2110.02861),
    with 8-bit moments for tensors of 4096 or more elements; prodigy: prodigyopt's (Mishchenko and Defazio
    2023, arXiv:2306.06101), which estimates the rate itself: the learning rates are factors, equal for all
    groups.

    UserError if the package is missing, or if Prodigy is given different rates.
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
        # fused: one kernel for all of the many small matrices. It skips an overflowing step inside that
        # kernel; accelerate, which detects skipped steps by whether `step` is called, would not notice.
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
    ):  # it prints a message about weight decay
        # The two settings that its authors recommend for diffusion models.
        found: torch.optim.Optimizer = prodigyopt.Prodigy(
            options, use_bias_correction=True, safeguard_warmup=True
        )
    return found


def _imported(package: str, optimizer: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:  # the plan checked that it is installed; importing may still fail
        raise UserError(
            f"steps.optimizer={optimizer}: {package} cannot be loaded ({error}); "
            "pip install 'diffusion-lab[optimizers]', or use steps.optimizer=adamw"
        ) from error
