"""Recognises fine-tuned artefacts, ours and other tools', by their files, and applies them to a pipeline.

Headers (safetensors metadata; `dreambooth.json` for whole networks) describe how an artefact was made and
which words its prompts use. They are text, so every value is a string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts import adapter_file, made_for, peft_settings, whole
from diffusion_lab.artefacts.attach import attach, kind_of, merge_folder
from diffusion_lab.artefacts.notes import NOTES
from diffusion_lab.artefacts.places import read_changes
from diffusion_lab.families import FAMILIES, of
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json, read_tensors

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family

LORA, EMBEDDING, NETWORKS, PEFT, PIPELINE = "lora", "embedding", "networks", "peft", "pipeline"
BASE = "base"  # notes of step 0: the base model, unchanged
HYPERNETWORK = "hypernetwork"
A1111_VECTORS = "emb_params"
SEVERAL = {place.key for family in FAMILIES.values() for place in family.vocabularies} - {""}
TWINS = {  # another tool's copy -> our file of the same artefact
    "lora_kohya.safetensors": "pytorch_lora_weights.safetensors",
    "learned_embeds_a1111.safetensors": "learned_embeds.safetensors",
}
OTHERS = {"t5xxl"}  # keys of embeddings that other tools read and diffusers does not
AGAIN = "copy it again"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One recognised piece; a folder may contain several, such as an embedding and its LoRA."""

    # lora, embedding, hypernetwork, networks (unet/, text_encoder/), peft (the same as adapters), pipeline,
    # base
    kind: str
    path: Path
    header: Mapping[str, str]

    def part(self, family: Family) -> str:
        """For networks and peft folders: the network that they change.

        UserError if the family does not have it.
        """
        part = self.path.name if self.path.name in peft_settings.NETWORKS else family.denoiser
        if part not in adapter_file.parts_of(family):
            raise made_for.no_fit(
                f"job.artefact={self.path}", f"it changes the {part}, which {family.title} does not have"
            )
        return part


def recognise(path: Path) -> tuple[Artefact, ...]:
    """The pieces at `path`, a file or folder. UserError (job.artefact) if none. Loads no weights."""
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
    for part in peft_settings.NETWORKS:
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
    """The last loadable folder in `path`: for a run without an artefact, its last adapters/step-N."""
    for place in (path, path / "adapters"):
        for folder in sorted(place.iterdir() if place.is_dir() else (), reverse=True):
            if folder.is_dir() and any(_looks_loadable(file) for file in folder.iterdir()):
                return folder
    return None


def _looks_loadable(file: Path) -> bool:
    names = ("model_index.json", "adapter_config.json", NOTES)
    return file.suffix.casefold() == ".safetensors" or file.name in names


