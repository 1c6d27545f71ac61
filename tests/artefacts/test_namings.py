"""Tools' names of files whose layers are diffusers', for every family and all of its networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_lab.artefacts.adapter_file import parts_of
from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES, of
from diffusion_lab.plan.artefact_fits import check_fit
from diffusion_lab.records import UserError
from tests.families.tiny import FAMILY
from tests.models.layers import Tensors, check_every_layer, originals, pair, product

Naming = Callable[[str, str], str]  # part and layer -> what stands before the tensor's own name


def kohya(denoiser: str, parts: dict[str, str]) -> Naming:
    def named(part: str, name: str) -> str:
        if part.startswith("text_encoder") and name.startswith(("encoder.layers", "embeddings")):
            name = f"text_model.{name}"  # a level that files have and today's transformers has not
        return f"{parts.get(part, denoiser)}_{name.replace('.', '_')}"

    return named


def dotted(part: str, name: str) -> str:
    return f"{part}.{name}"


TWO = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
NAMINGS: dict[tuple[str, str], Naming] = {
    **{(name, "diffusers"): dotted for name in FAMILIES},
    ("sd", "kohya"): kohya("lora_unet", {"text_encoder": "lora_te"}),
    ("sdxl", "kohya"): kohya("lora_unet", TWO),
    ("sd3", "kohya"): kohya("lora_unet", {**TWO, "text_encoder_3": "lora_te3"}),
    ("sd3", "onetrainer"): kohya("lora_transformer", {**TWO, "text_encoder_3": "lora_te3"}),
    ("flux", "kohya"): kohya("lora_unet", {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}),
    ("flux", "onetrainer"): kohya("lora_transformer", TWO),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, build in FAMILY.items():
        build(root / name)
    return {name: root / name for name in FAMILY}


def load(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("family", "tool"), NAMINGS)
def test_all_networks_in_one_file(
    folders: dict[str, Path], tmp_path: Path, family: str, tool: str, weight: float
) -> None:
    pipe = load(folders[family])
    before = originals(pipe, parts_of(of(pipe)))
    generator = torch.Generator().manual_seed(1)
    ends = ("lora_A", "lora_B") if tool == "diffusers" else ("lora_down", "lora_up")
    file: Tensors = {}
    wanted = {}
    for number, ((part, name), (_, own, _)) in enumerate(before.items()):
        if number % 7 == 3:
            continue
        rank, alpha = (2, 4, 3)[number % 3], [4.0, 1.0, 0.5, 2.0][number % 4]
        tensors = pair(generator, own, rank)
        start = NAMINGS[family, tool](part, name)
        file |= {
            f"{start}.{end}.weight": tensors[role] for end, role in zip(ends, ("down", "up"), strict=True)
        }
        file[f"{start}.alpha"] = torch.tensor(alpha)
        wanted[part, name] = own + weight * alpha / rank * product(tensors, own)
    assert {part for part, _ in wanted} == set(parts_of(of(pipe)))
    save_file(file, tmp_path / "a.safetensors")
    pieces = recognise(tmp_path)
    check_fit(pieces, folders[family], Model(path=str(folders[family])))
    apply(pipe, *pieces, weight)
    check_every_layer(pipe, before, wanted)


@pytest.mark.parametrize(("family", "tool"), NAMINGS)
def test_a_pair_of_another_size_is_refused_in_the_plan(
    folders: dict[str, Path], tmp_path: Path, family: str, tool: str
) -> None:
    ends = ("lora_A", "lora_B") if tool == "diffusers" else ("lora_down", "lora_up")
    pipe = load(folders[family])
    names = [name for part, name in originals(pipe, parts_of(of(pipe))) if part == of(pipe).denoiser]
    start = NAMINGS[family, tool](of(pipe).denoiser, next(name for name in names if name.endswith("to_q")))
    save_file(
        {
            f"{start}.{end}.weight": torch.ones(shape)
            for end, shape in zip(ends, ((2, 99), (98, 2)), strict=True)
        },
        tmp_path / "a.safetensors",
    )
    with pytest.raises(
        UserError, match=r"does not fit the model .* change a layer of \[98, 99\], and this model's is \["
    ):
        check_fit(recognise(tmp_path), folders[family], Model(path=str(folders[family])))


def test_pefts_folders_of_every_part(folders: dict[str, Path], tmp_path: Path) -> None:
    """A folder by the part's name is that part's; any other is the denoiser's. A part that the family lacks is refused."""
    import peft

    for family, folder in folders.items():
        pipe = load(folder)
        denoiser = FAMILIES[family].denoiser
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        model = peft.get_peft_model(getattr(pipe, denoiser), config)
        for name in (denoiser, "my_adapter"):
            model.save_pretrained(tmp_path / family / name)
            (piece,) = recognise(tmp_path / family / name)
            assert (piece.kind, piece.part(FAMILIES[family])) == ("peft", denoiser)
            check_fit((piece,), folder, Model(path=str(folder)))
            other = load(folder)
            apply(other, piece)
            key = next(k for k in getattr(other, denoiser).state_dict() if k.endswith("to_q.weight"))
            merged = model.get_submodule(f"base_model.model.{key.removesuffix('.weight')}")
            expected = merged.base_layer.weight + merged.get_delta_weight("default")
            torch.testing.assert_close(getattr(other, denoiser).state_dict()[key], expected)
    (piece,) = recognise(tmp_path / "flux" / "transformer")
    for ask in (
        lambda: apply(load(folders["sd"]), piece),
        lambda: check_fit((piece,), folders["sd"], Model(path=str(folders["sd"]))),
    ):
        with pytest.raises(
            UserError, match="it changes the transformer, which Stable Diffusion 1.x and 2.x does not have"
        ):
            ask()
    (piece,) = recognise(tmp_path / "sd" / "my_adapter")
    with pytest.raises(
        UserError,
        match="is a layer of Stable Diffusion 1.x and 2.x or Stable Diffusion XL, and this is FLUX.1",
    ):
        check_fit((piece,), folders["flux"], Model(path=str(folders["flux"])))
