"""The header of every artefact: how it was made, for which model, and which words its prompts use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import made_for, sampling_note
from diffusion_lab.families import of
from diffusion_lab.system.readers import read_json

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.records import Subject

NOTES = "dreambooth.json"  # for whole networks, whose files have no headers of ours


def notes(config: Config, pipe: Any, subject: Subject, prompt: str) -> dict[str, str]:
    """The header's entries, except the step and the method's entries for other tools."""
    from diffusion_lab.data.prompts import load_prompts
    from diffusion_lab.system.provenance import checkout, versions
    from diffusion_lab.values.jsonable import dumps

    prompts = load_prompts(config.prompts, identifier=subject.identifier, class_noun=subject.class_noun)
    return {
        sampling_note.HEADER: sampling_note.note(
            config, pipe.device.type, prompts.negative, of(pipe).sampler
        ),
        made_for.HEADER: of(pipe).name,
        "base_model": config.model.path,
        "prediction_type": _prediction_type(pipe),
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


def _prediction_type(pipe: Any) -> str:
    """What the denoiser predicts; a rectified flow's scheduler has no such setting."""
    default = "epsilon" if of(pipe).min_snr else "flow_prediction"
    return str(pipe.scheduler.config.get("prediction_type", default))


def annotate(folder: Path, words: Mapping[str, str]) -> None:
    """Adds `words` to the headers of all artefacts in `folder`; the weights are not changed."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from diffusion_lab.system import tensors
    from diffusion_lab.system.atomic import write_json

    files = [*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")]
    for path in sorted(files):
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
        tensors.write(path, load_file(path), {**header, **words})
    record = folder / NOTES
    if record.is_file():
        write_json(record, {**read_json(record, "artefact"), **words})
