"""Files that name layers as the models' original codes do: every layer gets its own change, fused matrices theirs.

What each original matrix holds is written down here, and for Stable Diffusion 3 compared with diffusers' own converter
of checkpoints; the U-Nets' names are those of the tests of single files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_lab.artefacts.adapter_file import parts_of
from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES, of
from diffusion_lab.plan.artefact_fits import check_fit
from diffusion_lab.records import UserError
from tests.families.tiny import FAMILY
from tests.models.layers import KINDS, Tensors, check_every_layer, lora, originals, pair, product
from tests.models.ldm import unet_name

Held = dict[str, tuple[str, ...]]  # original name -> diffusers' names of the layers in it, in order
TRANSFORMERS = ("sd3", "flux")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ("sdxl", *TRANSFORMERS):
        FAMILY[name](root / name)
    _sd15(root / "sd")
    return {name: root / name for name in FAMILY}


def _sd15(folder: Path) -> None:
    """Stable Diffusion with the four levels of 1.x and 2.x, two residual blocks in each."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    FAMILY["sd"](folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 16, 32, 32), layers_per_block=2, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, attention_head_dim=4, norm_num_groups=8,
        )  # fmt: skip
    StableDiffusionPipeline.from_pretrained(folder, unet=unet).save_pretrained(folder)


