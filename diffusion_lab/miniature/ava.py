"""A small AVA out of the drawn world: portraits whose merit is known, voted on, in AVA's own file format.

    python -m diffusion_lab.miniature.ava FOLDER [--pictures 4000]

AVA's mean ratings are bell-shaped around 5.4 (Murray et al. 2012, figure 4); so are these: of many scenes those are
drawn that make them so. `FOLDER/AVA.txt` has the votes, `FOLDER/images` the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lab.miniature import world
from diffusion_lab.miniature.scene import sample_scene
from diffusion_lab.system.atomic import write_bytes, write_text
from diffusion_lab.system.images import encoded

MEAN, SPREAD = 5.4, 0.75  # of the ratings
VOTERS, DISAGREEMENT = 210, 1.4  # a picture, grades
FIRST = world.EVALUATION_SEEDS + 600_000
OFFERED = 6  # scenes for a picture that is drawn


def write_ava(folder: Path, pictures: int = 4000, seed: int = 0) -> Path:
    """Writes AVA.txt and images/ID.jpg; returns `folder`. ValueError for fewer than one picture."""
    if pictures < 1:
        raise ValueError(f"pictures must be 1 or more, got {pictures}")
    rng = np.random.default_rng([seed, 51])
    merits = np.array([merit(FIRST + k) for k in range(OFFERED * pictures)])
    lines = []
    for index, k in enumerate(bell_shaped(merits, pictures, rng), 1):
        portrait = world.draw_portrait(FIRST + int(k))
        picture = 100_000 + int(k)
        content = encoded(Image.fromarray(portrait.image), "JPEG", quality=95, subsampling=0)
        write_bytes(folder / "images" / f"{picture}.jpg", content)
        grades = np.clip(np.rint(rng.normal(merits[k], DISAGREEMENT, VOTERS)), 1, 10).astype(int)
        votes = np.bincount(grades, minlength=11)[1:]
        lines.append(" ".join(map(str, [index, picture, *votes, 0, 0, 0])))
    write_text(folder / "AVA.txt", "\n".join(lines) + "\n")
    return folder


def merit(seed: int) -> float:
    """`world.rating_of` of the portrait of ``seed``, without drawing it."""
    phrases = world.sample_phrases(np.random.default_rng([seed, 12]))
    return world.rating_of(sample_scene(np.random.default_rng([seed, 13]), phrases))


def bell_shaped(merits: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of ``n`` of the ``merits``, each once, as near as they allow to MEAN and SPREAD's normal."""
    density = np.interp(merits, *_density(merits))
    wanted = np.exp(-(((merits - MEAN) / SPREAD) ** 2) / 2) / density
    return np.sort(rng.choice(len(merits), n, replace=False, p=wanted / wanted.sum()))


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(values, 40)
    return (edges[:-1] + edges[1:]) / 2, counts + 1.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(write_ava(asked.folder, asked.pictures, asked.seed))


if __name__ == "__main__":
    from diffusion_lab.values.checks import command

    raise SystemExit(command(main))
