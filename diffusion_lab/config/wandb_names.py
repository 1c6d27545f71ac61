"""The rules of Weights & Biases for names, checked in advance: it would reject them only when it starts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from diffusion_lab.records import UserError

LONGEST, LONGEST_TAG = 128, 64  # characters; of a project, run or group, and of a tag
FORBIDDEN = "/\\#?%:"  # in a project's name, since it is part of URLs


def check_names(
    *,
    project: str,
    entity: str | None,
    group: str | None,
    run_name: str | None,
    tags: Sequence[str],
) -> None:
    """UserError that names the key, what is wrong with the value, and a valid alternative."""
    found = sorted(set(project) & set(FORBIDDEN))
    if found:
        better = re.sub(r"[/\\#?%:]+", "-", project).strip("-") or "diffusion_lab"
        raise UserError(
            f"tracker.project={project}: Weights & Biases allows none of {' '.join(FORBIDDEN)} in a project's name; "
            f"use tracker.project={better}"
            + (" (a team's name goes to tracker.entity)" if "/" in project else "")
        )
    if entity is not None and not re.fullmatch(r"[\w.-]+", entity, re.ASCII):
        raise UserError(
            f"tracker.entity={entity}: the name of a user or team has letters, digits, - and _ only; give it as it "
            "stands in the address of your page, or null for your own"
        )
    named = {"project": project, "entity": entity, "group": group, "run_name": run_name}
    for key, value in named.items():
        if value is not None:
            _check_text(f"tracker.{key}", value, LONGEST)
    for tag in tags:
        _check_text("tracker.tags", tag, LONGEST_TAG)


def _check_text(key: str, value: str, longest: int) -> None:
    if len(value) > longest:
        raise UserError(
            f"{key}={value[:40]}...: is {len(value)} characters long, and Weights & Biases takes {longest}; shorten it"
        )
    if not value.strip() or value != value.strip():
        raise UserError(
            f"{key}={value!r}: is empty or begins or ends with a space; leave the spaces out"
            + ("" if key in ("tracker.project", "tracker.tags") else ", or use null for none")
        )
    if any(not letter.isprintable() for letter in value):
        raise UserError(
            f"{key}={value!r}: has a line break or another character that cannot be shown; leave it out"
        )
