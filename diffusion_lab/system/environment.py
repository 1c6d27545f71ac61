"""Environment variables read by libraries: overridden by the configuration, or recorded.

See the table in `docs/environment.md`. Variables that would change a run independently of its configuration
are removed from the environment while the program runs; those that change numbers or speed and have no key
are recorded by name and value; those that only locate caches, and secrets, by name at most.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusion_lab.system import processes

IGNORED: dict[str, str] = {
    r"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "steps.gradient_accumulation",
    r"ACCELERATE_MIXED_PRECISION": "model.precision",
    r"ACCELERATE_DOWNCAST_BF16": "model.precision",
    r"ACCELERATE_(USE_CPU|TORCH_DEVICE)": "model.device",
    r"ACCELERATE_DYNAMO_\w+": "memory.compile",
    r"ACCELERATE_(?!CPU_AFFINITY|DEBUG_MODE)\w+": "",  # FSDP, DeepSpeed, Megatron, FP8: not supported
    r"FSDP_\w+": "",
    r"WANDB_(PROJECT|RUN_GROUP|NAME|TAGS)": "tracker.project, tracker.group, tracker.run_name, tracker.tags",
    r"WANDB_(RUN_ID|RESUME\w*|DIR|RUN_DIR|JOB_TYPE|SWEEP_ID|SWEEP_PARAM_PATH|CONFIG_PATHS|MAGIC|LAUNCH\w*)": "",
    r"WANDB_(SAVE_CODE|DISABLE_CODE|DISABLE_GIT|CONSOLE|SILENT|QUIET|PROGRAM|NOTEBOOK_NAME|REINIT)": "",
    r"USE_SAFETENSORS": "",  # the only format that is loaded without model.allow_pickle
    r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "",  # would allow files to run code when they are read
    r"DIFFUSERS_TRUST_REMOTE_\w+|TRUST_REMOTE_CODE": "",  # the same for code from the Hub
}
"""Pattern of a name -> the keys that decide instead; "" where the program settles it."""
SINGLE = re.compile(r"(LOCAL_|GROUP_|ROLE_)?RANK|LOCAL_WORLD_SIZE|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+")
"""Ignored where WORLD_SIZE tells of no second process: left over from a launcher, accelerate would wait for others."""
RECORDED = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|VECLIB|ATEN|DNNL|ONEDNN|TORCH|TORCHDYNAMO|TORCHINDUCTOR|TRITON|PYTORCH|CUBLAS|"
    r"CUBLASLT|CUDNN|CUDA|NCCL|GLOO|HIP|ROCR|HSA|MIOPEN|ROCM|XLA|ACCELERATE|DIFFUSERS|TRANSFORMERS)_\w+"
    r"|NVIDIA_(TF32_OVERRIDE|VISIBLE_DEVICES)|USE_HUB_KERNELS|FLASH_ATTENTION_DETERMINISTIC|TOKENIZERS_PARALLELISM"
    r"|WORLD_SIZE|PYTHONHASHSEED|PYTHONOPTIMIZE|GLIBC_TUNABLES|HF_HUB_OFFLINE|HF_ENDPOINT|HF_ENABLE_PARALLEL_LOADING"
    r"|WANDB_(MODE|DISABLED)"
)
NAMED = re.compile(
    r"(HF|HUGGINGFACE|DIFFUSION_LAB|TORCH|TORCHINDUCTOR|TRITON|PYTORCH|CUDA|CUDNN|ROCM|TRANSFORMERS)"
    r"_\w*(HOME|CACHE|DIR|PATH|FILE)\w*|XDG_CACHE_HOME|LD_PRELOAD"
)
"""Where things lie: recorded by name only, since a record may be shown to others."""
SECRET = re.compile(r"\w*(TOKEN(?!IZERS)|API_KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)\w*")
FOLDERS = (
    "DIFFUSION_LAB_CACHE", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR",
    "WANDB_CONFIG_DIR",
)  # fmt: skip
"""Made absolute at the start: hydra.job.chdir must not move a cache."""
AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT", "WANDB_ENTITY")
"""Set by `wandb agent`, which starts this program for a run of a sweep of W&B's: the run's tracker needs them."""
USUAL = ("", "0", "1", "no", "none", "false", "default")  # set by launchers if a feature is off


_taken: dict[str, str] = {}  # what `neutral` has removed


def category(name: str) -> str | None:
    """ "ignored", "secret", "named" or "recorded"; None for variables that do not affect our libraries."""
    if any(re.fullmatch(pattern, name) for pattern in IGNORED):
        return "ignored"
    if SECRET.fullmatch(name):
        return "secret"
    if NAMED.fullmatch(name):
        return "named"
    return "recorded" if RECORDED.fullmatch(name) else None


@contextmanager
def neutral() -> Iterator[dict[str, str]]:
    """Inside, variables that would change a run independently of its configuration are unset. Yields them."""
    alone = processes.count() == 1
    taken = {
        name: value
        for name, value in os.environ.items()
        if category(name) == "ignored" or (alone and SINGLE.fullmatch(name))
    }
    moved = {name: os.environ[name] for name in FOLDERS if _relative(os.environ.get(name, ""))}
    for name in taken:
        del os.environ[name]
    for name, value in moved.items():
        os.environ[name] = os.path.abspath(value)
    _taken.update(taken)
    try:
        yield taken
    finally:
        os.environ.update({**taken, **moved})
        for name in taken:
            _taken.pop(name, None)


def agent() -> dict[str, str]:
    """The variables of `wandb agent`, although removed from the environment; empty if no agent started this run."""
    known = {**_taken, **os.environ}
    return {name: known[name] for name in AGENT if name in known} if known.get("WANDB_SWEEP_ID") else {}


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, the variables are set, and afterwards as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _relative(folder: str) -> bool:
    return bool(folder) and not os.path.isabs(os.path.expanduser(folder))


def ignored_messages(taken: dict[str, str]) -> list[str]:
    """Notes for the user on variables that are set but have no effect here."""
    return [
        f"{name}={value} in the environment has no effect; {_instead(name)}"
        for name, value in sorted(taken.items())
        if value.casefold() not in USUAL and category(name) == "ignored" and not name.startswith("WANDB_")
    ]


def _instead(name: str) -> str:
    keys = next(keys for pattern, keys in IGNORED.items() if re.fullmatch(pattern, name))
    return f"{keys} decides" if keys else "this program does not use it"


def recorded_variables() -> dict[str, str]:
    """The variables that may change numbers or speed, by name; "(set)" for folders, without secrets."""
    found = {}
    for name, value in sorted(os.environ.items()):
        of = category(name)
        if of == "recorded" and not re.search(r"(^|[=:])[/~]", value.replace("://", "")):
            found[name] = re.sub(r"://[^/\s@]*@", "://", value)[:500]
        elif of in ("named", "recorded"):
            found[name] = "(set)"
    return found
