"""Every layer's effective change is what the file says, times the weight; what is not understood is refused by name.

Files are written here as the tools write them; the change of each layer is computed by formulas of this file's own,
and compared with what the layer of the loaded pipeline does to an input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Model
from diffusion_lab.plan.artefact_fits import check_fit
from diffusion_lab.records import UserError
from tests.models.layers import (
    KINDS,
    SPREAD,
    Tensors,
    check_every_layer,
    draw,
    loha,
    originals,
    pair,
    product,
)

# --- how files name layers ------------------------------------------------------------------------------

KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}
LINEAR = {"down": "lora_linear_layer.down.weight", "up": "lora_linear_layer.up.weight"}
SCRIPT = {"down": "lora.down.weight", "up": "lora.up.weight"}


def old_text(part: str, name: str) -> str:
    """With the level that files have and today's transformers has not."""
    return f"text_model.{name}" if part == "text_encoder" and not name.startswith("text_model") else name


def kohya(text: str = "lora_te_") -> Callable[[str, str, str], str]:
    def key(part: str, name: str, role: str) -> str:
        prefix = "lora_unet_" if part == "unet" else text
        return f"{prefix}{old_text(part, name).replace('.', '_')}.{KOHYA.get(role, role)}"

    return key


def dotted(words: Mapping[str, str], prefixed: bool = True) -> Callable[[str, str, str], str]:
    def key(part: str, name: str, role: str) -> str:
        start = f"{part}." if prefixed else "" if part == "unet" else f"{part}."
        return f"{start}{old_text(part, name)}.{words.get(role, role)}"

    return key


def earlier(part: str, name: str, role: str) -> str:
    """unet.(...).attn1.processor.to_q_lora.down.weight, text_encoder.(...).self_attn.to_q_lora.down.weight"""
    name = name.removesuffix(".0") if name.endswith("to_out.0") else name
    head, _, last = name.rpartition(".")
    if part == "text_encoder":
        last = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[last]
        return f"text_encoder.{old_text(part, head)}.{last}_lora.{role}.weight"
    return f"unet.{head}.processor.{last}_lora.{role}.weight"


NAMINGS = {
    "kohya": kohya(), "kohya, te1": kohya("lora_te1_"), "peft's in diffusers": dotted(PEFT),
    "diffusers' script": dotted(SCRIPT), "without unet.": dotted(PEFT, prefixed=False), "earlier": earlier,
    "linear layers": dotted(LINEAR),
}  # fmt: skip


# --- what they hold ------------------------------------------------------------------------------------


def attention_only(name: str) -> bool:
    return any(
        f".{end}" in f".{name}." for end in ("to_q.", "to_k.", "to_v.", "to_out.0.", "q_proj.", "v_proj.")
    ) or (name.endswith("out_proj"))


WITH_ALPHAS = ("kohya", "kohya, te1", "peft's in diffusers")


@pytest.mark.parametrize(
    ("naming", "alphas", "weight"),
    [
        *((naming, "none", 0.5) for naming in NAMINGS),
        *((naming, alphas, 1.0) for naming in WITH_ALPHAS for alphas in ("each its own", "rank", "some")),
        *(("kohya", "each its own", weight) for weight in (0.0, 0.5, -1.0)),
    ],
)
def test_lora(tiny_pipe, tmp_path: Path, naming: str, alphas: str, weight: float) -> None:
    """Ranks and alphas that differ by layer; layers left out; all kinds of layers that the naming can say."""
    before = originals(tiny_pipe)
    generator = torch.Generator().manual_seed(1)
    file: Tensors = {}
    wanted = {}
    for number, ((part, name), (_, own, _)) in enumerate(before.items()):
        if number % 7 == 3 or (naming == "earlier" and not attention_only(name)):
            continue  # one in seven is not in the file
        rank = (2, 8, 3)[number % 3]
        tensors = pair(generator, own, rank)
        alpha = {"each its own": [4.0, 1.0, 0.5, 2.0][number % 4], "rank": float(rank), "none": None}.get(
            alphas, 2.0 if number % 2 else None
        )
        if own.ndim == 4 and own.shape[-1] == 3 and naming.startswith("kohya") and number % 2:
            mid = draw(generator, rank, rank, 3, 3) * 6
            tensors = {
                "down": draw(generator, rank, own.shape[1], 1, 1) * 6,
                "up": tensors["up"] * 2,
                "mid": mid,
            }
        for role, value in tensors.items():
            file[NAMINGS[naming](part, name, role)] = value.contiguous()
        if alpha is not None:
            file[NAMINGS[naming](part, name, "alpha")] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else alpha / rank
        wanted[part, name] = own + weight * scale * product(tensors, own)
    assert len(wanted) > 15
    place = tmp_path / "[v1.0] Änna (final) lora.SAFETENSORS"
    save_file(file, place)
    (piece,) = recognise(place)
    assert recognise(tmp_path) == (piece,)
    assert piece.kind == "lora"
    apply(tiny_pipe, piece, weight)
    check_every_layer(tiny_pipe, before, wanted)