def load(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- what original matrices hold ----------------------------------------------------------------------------


def held(pipe: Any) -> Held:
    family = of(pipe)
    if family.name == "flux":
        return _flux(pipe.transformer.config)
    if family.name == "sd3":
        return _sd3(pipe.transformer.config)
    found: Held = {}
    for name, module in pipe.unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if name.startswith("add_embedding"):
            theirs = {"linear_1": "label_emb.0.0", "linear_2": "label_emb.0.2"}[name.split(".")[1]]
        else:
            theirs = unet_name(f"{name}.weight", pipe.unet.config).removesuffix(".weight")
        found[theirs] = (name,)
    return found


def _flux(config: Any) -> Held:
    found: Held = {
        "img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    }  # fmt: skip
    for theirs, ours in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        found[f"{theirs}_in.in_layer"] = (f"time_text_embed.{ours}_embedder.linear_1",)
        found[f"{theirs}_in.out_layer"] = (f"time_text_embed.{ours}_embedder.linear_2",)
    for n in range(config.num_layers):
        b, t = f"double_blocks.{n}", f"transformer_blocks.{n}"
        found |= {
            f"{b}.img_attn.qkv": (f"{t}.attn.to_q", f"{t}.attn.to_k", f"{t}.attn.to_v"),
            f"{b}.txt_attn.qkv": (f"{t}.attn.add_q_proj", f"{t}.attn.add_k_proj", f"{t}.attn.add_v_proj"),
            f"{b}.img_attn.proj": (f"{t}.attn.to_out.0",), f"{b}.txt_attn.proj": (f"{t}.attn.to_add_out",),
            f"{b}.img_mlp.0": (f"{t}.ff.net.0.proj",), f"{b}.img_mlp.2": (f"{t}.ff.net.2",),
            f"{b}.txt_mlp.0": (f"{t}.ff_context.net.0.proj",), f"{b}.txt_mlp.2": (f"{t}.ff_context.net.2",),
            f"{b}.img_mod.lin": (f"{t}.norm1.linear",), f"{b}.txt_mod.lin": (f"{t}.norm1_context.linear",),
        }  # fmt: skip
    for n in range(config.num_single_layers):
        b, t = f"single_blocks.{n}", f"single_transformer_blocks.{n}"
        found |= {
            f"{b}.linear1": (f"{t}.attn.to_q", f"{t}.attn.to_k", f"{t}.attn.to_v", f"{t}.proj_mlp"),
            f"{b}.linear2": (f"{t}.proj_out",), f"{b}.modulation.lin": (f"{t}.norm.linear",),
        }  # fmt: skip
    return found


def _sd3(config: Any) -> Held:
    found: Held = {
        "x_embedder.proj": ("pos_embed.proj",), "context_embedder": ("context_embedder",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    }  # fmt: skip
    for theirs, ours in (("t", "timestep"), ("y", "text")):
        for n, m in ((0, 1), (2, 2)):
            found[f"{theirs}_embedder.mlp.{n}"] = (f"time_text_embed.{ours}_embedder.linear_{m}",)
    for n in range(config.num_layers):
        b, t, last = f"joint_blocks.{n}", f"transformer_blocks.{n}", n == config.num_layers - 1
        found |= {
            f"{b}.x_block.attn.qkv": (f"{t}.attn.to_q", f"{t}.attn.to_k", f"{t}.attn.to_v"),
            f"{b}.context_block.attn.qkv": (
                f"{t}.attn.add_q_proj", f"{t}.attn.add_k_proj", f"{t}.attn.add_v_proj",
            ),
            f"{b}.x_block.attn.proj": (f"{t}.attn.to_out.0",),
            f"{b}.x_block.mlp.fc1": (f"{t}.ff.net.0.proj",), f"{b}.x_block.mlp.fc2": (f"{t}.ff.net.2",),
            f"{b}.x_block.adaLN_modulation.1": (f"{t}.norm1.linear",),
            f"{b}.context_block.adaLN_modulation.1": (f"{t}.norm1_context.linear",),
        }  # fmt: skip
        if not last:
            found |= {
                f"{b}.context_block.attn.proj": (f"{t}.attn.to_add_out",),
                f"{b}.context_block.mlp.fc1": (f"{t}.ff_context.net.0.proj",),
                f"{b}.context_block.mlp.fc2": (f"{t}.ff_context.net.2",),
            }
        if n in config.dual_attention_layers:
            found[f"{b}.x_block.attn2.qkv"] = (f"{t}.attn2.to_q", f"{t}.attn2.to_k", f"{t}.attn2.to_v")
            found[f"{b}.x_block.attn2.proj"] = (f"{t}.attn2.to_out.0",)
    return found


def is_swapped(original: str, weight: torch.Tensor) -> bool:
    """Shift and scale there, scale and shift here: of the last layer, and of SD 3's last text block (2 of 6 numbers)."""
    return original.startswith("final_layer.adaLN") or (
        "context_block.adaLN" in original and len(weight) == 2 * weight.shape[1]
    )


def as_original(original: str, weights: list[torch.Tensor]) -> torch.Tensor:
    whole = torch.cat(weights)
    return whole.roll(len(whole) // 2, 0) if is_swapped(original, whole) else whole


def taken_apart(original: str, whole: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    whole = whole.roll(len(whole) // 2, 0) if is_swapped(original, whole) else whole
    return list(whole.split([len(weight) for weight in weights]))


def test_every_layer_is_held_once(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        pipe = load(folder)
        denoiser = getattr(pipe, FAMILIES[name].denoiser)
        linears = {n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        members = [one for names in held(pipe).values() for one in names]
        assert sorted(members) == sorted(linears), name


def test_sd3s_table_against_diffusers_converter(folders: dict[str, Path]) -> None:
    """A checkpoint of random numbers under the original names, taken apart by diffusers and here."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    transformer = load(folders["sd3"]).transformer
    state = transformer.state_dict()
    generator = torch.Generator().manual_seed(0)
    checkpoint, expected = {"pos_embed": state["pos_embed.pos_embed"]}, {}
    for original, names in _sd3(transformer.config).items():
        own = [state[f"{name}.weight"] for name in names]
        whole = torch.randn(torch.cat(own).shape, generator=generator)
        checkpoint[f"{original}.weight"], checkpoint[f"{original}.bias"] = whole, torch.zeros(len(whole))
        for name, value in zip(names, taken_apart(original, whole, own), strict=True):
            expected[f"{name}.weight"] = value
    for n in range(transformer.config.num_layers):
        for end in ("x_block.attn.ln_q", "x_block.attn.ln_k", "context_block.attn.ln_q", "context_block.attn.ln_k",
                    "x_block.attn2.ln_q", "x_block.attn2.ln_k"):  # fmt: skip
            checkpoint[f"joint_blocks.{n}.{end}.weight"] = torch.ones(12)
    for n in set(range(transformer.config.num_layers)) - set(transformer.config.dual_attention_layers):
        for end in ("ln_q", "ln_k"):
            del checkpoint[f"joint_blocks.{n}.x_block.attn2.{end}.weight"]
    found = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


# --- files --------------------------------------------------------------------------------------------------

ENDS = {"down": "lora_down.weight", "up": "lora_up.weight"}


def write(pipe: Any, kind: str, folder: Path, weight: float, form: str = "kohya") -> dict[Any, torch.Tensor]:
    """A file of changes of all original layers but some; every layer's expected weight."""
    family, before = of(pipe), originals(pipe, parts_of(of(pipe)))
    generator = torch.Generator().manual_seed(3)
    file: Tensors = {}
    wanted = {}
    for number, (original, names) in enumerate(held(pipe).items()):
        own = [before[family.denoiser, name][1] for name in names]
        whole = as_original(original, own)
        if (
            number % 7 == 5
            or (kind.startswith("loha") and whole.ndim == 4)
            or (kind == "dora of inputs" and len(own) > 1)
        ):
            continue
        if kind == "lora":
            tensors, change = pair(generator, whole, rank := 2 + number % 3), None
            tensors["alpha"] = torch.tensor([4.0, 1.0, 0.5][number % 3])
            change = product(tensors, whole) * float(tensors["alpha"]) / rank
        else:
            tensors, change = KINDS[kind](generator, whole, number // 2)
            if kind != "diff":
                tensors["alpha"] = torch.tensor(1.0)
        start = (
            f"lora_unet_{original.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{original}"
        )
        file |= {f"{start}.{ENDS.get(role, role)}": value.contiguous() for role, value in tensors.items()}
        for name, old, new in zip(names, own, taken_apart(original, change, own), strict=True):
            wanted[family.denoiser, name] = old + weight * new
    save_file(file, folder / "a.safetensors")
    return wanted


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", sorted(FAMILY))
def test_lora_under_original_names(
    folders: dict[str, Path], tmp_path: Path, name: str, form: str, weight: float
) -> None:
    pipe = load(folders[name])
    before = originals(pipe, parts_of(of(pipe)))
    wanted = write(pipe, "lora", tmp_path, weight, form)
    assert len(wanted) > 20
    pieces = recognise(tmp_path)
    check_fit(pieces, folders[name], Model(path=str(folders[name])))
    apply(pipe, *pieces, weight)
    check_every_layer(pipe, before, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TRANSFORMERS, "sdxl"])
def test_other_kinds_under_original_names(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    """Rows of LoHa, LoKr, DoRA and whole differences are taken apart too."""
    pipe = load(folders[name])
    before = originals(pipe, parts_of(of(pipe)))
    wanted = write(pipe, kind, tmp_path, 0.5)
    apply(pipe, *recognise(tmp_path), 0.5)
    check_every_layer(pipe, before, wanted)


def test_lengths_of_inputs_of_a_fused_matrix_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """They are lengths over the rows of all its layers."""
    pipe = load(folders["flux"])
    whole = torch.cat(
        [getattr(pipe.transformer.transformer_blocks[0].attn, f"to_{n}").weight.data for n in "qkv"]
    )
    tensors, _ = lora(torch.Generator().manual_seed(0), whole, 0)
    tensors["dora_scale"] = torch.ones(1, whole.shape[1])
    start = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{start}.{ENDS.get(role, role)}": value for role, value in tensors.items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(
        UserError, match=r"to_q, of lora_unet_double_blocks_0_img_attn_qkv.*dora_scale \[1, 48\]"
    ):
        apply(pipe, *recognise(tmp_path))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_fused_matrix_of_another_size_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    pipe = load(folders[name])
    start = {
        "flux": "lora_unet_double_blocks_0_img_attn_qkv",
        "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    }[name]
    file = {f"{start}.lora_down.weight": torch.ones(4, 48), f"{start}.lora_up.weight": torch.ones(100, 4)}
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=rf"does not fit the model .*{start}.*up \[100, 4\] for a layer of 144 outputs"
    ):
        apply(pipe, *recognise(tmp_path))


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_a_layer_named_twice_is_refused(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Once by the original's name and once by diffusers'."""
    pipe = load(folders[name])
    write(pipe, "lora", tmp_path, 1.0)
    file = load_file(tmp_path / "a.safetensors")
    ours = held(pipe)[next(iter(held(pipe)))][0]
    weight = getattr(pipe, of(pipe).denoiser).get_submodule(ours).weight
    again = pair(torch.Generator().manual_seed(0), weight, 2)
    start = f"{of(pipe).denoiser}.{ours}"
    file |= {f"{start}.lora_A.weight": again["down"], f"{start}.lora_B.weight": again["up"]}
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="names one layer twice"):
        apply(pipe, *recognise(tmp_path))


OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "XLabs": (
        {"double_blocks.0.processor.qkv_lora1.down.weight": (4, 48), "double_blocks.0.processor.qkv_lora1.up.weight": (144, 4)},
        "is in XLabs' format .*convert it",
    ),
    "control": (
        {"double_blocks.0.img_attn.qkv.lora_A.weight": (4, 48), "double_blocks.0.img_attn.qkv.lora_B.weight": (144, 4),
         "double_blocks.0.img_attn.norm.key_norm.scale": (16,)},
        "is a control LoRA of FLUX.1",
    ),
    "an unknown layer": (
        {"lora_unet_double_blocks_0_other.lora_down.weight": (4, 48), "lora_unet_double_blocks_0_other.lora_up.weight": (48, 4)},
        "is in this model, such as double_blocks_0_other",
    ),
    "a block that is not there": (
        {"lora_unet_double_blocks_9_img_attn_proj.lora_down.weight": (4, 48),
         "lora_unet_double_blocks_9_img_attn_proj.lora_up.weight": (48, 4)},
        "is in this model, such as transformer_blocks.9.attn.to_out.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_flux_does_not_read(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    shapes, told = OTHERS[case]
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"job\.artefact=.*a\.safetensors: .*{told}"):
        apply(load(folders["flux"]), *recognise(tmp_path / "a.safetensors"))
