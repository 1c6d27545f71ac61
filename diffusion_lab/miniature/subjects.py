"""Ten people the miniature's base model has never seen: ordinary image folders for fine-tuning.

python -m diffusion_lab.miniature.subjects FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lab.miniature.phrases import MAGIC, SLOTS, Phrase
from diffusion_lab.miniature.world import SUBJECT_SEEDS, Portrait, draw_portrait, identity_from_seed
from diffusion_lab.system.atomic import write_bytes, write_text
from diffusion_lab.system.folders import fresh_folder
from diffusion_lab.system.images import png

N_PORTRAITS = 28


@dataclass(frozen=True, slots=True)
class SubjectSpec:
    """A person: `seed` gives the identity, and with the picture's number the scene."""

    name: str
    noun: str
    seed: int


SUBJECTS: dict[str, SubjectSpec] = {
    name: SubjectSpec(name, noun, SUBJECT_SEEDS + offset)
    for name, noun, offset in (
        ("anna", "woman", 3),
        ("bea", "woman", 56),
        ("carla", "woman", 26),
        ("dora", "woman", 51),
        ("emma", "woman", 142),
        ("adam", "man", 9),
        ("ben", "man", 122),
        ("carl", "man", 132),
        ("dan", "man", 123),
        ("emil", "man", 106),
    )
}
"""Chosen for the largest distances between their parameters, then by eye."""


def _scene_phrases(index: int, rng: np.random.Generator) -> dict[str, Phrase]:
    """Phrases of portrait `index`: every slot cycles in an order of its own, so 28 pictures vary."""
    chosen = {"style": SLOTS["style"][0]}
    for slot in ("expression", "pose", "attire", "place", "lighting"):
        options = SLOTS[slot]
        rounds = [options[int(i)] for _ in range(6) for i in rng.permutation(len(options))]
        chosen[slot] = rounds[index]
    # Mostly bare heads; sunglasses once at most, for they hide what has to be learned.
    worn = ["none"] * 20 + ["glasses"] * 3 + ["sunglasses", "hat", "cap", "earrings", "headphones"]
    value = worn[int(rng.permutation(N_PORTRAITS)[index])]
    chosen["accessory"] = next(phrase for phrase in SLOTS["accessory"] if phrase.value == value)
    chosen["quality"] = MAGIC[0] if rng.permutation(N_PORTRAITS)[index] < 8 else SLOTS["quality"][0]
    return chosen


def subject_portrait(name: str, index: int) -> Portrait:
    """Portrait `index` (0 to 27) of subject `name`."""
    if name not in SUBJECTS:
        raise KeyError(f"unknown subject {name!r}; known: {list(SUBJECTS)}")
    if not 0 <= index < N_PORTRAITS:
        raise IndexError(f"portrait index must be in 0..{N_PORTRAITS - 1}, got {index}")
    spec = SUBJECTS[name]
    # The generator does not depend on the index: all portraits share one set of permutations.
    phrases = _scene_phrases(index, np.random.default_rng([spec.seed, 14]))
    identity = identity_from_seed(spec.seed, spec.noun)
    return draw_portrait(spec.seed * 100 + index, identity=identity, phrases=phrases)


def is_complete(folder: Path) -> bool:
    """Whether a subject's folder has its portraits, whole, and the class noun. Decodes them: some milliseconds."""
    try:
        if not (folder / "class_noun.txt").read_text("utf-8").strip():
            return False
        for number in range(N_PORTRAITS):
            with Image.open(folder / f"{number:02d}.png") as image:
                image.load()
    except (OSError, ValueError, SyntaxError):  # Pillow's decoders raise all three
        return False
    return True


def write_subjects(folder: Path, names: Collection[str] | None = None) -> Path:
    """Write `folder/<name>/00.png ... 27.png` and `class_noun.txt` for each subject; return `folder`.

    A complete subject is left untouched. Each folder is written beside its place and renamed, so an
    interrupted run never leaves half a subject under the final name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in SUBJECTS if names is None else names:
        if name not in SUBJECTS:
            raise KeyError(f"unknown subject {name!r}; known: {list(SUBJECTS)}")
        target = folder / name
        if is_complete(target):
            continue
        with fresh_folder(target, keep=is_complete) as beside:
            for index in range(N_PORTRAITS):
                portrait = Image.fromarray(subject_portrait(name, index).image)
                write_bytes(beside / f"{index:02d}.png", png(portrait))
            write_text(beside / "class_noun.txt", SUBJECTS[name].noun + "\n")
    return folder


def main() -> None:
    """Command line: write the image folders."""
    parser = argparse.ArgumentParser(description="Write the image folders of the miniature's ten subjects.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="*", choices=list(SUBJECTS), help="only these subjects")
    arguments = parser.parse_args()
    print(write_subjects(arguments.folder, arguments.names))


if __name__ == "__main__":
    from diffusion_lab.values.checks import command

    raise SystemExit(command(main))
