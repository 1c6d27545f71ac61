"""Downloads what a run needs, before anything slow is loaded, with progress and checksums.

The libraries would download the same files later, each on its own, with retries of minutes without a network
and misleading errors. Here every server is asked once, for a few seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from diffusion_lab.models import hub
from diffusion_lab.models.wanted import Wanted
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.downloads import CLIP_FILE, CLIP_PICKLED, size
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

log = logging.getLogger(__name__)
CHUNK = 1 << 20  # bytes
FIRST_SEEN = "downloads.json"  # in our own cache: SHA-256 of files without a published checksum


def fetch(config: Config, files: Sequence[Wanted] | None = None) -> None:
    """Downloads the files of a run that are missing (`downloads.wanted` by default).

    Raises UserError after at most 8 seconds if a server does not answer; the error names every file expected
    from it and how to provide it by hand. Also for a repository that does not exist, a full disk or a wrong
    checksum.
    """
    from diffusion_lab.plan.downloads import wanted

    missing = [file for file in (wanted(config) if files is None else files) if file.path is None]
    if not missing:
        return
    plan: list[tuple[Wanted, str]] = []  # what to download, and its name in its repository
    for place in dict.fromkeys(file.repo or file.url for file in missing):
        group = [file for file in missing if (file.repo or file.url) == place]
        try:
            plan += _on_hub(group, config) if group[0].repo else _elsewhere(group)
        except UserError:
            raise
        except Exception as error:  # each library raises its own exceptions
            raise _failed(group, missing, error) from error
    needed = sum(file.size or 0 for file, _ in plan)
    print(f"fetching {len(plan)} files, {size(needed)}", file=sys.stderr, flush=True)
    for file, name in plan:
        try:
            _from_hub(file, name) if file.repo else _from_url(file)
        except UserError:
            raise
        except Exception as error:
            raise _failed([file], [file], error) from error


def _on_hub(group: Sequence[Wanted], config: Config) -> list[tuple[Wanted, str]]:
    """The files of one repository by their names there, with their exact sizes."""
    repo, revision = group[0].repo, group[0].revision
    there = hub.listing(repo, revision)
    if group[0].key.startswith(("model.path=", "model.config=")):
        whole = group[0].key.startswith("model.path=")
        weights = {file.name.partition("/")[0] for file in group if file.name.endswith(".safetensors")}
        names = hub.model_files(there, config.model, which_family(config.model), None if whole else weights)
        return [
            (dataclasses.replace(group[0], name=name, size=there[name]), name)
            for name in names
            if hub.cached(repo, name, revision) is None
        ]
    found = []
    for file in group:
        # open_clip uses the older file if a repository has no safetensors.
        names = [file.name, *([CLIP_PICKLED] if file.name == CLIP_FILE else [])]
        names = [name for name in names if name in there][:1] or hub.shards(file.name, there)
        found += [(dataclasses.replace(file, name=name, size=there[name]), name) for name in names]
        if not names and not file.optional:
            raise UserError(f"{file.key}: {repo} on the hub has no {file.name}; {file.by_hand}")
    return found


def _elsewhere(group: Sequence[Wanted]) -> list[tuple[Wanted, str]]:
    """Sends a HEAD request only, to check whether the server answers."""
    import urllib.request

    file = group[0]

    def question() -> int | None:
        request = urllib.request.Request(file.url, method="HEAD")
        with urllib.request.urlopen(request, timeout=hub.PATIENCE - 1) as answer:
            return int(answer.headers.get("Content-Length") or 0) or None

    return [(dataclasses.replace(file, size=hub.ask(question) or file.size), file.name)]


def _failed(group: Sequence[Wanted], missing: Sequence[Wanted], error: BaseException) -> UserError:
    """One line: what is missing, why, and what to do, followed by what else would have to be downloaded."""
    file = group[0]
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        why = f"{error.filename} cannot be written ({error.strerror}); free some space, or set HF_HOME or TORCH_HOME"
    elif file.repo:
        why = hub.reason(error)
    else:
        said = " ".join(str(getattr(error, "reason", "") or error).split())[:120] or type(error).__name__
        why = f"{urlsplit(file.url).netloc} cannot be reached ({said}); check the network and its proxy"
    others = {other.key: other for other in missing if other.key not in {f.key for f in group}}
    also = "".join(
        f"; also missing: {other.key}: {other.name} ({other.source}; by hand: {other.by_hand})"
        for other in others.values()
    )
    return UserError(f"{file.key}: {_listed(group)} from {file.source}: {why}. By hand: {file.by_hand}{also}")


def _listed(group: Sequence[Wanted]) -> str:
    largest = sorted(group, key=lambda file: -(file.size or 1e12))[:3]
    names = ", ".join(f"{file.name}{f' ({size(file.size)})' if file.size else ''}" for file in largest)
    return names + (f" and {len(group) - len(largest)} more files" if len(group) > len(largest) else "")


def _from_hub(file: Wanted, name: str) -> None:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(file.repo, name, revision=file.revision))
    if file.sha256:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        try:
            _check(digest, file)
        except UserError:
            path.resolve().unlink(missing_ok=True)
            raise


def _from_url(file: Wanted) -> None:
    """Downloads to a temporary file first, so that the target is never incomplete."""
    import urllib.request

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from diffusion_lab.system.atomic import fresh_file

    file.target.parent.mkdir(parents=True, exist_ok=True)
    if file.size and shutil.disk_usage(file.target.parent).free < file.size:
        raise UserError(
            f"{file.key}: {file.name} needs {size(file.size)} in {file.target.parent}, and there is less room; free "
            "some space, or set TORCH_HOME to another folder"
        )
    with (
        fresh_file(file.target) as sink,
        urllib.request.urlopen(file.url, timeout=hub.PATIENCE) as answer,
        Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=Console(stderr=True)
        ) as progress,
    ):
        bar = progress.add_task(file.name, total=file.size)
        while part := answer.read(CHUNK):
            sink.write(part)
            sink.check()
            progress.advance(bar, len(part))
        _check(sink.sha256, file)


def _check(digest: str, file: Wanted) -> None:
    """Compares with the published checksum or, if there is none, with that of the first download."""
    expected = file.sha256 or _first_seen(file, digest)
    if not digest.startswith(expected):
        raise UserError(
            f"{file.key}: {file.name} from {file.source} has the SHA-256 {digest[:16]}..., and {expected[:16]}... is "
            f"known for it: a page of a proxy, a damaged or an exchanged file, which is not used. By hand: {file.by_hand}"
        )


def _first_seen(file: Wanted, found: str) -> str:
    """The checksum of this file's first download on this machine; records `found` if there was none."""
    from diffusion_lab.system.atomic import write_json
    from diffusion_lab.system.cache import default_cache

    notes = default_cache() / FIRST_SEEN
    try:
        known = json.loads(notes.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if file.url not in known:
        write_json(notes, {**known, file.url: found})
        log.warning("%s: no checksum of %s is published; its SHA-256 is %s", file.key, file.name, found)
    return str(known.get(file.url, found))
