"""Command line parsing: expands short forms and files, separates flags, prepares overrides for Hydra."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from diffusion_lab.cli.folders import refuse_reference
from diffusion_lab.config import paths
from diffusion_lab.config.texts import exact
from diffusion_lab.records import UserError
from diffusion_lab.runs import resume_folder
from diffusion_lab.system import processes
from diffusion_lab.values.quoting import always_quoted

SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|://[^/\s:@]+:[^/\s@]+@|oc\.env:\s*\w*(TOKEN|KEY|SECRET|PASSWORD)"
    r"|^\+*hydra\.job\.env_\w+.*(TOKEN|KEY|SECRET|PASSWORD)|^(?!model\.revision=)[^=]*=[0-9a-f]{40}$",
    re.IGNORECASE,
)
STUDIES = "outputs/studies"  # all studies share one folder of runs
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what Hydra's --info prints


@dataclass(frozen=True, slots=True)
class Line:
    """A command line."""

    flags: tuple[str, ...]  # as passed to Hydra
    given: tuple[str, ...]  # the overrides as typed, or as in the file of a run
    overrides: list[str]  # the same in the form required by Hydra's parser
    notes: list[str]  # notes for the user about them
    sweep: bool  # -m, --sweep, hydra.mode=MULTIRUN
    for_hydra: bool  # only requests information from Hydra and runs no job: --cfg
    studies: tuple[str, ...] = ()  # of --sweep
    quick: bool = False  # --quick: the studies' quick form

    def as_sweep(self, params: Sequence[str]) -> Line:
        """The line as a sweep of an experiment file: commas separate values, `params` are its words.

        Words of the command line take precedence. Hydra also adds the file's words itself, but would read
        text such as 1_1_1 as the number 111; written out, they take precedence and are exact.
        """
        given = (*params, *self.given)
        overrides, notes = exact(given, sweep=True)
        return replace(self, given=given, sweep=True, overrides=overrides, notes=notes)


def in_full(word: str) -> str:
    """Short forms: `--dry-run`, and `images=FOLDER` of the jobs that read images."""
    if word == "--dry-run":
        return "job.dry_run=true"
    return f"job.{word}" if word.startswith("images=") else word


def read(typed: list[str]) -> Line:
    """Parses the words. Raises UserError for unknown flags, secrets, and words that cannot be combined."""
    words = resume_folder.expand_resume(typed)
    resumed = words is not typed
    if resumed:
        words.append("hydra.mode=RUN")  # a run of a sweep from an experiment file is a single run
    words, studies, quick = _without_study(words)
    _refuse_secrets(words)
    refuse_reference(Path.cwd(), "the working folder")
    flags = _parsed(words)
    given = _searched(flags)
    sweep = flags.multirun or any(word.replace(" ", "") == "hydra.mode=MULTIRUN" for word in given)
    if sweep and resumed:
        raise UserError(
            "resume=FOLDER resumes one run, without -m and --sweep; a sweep is resumed by its own command with "
            "hydra.sweep.dir=FOLDER"
        )
    overrides, notes = exact(given, sweep=sweep)
    for_hydra = bool(flags.hydra_help or flags.version or flags.cfg or flags.info or flags.shell_completion)
    if flags.multirun and not for_hydra and processes.count() > 1:
        raise UserError(
            "a sweep runs in one process: launch its runs one by one, or without several processes"
        )
    flagged = tuple(word for word in words if word not in flags.overrides)
    return Line(flagged, tuple(given), overrides, notes, sweep, for_hydra, studies, quick)


def keys(words: Sequence[str]) -> set[str]:
    """The keys and groups that the words set."""
    return {word.lstrip("+~").partition("=")[0] for word in words}


def refuse_broken(words: Sequence[str]) -> None:
    """Rejects bytes that are not UTF-8, such as in an old file name: the record is UTF-8."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                f"{shown}: is no UTF-8 text; rename the file or folder, or type it again"
            ) from error


def _without_study(words: list[str]) -> tuple[list[str], tuple[str, ...], bool]:
    """The words as a sweep in the studies' folder, the names after each `--sweep`, and whether `--quick` is given."""
    quick, names, rest = "--quick" in words, [], []
    remaining = iter(word for word in words if word != "--quick")
    for word in remaining:
        flag, given, value = word.partition("=")
        if flag == "--sweep":
            names += (value if given else next(remaining, "")).split(",")
        else:
            rest.append(word)
    if not names:
        if quick:
            raise UserError("--quick selects the short form of a study; give --sweep NAME as well")
        return rest, (), False
    if not any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in rest):
        rest = [*rest, f"hydra.sweep.dir={STUDIES}"]
    return ["--multirun", *rest], tuple(names), quick


def _refuse_secrets(words: Sequence[str]) -> None:
    """Rejects secrets: the configuration is written to every run's folder and sent to the tracker."""
    for word in words:
        if SECRET.search(word):
            raise UserError(
                f"{word.partition('=')[0]}: looks like a password or token, and all this is recorded; "
                "set HF_TOKEN or WANDB_API_KEY in the environment instead"
            )


# --- flags --------------------------------------------------------------------------------------------


def flags_parser() -> argparse.ArgumentParser:
    """A parser for Hydra's command line flags; Hydra's own parser is not part of its public API."""
    parser = argparse.ArgumentParser(add_help=False)
    for long, short in (("help", "h"), ("run", "r"), ("multirun", "m"), ("shell-completion", "sc")):
        parser.add_argument(f"--{long}", f"-{short}", action="store_true")
    for long in ("hydra-help", "version", "resolve"):
        parser.add_argument(f"--{long}", action="store_true")
    for long, short in (("config-path", "cp"), ("config-name", "cn"), ("config-dir", "cd"), ("package", "p")):
        parser.add_argument(f"--{long}", f"-{short}")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=INFO)
    parser.add_argument("--experimental-rerun")
    parser.add_argument("overrides", nargs="*")
    return parser


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = flags_parser()
    parser.error = _unknown_flag  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(words)
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(flags, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is not supported; put options of your own under --config-dir"
            )
    return flags


def _unknown_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def _searched(flags: argparse.Namespace) -> list[str]:
    """The overrides, with --config-dir written as one and the folders of hydra.searchpath absolute."""
    overrides = list(flags.overrides)
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {flags.config_dir}: there is no such folder")
        overrides.append(f"hydra.searchpath=[{always_quoted(f'file://{folder}')}]")
    return paths.searched(overrides, Path.cwd())
