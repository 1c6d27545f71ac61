"""Studies: files under sweeps/ that say what one sweep varies. `--sweep methods` runs sweeps/methods.yaml.

A file maps configuration keys to values; a list stands for one job per value:

    # Which method? ...        (the first comment is shown by --help)
    data.subject: anna
    method: [lora, dreambooth]
    seed: [0, 1, 2]

Hydra's own mechanism is an experiment with `hydra.mode: MULTIRUN` and `hydra.sweeper.params`. It works
(experiment=FILE), but has disadvantages here:

- A run takes one experiment. A study written as one could not be tried with experiment=debug.
- Each run of the sweep then has the study among its overrides (experiment=methods), so repeating them to make
one run again starts the whole sweep. Here the runs have the plain values. - Its values are strings in the
grammar of overrides within YAML: 'a,b' for a list, "'[a,b]'" for one value that is a list, 'null' for null;
an unquoted 010 is the number 8 before Hydra converts it to text. Here YAML's lists and the text as written
are used. - Options are found under conf/ and --config-dir only. Studies are found in sweeps/ of the working
folder, too, and by path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.config.texts import kind
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest
from diffusion_lab.values.quoting import SAFE, quoted


def folders() -> list[Path]:
    """The folders with studies: sweeps/ here, next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    candidates = (Path("sweeps"), package / "sweeps", package.parent / "sweeps")
    return [folder for folder in candidates if folder.is_dir()]


def listed() -> dict[str, str]:
    """Study -> its question, the first comment of its file; the first folder that has a name wins."""
    found: dict[str, str] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, _question(file))
    return dict(sorted(found.items()))


def _question(file: Path) -> str:
    comments = (line[2:] for line in file.read_text("utf-8").splitlines() if line.startswith("# "))
    return next(comments, "").removeprefix("Question: ")


def words(name: str, given: Sequence[str]) -> list[str]:
    """The command line for the study `name` (or a path, *.yaml); `given` words take precedence.

    Raises:
        UserError: (--sweep) if the study does not exist, or its file is not a flat mapping of keys.
    """
    file = _file(name)
    try:
        content = file.read_text("utf-8")
        study, letters = yaml.safe_load(content), yaml.load(content, yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--sweep {name}: {file} cannot be read: {error}") from error
    if not isinstance(study, dict) or not study:
        raise UserError(f"--sweep {name}: {file} has to map configuration keys to values or lists of them")
    said = {word.lstrip("+~").partition("=")[0] for word in given}
    study = {
        key: _as_written(value, letters[str(key)]) if str(key) in letters and kind(str(key)) else value
        for key, value in study.items()
    }
    study = {"tracker.group": file.stem, **study}
    overrides = [
        f"{key}={_choices(value, f'--sweep {name}: {key}')}"
        for key, value in study.items()
        if key not in said
    ]
    return ["--multirun", *overrides, *given]


def _as_written(value: Any, letters: Any) -> Any:
    """The text as written in the file, for keys of type text: YAML reads 1_1_1 as 111, and 010 as 8."""
    if isinstance(value, list):
        return [_as_written(part, written) for part, written in zip(value, letters, strict=True)]
    return value if value is None else letters


def _file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"--sweep {name}: there is no such file")
        return Path(name)
    for folder in folders():
        if (file := folder / f"{name}.yaml").is_file():
            return file
    known = list(listed())
    raise UserError(
        f"--sweep {name}: no such study; there are {', '.join(known) or 'none'}{closest(name, known)}"
    )


def _choices(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return _written(value, where)
    if not value:
        raise UserError(f"{where}: the list is empty, so there is nothing to run")
    return ",".join(_written(choice, where) for choice in value)


def _written(value: Any, where: str) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ",".join(_written(part, where) for part in value) + "]"
    if isinstance(value, str):
        return value if SAFE.match(value) else quoted(value)
    raise UserError(f"{where}: {value!r} is neither a value nor a list of values; write group.key: value")
