"""The opposite way: a pipeline's weights under the names of a single checkpoint file (CompVis' latent diffusion)."""

from __future__ import annotations

import re
from typing import Any

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(pipe: Any) -> dict[str, Any]:
    """Name -> tensor, as a `.safetensors` checkpoint of Stable Diffusion 1.x holds them."""
    found = _unet_and_vae(pipe)
    found |= _clip(pipe.text_encoder, "cond_stage_model.")
    return {name: value.clone().contiguous() for name, value in found.items()}


def sdxl_file(pipe: Any) -> dict[str, Any]:
    """The same of Stable Diffusion XL, its second text encoder in open_clip's names."""
    found = _unet_and_vae(pipe) | _clip(pipe.text_encoder, "conditioner.embedders.0.")
    found |= open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    return {name: value.clone().contiguous() for name, value in found.items()}


def open_clip(encoder: Any, prefix: str) -> dict[str, Any]:
    """Queries, keys and values of a layer are rows of one matrix; the projection is transposed."""
    import torch

    weights = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
    }
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            rows = [weights[f"{ours}self_attn.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{theirs}attn.in_proj_{kind}"] = torch.cat(rows)
            found |= {f"{theirs}{b}.{kind}": weights[f"{ours}{a}.{kind}"] for a, b in OPEN_CLIP.items()}
    return {prefix + name: value for name, value in found.items()}


def _clip(encoder: Any, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}": value
        for name, value in encoder.state_dict().items()
    }


def _unet_and_vae(pipe: Any) -> dict[str, Any]:
    unet, vae = pipe.unet, pipe.vae
    found = {
        f"model.diffusion_model.{unet_name(name, unet.config)}": value
        for name, value in unet.state_dict().items()
    }
    for name, value in vae.state_dict().items():
        own = vae_name(name, len(vae.config.block_out_channels))
        is_conv = "attn_1." in own and own.endswith("weight") and ".norm." not in own
        found[f"first_stage_model.{own}"] = value[:, :, None, None] if is_conv else value
    return found


def unet_name(name: str, config: Any) -> str:
    per = config.layers_per_block + 1
    for ours, theirs in TOP.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}.{_resnet(found[1], found[3])}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert found is not None, name
    direction, block, kind, layer = found[1], int(found[2]), found[3], int(found[4])
    if direction == "down":
        if kind == "downsamplers":
            return f"input_blocks.{block * per + per}.0.{found[5].replace('conv', 'op', 1)}"
        at = f"input_blocks.{1 + block * per + layer}"
    else:
        attends = "CrossAttn" in config.up_block_types[block]
        if kind == "upsamplers":
            return f"output_blocks.{block * per + per - 1}.{2 if attends else 1}.{found[5]}"
        at = f"output_blocks.{block * per + layer}"
    return f"{at}.{1 if kind == 'attentions' else 0}.{_resnet(kind, found[5])}"


def _resnet(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    layer, _, parameter = rest.rpartition(".")
    return f"{RESNET[layer]}.{parameter}"


def vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, rest = name.split("mid_block.attentions.0.")
        layer, _, parameter = rest.rpartition(".")
        return f"{head}mid.attn_1.{VAE_ATTENTION[layer]}.{parameter}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    for kind, theirs in (("resnets", "block"), ("upsamplers", "upsample")):
        name = re.sub(
            rf"up_blocks\.(\d)\.{kind}\.(\d)",
            lambda m, theirs=theirs: (
                f"up.{blocks - 1 - int(m[1])}.{theirs}" + (f".{m[2]}" if theirs == "block" else "")
            ),
            name,
        )
    return name
