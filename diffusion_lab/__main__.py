"""The one entry point: compose the configuration, check it, run the job, end with its status.

Exit status: 0 done, 2 something to mend (configuration, input, disk), 3 training diverged, 130 Ctrl-C,
143 SIGTERM, 1 anything else; a sweep ends with 1 when a job of it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffusion_lab import jobs
from diffusion_lab.cli import sweep_names
from diffusion_lab.config import paths
from diffusion_lab.config.schema import Config
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Terminated, UserError
from diffusion_lab.runs import extended_sweep, resume, resume_folder
from diffusion_lab.system import environment, failures, processes
from diffusion_lab.values.checks import text
from diffusion_lab.values.quoting import always_quoted, pasted

log = logging.getLogger("diffusion_lab")

MOST_CHECKED = 100  # jobs of a sweep whose values are checked before the first one starts
ENDED = "jobs.jsonl"  # in a sweep's folder: one line a job
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|://[^/\s:@]+:[^/\s@]+@|oc\.env:\s*\w*(TOKEN|KEY|SECRET|PASSWORD)"
    r"|^\+*hydra\.job\.env_\w+.*(TOKEN|KEY|SECRET|PASSWORD)|^(?!model\.revision=)[^=]*=[0-9a-f]{40}$",
    re.IGNORECASE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line says (`sys.argv` by default); returns the process's exit status."""
    from diffusion_lab.system.streams import CLOSED, guarded

    words = [_in_full(word) for word in (sys.argv[1:] if argv is None else argv)]
    with guarded() as (out, _):
        status = _guarded(words)
        out.flush()
        if status == 0 and out.error is not None and out.error.errno not in CLOSED:
            return _complain(f"standard output cannot be written ({out.error.strerror}): free some space", 2)
        return status


def _guarded(words: list[str]) -> int:
    try:
        _refuse_broken(words)
        with environment.neutral() as ignored:
            return _main(words, environment.ignored_messages(ignored))
    except UserError as error:
        told = failures.failure_message(error) if failures.out_of_memory(error) else None
        return _complain(told or str(error), 2)
    except Terminated:
        return _complain("stopped by SIGTERM", 143)
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", 130)
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        message = failures.failure_message(error)
        if message is not None:
            return _complain(message, 2)
        if not isinstance(error, HydraException | OmegaConfBaseException):
            raise
        from diffusion_lab.cli.explain import explain

        return _complain(explain(error), 2)


def _in_full(word: str) -> str:
    """Short forms: `--dry-run`, and `images=FOLDER` of the jobs that read images."""
    if word == "--dry-run":
        return "job.dry_run=true"
    return f"job.{word}" if word.startswith("images=") else word


def _complain(message: str, status: int) -> int:
    print(message if status in (130, 143) else f"error: {message}", file=sys.stderr)
    return status


def _main(words: list[str], told: Sequence[str] = ()) -> int:
    if {"-h", "--help"} & set(words):
        from diffusion_lab.cli.usage import usage

        print(usage())
        return 0
    given_words, words = words, resume_folder.expand_resume(words)
    resumed = words is not given_words
    words = _study(words)
    _refuse_secrets(words)
    _refuse_reference(Path.cwd(), "the working folder")
    from diffusion_lab.cli.compose import compose_exact, expand
    from diffusion_lab.config.texts import exact

    flags, given = _flags(words)
    flagged = [word for word in words if word not in flags.overrides]
    sweep = flags.multirun or any(word.replace(" ", "") == "hydra.mode=MULTIRUN" for word in given)
    if sweep and resumed:
        raise UserError(
            "resume=FOLDER resumes one run, without -m and --sweep; a sweep is resumed by its own command with "
            "hydra.sweep.dir=FOLDER"
        )
    overrides, notes = exact(given, sweep=sweep)
    words = [*flagged, *overrides]  # as Hydra's parser wants
    if flags.hydra_help or flags.cfg or flags.info or flags.shell_completion:
        _hydra(words, lambda composed: None)
        return 0
    if processes.count() > 1 and flags.multirun:
        raise UserError(
            "a sweep runs in one process: launch its runs one by one, or without several processes"
        )
    composed, sweeper = None, None
    if not sweep:
        composed, overrides = compose_exact(overrides)
        words = [*flagged, *overrides]
    if composed is not None and str(composed.hydra.mode).endswith("MULTIRUN"):  # an experiment's file says so
        overrides, notes = exact(given, sweep=True)
        words, sweeper, composed = [*flagged, *overrides], composed.hydra.sweeper, None
    for note in [*told, *notes] if processes.is_main() else ():
        print(f"warning: {note}", file=sys.stderr)
    if composed is None:
        return _sweep(words, overrides, expand(overrides, sweeper))
    return _single(words, overrides, composed)


def _study(words: list[str]) -> list[str]:
    """The words with `--sweep NAME` written out."""
    for i, word in enumerate(words):
        flag, given, name = word.partition("=")
        if flag == "--sweep":
            from diffusion_lab.cli.sweep_files import words as of_study

            name = name if given else next(iter(words[i + 1 :]), "")
            return of_study(name, words[:i] + words[i + (1 if given else 2) :])
    return words


