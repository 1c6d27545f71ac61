"""Pictures and their ratings: AVA as it is published, or any table of picture and rating.

AVA (Murray et al. 2012, "AVA: A large-scale database for aesthetic visual analysis"): AVA.txt has a line a picture,
numbers with spaces between: index, picture id, how many voted 1, 2, ... 10, two tags, challenge; pictures are ID.jpg.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusion_lab.records import UserError

GRADES = range(1, 11)  # what one could vote
AVA_COLUMNS = 15
LOW, HIGH = 0.0, 10.0  # of a rating


@dataclass(frozen=True, slots=True)
class Rated:
    """A picture's file and its mean rating, 0 to 10."""

    path: Path
    rating: float


def read_ratings(table: Path, images: Path) -> tuple[list[Rated], int]:
    """What is rated in ``table`` and lies in ``images``, in the table's order, and how many pictures do not.

    ``table``: AVA.txt, or a CSV with columns `image` (a name within ``images``) and `rating`, 0 to 10.
    Raises UserError (job.ratings, job.images) naming the line, and where no rated picture is there.
    """
    if not images.is_dir():
        raise UserError(f"job.images={images}: there is no such folder")
    try:
        rows = list(_csv(table) if table.suffix.casefold() == ".csv" else _ava(table))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"job.ratings={table}: cannot be read ({error})") from error
    there, root = [], images.resolve()
    for name, rating in rows:
        path = images / name
        if not path.resolve().is_relative_to(root):
            raise UserError(f"job.ratings={table}: {name} lies outside {images}")
        if path.is_file():
            there.append(Rated(path, rating))
    if not there:
        first = f"; the first is {rows[0][0]}" if rows else ""
        raise UserError(
            f"job.images={images}: none of the {len(rows)} pictures that {table.name} rates is there{first}"
        )
    return there, len(rows) - len(there)


def _ava(table: Path) -> Iterator[tuple[str, float]]:
    for number, line in enumerate(table.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"job.ratings={table}: line {number}"
        try:
            values = [int(part) for part in line.split()]
        except ValueError:
            raise UserError(f"{where} is not of whole numbers; a .csv has columns image and rating") from None
        if len(values) != AVA_COLUMNS:
            raise UserError(f"{where} has {len(values)} numbers, AVA has {AVA_COLUMNS}")
        votes = values[2:12]
        if min(votes) < 0 or sum(votes) == 0:
            raise UserError(f"{where} has no votes")
        yield f"{values[1]}.jpg", mean_of_votes(votes)


def mean_of_votes(votes: list[int]) -> float:
    """The mean grade of how many voted 1, 2, ... 10."""
    return sum(grade * n for grade, n in zip(GRADES, votes, strict=True)) / sum(votes)


def _csv(table: Path) -> Iterator[tuple[str, float]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"image", "rating"} - set(rows.fieldnames or ())
        if missing:
            raise UserError(f"job.ratings={table}: has no column {' and no column '.join(sorted(missing))}")
        for row in rows:
            where = f"job.ratings={table}: line {rows.line_num}"
            try:
                rating = float(row["rating"])
            except (TypeError, ValueError):
                raise UserError(f"{where}: rating {row['rating']!r} is no number") from None
            if not (math.isfinite(rating) and LOW <= rating <= HIGH):
                raise UserError(f"{where}: rating {rating:g} is not from 0 to 10; scale the column first")
            if not row["image"]:
                raise UserError(f"{where}: no image is named")
            yield row["image"], rating
