"""The environment changes no training beside the configuration: a variable is ignored, or the record has it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_lab.config.schema import Steps
from diffusion_lab.system import environment
from diffusion_lab.system.environment import category, ignored_messages, neutral, recorded_variables
from diffusion_lab.training.loop import train

ROOT = Path(__file__).parents[1]
IGNORED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DOWNCAST_BF16": "1",
    "ACCELERATE_DYNAMO_BACKEND": "inductor", "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_MEGATRON_LM": "true", "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "ACCELERATE_TORCH_DEVICE": "meta", "ACCELERATE_FP8_BACKEND": "TE",
    "FSDP_OFFLOAD_PARAMS": "true", "LOCAL_RANK": "1", "RANK": "1", "PMI_SIZE": "2", "PMI_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_SIZE": "2", "USE_SAFETENSORS": "0",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "WANDB_PROJECT": "theirs", "WANDB_RUN_ID": "theirs", "WANDB_RESUME": "must",
    "WANDB_DIR": "theirs", "WANDB_NAME": "theirs", "WANDB_RUN_GROUP": "theirs", "WANDB_TAGS": "theirs",
    "WANDB_SILENT": "false", "WANDB_SWEEP_ID": "theirs", "WANDB_CONFIG_PATHS": "nowhere.yaml", "WANDB_SAVE_CODE": "true",
}  # fmt: skip
RECORDED = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_DYNAMIC": "false", "KMP_BLOCKTIME": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8", "NVIDIA_TF32_OVERRIDE": "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "PYTORCH_ALLOC_CONF": "max_split_size_mb:512", "TORCH_SHOW_CPP_STACKTRACES": "1", "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    "TORCHDYNAMO_VERBOSE": "1", "CUDA_LAUNCH_BLOCKING": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_ATTN_CHECKS": "1", "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "7", "WANDB_MODE": "offline", "WANDB_DISABLED": "false", "ACCELERATE_CPU_AFFINITY": "0",
}  # fmt: skip
SECRET = {
    "HF_TOKEN": "hf_" + "s" * 30,
    "WANDB_API_KEY": "s" * 40,
    "WANDB_IDENTITY_TOKEN_FILE": "/s",
    "HF_OIDC_ID_TOKEN": "s",
}
NAMED = {"HF_HOME": "h", "TORCH_HOME": "t", "TORCHINDUCTOR_CACHE_DIR": "i", "LD_PRELOAD": ""}
HARMLESS = {
    "HYDRA_FULL_ERROR": "1",
    "WANDB_NOTES": "n",
    "PATH": os.environ["PATH"],
    "HOME": "/h",
    "MY_DIR": "/m",
}


def test_every_variable_has_its_class() -> None:
    assert {category(name) for name in IGNORED if not environment.SINGLE.fullmatch(name)} == {"ignored"}
    assert {category(name) for name in RECORDED} == {"recorded"}
    assert {category(name) for name in SECRET} == {"secret"}
    assert {category(name) for name in NAMED} == {"named"}
    assert {category(name) for name in HARMLESS} == {None}


def test_what_accelerate_reads_is_known() -> None:
    """From its source: a new version's new variables are noticed here."""
    package = importlib.util.find_spec("accelerate")
    assert package is not None
    assert package.origin is not None
    root = Path(package.origin).parent
    files = [
        root / "accelerator.py",
        root / "state.py",
        root / "utils" / "dataclasses.py",
        root / "optimizer.py",
    ]
    names = set(
        re.findall(r"\b(?:ACCELERATE|FSDP)_[A-Z0-9_]*[A-Z0-9]\b", "".join(file.read_text() for file in files))
    )
    assert len(names) > 15
    assert {name for name in names if category(name) is None} == set()
    ours = {name for name in names if category(name) == "recorded"}
    assert ours <= {"ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE"}


def test_the_page_names_every_class() -> None:
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    for name in IGNORED:
        stem = re.sub(r"(_[A-Z]+)$", "_*", name)
        assert name in page or stem in page or any(f"{name[:n]}*" in page for n in range(4, len(name))), name
    for name in RECORDED:
        assert name in page or any(f"{name[:n]}*" in page for n in range(3, len(name))), name


