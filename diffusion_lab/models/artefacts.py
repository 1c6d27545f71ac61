"""What fine-tuning leaves behind, ours and other tools': recognised by its files, put onto a pipeline.

Headers (safetensors' metadata; `dreambooth.json` for whole networks) say how an artefact was made and with
which words it is called. They are text, so every value is.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.interfaces import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from diffusion_lab.config import Config
    from diffusion_lab.interfaces import Subject

LORA, EMBEDDING, NETWORKS, PEFT, PIPELINE = "lora", "embedding", "networks", "peft", "pipeline"
HYPERNETWORK = "hypernetwork"
A1111_VECTORS = "emb_params"
OWN_NAMES = (
    "learned_embeds.safetensors", "pytorch_lora_weights.safetensors", "hypernetwork.safetensors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Artefact:
    """One recognised piece; a folder may hold several, such as an embedding and the LoRA trained with it."""

    kind: str  # lora, embedding, hypernetwork, networks (unet/, text_encoder/), peft (the same as adapters), pipeline
    path: Path
    header: Mapping[str, str]


def notes(config: Config, pipe: StableDiffusionPipeline, subject: Subject, prompt: str) -> dict[str, str]:
    """What every artefact's header says, beside the step and what the tools want to see of the method."""
    from diffusion_lab.tracking.atomic import dumps
    from diffusion_lab.tracking.provenance import checkout, versions

    return {
        "base_model": config.model.path,
        "prediction_type": str(pipe.scheduler.config.get("prediction_type", "epsilon")),
        "trigger": subject.identifier,
        "class_noun": subject.class_noun,
        "instance_prompt": prompt,
        "subject": subject.name,
        "hyperparameters": dumps(
            {
                "seed": config.seed,
                "method": dataclasses.asdict(config.method),  # type: ignore[call-overload]
                "steps": dataclasses.asdict(config.steps),
                "data": {key: getattr(config.data, key) for key in ("n_images", "captions", "flip")},
                "model": {key: getattr(config.model, key) for key in ("resolution", "precision")},
            }
        ),
        "seed": str(config.seed),
        "version": versions().get("diffusion-lab", ""),
        "commit": checkout(Path(__file__).resolve().parents[2])[0] or "",
    }


