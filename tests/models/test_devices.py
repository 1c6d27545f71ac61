"""What a device is and does well, known without torch; `model.precision=auto` and warnings about a bad choice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Model
from diffusion_lab.models import devices
from diffusion_lab.models.devices import (
    Card,
    best_precision,
    parse,
    precision_row,
    precision_warnings,
    published_tflops,
)
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

NATIVE = frozenset({"avx2", "avx512f", "avx512bw", "avx512_bf16"})
AMX = frozenset({"avx2", "avx512f", "avx512bw", "amx_bf16"})
AVX512 = frozenset({"avx2", "avx512f", "avx512bw"})
AVX2 = frozenset({"avx2", "fma"})

H100 = Card("NVIDIA H100 80GB HBM3", 9.0, 80e9)
A100 = Card("NVIDIA A100-SXM4-80GB", 8.0, 80e9)
T4 = Card("Tesla T4", 7.5, 16e9)
GTX = Card("NVIDIA GeForce GTX 1080 Ti", 6.1, 11e9)
ODD = Card("NVIDIA Unheard Of 1", 0.0, 8e9)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The machine the tests think they are on."""

    def pretend(card: Card | None = None, flags: frozenset[str] = AVX2, isa: str | None = None) -> None:
        monkeypatch.setattr(devices, "has_gpu", lambda: card is not None)
        monkeypatch.setattr(devices, "_cards", lambda: () if card is None else (card,))
        monkeypatch.setattr(devices, "cpu_flags", lambda: flags)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if isa is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)

    return pretend