def _flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, and the overrides with --config-dir written as one. Unknown flags end with status 2."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _unknown_flag  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(words)
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(flags, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is not supported; put options of your own under --config-dir"
            )
    overrides = list(flags.overrides)
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {flags.config_dir}: there is no such folder")
        overrides.append(f"hydra.searchpath=[{always_quoted(f'file://{folder}')}]")
    return flags, paths.searched(overrides, Path.cwd())


def _unknown_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def _refuse_broken(words: Sequence[str]) -> None:
    """The record is UTF-8: bytes of another encoding, such as an old file name's, have no place in it."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                f"{shown}: is no UTF-8 text; rename the file or folder, or type it anew"
            ) from error


def _refuse_secrets(words: Sequence[str]) -> None:
    """The configuration is written into every run's folder and sent to the tracker: no place for secrets."""
    for word in words:
        if SECRET.search(word):
            raise UserError(
                f"{word.partition('=')[0]}: looks like a password or token, and all this is recorded; "
                "set HF_TOKEN or WANDB_API_KEY in the environment instead"
            )


def _refuse_reference(folder: Path, named: str) -> None:
    """Hydra puts these folders into its configuration as they are, where ${ begins a reference to a key."""
    if "${" in str(folder):
        raise UserError(f"{named} {folder}: ${{ in a folder's name cannot be used here; choose another one")


# --- one run ------------------------------------------------------------------------------------------


def _single(words: list[str], overrides: list[str], composed: Any) -> int:
    from diffusion_lab.cli.compose import to_config
    from diffusion_lab.plan.fetch import fetch
    from diffusion_lab.plan.plan import WORDS, show

    text("hydra.run.dir", composed.hydra.run.dir)
    wanted = Path(paths.absolute(composed.hydra.run.dir, Path.cwd()))
    _refuse_reference(wanted, "hydra.run.dir")
    config = paths.resolve(fill_defaults(to_config(composed), wanted), Path.cwd())
    if not processes.is_main():
        finetunes = config.job.name in jobs.WITH_RUN_FOLDER and not config.job.dry_run
        return _end(jobs.perform(config, wanted)) if finetunes else 0
    plan = jobs.check(config, wanted)
    if config.job.dry_run:
        from rich.console import Console

        show(plan, Console(soft_wrap=False))
        return 0
    if plan.folder_status == "finished" and processes.count() == 1:
        print(f"{_shown(wanted)}: {WORDS['finished']}")
        return 0
    if plan.folder_status == "diverged" and processes.count() == 1:
        return _complain(f"{_shown(wanted)}: {WORDS['diverged']}: {resume.error_of(config, wanted)}", 3)
    fetch(config, plan.downloads)
    if config.job.name not in jobs.WITH_RUN_FOLDER:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        log.setLevel(logging.INFO)
        return _end(jobs.perform(config, wanted))

    run_folder = _claim(wanted, "hydra.run.dir", overrides, plan.needed_bytes)
    outcomes: list[jobs.Outcome] = []
    shown = _shown(run_folder)  # before hydra.job.chdir changes the working folder

    def task(_: Any) -> None:
        for warning in plan.warnings:
            log.warning("warning: %s", warning)
        log.info("%s; %s", plan.summary(), shown)
        outcomes.append(jobs.perform(config, run_folder))

    _hydra([*words, f"hydra.run.dir={always_quoted(str(run_folder))}"], task)
    return _end(outcomes[0])


def _end(outcome: jobs.Outcome) -> int:
    if outcome.exit_status in (2, 3):  # of anything else the log has the traceback
        _complain(outcome.message, outcome.exit_status)
    return outcome.exit_status


def _claim(folder: Path, key: str, overrides: Sequence[str], needed: int) -> Path:
    """Makes `folder` and returns it. One made of date and time gets a number, -2 and so on, if it is taken:
    two runs begun in the same second must not share it. Raises UserError where it cannot be written.
    """
    from diffusion_lab.system.disk_errors import recoverable
    from diffusion_lab.system.folders import check_writable

    if not any(word.lstrip("+").startswith(f"{key}=") for word in overrides):
        with recoverable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        number, wanted = 1, folder
        while True:
            with recoverable(folder), contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
    check_writable(folder, needed_bytes=needed)
    return folder


def _shown(folder: Path, begun: Path | None = None) -> str:
    """Relative to the folder in which the command was given, where it lies below."""
    with contextlib.suppress(ValueError):
        return str(folder.relative_to(begun or Path.cwd()))
    return str(folder)


# --- a sweep ------------------------------------------------------------------------------------------


