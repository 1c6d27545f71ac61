"""Saves GPU memory and time: offloaded networks and compiled blocks.

Attention needs no setting: diffusers and transformers use torch's `scaled_dot_product_attention`, which
selects a memory-efficient kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from diffusion_lab.families import of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffusion_lab.config.schema import Memory
    from diffusion_lab.training.state import TrainingState

log = logging.getLogger(__name__)
GRADIENTS_AGREE = 0.02  # relative distance of compiled from eager gradients; bf16 rounding gives about 0.005


class HasNetworks(Protocol):
    """The metrics' encoders: networks that are idle during training."""

    def networks(self) -> Sequence[nn.Module]: ...


def idle_networks(state: TrainingState, bank: HasNetworks | None) -> list[nn.Module]:
    """Networks that are idle in a training step: VAE, cached text encoders, the metrics' encoders."""
    family = of(state.pipe)
    networks = family.networks(state.pipe)
    found: list[nn.Module] = [state.pipe.vae]
    if state.conditioning is not None:
        found += [networks[part] for part in family.text_encoders if part in networks]
    return [*found, *(bank.networks() if bank is not None else [])]


def to_device(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Moves the networks and releases cached GPU memory."""
    import torch

    for network in networks:
        network.to(device)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def rest(state: TrainingState, bank: HasNetworks | None, settings: Memory) -> None:
    """With `memory.offload`: moves the networks that a training step does not use off the device."""
    import torch

    if settings.offload:
        to_device(idle_networks(state, bank), torch.device("cpu"))


@contextmanager
def awake(state: TrainingState, bank: HasNetworks | None, settings: Memory) -> Iterator[None]:
    """Inside, everything is on the device; afterwards, with `memory.offload`, only what a step uses."""
    if settings.offload:
        to_device(idle_networks(state, bank), state.device)
    try:
        yield
    finally:
        rest(state, bank, settings)


def compile_blocks(state: TrainingState, settings: Memory, **options: Any) -> bool:
    """torch.compile on the denoiser's repeated transformer blocks, if its gradients match eager mode.

    Compiled U-Nets have produced correct losses with wrong gradients, so all gradients of one batch are
    compared first. Returns whether the blocks are compiled; the run's random streams are left unchanged.
    `options` are passed to torch.compile.
    """
    if not settings.compile:
        return False
    denoiser = getattr(state.pipe, of(state.pipe).denoiser)
    plain = _gradients(state)
    denoiser.compile_repeated_blocks(**options)
    try:
        distance = _distance(plain, _gradients(state))
        reason = f"its gradients are {distance:.1%} off eager's" if distance > GRADIENTS_AGREE else ""
    except Exception as error:  # a compiler that is missing or fails may raise any exception
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason:
        for module in denoiser.modules():
            module._compiled_call_impl = None
        log.warning("memory.compile=true: not compiled, %s", reason)
    return not reason


def _gradients(state: TrainingState) -> list[torch.Tensor]:
    """Gradients of all trained parameters for the run's next batch, which is not consumed."""
    import copy

    noise = state.noise_stream.get_state()
    latent = state.latent_stream.get_state()
    samplers = [state.sampler, *([state.prior.sampler] if state.prior is not None else [])]
    places = [copy.copy(sampler) for sampler in samplers]
    try:
        with state.accelerator.autocast():
            loss = state.method.loss(state.pipe, state.next_batch(1), state.noise_stream)
        loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in state.trained if p.grad is not None]
    finally:
        state.optimizer.zero_grad()
        state.noise_stream.set_state(noise)
        state.latent_stream.set_state(latent)
        for sampler, place in zip(samplers, places, strict=True):
            sampler.epoch, sampler.position = place.epoch, place.position


def _distance(plain: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """|a - b| / |a| over all of them together; infinite if a gradient is missing."""
    if len(plain) != len(other):
        return float("inf")
    apart = sum(float((a - b).double().pow(2).sum()) for a, b in zip(plain, other, strict=True))
    size = sum(float(a.double().pow(2).sum()) for a in plain)
    return float((apart / max(size, 1e-30)) ** 0.5)
