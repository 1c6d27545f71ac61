"""Accelerate, with all of its settings from the configuration and none from the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_lab.system.environment import neutral
from diffusion_lab.system.processes import WAIT

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def build_accelerator(device: torch.device, precision: str) -> Accelerator:
    """An Accelerator for this device and precision, whatever an earlier run of this process asked for."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    # Accelerate keeps its settings in process-wide singletons, and refuses a second run with different ones.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    mixed = "no" if precision == "fp32" else precision
    with neutral():  # accelerate takes settings that are not passed, and some that are, from the environment
        return Accelerator(
            mixed_precision=mixed,
            cpu=device.type == "cpu",
            device_placement=False,
            # The loop counts and averages itself. A plugin, because the environment overrides
            # gradient_accumulation_steps=1.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(
                backend="no", mode="default", fullgraph=False, use_regional_compilation=False
            ),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
