"""The recipe: from nothing but the renderer to the miniature's weights, stage by stage.

``run(folder)`` draws the pictures, trains tokenizer, CLIP, VAE, U-Net, face embedder and aesthetics head,
measures each on held-out portraits and leaves ``folder/weights/{sd,clip,face,aesthetics}`` and
``folder/figures.json``. It may be killed and started again at any moment.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_lab.evaluation.encoders.detect import FaceDetector
from diffusion_lab.evaluation.encoders.miniature import MiniatureFaceEmbedder
from diffusion_lab.miniature.networks import load_clip
from diffusion_lab.recipes.miniature import (
    aesthetics,
    clip,
    clip_accuracy,
    evaluate,
    face,
    tokenizer,
    unet,
    vae,
)
from diffusion_lab.recipes.miniature.export import save_part, save_pipeline
from diffusion_lab.recipes.miniature.loop import device_of
from diffusion_lab.recipes.miniature.settings import Recipe, RecipeSizes
from diffusion_lab.system.atomic import write_json
from diffusion_lab.system.folders import replace_folder


def run(
    folder: Path,
    *,
    stages: Sequence[str] | None = None,
    device: str = "auto",
    seed: int = 0,
    scale: float = 1.0,
    progress: bool = True,
    prediction_type: str = "epsilon",
    start: Path | None = None,
    sizes: RecipeSizes | None = None,
) -> dict[str, Any]:
    """Run ``stages`` (default all, in order) and return the figures of all stages run so far.

    ``scale`` multiplies the numbers of pictures and steps. A stage that was finished with the same settings
    is not run again; an interrupted one continues from its checkpoint. ``start``: see ``unet.train_unet``.
    ValueError for an unknown stage.
    """
    stages = list(STAGES) if stages is None else list(stages)
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"unknown stages {sorted(unknown)}; known: {list(STAGES)}")
    folder.mkdir(parents=True, exist_ok=True)
    made = Recipe(
        folder,
        (sizes or RecipeSizes()).scaled(scale),
        device_of(device),
        seed,
        progress,
        prediction_type,
        start,
    )
    figures: dict[str, Any] = {}
    for stage in [s for s in STAGES if s in stages]:
        record = folder / "figures" / f"{stage}.json"
        settings = {
            "seed": seed,
            "scale": scale,
            "steps": made.sizes.steps.get(stage),
            "prediction": prediction_type,
        } | ({"start": str(start)} if start is not None and stage == "unet" else {})
        if record.exists() and json.loads(record.read_text())["settings"] == settings:
            continue
        began = time.monotonic()
        stage_figures = STAGES[stage](made)
        write_json(
            record,
            {"settings": settings, "seconds": round(time.monotonic() - began, 1), "figures": stage_figures},
        )
        if progress:
            print(stage, json.dumps(stage_figures, default=float), flush=True)
    for stage in STAGES:
        record = folder / "figures" / f"{stage}.json"
        if record.exists():
            figures[stage] = json.loads(record.read_text())["figures"]
    write_json(folder / "figures.json", figures)
    return figures


def run_data(made: Recipe) -> dict[str, Any]:
    """Draw all portraits."""
    sets = {"train": made.train_set(), "heldout": made.heldout()}
    sets |= {name: made.faces(name) for name in ("faces", "heldout_faces")}
    return {name: len(data) for name, data in sets.items()}


def run_tokenizer(made: Recipe) -> dict[str, Any]:
    """Train the vocabulary."""
    return {"entries": len(tokenizer.train_tokenizer(made.folder / "parts" / "tokenizer"))}


def run_clip(made: Recipe) -> dict[str, Any]:
    """Train and measure CLIP."""
    vocabulary = tokenizer.load_tokenizer(made.folder / "parts" / "tokenizer")
    model = clip.train_clip(
        made.train_set(),
        vocabulary,
        made.folder,
        steps=made.sizes.steps["clip"],
        device=made.device,
        seed=made.seed,
        progress=made.progress,
    )
    clip.save_clip(model.cpu(), vocabulary, made.weights / "clip")
    with replace_folder(made.folder / "parts" / "text") as temporary:
        shutil.copytree(made.weights / "clip" / "text", temporary, dirs_exist_ok=True)
    return clip_figures(made)


def clip_figures(made: Recipe) -> dict[str, Any]:
    """Zero-shot accuracies of CLIP as it is now: of the slots, and of the traits of a face."""
    encoder, heldout = made.load_clip(), made.heldout()
    return {
        **clip_accuracy.evaluate_clip(encoder, heldout),
        "looks": clip_accuracy.evaluate_looks(encoder, heldout),
    }


def run_vae(made: Recipe) -> dict[str, Any]:
    """Train and measure the autoencoder."""
    model = vae.train_vae(
        made.train_set(),
        made.folder,
        steps=made.sizes.steps["vae"],
        device=made.device,
        seed=made.seed,
        progress=made.progress,
    )
    save_part(model.half().float(), made.folder / "parts" / "vae")  # as shipped: rounded to half precision
    for stale in ("moments", "train_rebuilt", "faces_rebuilt"):
        (made.folder / "data" / f"{stale}.npy").unlink(missing_ok=True)
    figures = vae.evaluate_vae(made.load_vae(), made.heldout(), made.device)
    return {**figures, "scaling_factor": float(model.config.scaling_factor)}


def run_decoder(made: Recipe) -> dict[str, Any]:
    """Continues training the decoder with fixed latents; evaluated like the autoencoder."""
    data, model = made.train_set(), made.load_vae()
    model = vae.train_decoder(
        model,
        load_clip(made.weights / "clip").image,
        data,
        made.moments(data),
        made.folder,
        steps=made.sizes.steps["decoder"],
        device=made.device,
        seed=made.seed,
        progress=made.progress,
    )
    save_part(model.half().float(), made.folder / "parts" / "vae")
    return vae.evaluate_vae(made.load_vae(), made.heldout(), made.device)


def run_unet(made: Recipe, every: Callable[[int, Any], None] | None = None) -> dict[str, Any]:
    """Train the diffusion model and save the pipeline."""
    data, scaling = made.train_set(), float(made.load_vae().config.scaling_factor)
    text_encoder, vocabulary = text_tower(made), tokenizer.load_tokenizer(made.folder / "parts" / "tokenizer")
    model = unet.train_unet(
        data,
        made.moments(data),
        scaling,
        text_encoder,
        vocabulary,
        made.folder,
        steps=made.sizes.steps["unet"],
        device=made.device,
        seed=made.seed,
        prediction_type=made.prediction_type,
        start=made.start,
        progress=made.progress,
        every=every,
    )
    pipe = unet.pipeline(
        made.load_vae().cpu(), text_encoder.cpu(), vocabulary, model.cpu(), made.prediction_type
    )
    save_pipeline(pipe, made.weights / "sd")
    return {"parameters": sum(p.numel() for p in model.parameters())}


def text_tower(made: Recipe) -> Any:
    """CLIP's text tower, as the stage "clip" left it, as the CLIPTextModel of the pipeline."""
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(made.folder / "parts" / "text", dtype=torch.float32).eval()


