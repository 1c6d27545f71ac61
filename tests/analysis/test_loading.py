"""The lines of Python that the report gives for an artefact: they compile, and load what is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_lab.report.texts import loading

CONFIG = {"model": {"path": "miniature"}, "data": {"identifier": "customcls", "class_noun": "dog"}}


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            ["learned_embeds.safetensors", "pytorch_lora_weights.safetensors"],
            ["pipe.load_lora_weights('artefact')", "pipe.load_textual_inversion('artefact/learned_embeds.safetensors')"],
        ),
        (
            ["unet/adapter_config.json", "text_encoder/adapter_config.json"],
            [
                "from peft import PeftModel",
                "pipe.unet = PeftModel.from_pretrained(pipe.unet, 'artefact/unet')",
                "pipe.text_encoder = PeftModel.from_pretrained(pipe.text_encoder, 'artefact/text_encoder')",
            ],
        ),
        (
            ["hypernetwork.safetensors"],
            ["network = from_file('artefact/hypernetwork.safetensors')", "network.load(pipe, Path('artefact'))"],
        ),
        ([], []),
    ],
)  # fmt: skip
def test_lines_that_load_an_artefact(tmp_path: Path, files: list[str], lines: list[str]) -> None:
    for name in files:
        (tmp_path / "artefact" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "artefact" / name).touch()
    code = loading(SimpleNamespace(folder=tmp_path, config=CONFIG))  # type: ignore[arg-type]
    compile(code, "report", "exec")
    assert bool(code) is bool(files)
    assert [line for line in lines if line not in code.splitlines()] == []
