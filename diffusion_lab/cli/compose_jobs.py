"""The configurations of many jobs.

Hydra takes a tenth of a second to compose one, mostly to choose and merge the files. So that is done once per
choice of files, and the values of each job are set in a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.cli.compose import compose_raw, to_config
from diffusion_lab.config import paths
from diffusion_lab.config.texts import exact
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

PLAIN = ("seed", "resume")  # keys without a dot that are values; all others choose files


def compose_jobs(jobs: Sequence[Sequence[str]], common: Sequence[str] = ()) -> Iterator[tuple[Config, bool]]:
    """Each job's configuration, with defaults and absolute paths, and whether its precision was chosen here.

    `common`: overrides of all jobs. If the precision was chosen here, a run that began on another device may have another one.

    Raises UserError if a value is not allowed, and Hydra's errors for wrong keys, options and types.
    """
    bases: dict[tuple[str, ...], Any] = {}
    for job in jobs:
        words = exact([*common, *job])[0]
        composed = _composed(words, bases)
        _refuse_misread(composed)
        config = to_config(composed)
        yield paths.resolve(fill_defaults(config), Path.cwd()), config.model.precision == "auto"


def _composed(words: Sequence[str], bases: dict[tuple[str, ...], Any]) -> Any:
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    choices = tuple(word for word in words if not _is_value(word))
    if choices not in bases:
        bases[choices] = compose_raw(choices)
    composed = copy.deepcopy(bases[choices])
    try:
        for key, value in _parsed([word for word in words if _is_value(word)]):
            OmegaConf.update(composed, key, value, merge=True)
    except OmegaConfBaseException:
        return compose_raw(words)  # for Hydra's own message
    with open_dict(composed.hydra):
        composed.hydra.overrides.task = [word for word in words if not word.startswith(("hydra.", "hydra/"))]
    return composed


def _is_value(word: str) -> bool:
    key = word.partition("=")[0]
    return ("." in key or key in PLAIN) and not key.startswith(("hydra.", "hydra/", "+", "~"))


def _parsed(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(words)):
        yield override.key_or_group, override.value()


def _refuse_misread(composed: Any) -> None:
    from diffusion_lab.cli.yaml_texts import misread

    for key, (file, word) in misread(composed).items():
        raise UserError(
            f"{key}: YAML makes another text of what {file} has; write it there in quotes ({word})"
        )