def test_ignored_ones_are_gone_inside_and_back_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**IGNORED, "DIFFUSION_LAB_CACHE": "cache", "HF_HOME": "~/h"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with neutral() as taken:
        assert not set(IGNORED) & set(os.environ)
        assert os.environ["DIFFUSION_LAB_CACHE"] == str(tmp_path / "cache")
        assert os.environ["HF_HOME"] == "~/h"
        with neutral() as again:
            assert again == {}
    assert dict(os.environ) == before
    assert taken == IGNORED
    lines = "\n".join(ignored_messages(taken))
    assert (
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 in the environment has no effect; steps.gradient_accumulation"
        in lines
    )
    assert (
        "ACCELERATE_MIXED_PRECISION=bf16 in the environment has no effect; model.precision decides" in lines
    )
    assert ignored_messages({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "false"}) == [], (
        "as accelerate launch has it"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with neutral():
        assert os.environ["LOCAL_RANK"] == "1", "with a launcher they are its own"


def test_nothing_secret_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        **RECORDED,
        **SECRET,
        **NAMED,
        "HF_ENDPOINT": "https://me:pass@mirror.example/x",
    }.items():
        monkeypatch.setenv(name, value)
    found = recorded_variables()
    assert {name: found.get(name) for name in RECORDED} == RECORDED
    assert {found.get(name) for name in NAMED} == {"(set)"}
    assert found["HF_ENDPOINT"] == "https://mirror.example/x"
    assert not set(SECRET) & set(found)
    assert not any("sss" in value for value in found.values())


def trained(make_state: Callable[..., Any]) -> list[torch.Tensor]:
    state = make_state(total=3)
    steps = Steps(total=3, every=3, batch_size=2, gradient_accumulation=2)
    train(
        state,
        steps=steps,
        evaluate=lambda step: None,
        on_log=lambda step, values: None,
        on_step=lambda step: None,
    )
    return [parameter.detach().clone() for parameter in state.trained]


def test_training_is_the_same_to_the_bit(
    make_state: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop on its own too, with accelerate as it is built here."""
    expected = trained(make_state)
    for name, value in IGNORED.items():
        monkeypatch.setenv(name, value)
    found = trained(make_state)
    assert len(found) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_a_run_in_a_hostile_environment(tmp_path: Path) -> None:
    words = [
        "experiment=debug", "metrics=debug", "steps.total=2", "steps.every=2", "prompts.n=2", "tracker.progress=off",
        "steps.gradient_accumulation=2", "tracker.wandb=offline",
    ]  # fmt: skip
    unset = {*IGNORED, *RECORDED, *SECRET, *NAMED}
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    clean |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, variables in (("clean", clean), ("hostile", {**clean, **IGNORED, **RECORDED, **SECRET})):
        ended = subprocess.run(
            [sys.executable, "-m", "diffusion_lab", *words, f"hydra.run.dir={name}"], cwd=tmp_path, env=variables,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 in the environment has no effect" in ended.stderr
    files = sorted(
        file.relative_to(tmp_path / "clean") for file in (tmp_path / "clean/adapters").rglob("*.safetensors")
    )
    assert files
    for file in files:
        one, other = load_file(tmp_path / "clean" / file), load_file(tmp_path / "hostile" / file)
        assert all(torch.equal(one[key], other[key]) for key in one | other), file
    found = json.loads((tmp_path / "hostile/result.json").read_text())["provenance"]["environment"]
    assert {name: found.get(name) for name in RECORDED} == RECORDED
    assert not {*IGNORED, *SECRET} & set(found)
    assert not (tmp_path / "theirs").exists(), "the view stays in the run's folder"
    assert (tmp_path / "hostile" / "wandb").is_dir()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("value", ["abc", "1.5", " ", "two"])
def test_a_launchers_variable_that_is_no_number_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusion_lab.__main__ import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    assert main(["experiment=debug", "--dry-run"]) == 2
    assert f"error: {name}={value} in the environment: must be a whole number" in capsys.readouterr().err