# device -> what auto is, words of the warning about each explicit choice ("" for none, None for a refusal)
TABLE = {
    "CPU with AVX-512 BF16": ((None, NATIVE), "bf16", {"fp32": "", "bf16": "", "fp16": None}),
    "CPU with AMX": ((None, AMX), "bf16", {"fp32": "", "bf16": "", "fp16": None}),
    "CPU with AVX-512": ((None, AVX512), "fp32", {"fp32": "", "bf16": "2 times slower", "fp16": None}),
    "CPU with AVX2": ((None, AVX2), "fp32", {"fp32": "", "bf16": "50 times slower", "fp16": None}),
    "another CPU": ((None, frozenset()), "fp32", {"fp32": "", "bf16": "50 times slower", "fp16": None}),
    "H100": ((H100, AVX2), "bf16", {"fp32": "15 times faster in bf16", "bf16": "", "fp16": ""}),
    "A100": ((A100, AVX2), "bf16", {"fp32": "16 times faster in bf16", "bf16": "", "fp16": ""}),
    "T4": ((T4, NATIVE), "fp16", {"fp32": "8 times faster in fp16", "bf16": "emulates it", "fp16": ""}),
    "GTX 1080 Ti": ((GTX, NATIVE), "fp16", {"fp32": "", "bf16": "emulates it", "fp16": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_auto_and_explicit_choices(on: Callable[..., None], name: str) -> None:
    machine, auto, choices = TABLE[name]
    on(*machine)
    assert best_precision("auto") == auto
    for precision, words in choices.items():
        model = Model(path="owner/name", precision=precision)
        if words is None:
            with pytest.raises(UserError, match=r"model\.precision=fp16: needs a GPU"):
                precision_warnings(model)
            continue
        told = precision_warnings(model)
        assert bool(told) == bool(words)
        assert words in "".join(told)
    assert not precision_warnings(Model(path="owner/name", precision=auto)), "auto is never warned about"
    assert precision_row(Model(path="owner/name", precision=auto)).startswith(auto)


@pytest.mark.parametrize(
    ("isa", "slower"),
    [("AVX2", 50.0), ("AVX512_CORE", 2.0), ("AVX512_CORE_BF16", 1.0), ("ALL", 1.0), ("AVX512_CORE_AMX", 1.0)],
)
def test_a_limit_on_the_instruction_sets_counts(on: Callable[..., None], isa: str, slower: float) -> None:
    on(None, NATIVE | AMX, isa)
    assert devices.bf16_slowdown() == slower


def test_torch_agrees_about_this_machine() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this is about the CPU")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (devices.bf16_slowdown() == 1.0) == native


def test_full_size_models_take_auto_and_the_miniature_stays(on: Callable[..., None]) -> None:
    for words in (["model=sd15"], ["model=sd20"], ["model=sd21"], ["model=sd21_768"], ["experiment=full"],
                  ["experiment=small_card"], ["model=folder", "model.path=owner/name"],
                  ["model=single_file", "model.path=a.safetensors"]):  # fmt: skip
        composed = compose(words)
        assert composed.model.precision == "auto"
        for machine, expected in (((None, AVX2), "fp32"), ((None, NATIVE), "bf16"), ((T4, AVX2), "fp16")):
            on(*machine)
            assert fill_defaults(composed).model.precision == expected
    on(H100, NATIVE)
    assert fill_defaults(compose()).model.precision == "fp32"


def test_a_run_goes_on_in_the_precision_it_was_begun_in(on: Callable[..., None], tmp_path: Path) -> None:
    """Whatever the machine it is taken up on would choose; an explicit word is not touched."""
    from diffusion_lab.config.schema import as_plain_dict
    from diffusion_lab.runs.resume import folder_status

    def words(*more: str) -> Config:
        return fill_defaults(compose(["model=folder", "model.path=owner/name", *more]), tmp_path)

    on(A100)
    begun = words()
    (tmp_path / "result.json").write_text(
        json.dumps({"status": "interrupted", "config": as_plain_dict(begun)})
    )
    on(None, AVX2)
    again = words()
    assert again.model.precision == "bf16"
    assert folder_status(again, tmp_path) == "unfinished"
    assert any("slower" in told for told in precision_warnings(again.model))
    with pytest.raises(UserError, match=r"model\.precision was bf16, is fp32"):
        folder_status(words("model.precision=fp32"), tmp_path)
    for damaged in ("", "[]", '{"config": {"model": {"precision": "fp8"}}}'):
        (tmp_path / "result.json").write_text(damaged)
        assert words().model.precision == "fp32"


# --- cards ---------------------------------------------------------------------------------------------

NAMES = (  # as nvidia-smi has them, slowest first in half precision
    "NVIDIA GeForce RTX 3050", "Tesla P100-PCIE-16GB", "NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 2070 SUPER",
    "NVIDIA GeForce RTX 4060 Ti", "NVIDIA GeForce RTX 3080", "Tesla T4", "NVIDIA GeForce RTX 3090",
    "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla V100-SXM2-16GB", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 5090", "NVIDIA RTX 5000 Ada Generation", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S",
    "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3", "NVIDIA B200",
)  # fmt: skip


def test_known_cards_are_ordered_as_they_are() -> None:
    found = [published_tflops(name) for name in NAMES]
    assert None not in found
    halves = [pair[0] for pair in found if pair]
    assert halves == sorted(halves)
    assert all(half >= single for half, single in filter(None, found))


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA A10", 125), ("NVIDIA A10G", 70), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A2", 18), ("NVIDIA L4", 121),
        ("NVIDIA L40", 181), ("NVIDIA GeForce RTX 3060 Ti", 32), ("NVIDIA GeForce RTX 4070 Ti SUPER", 88),
        ("Quadro RTX 6000", 130), ("NVIDIA RTX 6000 Ada Generation", 364), ("NVIDIA GeForce GTX 1660 SUPER", 10),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA A1000", None), ("AMD Radeon RX 7900", None), ("", None),
    ],
)  # fmt: skip
def test_similar_names_are_told_apart(name: str, half: float | None) -> None:
    found = published_tflops(name)
    assert (found[0] if found else None) == half


@given(st.text(max_size=40), st.floats(0, 20), st.floats(0, 2e5))
def test_any_card_has_a_speed(name: str, capability: float, memory: float) -> None:
    half, single = Card(name, capability, memory).tflops
    assert half >= single > 0


def test_lines_of_nvidia_smi() -> None:
    assert parse("NVIDIA H100 80GB HBM3, 9.0, 81559") == Card("NVIDIA H100 80GB HBM3", 9.0, 81559 * 2**20)
    assert parse("Odd, name, [N/A], [N/A]") == Card("Odd, name", 0.0, 0.0)


def test_which_of_several_cards(on: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    on(H100)
    monkeypatch.setattr(devices, "_cards", lambda: (H100, T4))
    assert devices.card("auto") == H100
    assert devices.card("cuda:1") == T4
    assert devices.card("cuda:2") is None
    assert devices.card("cpu") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.card("cuda") == T4


def test_none_of_this_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from diffusion_lab.cli.compose import compose; from diffusion_lab.plan.defaults import fill_defaults;"
        "fill_defaults(compose(['experiment=full'])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
