"""A full-size model and full-size encoders with random weights, in the files the product reads: `benchmarks.rehearsal`.

No network is ever initialised: shapes come from the classes on torch's meta device, values from one short
random sequence that is repeated, scaled so that activations stay finite.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.full_size import TEXT, UNET, VAE

TINY_UNET = {**UNET, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "attention_head_dim": 4}
TINY_VAE = {**VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
TINY_TEXT = {
    **TEXT,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
HEAD_WIDTHS = (768, 1024, 128, 64, 16, 1)  # of LAION's head, at the places of its file
HEAD_PLACES = (0, 2, 4, 6, 7)


def build(folder: Path, size: str) -> None:
    """`model/`, `encoders/`, `pictures/`, `prompts.txt` under `folder`. `size`: full or tiny."""
    _model(folder / "model", size)
    _encoders(folder / "encoders", size)
    _pictures(folder / "pictures")
    (folder / "prompts.txt").write_text("a photo of {subject}\na {subject} in the garden\n")


def encoder_words(folder: Path) -> list[str]:
    """The overrides for the encoders' files."""
    place = folder / "encoders"
    clip = place / "clip"
    found = [
        f"metrics.face_weights={place / 'face.safetensors'}", f"metrics.dino_model={place / 'dino'}",
        f"metrics.inception_weights={place / 'inception.safetensors'}",
        f"metrics.aesthetics_weights={place / 'head.pth'}",
    ]  # fmt: skip
    if clip.is_dir():
        return [*found, f"metrics.clip_model={clip}"]
    return [
        *found,
        "metrics.clip_model=ViT-L-14-quickgelu",
        f"metrics.clip_weights={place / 'clip.safetensors'}",
    ]


def random_tensors(shapes: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Values for a state dict of meta tensors: matrices of variance 1/inputs, gains and variances 1, the rest 0."""
    import torch

    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    found = {}
    for number, (name, like) in enumerate(shapes.items()):
        if not like.is_floating_point():
            ids = name.endswith("position_ids")
            found[name] = (
                torch.arange(like.numel()).reshape(like.shape)
                if ids
                else torch.zeros_like(like, device="cpu")
            )
        elif like.dim() > 1:
            inputs = like[0].numel() if "embedding" not in name else 2500
            start = number * 997 % (block.numel() // 2)
            values = block[start:].repeat(like.numel() // (block.numel() - start) + 1)[: like.numel()]
            found[name] = (values.reshape(like.shape) / inputs**0.5).to(dtype)
        elif name.endswith(("weight", "running_var")):
            found[name] = torch.ones(like.shape, dtype=dtype)
        else:
            found[name] = torch.zeros(like.shape, dtype=dtype)
    return found


def _save(network: Any, path: Path, dtype: Any, more: Mapping[str, Any] | None = None) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {**random_tensors(network.state_dict(), dtype), **(more or {})}, path, metadata={"format": "pt"}
    )


def _model(folder: Path, size: str) -> None:
    """A diffusers folder in half precision, as many are published: 2.1 GB at full size."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny = size == "tiny"
    text = {**(TINY_TEXT if tiny else TEXT), "bos_token_id": 49406, "eos_token_id": 49407}
    unet = {**(TINY_UNET if tiny else UNET), "cross_attention_dim": text["hidden_size"]}
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**(TINY_VAE if tiny else VAE)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    for name, network in networks.items():
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _save(network, folder / name / f"{stem}.safetensors", torch.float16)
        if name == "text_encoder":
            network.config.architectures = ["CLIPTextModel"]
            network.config.save_pretrained(folder / name)
        else:
            network.save_config(folder / name)
    tokenizer().save_pretrained(folder / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
    }  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", **parts}
    (folder / "model_index.json").write_text(
        json.dumps({**index, "requires_safety_checker": False}, indent=2)
    )


def tokenizer() -> Any:
    """CLIP's own, 49408 pieces, from the merges that open_clip ships."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPTokenizer

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token="<|endoftext|>")


def _encoders(folder: Path, size: str) -> None:
    """CLIP ViT-L/14, InceptionResnetV1, Inception v3 of FID, DINO's ViT-S/16, LAION's head; small CLIP and ViT for tiny."""
    import torch
    from facenet_pytorch import InceptionResnetV1
    from transformers import ViTConfig, ViTModel

    from diffusion_lab.evaluation.encoders.inception import build as inception

    with torch.device("meta"):
        face = InceptionResnetV1(pretrained=None)
    _save(face, folder / "face.safetensors", torch.float32)
    fc = {
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }  # by which FID's network is known
    _save(inception(fid=True), folder / "inception.safetensors", torch.float32, fc)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = (
        small if size == "tiny" else {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    )
    config = ViTConfig(**sizes, patch_size=16)
    config.architectures = ["ViTModel"]
    with torch.device("meta"):
        vit = ViTModel(config, add_pooling_layer=False)
    config.save_pretrained(folder / "dino")
    _save(vit, folder / "dino" / "model.safetensors", torch.float32)
    layers = {}
    for number, place in enumerate(HEAD_PLACES):
        shape = (HEAD_WIDTHS[number + 1], HEAD_WIDTHS[number])
        layers[f"layers.{place}.weight"] = torch.empty(shape, device="meta")
        layers[f"layers.{place}.bias"] = torch.empty(shape[0], device="meta")
    head = random_tensors(layers, torch.float32)
    head["layers.7.bias"] += 5
    torch.save(head, folder / "head.pth")
    (_small_clip if size == "tiny" else _clip)(folder)


def _clip(folder: Path) -> None:
    """ViT-L/14 as open_clip builds it, in half precision."""
    import open_clip
    import torch

    with torch.device("meta"):
        clip = open_clip.CLIP(**_plain(open_clip.get_model_config("ViT-L-14-quickgelu")))
    _save(clip, folder / "clip.safetensors", torch.float16)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    }


def _small_clip(folder: Path) -> None:
    """A CLIP model from transformers with 768-dimensional embeddings, as required by the head."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(**TINY_TEXT, bos_token_id=49406, eos_token_id=49407, projection_dim=768)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=768,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=768)
    config.architectures = ["CLIPModel"]
    with torch.device("meta"):
        clip = CLIPModel(config)
    config.save_pretrained(folder / "clip")
    _save(clip, folder / "clip" / "model.safetensors", torch.float32)
    tokenizer().save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "clip")


def _pictures(folder: Path) -> None:
    """Five drawn portraits, large enough for 512 pixels: the detector finds faces in most of them."""
    import numpy as np
    from PIL import Image

    from diffusion_lab.config.schema import Data
    from diffusion_lab.data.subjects import load_subject

    folder.mkdir(parents=True, exist_ok=True)
    subject = load_subject(Data(subject="anna", n_images=4, n_heldout=1))
    for number, picture in enumerate((*subject.train, *subject.heldout)):
        image = Image.fromarray(np.asarray(picture.pixels)).resize((512, 512), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
