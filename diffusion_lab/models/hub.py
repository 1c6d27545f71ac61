"""Files of the model hub: the cache on this machine, and short requests to the hub itself.

Nothing here imports torch. The cache is that of huggingface_hub, so it is shared with diffusers, transformers
and open_clip.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from diffusion_lab.models.folder import check_configs, check_folder
from diffusion_lab.models.parts import pickled_stem, stem, weight_parts
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model
    from diffusion_lab.families.family import Family

PATIENCE = 8.0  # seconds per request; the retries of the libraries take minutes

CLIP, T5 = ("vocab.json", "merges.txt"), ("spiece.model", "tokenizer.json")  # tokenizer files
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")  # owner/name

T = TypeVar("T")


def configs_of(family: Family) -> tuple[str, ...]:
    """The files of a repository that describe the model, including its tokenizers."""
    tokenizers = [
        f"{part}/{name}"
        for part in family.tokenizers
        for name in (
            *(T5 if part in family.t5_tokenizers else CLIP),
            "tokenizer_config.json",
            "special_tokens_map.json",
        )
    ]
    configs = [f"{part}/config.json" for part in weight_parts(family)]
    return ("model_index.json", "scheduler/scheduler_config.json", *configs, *tokenizers)


def cached(repo: str, name: str, revision: str | None = None) -> Path | None:
    """The file in the hub's cache on this machine, without network access; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, name, revision=revision)
    except HFValidationError:  # a path, not a hub id
        return None
    return Path(found) if isinstance(found, str) else None


def cached_model(model: Model) -> Path | None:
    """The cache folder of a complete hub model, ready to load; None if any part is missing."""
    index = cached(model.path, "model_index.json", model.revision)
    if index is None:
        return None
    try:
        check_folder(index.parent, model)
    except UserError:
        return None
    return index.parent


def cached_configs(repo: str) -> Path | None:
    """The cache folder of a hub model's configs and tokenizers, for a model in a single file."""
    index = cached(repo, "model_index.json")
    if index is None:
        return None
    try:
        check_configs(index.parent, lambda what, remedy="": UserError(what))
    except UserError:
        return None
    return index.parent


def model_files(
    names: Collection[str], model: Model, family: Family, parts: Collection[str] | None = None
) -> list[str]:
    """The files of a repository that `model` needs: configs, tokenizers, and one kind of weights per part.

    Weights are safetensors files, sharded or not, of `model.variant` (default weights for parts that lack it,
    as in diffusers); pickled ones only if `model.allow_pickle` is set. Checkpoints of complete models at the
    top level of the repository are skipped. `parts`: the parts whose weights are needed; None: all. UserError
    if a part has no weights.
    """
    described = "|".join(("scheduler", *weight_parts(family)))
    chosen = [
        name
        for name in sorted(names)
        if name == "model_index.json"
        or re.fullmatch(rf"({described})/[a-z_]*config\.json", name)
        or re.fullmatch(rf"({'|'.join(family.tokenizers)})/[a-z_]+\.(json|txt|model)", name)
    ]
    wanted = [part for part in weight_parts(family) if parts is None or part in parts]
    has_variant = any(_weights_of(part, names, model.variant) for part in wanted) if model.variant else False
    for part in wanted:
        found = _weights_of(part, names, model.variant)
        if not found and (has_variant or not model.variant):
            found = _weights_of(part, names, None) or _pickled(part, names, model)
        if not found and not model.variant:
            found = _weights_of(part, names, "fp16")
        if not found and model.variant and not has_variant:
            found = _pickled(part, names, model, model.variant)
        if not found and part not in family.optional:
            variant = f".{model.variant}" if model.variant else ""
            raise UserError(
                f"model.path={model.path}: its repository has no {stem(part)}{variant}.safetensors in {part}/; see "
                "model.variant, or set model.allow_pickle=true for pickled weights of people you trust"
            )
        chosen += found
    return chosen


def _weights_of(part: str, names: Collection[str], variant: str | None) -> list[str]:
    """The safetensors file of a part, else its shards and their index; empty if there are none."""
    base, ending = stem(part), re.escape(f".{variant}" if variant else "")
    whole = rf"{part}/{base}{ending}\.safetensors"
    pieces = rf"{part}/{base}({ending}-\d+-of-\d+|-\d+-of-\d+{ending})\.safetensors"
    pieces += rf"|{part}/{base}\.safetensors\.index{ending}\.json"
    for pattern in (whole, pieces):
        found = [name for name in sorted(names) if re.fullmatch(pattern, name)]
        if found:
            return found
    return []


def _pickled(part: str, names: Collection[str], model: Model, variant: str | None = None) -> list[str]:
    name = f"{part}/{pickled_stem(part)}{f'.{variant}' if variant else ''}.bin"
    return [name] if model.allow_pickle and name in names else []


def shards(name: str, names: Collection[str]) -> list[str]:
    """The shards and the index of a sharded weights file in a repository; empty if it is not sharded."""
    whole = re.escape(name.removesuffix(".safetensors"))
    parts = rf"{whole}-\d+-of-\d+\.safetensors|{whole}\.safetensors\.index\.json"
    return [other for other in sorted(names) if re.fullmatch(parts, other)]


def ask(question: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The result of a network request; TimeoutError after `seconds`, even if DNS does not respond."""
    answer: list[T] = []
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(question())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a hanging thread must not delay the exit
    thread.start()
    thread.join(seconds)
    if trouble:
        raise trouble[0]
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answer[0]


def listing(repo: str, revision: str | None = None) -> dict[str, float | None]:
    """Name -> bytes of the repository's files on the hub. Raises huggingface_hub's errors without retries."""
    from huggingface_hub import HfApi

    info = ask(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE - 1))
    return {file.rfilename: file.size for file in info.siblings or []}


@contextmanager
def from_cache(there: bool = True) -> Iterator[None]:
    """Makes the libraries use the cache, if `there`, without checking the hub for newer versions.

    Without a network connection they would otherwise wait for each file.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or there
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def host() -> str:
    """The host of the hub, or that of HF_ENDPOINT."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


def reason(error: BaseException) -> str:
    """Why a file could not be fetched, as a message with a remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # this error only says that the file is not in the cache either
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, which forbids to fetch it; unset it"
    if isinstance(error, errors.GatedRepoError):
        return (
            "the hub gives it only to those who have accepted its terms: accept them there and set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or a private one (then set HF_TOKEN); check the name"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it; check model.revision"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = (
            "try again later"
            if status >= 500 or status == 429
            else "is it a hub? Check HF_ENDPOINT and the proxy"
        )
        return f"{host()} answers with status {status}; {remedy}"
    said = " ".join(str(error).split())[:120] or type(error).__name__
    return f"{host()} cannot be reached ({said}); check the network, its proxy and HF_ENDPOINT"
