"""A subject: the training photos, the held-out photos, and photos of other subjects for comparison.

The miniature's subjects are written as ordinary folders to a cache and read with the same loader as a user's
own photos.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.data.captions import read_captions
from diffusion_lab.data.pictures import list_pictures, natural_key, read_folder, read_pictures
from diffusion_lab.data.sidecars import Sidecars
from diffusion_lab.data.subsets import check_counts, nested_order, split
from diffusion_lab.records import Picture, Subject, UserError
from diffusion_lab.system.cache import default_cache
from diffusion_lab.values.checks import closest

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Data

log = logging.getLogger(__name__)

IMPOSTOR_PICTURES = 4  # per other subject
IMPOSTOR_SUBJECTS = 16  # at most


def load_subject(config_data: Data, cache: Path | None = None) -> Subject:
    """Reads the subject's pictures and splits them. `cache` (`default_cache()`) is for the miniature.

    Raises UserError, naming the config key, for an unknown subject or source, a missing folder or class
    noun, a file that is not a picture, or too few pictures.
    """
    folder, class_noun = subject_folder(config_data, cache)
    pictures = read_folder(folder, config_data.on_corrupt)
    name = subject_name(config_data)
    train, heldout = split(
        pictures, config_data.n_images, config_data.n_heldout, subject=name, seed=config_data.subset_seed
    )
    captions = read_captions([p.path for p in train], [p.path for p in pictures], config_data.captions)
    train = tuple(
        picture if caption is None else replace(picture, caption=caption.text, caption_from=caption.source)
        for picture, caption in zip(train, captions, strict=True)
    )
    return Subject(
        name=name,
        class_noun=class_noun,
        identifier=config_data.identifier,
        train=train,
        heldout=heldout,
        impostors=_impostors(config_data, folder, class_noun),
        instance_prompt=instance_prompt(config_data.identifier, class_noun),
    )


def check_subject(config_data: Data) -> str:
    """The fast part of `load_subject`, for use before anything slow. Decodes and writes nothing.

    Returns the class noun; raises the same UserErrors except those about a picture's content.
    """
    if config_data.source == "miniature":
        from diffusion_lab.miniature.subjects import N_PORTRAITS

        noun, total = _miniature_noun(config_data.subject), N_PORTRAITS
    else:
        folder, noun = subject_folder(config_data, None)
        total = len(list_pictures(folder))
    check_counts(total, config_data.n_images, config_data.n_heldout)
    return noun


def training_captions(config_data: Data) -> dict[Path, str]:
    """Captions by file of the training photos, if all of them can be read; decodes nothing.

    Raises UserError if a caption is missing, empty or not text.
    """
    if config_data.source != "folder":
        return {}
    paths = list_pictures(subject_folder(config_data, None)[0])
    order = nested_order([p.name for p in paths], subject_name(config_data), config_data.subset_seed)
    chosen = [paths[i] for i in order[: config_data.n_images]]
    found = read_captions(chosen, paths, config_data.captions)
    return {said.source: said.text for said in found if said is not None}


def passed_over(folder: Path, key: str = "data.folder", captions: str = "auto") -> list[str]:
    """One line about files beside a folder's pictures that are not read, or none; see `sidecars.Sidecars.unread`."""
    left = Sidecars(folder, list_pictures(folder, key), key).unread(captions != "never")
    return [f"{key}: not read in {folder}: {'; '.join(left)}"] if left else []


def subject_name(config_data: Data) -> str:
    """The configured name, or the folder's name."""
    if config_data.source == "folder" and not config_data.subject:
        return Path(config_data.folder or "").resolve().name
    return config_data.subject


def instance_prompt(identifier: str, class_noun: str) -> str:
    """ "a photo of customcls woman", the caption of every picture without its own caption."""
    return f"a photo of {identifier} {class_noun}"


def subject_folder(config_data: Data, cache: Path | None) -> tuple[Path, str]:
    """The folder of the subject's pictures (the miniature's is written first) and the class noun."""
    if config_data.source == "miniature":
        noun = _miniature_noun(config_data.subject)
        return _miniature_folder(config_data.subject, cache or default_cache()), noun
    if config_data.source != "folder":
        known = ("miniature", "folder")
        raise UserError(f"data.source={config_data.source}: must be one of {', '.join(known)}")
    if not config_data.folder:
        raise UserError("data.folder is not set: give the folder of pictures, as in data.folder=my_dog")
    folder = Path(config_data.folder).expanduser()
    list_pictures(folder)  # a missing or empty folder is reported before a missing noun
    noun = (config_data.class_noun or _noun_file(folder) or "").strip()
    if not noun:
        raise UserError(
            "data.class_noun is not set: say what the photos show, as in data.class_noun=dog, "
            f"or write the word into {folder / 'class_noun.txt'}"
        )
    return folder, noun


