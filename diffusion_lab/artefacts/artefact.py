"""What fine-tuning leaves behind, ours and other tools': recognised by its files, put onto a pipeline.

Headers (safetensors' metadata; `dreambooth.json` for whole networks) say how an artefact was made and with
which words it is called. They are text, so every value is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import adapter_file, sampling_note
from diffusion_lab.artefacts.attach import attach, kind_of, merge_folder
from diffusion_lab.families import FAMILIES, of
from diffusion_lab.models.folder import shards
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json, read_tensors

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.families.family import Family
    from diffusion_lab.records import Subject

LORA, EMBEDDING, NETWORKS, PEFT, PIPELINE = "lora", "embedding", "networks", "peft", "pipeline"
BASE = "base"  # notes of step 0: the base model, unchanged
HYPERNETWORK = "hypernetwork"
A1111_VECTORS = "emb_params"
SEVERAL = {place.key for family in FAMILIES.values() for place in family.vocabularies} - {""}
TWINS = {  # the same thing in another tool's format -> the file of ours that it lies beside
    "lora_kohya.safetensors": "pytorch_lora_weights.safetensors",
    "learned_embeds_a1111.safetensors": "learned_embeds.safetensors",
}
NOTES = "dreambooth.json"
AGAIN = "copy it again"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One recognised piece; a folder may hold several, such as an embedding and the LoRA trained with it."""

    # lora, embedding, hypernetwork, networks (unet/, text_encoder/), peft (the same as adapters), pipeline, base
    kind: str
    path: Path
    header: Mapping[str, str]

    @property
    def part(self) -> str:
        """Of networks and peft's folders: the network that they change."""
        return self.path.name if self.path.name in adapter_file.NETWORKS else "unet"


