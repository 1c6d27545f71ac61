"""Isolation between the jobs of a sweep that run in the same process."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def isolated() -> Iterator[None]:
    """Each job starts with the same state, and its changes to the process are reverted.

    This includes the working directory, environment variables, Python's, NumPy's and torch's random states,
    torch's threads, default dtype, determinism, gradient mode and backend switches, CUDA's peak memory and
    cache, and a Weights & Biases run left open. Loaded models are local to the job; garbage is collected
    afterwards.
    """
    import numpy as np
    import torch  # now, so that the state before the first job can be restored

    folder, environment, switches = os.getcwd(), dict(os.environ), _switches(torch)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - a library may draw from the global generator
    torch.manual_seed(0)
    _empty_cuda(torch)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        _restore(torch, switches)
        _finish_wandb()
        gc.collect()
        _empty_cuda(torch)


def _switches(torch: Any) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def _restore(torch: Any, switches: dict[str, Any]) -> None:
    torch.set_num_threads(switches["threads"])
    torch.set_default_dtype(switches["dtype"])
    torch.set_grad_enabled(switches["grad"])
    torch.use_deterministic_algorithms(switches["deterministic"], warn_only=switches["warn_only"])
    torch.set_float32_matmul_precision(switches["matmul"])
    torch.backends.cudnn.benchmark = switches["benchmark"]
    torch.backends.cudnn.deterministic = switches["cudnn_deterministic"]


def _empty_cuda(torch: Any) -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _finish_wandb() -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)  # a properly finished run has been closed by now
