"""The lines of Python that the report gives for an artefact: they compile, and load what is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_lab.report.loading import loading_code

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
    code = loading_code(SimpleNamespace(folder=tmp_path, config=CONFIG))  # type: ignore[arg-type]
    compile(code, "report", "exec")
    assert bool(code) is bool(files)
    assert [line for line in lines if line not in code.splitlines()] == []


@pytest.mark.parametrize(
    ("family", "method"),
    [("sdxl", "lora"), ("sdxl", "textual_inversion"), ("sd3", "lora"), ("flux", "lora")],
)
def test_lines_of_every_family_run(family: str, method: str, tmp_path: Path) -> None:
    """Executed as they are, but for the image at the end: the family's own pipeline with what was trained."""
    import torch

    from diffusion_lab.families import FAMILIES
    from diffusion_lab.methods import METHODS
    from tests.families.tiny import FAMILY

    pipe = FAMILY[family](tmp_path / "model")
    words = (
        {"token": "customcls", "initialiser": "dog", "vectors": 2} if method == "textual_inversion" else {}
    )
    trained = METHODS[method](**words)
    torch.manual_seed(0)
    for group in trained.attach(pipe):
        for parameter in group.params:
            parameter.data.add_(0.1)
    trained.save(pipe, tmp_path / "artefact", {"family": family})
    config = {**CONFIG, "model": {"path": str(tmp_path / "model")}}
    code = loading_code(SimpleNamespace(folder=tmp_path, config=config))  # type: ignore[arg-type]
    *lines, last = code.replace("'artefact", f"'{tmp_path}/artefact").splitlines()
    assert last.startswith("image = pipe('a photo of customcls")
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    loaded = names["pipe"]
    assert type(loaded).__name__ == FAMILIES[family].pipeline
    if method == "lora":
        assert loaded.get_active_adapters()  # type: ignore[attr-defined]
        return
    for place in FAMILIES[family].vocabularies:
        ids = getattr(loaded, place.tokenizer).convert_tokens_to_ids("customcls")
        row = getattr(loaded, place.text_encoder).get_input_embeddings().weight[ids]
        ours = getattr(pipe, place.text_encoder).get_input_embeddings().learned[0]
        assert torch.equal(row, ours)