def run_polish(made: Recipe) -> dict[str, Any]:
    """Continue training CLIP, with a third of the images from the VAE; the U-Net keeps its text tower."""
    data, vocabulary = made.train_set(), tokenizer.load_tokenizer(made.folder / "parts" / "tokenizer")
    model = clip.train_clip(
        data,
        vocabulary,
        made.folder,
        steps=made.sizes.steps["polish"],
        device=made.device,
        seed=made.seed + 1,
        progress=made.progress,
        model=load_clip(made.weights / "clip"),
        images=made.some_rebuilt(data, "train", 3),
    )
    clip.save_clip(model.cpu(), vocabulary, made.weights / "clip")
    return clip_figures(made)


def run_face(made: Recipe) -> dict[str, Any]:
    """Train and measure the face embedder; a sixth of the portraits come out of the VAE."""
    data, detector = made.faces("faces"), FaceDetector()
    images = made.some_rebuilt(data, "faces", 6)
    offsets = face.box_offsets(data, detector, n=min(300, len(data)))
    net = face.train_face(
        data,
        images,
        offsets,
        made.folder,
        steps=made.sizes.steps["face"],
        device=made.device,
        seed=made.seed,
        progress=made.progress,
    )
    face.save_face_net(net.cpu(), made.weights / "face")
    figures = face.evaluate_face(
        MiniatureFaceEmbedder.load(made.weights / "face"), made.faces("heldout_faces"), detector
    )
    return {**figures, "box_offset_of_mtcnn": offsets.round(3).tolist()}


def run_aesthetics(made: Recipe) -> dict[str, Any]:
    """Train and measure the aesthetics head."""
    encoder, data, heldout = made.load_clip(), made.train_set(), made.heldout()
    rated = aesthetics.noisy_ratings(data.ratings, made.seed)[
        ::2
    ]  # every second picture: enough, and quicker
    net = aesthetics.train_aesthetics(
        encoder.embed_images(list(data.images[::2])),
        rated,
        made.folder,
        steps=made.sizes.steps["aesthetics"],
        seed=made.seed,
        progress=made.progress,
    )
    aesthetics.save_aesthetics_net(net, made.weights / "aesthetics")
    return aesthetics.evaluate_aesthetics(net, encoder.embed_images(list(heldout.images)), heldout)


def run_evaluate(made: Recipe) -> dict[str, Any]:
    """Sample the check's prompts and measure the samples."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(made.weights / "sd").to(made.device)
    prompts = evaluate.evaluation_prompts(made.sizes.prompts)
    images = unet.sample(pipe, evaluate.prompt_texts(prompts), seed=made.seed)
    evaluate.save_grid(list(images[:60]), 10, made.folder / "samples" / "prompts.png")
    figures = evaluate.evaluate_samples(list(images), prompts, made.load_clip(), FaceDetector())
    described = unet.sample(pipe, evaluate.look_texts(prompts), seed=made.seed)
    return {**figures, "looks": evaluate.evaluate_look_samples(list(described), prompts, made.load_clip())}


STAGES: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "data": run_data,
    "tokenizer": run_tokenizer,
    "clip": run_clip,
    "vae": run_vae,
    "decoder": run_decoder,
    "unet": run_unet,
    "face": run_face,
    "polish": run_polish,
    "aesthetics": run_aesthetics,
    "evaluate": run_evaluate,
}