def notes(config: Config, pipe: Any, subject: Subject, prompt: str) -> dict[str, str]:
    """What every artefact's header says, beside the step and what the tools want to see of the method."""
    from diffusion_lab.data.prompts import load_prompts
    from diffusion_lab.system.atomic import dumps
    from diffusion_lab.system.provenance import checkout, versions

    prompts = load_prompts(config.prompts, identifier=subject.identifier, class_noun=subject.class_noun)
    return {
        sampling_note.HEADER: sampling_note.note(config, pipe.device.type, prompts.negative),
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


def recognise(path: Path) -> tuple[Artefact, ...]:
    """The pieces at `path`, a file or folder. UserError (job.artefact) where there is none. Loads no weights."""
    if path.is_file():
        return (_file(path),)
    where = f"job.artefact={path}"
    if not path.is_dir():
        raise UserError(f"{where}: there is no such file or folder")
    if (path / "config.yaml").is_file() and (path / "artefact").is_dir():  # a run's folder
        return recognise(path / "artefact")
    header = {}
    if (path / NOTES).exists():
        header = {key: str(value) for key, value in read_json(path / NOTES, where, remedy=AGAIN).items()}
    if (path / "model_index.json").exists():
        return (Artefact(PIPELINE, path, header),)
    if header.get("unchanged") == "true":
        return (Artefact(BASE, path, header),)
    if (path / "adapter_config.json").exists():
        return (_peft_folder(path),)
    found = []
    for part in adapter_file.NETWORKS:
        if (path / part / "adapter_config.json").exists():
            found.append(_peft_folder(path / part))
        elif (path / part / "config.json").exists():
            found.append(Artefact(NETWORKS, path / part, header))
    files = [
        file
        for file in sorted(path.iterdir())
        if file.suffix.casefold() == ".safetensors"
        and not file.name.startswith(".")
        and not (path / TWINS.get(file.name, "")).is_file()
    ]
    found += [_file(file) for file in files]
    if not found:
        if inside := _inside(path):
            raise UserError(
                f"{where}: holds nothing to load itself; name what is in it: job.artefact={inside}"
            )
        raise UserError(
            f"{where}: holds nothing to load; a LoRA, an embedding (.safetensors), or a diffusers folder is needed"
        )
    _check_together(where, found)
    return tuple(found)


def _inside(path: Path) -> Path | None:
    """The last folder in `path` that can be loaded: of a run without an artefact its last adapters/step-N."""
    for place in (path, path / "adapters"):
        for folder in sorted(place.iterdir() if place.is_dir() else (), reverse=True):
            if folder.is_dir() and any(_looks_loadable(file) for file in folder.iterdir()):
                return folder
    return None


def _looks_loadable(file: Path) -> bool:
    names = ("model_index.json", "adapter_config.json", NOTES)
    return file.suffix.casefold() == ".safetensors" or file.name in names


def _check_together(where: str, found: Sequence[Artefact]) -> None:
    """A folder of many files is a collection, of which one is meant; words may be several."""
    changing = [piece for piece in found if piece.kind in (LORA, HYPERNETWORK)]
    if len(changing) > 1:
        names = ", ".join(piece.path.name for piece in changing)
        raise UserError(
            f"{where}: holds {len(changing)} adapters ({names}), and one is drawn with at a time; name one: "
            f"job.artefact={changing[0].path}"
        )


def _file(path: Path) -> Artefact:
    where = f"job.artefact={path}"
    if path.suffix.casefold() != ".safetensors":
        raise UserError(f"{where}: only .safetensors files are loaded, since others can run code")
    if path.name == "adapter_model.safetensors" and (path.parent / "adapter_config.json").is_file():
        return _peft_folder(path.parent)
    found = read_header(path, where, name="the file", remedy=AGAIN)
    keys = list(found.shapes)
    if found.metadata.get("method") == HYPERNETWORK:
        return Artefact(HYPERNETWORK, path, found.metadata)
    if keys and set(keys) <= SEVERAL:
        widths = {key: shape[-1] for key, shape in found.shapes.items()}
        return Artefact(
            EMBEDDING, path, {"trigger": path.stem, **found.metadata, "widths": json.dumps(widths)}
        )
    # The word may be any: "mr.bean", "flora". An adapter's keys are names of layers and have points.
    named = "vectors" in found.metadata or not any("." in key.strip("<>") for key in keys)
    if keys and named and all(map(_is_vectors, found.shapes.values())):
        if len(keys) > 1:
            raise UserError(
                f"{where}: holds {len(keys)} embeddings ({', '.join(keys)}); one a file is needed"
            )
        # Another tool's file without a word of its own is called by the file's name, as in the web UIs.
        word = path.stem if keys[0] in (A1111_VECTORS, "*") else keys[0]
        one = json.dumps({"": found.shapes[keys[0]][-1]})
        return Artefact(
            EMBEDDING, path, {"trigger": word, **found.metadata, "tensor": keys[0], "widths": one}
        )
    if adapter_file.is_adapter(found):
        if any(key.startswith("base_model.model.") for key in keys):
            raise UserError(
                f"{where}: is from a folder of peft's, and adapter_config.json, which says how strong it is, does not "
                "lie beside it; copy that too"
            )
        adapter_file.layers(found, where)
        return Artefact(LORA, path, found.metadata)
    method = f" (header: {found.metadata['method']})" if "method" in found.metadata else ""
    raise UserError(
        f"{where}: is neither a LoRA nor an embedding that is known here{method}; a whole checkpoint goes to "
        "model=single_file model.path=FILE"
    )


def _is_vectors(shape: tuple[int, ...]) -> bool:
    return len(shape) in (1, 2) and all(shape)


def _peft_folder(folder: Path) -> Artefact:
    where = f"job.artefact={folder}"
    kind_of(folder, where)
    header = read_header(folder / "adapter_model.safetensors", where, remedy=AGAIN)
    return Artefact(PEFT, folder, header.metadata)


def check_vocabularies(piece: Artefact, family: Family) -> None:
    """UserError where an embedding has vectors for other text encoders than the family's."""
    theirs, ours = embedding_keys(piece), {place.key for place in family.vocabularies}
    if theirs != ours:
        made = ", ".join(
            other.title for other in FAMILIES.values() if {p.key for p in other.vocabularies} == theirs
        )
        raise adapter_file.no_fit(
            f"job.artefact={piece.path}",
            f"an embedding for {made or 'another model'}, and this is {family.title}",
        )


def embedding_keys(piece: Artefact) -> set[str]:
    """Keys of the vocabularies for which an embedding has vectors; "" for the only one."""
    return set(json.loads(piece.header["widths"]))


def check_width(piece: Artefact, ours: Mapping[str, int]) -> None:
    """UserError where an embedding has another width than the model's text, `ours` by the vocabulary's key."""
    for key, theirs in json.loads(piece.header["widths"]).items():
        if key in ours and theirs != ours[key]:
            what = f"its vectors {key} are" if key else "its vectors are"
            raise adapter_file.other_width(f"job.artefact={piece.path}", what, theirs, ours[key])


def apply(pipe: Any, artefact: Artefact, weight: float = 1.0) -> None:
    """Puts one piece onto `pipe`, in float32. `weight`: 0 is the model alone, 1 the whole artefact, between and beyond
    in proportion; an embedding is there or not. UserError where it is another model's.
    """
    where = f"job.artefact={artefact.path}"
    try:
        _APPLY[artefact.kind](pipe, artefact, weight)
    except UserError as error:
        base = artefact.header.get("base_model")
        if not base or not str(error).endswith(adapter_file.MADE_FOR):
            raise
        raise UserError(f"{error}: {base}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise adapter_file.no_fit(where, " ".join(str(error).split())[:200]) from error
    for module in of(pipe).networks(pipe).values():
        module.requires_grad_(False)
        module.eval()


def _lora(pipe: Any, artefact: Artefact, weight: float) -> None:
    where = f"job.artefact={artefact.path}"
    header = read_header(artefact.path, where)
    attach(pipe, adapter_file.read_changes(artefact.path, header, pipe, where), weight, where)


def _embedding(pipe: Any, artefact: Artefact, weight: float) -> None:
    """Its word is found where it stands as a word, in any letter case; see `families.learnt_words`."""
    from diffusion_lab.families.learnt_words import learn

    if weight == 0:
        return
    family, where = of(pipe), f"job.artefact={artefact.path}"
    vectors = read_tensors(artefact.path, where)
    check_vocabularies(artefact, family)
    check_width(artefact, {
        place.key: int(getattr(pipe, place.text_encoder).config.hidden_size) for place in family.vocabularies
    })  # fmt: skip
    for place in family.vocabularies:
        own = vectors[place.key or artefact.header["tensor"]]
        learn(
            getattr(pipe, place.tokenizer), getattr(pipe, place.text_encoder), artefact.header["trigger"],
            own if own.ndim > 1 else own[None],
        )  # fmt: skip


def _hypernetwork(pipe: Any, artefact: Artefact, weight: float) -> None:
    from diffusion_lab.methods.hypernetwork import from_file

    from_file(artefact.path).attach(pipe, weight)
    _load_state(
        pipe.unet.hypernetwork, read_tensors(artefact.path, f"job.artefact={artefact.path}"), artefact
    )


def _networks(pipe: Any, artefact: Artefact, weight: float) -> None:
    """Whole networks: between 0 and 1 every weight lies on the line from the model's to the artefact's."""
    import torch

    where = f"job.artefact={artefact.path}"
    files = weight_files(artefact.path, where)
    weights = {key: value for file in files for key, value in read_tensors(file, where).items()}
    network = getattr(pipe, artefact.part)
    own = network.state_dict()
    if artefact.part.startswith(
        "text_encoder"
    ):  # what older versions of transformers saved beside the weights
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()} if not any(
            key.startswith("text_model.") for key in own
        ) else weights  # fmt: skip
        weights.pop("embeddings.position_ids", None)
    if weight != 1:
        weights = {
            key: torch.lerp(own[key].float(), value.float().to(own[key].device), weight)
            if key in own and own[key].shape == value.shape and value.is_floating_point()
            else value
            for key, value in weights.items()
        }
    _load_state(network, weights, artefact)


def _load_state(network: Any, weights: dict[str, Any], artefact: Artefact) -> None:
    """All of the network's tensors and no other. UserError with the first that differs, and the sizes."""
    where = f"job.artefact={artefact.path}"
    own = network.state_dict()
    for key, value in weights.items():
        if key in own and own[key].shape != value.shape:
            raise adapter_file.no_fit(
                where, f"{key} is {list(value.shape)}, and {list(own[key].shape)} is needed"
            )
    for keys, what in (
        (set(own) - set(weights), "lacks"),
        (set(weights) - set(own), "has beside the model's"),
    ):
        if keys:
            raise adapter_file.no_fit(where, f"it {what} {len(keys)} tensors, such as {min(keys)}")
    network.load_state_dict(weights)


def weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files of one network: the whole one, or the index's shards. UserError."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if (folder / f"{stem}.safetensors").exists():
            return [folder / f"{stem}.safetensors"]
        if index.exists():
            return [folder / name for name in shards(index, where)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{where}: one .safetensors file of weights is needed there, and there is {names}; {AGAIN}"
        )
    return found


def _peft(pipe: Any, artefact: Artefact, weight: float) -> None:
    merge_folder(pipe, artefact.part, artefact.path, weight, f"job.artefact={artefact.path}")


def _base(pipe: Any, artefact: Artefact, weight: float) -> None:
    """Nothing has changed since the base model, which is what `pipe` is."""


_APPLY = {
    LORA: _lora, EMBEDDING: _embedding, HYPERNETWORK: _hypernetwork, NETWORKS: _networks, PEFT: _peft, BASE: _base,
}  # fmt: skip