def _check_together(where: str, found: Sequence[Artefact]) -> None:
    """In a folder of many files, one must be chosen; several embeddings are allowed."""
    changing = [piece for piece in found if piece.kind in (LORA, HYPERNETWORK)]
    if len(changing) > 1:
        names = ", ".join(piece.path.name for piece in changing)
        raise UserError(
            f"{where}: holds {len(changing)} adapters ({names}), but only one can be used at a time; name one: "
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
    if keys and set(keys) <= SEVERAL | OTHERS:
        widths = {key: shape[-1] for key, shape in found.shapes.items()}
        return Artefact(
            EMBEDDING, path, {"trigger": path.stem, **found.metadata, "widths": json.dumps(widths)}
        )
    # The word is arbitrary: "mr.bean", "flora". Keys of an adapter are names of layers and contain dots.
    named = "vectors" in found.metadata or not any("." in key.strip("<>") for key in keys)
    if keys and named and all(map(_is_vectors, found.shapes.values())):
        if len(keys) > 1:
            raise UserError(
                f"{where}: holds {len(keys)} embeddings ({', '.join(keys)}); one a file is needed"
            )
        # A file of another tool without a word of its own is named after the file, as in the web UIs.
        word = path.stem if keys[0] in (A1111_VECTORS, "*") else keys[0]
        one = json.dumps({"": found.shapes[keys[0]][-1]})
        return Artefact(
            EMBEDDING, path, {"trigger": word, **found.metadata, "tensor": keys[0], "widths": one}
        )
    if adapter_file.is_adapter(found):
        if any(key.startswith("base_model.model.") for key in keys):
            raise UserError(
                f"{where}: is from a folder of peft's, and adapter_config.json, which contains its strength, is not "
                "beside it; copy that too"
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


def check_family(piece: Artefact, family: Family) -> None:
    """UserError if the piece names another family, or is of a kind that the family does not support."""
    where = f"job.artefact={piece.path}"
    made_for.check_header(where, piece.header, family)
    if piece.kind == HYPERNETWORK and "hypernetwork" not in family.trainable:
        raise made_for.no_fit(where, f"a hypernetwork, and {family.why_not['hypernetwork']}")
    if piece.kind == EMBEDDING:
        check_vocabularies(piece, family)
    if piece.kind in (NETWORKS, PEFT):
        piece.part(family)


def check_vocabularies(piece: Artefact, family: Family) -> None:
    """UserError if an embedding has vectors for text encoders that the family does not have."""
    theirs, ours = embedding_keys(piece), {place.key for place in family.vocabularies}
    if theirs != ours:
        titles = [other.title for other in FAMILIES.values() if {p.key for p in other.vocabularies} == theirs]
        named = " or ".join(titles) or f"another model (vectors for {', '.join(sorted(theirs))})"
        raise made_for.no_fit(
            f"job.artefact={piece.path}", f"it is an embedding for {named}, and this is {family.title}"
        )


def embedding_keys(piece: Artefact) -> set[str]:
    """Keys of the vocabularies for which an embedding has vectors; "" for a single one."""
    return set(json.loads(piece.header["widths"]))


def check_width(piece: Artefact, ours: Mapping[str, int]) -> None:
    """UserError if an embedding's width differs from the model's, given in `ours` by vocabulary key."""
    for key, theirs in json.loads(piece.header["widths"]).items():
        if key in ours and theirs != ours[key]:
            what = f"its vectors {key} are" if key else "its vectors are"
            raise made_for.other_width(f"job.artefact={piece.path}", what, theirs, ours[key])


def apply(pipe: Any, artefact: Artefact, weight: float = 1.0) -> None:
    """Applies one piece to `pipe`, in float32. `weight`: 0 is the model alone, 1 the whole artefact, other
    values scale linearly; an embedding has no weight. UserError if it was made for another model.
    """
    where = f"job.artefact={artefact.path}"
    try:
        check_family(artefact, of(pipe))
        _APPLY[artefact.kind](pipe, artefact, weight)
    except UserError as error:
        base = artefact.header.get("base_model")
        if not base or not str(error).endswith(made_for.REMEDY):
            raise
        raise UserError(f"{error}: {base}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise made_for.no_fit(where, " ".join(str(error).split())[:200]) from error
    for module in of(pipe).networks(pipe).values():
        module.requires_grad_(False)
        module.eval()


def _lora(pipe: Any, artefact: Artefact, weight: float) -> None:
    where = f"job.artefact={artefact.path}"
    header = read_header(artefact.path, where)
    attach(pipe, read_changes(artefact.path, header, pipe, where), weight, where)


def _embedding(pipe: Any, artefact: Artefact, weight: float) -> None:
    """The word is found where it is a separate word, in any letter case; see `families.learnt_words`."""
    from diffusion_lab.families.learnt_words import learn

    if weight == 0:
        return
    family, where = of(pipe), f"job.artefact={artefact.path}"
    vectors = read_tensors(artefact.path, where)
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

    where = f"job.artefact={artefact.path}"
    from_file(artefact.path).attach(pipe, weight)
    whole.load_state(pipe.unet.hypernetwork, read_tensors(artefact.path, where), where)


def _networks(pipe: Any, artefact: Artefact, weight: float) -> None:
    network = getattr(pipe, artefact.part(of(pipe)))
    whole.put(network, artefact.path, weight, f"job.artefact={artefact.path}")


def _peft(pipe: Any, artefact: Artefact, weight: float) -> None:
    merge_folder(pipe, artefact.part(of(pipe)), artefact.path, weight, f"job.artefact={artefact.path}")


def _base(pipe: Any, artefact: Artefact, weight: float) -> None:
    """Does nothing: step 0 is the base model, which is what `pipe` is."""


_APPLY = {
    LORA: _lora, EMBEDDING: _embedding, HYPERNETWORK: _hypernetwork, NETWORKS: _networks, PEFT: _peft, BASE: _base,
}  # fmt: skip
