"""The published models' architectures, to be built with random weights: memory does not depend on the values."""

from __future__ import annotations

from typing import Any

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_L = {**TEXT, "projection_dim": 768}
CLIP_G = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
}  # fmt: skip
VAE_16 = {
    **VAE, "sample_size": 1024, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
MMDIT = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "qk_norm": "rms_norm",
}  # fmt: skip
SD3_VAE = {**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
SD3_TEXTS = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5}

# model= -> its family, and the config of every part
MODELS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "sd15": ("sd", {"unet": UNET, "vae": VAE, "text_encoder": TEXT}),
    "sdxl": ("sdxl", {
        "unet": {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**VAE, "sample_size": 1024, "scaling_factor": 0.13025}, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G,
    }),
    "sd35_medium": ("sd3", {
        "transformer": {
            **MMDIT, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
        },
        "vae": SD3_VAE, **SD3_TEXTS,
    }),
    "sd35_large": ("sd3", {
        "transformer": {
            **MMDIT, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        "vae": SD3_VAE, **SD3_TEXTS,
    }),
    "flux_dev": ("flux", {
        "transformer": {
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
        },
        "vae": {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": TEXT, "text_encoder_2": T5,
    }),
}  # fmt: skip


def network(family: Any, part: str, config: dict[str, Any]) -> Any:
    """Of the family's own class, on torch's current default device and in its current default format."""
    kind = family.part_classes()[part]
    return kind(kind.config_class(**config)) if part.startswith("text_encoder") else kind(**config)


def pipeline(name: str, device: Any, *, half: bool = False) -> Any:
    """The whole model on `device`, frozen, with tokenizers of a few words.

    float32, or with `half` what the product loads in half precision of a large family, in bfloat16.
    """
    import torch

    from diffusion_lab.families import FAMILIES
    from diffusion_lab.models.load import modules

    family_name, configs = MODELS[name]
    family: Any = FAMILIES[family_name]
    parts: dict[str, Any] = {}
    before = torch.get_default_dtype()
    for part, config in configs.items():
        dtype = torch.bfloat16 if half and family.loads_half and part != "vae" else before
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                parts[part] = network(family, part, config).to(dtype)
        finally:
            torch.set_default_dtype(before)
    for part in family.tokenizers:
        parts[part] = _t5_tokenizer() if part in family.t5_tokenizers else _clip_tokenizer()
    pipe = family.pipeline_class()(
        scheduler=_scheduler(family), **parts,
        **({"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} if family.name == "sd" else {}),
    )  # fmt: skip
    for module in modules(pipe):
        module.requires_grad_(False)
        module.eval()
    return pipe.to(device)


def _scheduler(family: Any) -> Any:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if family.denoiser == "unet":
        return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=family.guidance == "embedded")


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    from diffusion_lab.miniature.shipped import shipped_folder

    return CLIPTokenizer.from_pretrained(shipped_folder("miniature") / "tokenizer")


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(chr(letter), -6.0) for letter in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
