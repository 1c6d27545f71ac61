"""What autograd keeps of one image for the backward pass, for every published model, without its memory or a card.

    python -m benchmarks.activations [--only flux]

The denoiser is built from torch's fake tensors, which have shapes and storages and no values, and runs its
forward pass as if on a card: CUDA's rules for autocast, attention through the kernels that keep no matrices.
The table puts what was kept beside the plan's estimate (`Family.saved`, `Family.checkpointed`). The exit
status is 1 where one is more than 15 % off.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks.full_size import MODELS, network

TOLERANCE = 0.15
MODES = (
    (False, True),
    (True, True),
    (False, False),
    (True, False),
)  # half precision, the denoiser itself trains
RANK = 8


def kept(
    family_name: str, configs: dict[str, dict[str, Any]], side: int, *, half: bool, trains: bool, device: str = "cuda",
    checkpointing: bool = False,
) -> float:  # fmt: skip
    """Bytes. `configs`: of the denoiser and the text encoders; `side`: of the latents.

    Copies of trained weights in half precision are left out. With `trains` false a LoRA of rank 8 trains at
    the family's targets, beside weights in half precision where `half`. `checkpointing`: what is kept between
    the blocks alone.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from diffusion_lab.families import FAMILIES

    family: Any = FAMILIES[family_name]
    net = _denoiser(family, configs[family.denoiser], half=half, trains=trains)
    found: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device), _card_attention(device):
        own = set()
        for module in net.modules():
            for values in (module._parameters, module._buffers):
                for name, value in values.items():
                    if value is not None:
                        values[name] = _fake(value)
                        own.add(values[name].untyped_storage()._cdata)
        net.train()
        if checkpointing:
            net.enable_gradient_checkpointing()
        alive = []  # a storage's address is its own only as long as it lives

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in own and storage._cdata not in found:
                alive.append(storage)
                found[storage._cdata] = storage.nbytes()
                shape = tuple(sorted(tensor.shape))
                if half and trains and tensor.dtype == torch.bfloat16 and copies[shape] > 0:
                    copies[shape] -= 1  # a weight's copy, or an activation of its size in its place
                    found[storage._cdata] = 0
            return tensor

        copies = Counter(tuple(sorted(parameter.shape)) for parameter in net.parameters())

        channels = configs["vae"]["latent_channels"]
        noisy = torch.zeros(1, channels, side, side)
        conditioning = _conditioning(family, configs, torch.bfloat16 if half else torch.float32)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        pipe = types.SimpleNamespace(**{family.denoiser: net})
        with _autocast(device) if half else nullcontext(), hooks:
            family.predict(pipe, noisy, torch.zeros(1), conditioning)
    return float(sum(found.values()))


def estimated(
    family_name: str, configs: dict[str, dict[str, Any]], side: int, *, half: bool, trains: bool
) -> float:
    """Bytes, as the plan counts them."""
    from diffusion_lab.families import FAMILIES
    from diffusion_lab.plan.footprint import saved_bytes

    family = FAMILIES[family_name]
    return saved_bytes(family.saved[half, trains], family.work(configs, side))


def _denoiser(family: Any, config: dict[str, Any], *, half: bool, trains: bool) -> Any:
    import torch

    with torch.device("meta"):
        net = network(family, family.denoiser, config)
        net.requires_grad_(trains)
        if not trains:
            from peft import LoraConfig

            if half:
                for parameter in net.parameters():
                    parameter.data = parameter.data.bfloat16()
            net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(family.lora_targets)))
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
    return net


def _fake(value: Any) -> Any:
    """Of the same shape, on the default device, in the mode that is on."""
    import torch

    empty = torch.empty(value.shape, dtype=value.dtype)
    if not isinstance(value, torch.nn.Parameter):
        return empty
    return torch.nn.Parameter(empty, requires_grad=value.requires_grad)


def _conditioning(family: Any, configs: dict[str, dict[str, Any]], dtype: Any) -> dict[str, Any]:
    """The denoiser's text inputs for one prompt, by the sizes in its config."""
    import torch

    config = configs[family.denoiser]
    if family.name == "sd":
        return {"hidden": torch.zeros(1, 77, config["cross_attention_dim"], dtype=dtype)}
    if family.name == "sdxl":
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
        return {
            "hidden": torch.zeros(1, 77, config["cross_attention_dim"], dtype=dtype),
            "pooled": torch.zeros(1, pooled, dtype=dtype),
            "time_ids": torch.zeros(1, 6, dtype=torch.int64),
        }
    tokens = 77 + 256 if family.name == "sd3" else 512
    found = {
        "hidden": torch.zeros(1, tokens, config["joint_attention_dim"], dtype=dtype),
        "pooled": torch.zeros(1, config["pooled_projection_dim"], dtype=dtype),
    }
    return found | ({"guidance": torch.ones(1)} if family.guidance == "embedded" else {})


@contextmanager
def _card_attention(device: str) -> Iterator[None]:
    """torch asks the driver for its choice of a kernel, and there is none: the choice that it makes on a card."""
    import torch
    import torch.nn.functional as F

    before = F.scaled_dot_product_attention

    def chosen(query: Any, key: Any, value: Any, **_: Any) -> Any:
        given = (query, key, value)
        if torch.is_autocast_enabled("cuda"):
            half = (tensor.to(torch.bfloat16) for tensor in given)
            return torch.ops.aten._scaled_dot_product_flash_attention(*half)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(*given, None, True)[0]

    if device == "cuda":
        F.scaled_dot_product_attention = chosen
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@contextmanager
def _autocast(device: str) -> Iterator[None]:
    """To bfloat16; torch.autocast itself is disabled without a GPU."""
    import torch

    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args(arguments)

    from diffusion_lab.families import FAMILIES

    print("| model | precision | trains | kept, GB | estimated | with checkpointing | estimated |")
    print("|---|---|---|---|---|---|---|")
    off = 0
    for name, (family_name, configs) in MODELS.items():
        if options.only not in name:
            continue
        family = FAMILIES[family_name]
        side = int(family.resolution(configs)) // 8
        for half, trains in MODES:
            mode: dict[str, Any] = {"half": half, "trains": trains}
            here = kept(family_name, configs, side, **mode)
            between = kept(family_name, configs, side, checkpointing=True, **mode)
            guess = estimated(family_name, configs, side, **mode)
            off += abs(guess / here - 1) > TOLERANCE
            cells = [
                name, "bf16" if half else "fp32", "denoiser" if trains else "LoRA", f"{here / 1e9:.2f}", f"{guess / 1e9:.2f}",
                f"{between / 1e9:.2f} between blocks", f"{guess * family.checkpointed / 1e9:.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