def annotate(folder: Path, words: Mapping[str, str]) -> None:
    """Adds `words` to the headers of all artefacts in `folder`; weights stay to the bit."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from diffusion_lab.tracking.atomic import write_json

    files = [*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")]
    for path in sorted(files):
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
        partial = path.with_name(f".{path.name}.tmp")
        save_file(load_file(path), partial, metadata={**header, **words})
        os.replace(partial, path)
    record = folder / "dreambooth.json"
    if record.is_file():
        write_json(record, {**json.loads(record.read_text("utf-8")), **words})


def recognise(path: Path) -> tuple[Artefact, ...]:
    """The pieces at `path`, a file or folder. UserError (job.artefact) where there is none. Loads no weights."""
    if path.is_file():
        return (_file(path),)
    if not path.is_dir():
        raise UserError(f"job.artefact={path}: there is no such file or folder")
    notes = path / "dreambooth.json"
    header = {}
    if notes.is_file():
        header = {key: str(value) for key, value in json.loads(notes.read_text("utf-8")).items()}
    if (path / "model_index.json").is_file():
        return (Artefact(PIPELINE, path, header),)
    found = []
    for part in ("unet", "text_encoder"):
        if (path / part / "adapter_config.json").is_file():
            weights = path / part / "adapter_model.safetensors"
            found.append(Artefact(PEFT, path / part, _header(weights)[0]))
        elif (path / part / "config.json").is_file():
            found.append(Artefact(NETWORKS, path / part, header))
    # One of our own names stands for its twins in other tools' formats, which lie beside it.
    own = [path / name for name in OWN_NAMES]
    files = [file for file in own if file.is_file()] or ([] if found else sorted(path.glob("*.safetensors")))
    found += [_file(file) for file in files]
    if not found:
        raise UserError(
            f"job.artefact={path}: holds nothing to load; a LoRA, an embedding (.safetensors), or a diffusers "
            "folder is needed"
        )
    return tuple(found)


def _file(path: Path) -> Artefact:
    if path.suffix != ".safetensors":
        raise UserError(f"job.artefact={path}: only .safetensors files are loaded, since others can run code")
    header, keys = _header(path)
    if header.get("method") == HYPERNETWORK:
        return Artefact(HYPERNETWORK, path, header)
    # The word may be any: "mr.bean", "flora". A LoRA's keys are names of layers and have points.
    if keys and ("vectors" in header or (len(keys) <= 2 and not any("." in key.strip("<>") for key in keys))):
        # Another tool's file without a word of its own is called by the file's name, as in the web UIs.
        word = path.stem if keys[0] in (A1111_VECTORS, "*") else keys[0]
        return Artefact(EMBEDDING, path, {"trigger": word, **header, "tensor": keys[0]})
    if any("lora" in key for key in keys):
        return Artefact(LORA, path, header)
    raise UserError(
        f"job.artefact={path}: is neither a LoRA nor an embedding that is known here"
        f"{' (header: ' + header['method'] + ')' if 'method' in header else ''}; a whole checkpoint goes to "
        "model=single_file model.path=FILE"
    )


def _header(path: Path) -> tuple[dict[str, str], list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {}), sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"job.artefact: {path} is damaged or missing ({error}); copy it again") from error


def apply(pipe: StableDiffusionPipeline, artefact: Artefact, weight: float = 1.0) -> None:
    """Puts one piece onto `pipe`. `weight` scales a LoRA. UserError where it is another model's."""
    try:
        _APPLY[artefact.kind](pipe, artefact, weight)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"job.artefact={artefact.path}: does not fit the model ({reason}); set model.path to the one it was "
            f"made for{': ' + artefact.header['base_model'] if artefact.header.get('base_model') else ''}"
        ) from error
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
        module.eval()


def _lora(pipe: Any, artefact: Artefact, weight: float) -> None:
    from diffusion_lab.models.load import quiet_loading

    with quiet_loading():
        pipe.load_lora_weights(artefact.path.parent, weight_name=artefact.path.name, adapter_name="artefact")
    pipe.set_adapters(["artefact"], adapter_weights=[weight])


def _embedding(pipe: Any, artefact: Artefact, weight: float) -> None:
    """Its word is found where it stands as a word, in any letter case; see `models.learnt_words`."""
    from safetensors.torch import load_file

    from diffusion_lab.models.learnt_words import learn

    vectors = load_file(artefact.path)[artefact.header["tensor"]]
    learn(pipe, artefact.header["trigger"], vectors if vectors.ndim > 1 else vectors[None])


def _hypernetwork(pipe: Any, artefact: Artefact, weight: float) -> None:
    from safetensors.torch import load_file

    from diffusion_lab.methods.hypernetwork import from_file

    from_file(artefact.path).attach(pipe)
    pipe.unet.hypernetwork.load_state_dict(load_file(artefact.path))


def _networks(pipe: Any, artefact: Artefact, weight: float) -> None:
    from safetensors.torch import load_file

    files = sorted(artefact.path.glob("*.safetensors"))
    weights = {key: value for file in files for key, value in load_file(file).items()}
    getattr(pipe, artefact.path.name).load_state_dict(weights)


def _peft(pipe: Any, artefact: Artefact, weight: float) -> None:
    from peft import PeftModel

    part = artefact.path.name
    merged = PeftModel.from_pretrained(getattr(pipe, part), str(artefact.path)).merge_and_unload()
    setattr(pipe, part, merged)


_APPLY = {
    LORA: _lora, EMBEDDING: _embedding, HYPERNETWORK: _hypernetwork, NETWORKS: _networks, PEFT: _peft,
}  # fmt: skip
