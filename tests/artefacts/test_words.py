"""Embeddings of models with one vocabulary and with two; where CLIP's pooled vector is taken beside a learned word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES
from diffusion_lab.plan.artefact_fits import check_fit
from diffusion_lab.records import UserError
from tests.families.tiny import FAMILY

SDXL = FAMILIES["sdxl"]
BOTH = {"clip_l": (2, 24), "clip_g": (2, 40)}
FILES: dict[str, dict[str, tuple[int, ...]]] = {
    "sd": {"emb_params": (2, 32)}, "sd, diffusers": {"<wizard>": (2, 32)}, "sdxl": BOTH,
    "sd3": {**BOTH, "t5xxl": (2, 64)}, "clip_l alone": {"clip_l": (2, 32)},
}  # fmt: skip
FITS = {("sd", "sd"), ("sd, diffusers", "sd"), ("sdxl", "sdxl")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, build in FAMILY.items():
        build(root / name)
    return {name: root / name for name in FAMILY}


def load(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(kind: str, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    vectors = {key: torch.randn(shape, generator=generator) for key, shape in FILES[kind].items()}
    save_file(vectors, folder / "wizard.safetensors")
    return folder / "wizard.safetensors"


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", FILES)
def test_an_embedding_fits_its_own_family_only(
    folders: dict[str, Path], tmp_path: Path, kind: str, family: str
) -> None:
    (piece,) = recognise(write(kind, tmp_path))
    assert piece.kind == "embedding"
    asks = (
        lambda: check_fit((piece,), folders[family], Model(path=str(folders[family]))),
        lambda: apply(load(folders[family]), piece),
    )
    for ask in asks:
        if (kind, family) in FITS:
            ask()
            continue
        made = {"sd": "Stable Diffusion 1.x and 2.x", "sdxl": "Stable Diffusion XL"}.get(
            kind.split(",")[0], "another model"
        )
        with pytest.raises(
            UserError,
            match=rf"an embedding for {made}.*and this is {FAMILIES[family].title}\); set model\.path",
        ):
            ask()


def test_both_vocabularies_read_the_word(folders: dict[str, Path], tmp_path: Path) -> None:
    """As ComfyUI and A1111 have it: the word is the file's name, in any letter case; every other row stays."""
    pipe, plain = load(folders["sdxl"]), load(folders["sdxl"])
    piece = recognise(write("sdxl", tmp_path))[0]
    from safetensors.torch import load_file

    vectors = load_file(piece.path)
    apply(pipe, piece)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        weight = getattr(pipe, f"text_encoder{suffix}").get_input_embeddings().weight
        before = getattr(plain, f"text_encoder{suffix}").get_input_embeddings().weight
        ids = getattr(pipe, f"tokenizer{suffix}")("a Wizard", add_special_tokens=False).input_ids
        assert torch.equal(weight[ids[-2:]], vectors[key])
        assert torch.equal(weight[: len(before)], before)


def test_another_width_is_told_with_the_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(1, 24), "clip_g": torch.ones(1, 1280)}, tmp_path / "a.safetensors")
    (piece,) = recognise(tmp_path / "a.safetensors")
    told = "its vectors clip_g are 1280 wide, and this model's text encoder gives 40"
    with pytest.raises(UserError, match=told):
        check_fit((piece,), folders["sdxl"], Model(path=str(folders["sdxl"])))
    with pytest.raises(UserError, match=told):
        apply(load(folders["sdxl"]), piece)


def test_the_pooled_vector_is_the_end_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    """The published config calls the end token 2, for which transformers pools at the highest number: the new word's."""
    text = "a photo of wizard dog"
    pipe = load(folders["sdxl"])
    assert pipe.text_encoder_2.config.eos_token_id == 2
    before = SDXL.encode_prompts(pipe, ["a photo of dog"])["pooled"]
    apply(pipe, *recognise(write("sdxl", tmp_path)))
    ids = pipe.tokenizer_2(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    end = ids[0].tolist().index(pipe.tokenizer_2.eos_token_id)
    assert int(ids.argmax()) < end, "by the highest number it would be the word"
    with torch.no_grad():
        states = pipe.text_encoder_2(ids, output_hidden_states=True)
        expected = pipe.text_encoder_2.text_projection(states.last_hidden_state[:, end])
        for found in (SDXL.encode(pipe, SDXL.tokenize(pipe, text)), SDXL.encode_prompts(pipe, [text])):
            torch.testing.assert_close(found["pooled"], expected)
    assert torch.equal(SDXL.encode_prompts(pipe, ["a photo of dog"])["pooled"], before), (
        "other texts are as before"
    )


def test_what_plain_diffusers_needs_for_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    """docs/adapters.md: each text encoder's own vectors, and its number of the end token."""
    from safetensors.torch import load_file

    ours, plain = load(folders["sdxl"]), load(folders["sdxl"])
    (piece,) = recognise(write("sdxl", tmp_path))
    apply(ours, piece)
    vectors = load_file(piece.path)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(plain, f"text_encoder{suffix}"), getattr(plain, f"tokenizer{suffix}")
        plain.load_textual_inversion(vectors[key], token="wizard", text_encoder=encoder, tokenizer=tokenizer)
    expected = SDXL.encode_prompts(ours, ["a photo of wizard dog"])

    def found() -> Any:
        return SDXL.encode_prompts(plain, ["a photo of wizard dog"])

    torch.testing.assert_close(found()["hidden"], expected["hidden"])
    assert not torch.allclose(found()["pooled"], expected["pooled"], atol=1e-3)
    for encoder, tokenizer in (
        (plain.text_encoder, plain.tokenizer),
        (plain.text_encoder_2, plain.tokenizer_2),
    ):
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id
    torch.testing.assert_close(found()["pooled"], expected["pooled"])