@pytest.mark.parametrize("stabilised", [False, True])
def test_lora_with_pefts_settings(tiny_pipe, tmp_path: Path, stabilised: bool) -> None:
    """diffusers' files have alpha in the header: one for all, and patterns for layers that differ."""
    before = originals(tiny_pipe)
    generator = torch.Generator().manual_seed(2)
    file, wanted = {}, {}
    for (part, name), (_, own, _) in before.items():
        if not name.endswith(("to_q", "to_k", "q_proj")):
            continue
        rank = 8 if "attn2" in name else 4
        tensors = pair(generator, own, rank)
        file |= {dotted(PEFT)(part, name, role): value for role, value in tensors.items()}
        alpha = 3.0 if part == "text_encoder" else 1.0 if name.endswith("attn2.to_k") else 6.0
        scale = alpha / (rank**0.5 if stabilised and part == "unet" else rank)
        wanted[part, name] = own + scale * product(tensors, own)
    settings = {
        "unet.r": 4, "unet.lora_alpha": 6.0, "unet.rank_pattern": {"attn2.to_q": 8, "attn2.to_k": 8},
        "unet.alpha_pattern": {"attn2.to_k": 1.0}, "unet.use_rslora": stabilised,
        "text_encoder.r": 4, "text_encoder.lora_alpha": 3.0,
    }  # fmt: skip
    save_file(file, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    apply(tiny_pipe, *recognise(tmp_path))
    check_every_layer(tiny_pipe, before, wanted)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(tiny_pipe, tmp_path: Path, kind: str, weight: float) -> None:
    """kohya's and LyCORIS' keys, alpha 1 in each layer: linear and convolution, with core tensors and without."""
    before = originals(tiny_pipe)
    generator = torch.Generator().manual_seed(3)
    file, wanted = {}, {}
    for number, ((part, name), (_, own, _)) in enumerate(before.items()):
        if number % 5 == 4:
            continue
        tensors, change = KINDS[kind](generator, own, number // 2)
        if kind != "diff":
            tensors["alpha"] = torch.tensor(1.0)
        file |= {kohya()(part, name, role): value.contiguous() for role, value in tensors.items()}
        wanted[part, name] = own + weight * change
    save_file(file, tmp_path / "a.safetensors")
    apply(tiny_pipe, *recognise(tmp_path), weight)
    check_every_layer(tiny_pipe, before, wanted)
    if weight == 0:
        for (part, name), (_, own, _) in before.items():
            assert torch.equal(getattr(tiny_pipe, part).get_submodule(name).weight, own)


def test_a_loras_own_bias(tiny_pipe, tmp_path: Path) -> None:
    before = originals(tiny_pipe)
    name = "time_embedding.linear_1"
    _, own, bias = before["unet", name]
    generator = torch.Generator().manual_seed(4)
    tensors = pair(generator, own, 4)
    file = {dotted(PEFT)("unet", name, role): value for role, value in tensors.items()}
    file[f"unet.{name}.lora_B.bias"] = torch.ones(len(own))
    file[f"unet.{name}.alpha"] = torch.tensor(2.0)
    save_file(file, tmp_path / "a.safetensors")
    apply(tiny_pipe, *recognise(tmp_path), 0.5)
    wanted = {("unet", name): own + 0.25 * product(tensors, own)}
    check_every_layer(tiny_pipe, before, wanted, {("unet", name): bias + 0.25})


# --- peft's folders: what this program saves of LoHa, LoKr and OFT, and other people's -----------------------


def skew(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """[blocks, width (width - 1) / 2] as skew-symmetric matrices, row by row above the diagonal."""
    found = torch.zeros(len(numbers), width, width)
    rows, columns = np.triu_indices(width, 1)
    found[:, rows, columns] = numbers
    return found - found.transpose(1, 2)


def rotated(tensors: Tensors, own: torch.Tensor, series: bool) -> torch.Tensor:
    """W R^T with the inputs x R rotated block by block (Qiu et al. 2023, in peft's version).

    R = (I - Q)(I + Q)^-1; where peft takes a series, that of the inverse rotation: I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4.
    """
    numbers = tensors["oft_R"]
    width = own.shape[1] // len(numbers)
    eye = torch.eye(width).double()
    blocks = []
    for q in skew(numbers, width).double():
        exact = (eye - q) @ torch.linalg.inv(eye + q)
        blocks.append(eye + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q if series else exact)
    return (own.double() @ torch.block_diag(*blocks).T).float()


def folder_of(pipe: Any, config: Any, folder: Path) -> dict[str, Tensors]:
    """peft's own file of an adapter with random numbers: layer -> its tensors by their last names."""
    from peft import get_peft_model
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(5)
    model = get_peft_model(pipe.unet, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default" in name or "magnitude" in name:
                size = 0.02 if "oft" in name else SPREAD * 3
                change = torch.randn(parameter.shape, generator=generator) * size
                parameter.copy_(parameter.abs() * (1 + change) if "magnitude" in name else change)
    model.save_pretrained(folder / "unet")
    pipe.unet = model.unload()
    layers: dict[str, Tensors] = {}
    for key, value in load_file(folder / "unet" / "adapter_model.safetensors").items():
        name, _, role = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        layers.setdefault(name, {})[role] = value
    return layers


def of_folder(tensors: Tensors, own: torch.Tensor, kind: str) -> torch.Tensor:
    """The changed weight by the papers' formulas; alpha 3, rank 4 (OFT has neither)."""
    if "oft_R" in tensors:
        return rotated(tensors, own, series=kind == "oft, series")
    if "lora_A" in tensors:
        whole = own + 0.75 * product({"down": tensors["lora_A"], "up": tensors["lora_B"]}, own)
        if "lora_magnitude_vector" in tensors:
            lengths = whole.reshape(len(own), -1).norm(dim=1)
            factor = tensors["lora_magnitude_vector"].flatten() / lengths
            whole = whole * factor.reshape(-1, *[1] * (own.ndim - 1))
        return whole
    if "hada_w1_a" in tensors:
        first, second = (tensors[f"hada_w{n}_a"] @ tensors[f"hada_w{n}_b"] for n in (1, 2))
        return own + 0.75 * (first * second).reshape(own.shape)
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    second = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    blocks = torch.einsum("ab,cd->acbd", first, second.flatten(1))
    return own + 0.75 * blocks.reshape(own.shape)


def peft_config(kind: str) -> Any:
    import peft

    targets = ["to_q", "to_k", "ff.net.2"]
    if kind.startswith("oft"):
        series = kind == "oft, series"  # peft's default, and so ours
        return peft.OFTConfig(r=0, oft_block_size=4, target_modules=targets, use_cayley_neumann=series)
    if kind in ("lora", "dora"):
        return peft.LoraConfig(r=4, lora_alpha=3, target_modules=[*targets, "conv1"], use_dora=kind == "dora")
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    return config(r=4, alpha=3, target_modules=targets)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft", "oft, series"])
def test_pefts_folders(
    load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, kind: str, weight: float
) -> None:
    layers = folder_of(load_plain_pipe(tiny_sd_folder), peft_config(kind), tmp_path)
    pipe = load_plain_pipe(tiny_sd_folder)
    before = originals(pipe)
    wanted = {
        ("unet", name): torch.lerp(
            before["unet", name][1], of_folder(tensors, before["unet", name][1], kind), weight
        )
        for name, tensors in layers.items()
    }
    assert len(wanted) > 8
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "adapter_model.safetensors"):
        (piece,) = recognise(path)
        assert (piece.kind, piece.path) == ("peft", tmp_path / "unet")
    apply(pipe, piece, weight)
    check_every_layer(pipe, before, wanted)
    if weight == 0:
        for (part, name), (_, own, _) in before.items():
            assert torch.equal(getattr(pipe, part).get_submodule(name).weight, own)


# --- several ------------------------------------------------------------------------------------------


def test_several_add_up(tiny_pipe, tmp_path: Path) -> None:
    """Two LoRAs of different layers, ranks and weights, and a LoHa between them."""
    before = originals(tiny_pipe)
    generator = torch.Generator().manual_seed(6)
    wanted = {key: own.clone() for key, (_, own, _) in before.items()}
    touched = set()
    for number, (ends, weight) in enumerate(
        ((("to_q", "to_k"), 0.5), (("to_q",), 1.0), (("to_k", "q_proj"), 0.25))
    ):
        file = {}
        for (part, name), (_, own, _) in before.items():
            if not name.endswith(ends):
                continue
            if number == 1:
                tensors, change = loha(generator, own, 0)
                tensors["alpha"] = torch.tensor(1.0)
            else:
                tensors = {**pair(generator, own, 2 + number), "alpha": torch.tensor(1.0)}
                change = product(tensors, own) / (2 + number)
            file |= {kohya()(part, name, role): value for role, value in tensors.items()}
            wanted[part, name] += weight * change
            touched.add((part, name))
        save_file(file, tmp_path / f"{number}.safetensors")
        apply(tiny_pipe, *recognise(tmp_path / f"{number}.safetensors"), weight)
    check_every_layer(tiny_pipe, before, {key: wanted[key] for key in touched})


# --- refused by name ------------------------------------------------------------------------------------


def small_lora(pipe: Any) -> Tensors:
    generator = torch.Generator().manual_seed(8)
    return {
        kohya()(part, name, role): value
        for (part, name), (_, own, _) in originals(pipe).items()
        if name.endswith("to_q")
        for role, value in {**pair(generator, own, 4), "alpha": torch.tensor(2.0)}.items()
    }


FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
OTHERS: dict[str, tuple[Tensors, str]] = {
    "XL by its second text encoder": (
        {f"lora_te2_text_model_encoder_layers_0_mlp_fc1.{end}": torch.zeros(2, 2) for end in KOHYA.values()},
        r"it changes the text_encoder_2 \(lora_te2_.*\), as files for Stable Diffusion XL do, and this is Stable Diffusion 1",
    ),
    "a layer that is not there": (
        {f"lora_unet_down_blocks_9_to_q.{KOHYA[role]}": torch.zeros(4, 4) for role in ("down", "up")},
        "does not fit the model .1 of its .* layers are not in this model, such as down_blocks_9_to_q",
    ),
    "LDM's names": (
        {f"lora_unet_input_blocks_1_1_attn1_to_q.{KOHYA[role]}": torch.zeros(4, 4) for role in ("down", "up")},
        "layers are not in this model, such as down_blocks_0_attentions_0_attn1_to_q",
    ),
    "half a pair": ({"lora_unet_mid_block_x.lora_up.weight": torch.zeros(4, 4)}, "mid_block_x lacks down"),
    "an alpha alone": ({"lora_unet_mid_block_x.alpha": torch.tensor(1.0)}, "mid_block_x has only alpha"),
    "an unknown tensor": ({f"{FIRST}.reconstruction": torch.zeros(1)}, "of a kind that is not known here, such as"),
    "OFT of kohya's": ({f"{FIRST}.oft_blocks": torch.zeros(2, 4, 4)}, "is an OFT in another tool's keys"),
    "a bundled embedding": ({"bundle_emb.x.string_to_param.*": torch.zeros(1, 4)}, "bundle_emb.x"),
    "a norm": ({"lora_unet_mid_block_norm.w_norm": torch.zeros(4)}, "w_norm"),
    "twice": (
        {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha": torch.tensor(1.0),
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": torch.tensor(1.0)},
        "names one layer twice|has only alpha",
    ),
    "ranks that differ": (
        {"lora_unet_mid_block_x.lora_up.weight": torch.zeros(4, 3), "lora_unet_mid_block_x.lora_down.weight": torch.zeros(2, 4)},
        "ranks that differ",
    ),
    "an alpha of several": ({f"{FIRST}.alpha": torch.ones(2)}, "has an alpha of 2 numbers, and one is needed"),
    "no rank": (
        {f"{FIRST}.lora_up.weight": torch.zeros(32, 0), f"{FIRST}.lora_down.weight": torch.zeros(0, 32)},
        "has no numbers in down, up",
    ),
    "whole numbers": (
        {f"{FIRST}.lora_up.weight": torch.ones(32, 4, dtype=torch.int8)},
        r"has whole numbers .*lora_up.weight is I8.*scale is not known",
    ),
    "not finite": ({f"{FIRST}.lora_up.weight": torch.full((32, 4), torch.nan)}, "not finite"),
    "another size": (
        {f"{FIRST}.lora_up.weight": torch.zeros(48, 4), f"{FIRST}.lora_down.weight": torch.zeros(4, 48)},
        r"does not fit the model .unet.*attn1.to_q has .*up \[48, 4\].* for a weight of \[32, 32\]",
    ),
    "another width of text": (
        {f"{FIRST.replace('attn1_to_q', 'attn2_to_k')}.{end}": torch.zeros(shape) for end, shape in
         (("lora_up.weight", (32, 4)), ("lora_down.weight", (4, 1024)))},
        "cross-attention reads text 1024 wide, as in Stable Diffusion 2.x, and this model's text encoder gives 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_that_cannot_be_used_wholly_is_not_used_at_all(tiny_pipe, tmp_path: Path, case: str) -> None:
    more, told = OTHERS[case]
    file = {**small_lora(tiny_pipe), **more}
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"job\.artefact=.*a\.safetensors: .*{told}"):
        for piece in recognise(tmp_path / "a.safetensors"):
            apply(tiny_pipe, piece)


def test_every_tensor_of_a_file_counts(tiny_pipe, tmp_path: Path) -> None:
    """Whatever one name in it is changed to, the file is refused or the layer is known under that name too."""
    file = small_lora(tiny_pipe)
    for key in file:
        changed = {name if name != key else f"{name}_": value for name, value in file.items()}
        save_file(changed, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=r"a\.safetensors: "):
            recognise(tmp_path / "a.safetensors")


@pytest.mark.parametrize("alpha", [torch.tensor([2.0]), torch.tensor(2), torch.tensor(2.0).half()])
def test_an_alpha_of_any_form(tiny_pipe, tmp_path: Path, alpha: torch.Tensor) -> None:
    before = originals(tiny_pipe)
    file = {
        key: alpha.clone() if key.endswith("alpha") else value for key, value in small_lora(tiny_pipe).items()
    }
    save_file(file, tmp_path / "a.safetensors")
    apply(tiny_pipe, *recognise(tmp_path / "a.safetensors"))
    wanted = {}
    for (part, name), (_, own, _) in before.items():
        if name.endswith("to_q"):
            tensors = {role: file[kohya()(part, name, role)] for role in ("down", "up")}
            wanted[part, name] = own + product(tensors, own) / 2
    check_every_layer(tiny_pipe, before, wanted)


PEFTS_SETTINGS = [
    "[]", "{", "7", "[" * 9000,
    *(json.dumps({"unet.lora_alpha": value}) for value in ("x", None, [4], True, float("nan"), float("inf"))),
    *(json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": value})
      for value in ([1], "to_q", {"(": 1}, {"to_q": "4"}, {"to_q": None})),
    json.dumps({"unet.lora_alpha": 4, "unet.use_rslora": "no"}), json.dumps({"unet.lora_alpha": 4, "unet.use_dora": 2}),
    json.dumps({"text_encoder.lora_alpha": {}}), json.dumps({"unet": {"lora_alpha": 4}}),
]  # fmt: skip


@pytest.mark.parametrize("settings", PEFTS_SETTINGS, ids=lambda settings: settings[:50])
def test_settings_that_cannot_be_read(tmp_path: Path, settings: str) -> None:
    """Not passed over: without them every layer would have another strength. Asked before any model is loaded."""
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair_of_one = {f"{key}.lora_A.weight": torch.ones(4, 64), f"{key}.lora_B.weight": torch.ones(64, 4)}
    save_file(pair_of_one, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=r"a\.safetensors: lora_adapter_metadata in its header"):
        recognise(tmp_path / "a.safetensors")


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_plan_knows_the_layers(tiny_pipe, tiny_sd_folder: Path, tmp_path: Path, naming: str) -> None:
    """`--dry-run` compares the names with the model's, from headers alone, whatever tool wrote them."""
    generator = torch.Generator().manual_seed(9)
    is_linear_only = naming in ("earlier", "linear layers")
    file = {
        NAMINGS[naming](part, name, role): value
        for (part, name), (_, own, _) in originals(tiny_pipe).items()
        if not is_linear_only or name.endswith(("to_q", "to_out.0", "q_proj"))
        if part == "unet" or naming != "earlier" or "self_attn" in name
        for role, value in pair(generator, own, 2).items()
    }
    save_file(file, tmp_path / "a.safetensors")
    check_fit(recognise(tmp_path / "a.safetensors"), tiny_sd_folder, Model(path=str(tiny_sd_folder)))
    first = min(file)
    for others, told in (
        (file, "none of its .* is in this model"),
        ([first], "1 of its .* layers are not in"),
    ):
        prefixes = {key[: key.rindex("lora")] for key in others}
        changed = {
            re.sub(r"(attn|conv|time|mlp|block)", r"my_\1", key)
            if key[: key.rindex("lora")] in prefixes else key: value
            for key, value in file.items()
        }  # fmt: skip
        save_file(changed, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=rf"a\.safetensors: .*{told}"):
            check_fit(recognise(tmp_path / "a.safetensors"), tiny_sd_folder, Model(path=str(tiny_sd_folder)))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_the_plan_knows_the_layers_of_pefts_folders(
    load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, kind: str
) -> None:
    from safetensors.torch import load_file

    folder_of(load_plain_pipe(tiny_sd_folder), peft_config(kind), tmp_path)
    check_fit(recognise(tmp_path), tiny_sd_folder, Model(path=str(tiny_sd_folder)))
    path = tmp_path / "unet" / "adapter_model.safetensors"
    save_file({key.replace("blocks.0", "blocks.9"): value for key, value in load_file(path).items()}, path)
    with pytest.raises(
        UserError, match=r"job\.artefact=.*layers (are not|is) in this model, such as .*blocks\.9"
    ):
        check_fit(recognise(tmp_path), tiny_sd_folder, Model(path=str(tiny_sd_folder)))


@pytest.mark.parametrize(
    ("part", "key", "told"),
    [("unet", "cross_attention_dim", "its cross-attention reads text 768"), ("text_encoder", "hidden_size", "its text encoder is 768")],
)  # fmt: skip
def test_the_plan_knows_the_widths_of_whole_networks(
    tiny_sd_folder: Path, tmp_path: Path, part: str, key: str, told: str
) -> None:
    import shutil

    shutil.copytree(tiny_sd_folder / part, tmp_path / part)
    check_fit(recognise(tmp_path), tiny_sd_folder, Model(path=str(tiny_sd_folder)))
    config = tmp_path / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: 768}))
    with pytest.raises(UserError, match=rf"{told} wide, as in Stable Diffusion 1\.x, .* gives 32"):
        check_fit(recognise(tmp_path), tiny_sd_folder, Model(path=str(tiny_sd_folder)))


@pytest.mark.parametrize("change", ["tensor", "layer", "settings"])
def test_pefts_folder_must_be_whole(
    load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, change: str
) -> None:
    from safetensors.torch import load_file

    folder_of(load_plain_pipe(tiny_sd_folder), peft_config("loha"), tmp_path)
    path = tmp_path / "unet" / "adapter_model.safetensors"
    weights = load_file(path)
    first = next(iter(weights))
    if change == "tensor":
        weights["base_model.model.mid_block.nothing.hada_w1_a"] = torch.zeros(2)
    elif change == "layer":
        del weights[first]
    else:
        (tmp_path / "unet" / "adapter_config.json").unlink()
    save_file(weights, path)
    told = {
        "tensor": "have no place in the unet",
        "layer": "names layers that .* lacks",
        "settings": "copy that too",
    }
    with pytest.raises(UserError, match=rf"job\.artefact=.*{told[change]}"):
        target = path if change == "settings" else tmp_path
        apply(load_plain_pipe(tiny_sd_folder), *recognise(target))


def test_two_adapters_in_a_folder(tiny_pipe, tmp_path: Path) -> None:
    for name in ("pytorch_lora_weights", "epoch-2"):
        save_file(small_lora(tiny_pipe), tmp_path / f"{name}.safetensors")
    with pytest.raises(
        UserError, match=r"holds 2 adapters \(epoch-2.*, pytorch_lora_weights.*\), .* name one: job"
    ):
        recognise(tmp_path)


def test_embeddings_of_other_models(tiny_pipe, tmp_path: Path) -> None:
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, tmp_path / "xl.safetensors")
    told = "it is an embedding for Stable Diffusion XL, and this is Stable Diffusion 1.x and 2.x.*; set model.path"
    with pytest.raises(UserError, match=told):
        apply(tiny_pipe, *recognise(tmp_path / "xl.safetensors"))
    save_file({"wizard": torch.zeros(2, 768)}, tmp_path / "sd1.safetensors")
    with pytest.raises(
        UserError, match="vectors are 768 wide, as in Stable Diffusion 1.x, .* encoder gives 32"
    ):
        apply(tiny_pipe, *recognise(tmp_path / "sd1.safetensors"))
    save_file({"a": torch.zeros(2, 32), "b": torch.zeros(2, 32)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"holds 2 embeddings \(a, b\)"):
        recognise(tmp_path / "two.safetensors")