def _sweep(words: list[str], overrides: list[str], expanded: list[list[str]]) -> int:
    """All jobs, one after another or as the launcher has it; a job that fails does not stop the others."""
    from diffusion_lab.cli.compose import compose_raw, single_valued, to_config
    from diffusion_lab.cli.yaml_texts import misread

    configs: dict[int, Config] = {}
    for i, job in enumerate(expanded[:MOST_CHECKED]):
        composed = compose_raw(job)
        for key, (file, word) in misread(composed).items():
            raise UserError(
                f"{key}: YAML makes another text of what {file} has; write it there in quotes ({word})"
            )
        config = to_config(composed)  # a wrong value in any job is told before the first one starts
        configs[i] = paths.resolve(fill_defaults(config), Path.cwd())
        if config.job.dry_run:
            print(f"\n{pasted(*job)}")
            _single(words, job, composed)
    if expanded and config.job.dry_run:
        return 0
    wanted = compose_raw(expanded[0] if expanded else single_valued(overrides)).hydra.sweep.dir
    text("hydra.sweep.dir", wanted)
    _refuse_reference(Path(wanted), "hydra.sweep.dir")
    folder = _claim(Path(paths.absolute(wanted, Path.cwd())), "hydra.sweep.dir", overrides, 0)
    (folder / ENDED).unlink(missing_ok=True)

    def config_of(i: int) -> Config:
        if i not in configs:
            configs[i] = paths.resolve(fill_defaults(to_config(compose_raw(expanded[i]))), Path.cwd())
        return configs[i]

    sweep_names.write(folder, sweep_names.settle(expanded, folder, config_of))
    try:
        _hydra([*words, f"hydra.sweep.dir={always_quoted(str(folder))}"], sweep_job)
    finally:
        ended = _ended(folder)
        failed = [end for end in ended if end["status"] != "completed"]
        of = f" of {len(expanded)}" if expanded else ""
        log.info(
            "%s: %d%s jobs completed, %d failed", _shown(folder), len(ended) - len(failed), of, len(failed)
        )
        for end in failed:
            print(f"{end['status']}: {end['name']}: {end['error']}", file=sys.stderr)
        compared = _compare(folder)
    return 1 if failed or len(ended) < len(expanded) or not compared else 0


def _compare(folder: Path) -> bool:
    """One page over the sweep's runs; that it fails must not hide how the sweep ended. False where it failed."""
    from diffusion_lab.report.comparison import write_comparison
    from diffusion_lab.runs.reading import find_runs

    try:
        if find_runs(folder):
            log.info("comparison: %s", _shown(write_comparison(folder)))
        return True
    except UserError as error:
        log.error("no comparison could be written: %s", error)
    except Exception:
        again = pasted("job=report", f"job.runs={folder}")
        log.exception("no comparison could be written; %s makes it again", again)
    return False


def sweep_job(composed: Any) -> dict[str, Any]:
    """One job of a sweep, in this process or another. Returns its outcome instead of raising an error."""
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lab.cli.compose import to_config
    from diffusion_lab.jobs.state import isolated
    from diffusion_lab.plan.fetch import fetch
    from diffusion_lab.system.atomic import append_line
    from diffusion_lab.values.jsonable import dumps

    runtime = HydraConfig.get().runtime
    run_folder, begun = map(Path, (runtime.output_dir, runtime.cwd))
    ended: dict[str, Any] = {"name": run_folder.name, "status": "interrupted", "error": "stopped by Ctrl-C"}
    try:
        with isolated():
            config = paths.resolve(fill_defaults(to_config(composed), run_folder), begun)
            config.tracker.group = config.tracker.group or run_folder.parent.name
            run_folder = extended_sweep.already_begun(config, run_folder)
            ended["name"] = run_folder.name

            def before() -> None:
                plan = jobs.check(config, run_folder)
                fetch(config, plan.downloads)
                log.info("%s; %s", plan.summary(), _shown(run_folder, begun))

            outcome = jobs.perform(config, run_folder, before=before)
        ended |= {"status": outcome.status, "error": outcome.error}
        if outcome.status != "completed":
            log.error("%s: %s", outcome.status, outcome.error)
    finally:
        append_line(run_folder.parent / ENDED, dumps(ended))
    return ended


def _ended(sweep: Path) -> list[dict[str, Any]]:
    """What every job of the sweep that came to its end has left; a line that cannot be read counts as none."""
    try:
        lines = (sweep / ENDED).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    ended = []
    for line in lines:
        with contextlib.suppress(ValueError):
            ended.append(json.loads(line))
    return [end for end in ended if isinstance(end, dict) and {"name", "status", "error"} <= set(end)]


# --- Hydra --------------------------------------------------------------------------------------------


def _hydra(words: Sequence[str], task: Callable[[Any], Any]) -> None:
    """Hands over to Hydra: folders, logging, launchers. Its errors come back as exceptions."""
    import hydra

    from diffusion_lab.cli.compose import conf_folder, register

    register()
    decorate = hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
    with _process(["diffusion_lab", *words]):
        decorate(task)()


@contextlib.contextmanager
def _process(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and without HYDRA_FULL_ERROR it prints errors itself and exits."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


if __name__ == "__main__":
    from diffusion_lab.__main__ import main as imported  # under its own name: other processes can import it

    sys.exit(imported())
