"""Prompts given directly for job=generate: `job.text`, `job.texts` or the lines of `job.texts_file`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.jobs import Generate


def job_texts(job: Generate) -> list[str]:
    """The prompts that were given directly; none if the prompt set is used.

    Raises UserError (job.texts_file) for a file that is missing, is not UTF-8 text or contains no prompt.
    """
    if job.text:
        return [job.text]
    return _lines(Path(job.texts_file)) if job.texts_file else list(job.texts)


def _lines(file: Path) -> list[str]:
    """One prompt per line, without surrounding spaces. Empty lines and lines that begin with # are skipped, \\# is #."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"job.texts_file={file}: there is no such file; write one prompt per line into it"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"job.texts_file={file}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"job.texts_file={file}: cannot be read ({error.strerror or error})") from error
    lines = (line.strip() for line in content.split("\n"))
    prompts = [
        line.removeprefix("\\") if line.startswith("\\#") else line
        for line in lines
        if line and line[0] != "#"
    ]
    if not prompts:
        raise UserError(f"job.texts_file={file}: holds no prompt; write one per line, # begins a comment")
    return prompts
