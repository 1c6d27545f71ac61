"""One training step here against the plain loop of the examples everyone copies, in one run.

    python -m benchmarks.training_step [--model miniature|FOLDER] [--device auto] [--steps 10] [--rounds 4]

The plain loop is that of diffusers' train_text_to_image_lora.py: at every step each picture goes through the
VAE and the prompt through the text encoder, before the U-Net, backward, clipping and AdamW. Both start from
the same weights, see the same pictures in the same order and draw the same random numbers, so the losses
must agree; both run in float32 and in turns, so that a busy machine slows both. The exit status is 1 where
the losses differ or this loop is slower.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

TOLERANCE = 1e-3  # relative, of each step's loss; rounding grows a little with every step
SLOWER = 1.05  # ratio of times at which this loop counts as slower: the noise of a busy machine


def plain_loop(pipe: Any, config: Any, subject: Any) -> Callable[[], float]:
    """The example's loop with LoRA; returns what takes one step and gives its loss."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    from diffusion_lab.data.pictures import center_crop_resize, to_tensor
    from diffusion_lab.models.load import resolution_of
    from diffusion_lab.system.rng import generator, seeded, stream_seed
    from diffusion_lab.training.sampler import EpochSampler

    method, device = config.method, pipe.device
    unet, vae, text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
    with seeded(stream_seed(config.seed, "weights")):
        unet.add_adapter(
            LoraConfig(
                r=method.rank,
                lora_alpha=method.rank,
                init_lora_weights="gaussian",
                target_modules=method.targets,
            )
        )
    unet.train()
    params = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=method.learning_rate, weight_decay=method.weight_decay)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    resolution = resolution_of(pipe, config.model)
    pixels = torch.stack(
        [to_tensor(center_crop_resize(picture.pixels, resolution)) for picture in subject.train]
    )
    ids = pipe.tokenizer(
        subject.instance_prompt, padding="max_length", max_length=pipe.tokenizer.model_max_length,
        truncation=True, return_tensors="pt",
    ).input_ids  # fmt: skip
    sampler = EpochSampler(n=len(pixels), seed=config.seed)
    latent_stream, noise_stream = generator(config.seed, "latents"), generator(config.seed, "noise")

    def step() -> float:
        batch = pixels[sampler.take(config.steps.batch_size)].to(device)
        with torch.no_grad():
            posterior = vae.encode(batch).latent_dist
        # The example samples noise for a whole batch; sampling per image gives this package's numbers.
        shape = posterior.mean.shape[1:]
        fresh = torch.stack([torch.randn(shape, generator=latent_stream) for _ in batch]).to(device)
        latents = (posterior.mean + posterior.std * fresh) * vae.config.scaling_factor
        draws = [
            (torch.randn(shape, generator=noise_stream),
             torch.randint(0, scheduler.config.num_train_timesteps, (1,), generator=noise_stream))
            for _ in batch
        ]  # fmt: skip
        noise = torch.stack([noise for noise, _ in draws]).to(device)
        timesteps = torch.cat([timestep for _, timestep in draws]).to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.no_grad():
            hidden = text_encoder(ids.expand(len(batch), -1).to(device), return_dict=False)[0]
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        else:
            target = noise
        loss = F.mse_loss(unet(noisy, timesteps, hidden, return_dict=False)[0].float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, config.steps.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # the example logs it at every step

    return step


def our_loop(state: Any, config: Any) -> Callable[[int], tuple[list[float], float]]:
    """Runs `train` for n steps from its current state: losses and total wall-clock seconds."""
    import dataclasses

    from diffusion_lab.training.loop import train

    def steps(n: int) -> tuple[list[float], float]:
        losses: list[float] = []
        total = state.step + n
        start = perf_counter()
        train(
            state,
            steps=dataclasses.replace(config.steps, total=total, every=10**7, log_every=1),
            evaluate=lambda step: None,
            on_log=lambda step, values: losses.append(values["train/loss"]),
            on_step=lambda step: None,
        )
        _wait(state.device)
        return losses, perf_counter() - start

    return steps


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="miniature", help="miniature, or a diffusers folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each loop, in turns")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args(arguments)

    import torch

    from diffusion_lab.config.schema import Config, Data, Model, Steps
    from diffusion_lab.data.subjects import load_subject
    from diffusion_lab.methods.lora import Lora
    from diffusion_lab.models.load import load_pipeline, resolve_device
    from diffusion_lab.plan.defaults import fill_defaults
    from diffusion_lab.training.state import build_state

    device = resolve_device(options.device)
    config = fill_defaults(
        Config(
            model=Model(path=options.model),
            method=Lora(rank=options.rank),
            data=Data(n_images=14),
            steps=Steps(total=options.steps * options.rounds, batch_size=options.batch_size),
        )
    )
    subject = load_subject(config.data)
    start = perf_counter()
    state = build_state(config, load_pipeline(config.model, device), subject)
    _wait(device)
    setup = perf_counter() - start
    ours = our_loop(state, config)
    plain = plain_loop(load_pipeline(config.model, device), config, subject)

    our_losses, plain_losses, our_times, plain_times = [], [], [], []
    for number in range(options.rounds + 1):  # the first round warms up and is not timed
        losses, seconds = ours(options.steps)
        our_losses += losses
        _wait(device)
        start = perf_counter()
        plain_losses += [plain() for _ in range(options.steps)]
        _wait(device)
        if number:
            our_times.append(seconds / options.steps)
            plain_times.append((perf_counter() - start) / options.steps)

    worst = max(abs(a - b) / b for a, b in zip(our_losses, plain_losses, strict=True))
    mine, theirs = statistics.median(our_times), statistics.median(plain_times)
    where = f"{device}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(f"{options.model}, batch {options.batch_size}, LoRA rank {options.rank}, float32, {where}")
    print(f"{'':24}{'plain loop':>14}{'this loop':>14}{'ratio':>9}")
    print(f"{'seconds a step':24}{theirs:14.4f}{mine:14.4f}{theirs / mine:8.2f}x")
    print(f"{'first loss':24}{plain_losses[0]:14.6f}{our_losses[0]:14.6f}")
    print(f"{f'loss at step {len(our_losses)}':24}{plain_losses[-1]:14.6f}{our_losses[-1]:14.6f}")
    print(f"largest relative difference of a step's loss: {worst:.1e} (allowed: {TOLERANCE:.0e})")
    print(f"once a run, before the first step: {setup:.2f} s to load, encode pictures and prompt, attach")
    return int(worst > TOLERANCE or mine > SLOWER * theirs)


if __name__ == "__main__":
    sys.exit(main())