def _noun_file(folder: Path) -> str | None:
    """First line of class_noun.txt, None if the file is missing or empty."""
    try:
        lines = (folder / "class_noun.txt").read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder / 'class_noun.txt'} cannot be read ({error}); set data.class_noun"
        ) from error
    return lines[0].strip() or None


# --- the miniature's people -----------------------------------------------------------------------------


def _miniature_noun(name: str) -> str:
    from diffusion_lab.miniature.subjects import SUBJECTS

    if name not in SUBJECTS:
        raise UserError(
            f"data.subject={name}: the miniature's subjects are {', '.join(SUBJECTS)}"
            f"{closest(name, SUBJECTS)}; "
            "for your own pictures set data=folder data.folder=..."
        )
    return SUBJECTS[name].noun


def renderer_version() -> str:
    """12 hex digits that change with the renderer's code and the drawing libraries.

    Anything else that changes the portraits must be added here, because only the files of the cache are checked.
    """
    import diffusion_lab.miniature as miniature

    digest = hashlib.sha256(f"pillow {version('pillow')} numpy {version('numpy')}".encode())
    for file in sorted(Path(miniature.__path__[0]).glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _miniature_folder(name: str, cache: Path) -> Path:
    """`name`'s folder in the cache, written if missing. Two processes may do so at once."""
    from diffusion_lab.miniature.subjects import is_complete, write_subjects

    folder = cache / f"subjects-{renderer_version()}" / name
    if not is_complete(folder):
        if folder.exists():
            log.warning("%s is damaged and is generated again", folder)
        else:
            log.info("drawing %s into %s", name, folder.parent)
        try:
            write_subjects(folder.parent, [name])
        except OSError as error:
            raise UserError(
                f"the miniature's pictures cannot be written to {folder} ({error.strerror or error}): free "
                "some space, or set the environment variable DIFFUSION_LAB_CACHE to another folder"
            ) from error
    return folder


# --- impostors ------------------------------------------------------------------------------------------


def _impostors(config_data: Data, own: Path, class_noun: str) -> tuple[Picture, ...]:
    """A few photos of each other subject with the same noun, the same ones in every run."""
    if config_data.source == "miniature":
        from diffusion_lab.miniature.subjects import SUBJECTS

        others = [n for n, spec in SUBJECTS.items() if spec.noun == class_noun and n != config_data.subject]
        folders = [_miniature_folder(name, own.parent.parent) for name in others]
    elif config_data.impostors:
        folders = impostor_folders(Path(config_data.impostors).expanduser(), own, class_noun)
    else:
        return ()
    found: list[Picture] = []
    for folder in folders[:IMPOSTOR_SUBJECTS]:
        found += read_pictures(impostor_pictures(folder), config_data.on_corrupt)
    return tuple(found)


def impostor_pictures(folder: Path) -> list[Path]:
    """The files that are read from another subject's folder, the same ones in every run."""
    paths = list_pictures(folder)
    order = nested_order([path.name for path in paths], folder.name, seed=0)
    return [paths[i] for i in order[:IMPOSTOR_PICTURES]]


def impostor_folders(parent: Path, own: Path, class_noun: str) -> list[Path]:
    """Subfolders with pictures, without the subject's own and those with another class noun."""
    if not parent.is_dir():
        raise UserError(
            f"data.impostors: {parent} is not a folder; give one that contains one folder per subject"
        )
    folders: list[Path] = []
    for folder in sorted(parent.iterdir(), key=lambda path: (natural_key(path.name), path.name)):
        if not folder.is_dir() or folder.name.startswith(".") or folder.samefile(own):
            continue
        if (_noun_file(folder) or class_noun).casefold() != class_noun.casefold():
            continue
        try:
            list_pictures(folder)
        except UserError as error:
            log.warning("data.impostors: %s is skipped: %s", folder.name, error)
            continue
        folders.append(folder)
    if not folders:
        raise UserError(
            f"data.impostors: no folder in {parent} contains pictures of another {class_noun}; "
            "it must contain one folder per subject, or be null"
        )
    return folders
