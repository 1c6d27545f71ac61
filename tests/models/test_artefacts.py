"""What was saved is recognised, loaded by others' loaders, and gives the image that it gave in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_lab.artefacts import kohya
from diffusion_lab.artefacts.artefact import Artefact, apply, recognise
from diffusion_lab.artefacts.notes import annotate
from diffusion_lab.config.schema import Prompts, Steps
from diffusion_lab.families import kohya as kohya_names
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import TextualInversion
from diffusion_lab.plan.artefact_fits import check_weight
from diffusion_lab.records import Prompt, PromptSet, UserError
from diffusion_lab.sampling.sample import sample
from diffusion_lab.training.loop import training_step

WORDS = PromptSet("one", (Prompt("p", "a photo of customcls dog", "a photo of dog"),), "", "")
SETTINGS = Prompts(n=1, sampling_steps=2, guidance_scale=1.0, batch_size=1)


def picture(pipe: Any) -> np.ndarray:
    return sample(pipe, WORDS, SETTINGS)[0].astype(int)


def trained(make_state: Any, method: Any, folder: Path) -> Any:
    state = make_state(method=method)
    for _ in range(4):
        training_step(state, Steps(batch_size=2))
        state.step += 1
    state.save(folder)
    return state


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


@pytest.fixture
def lora(make_state, tmp_path: Path) -> tuple[Any, Path]:
    """Alpha is not the rank; the text encoder learns too."""
    method = Lora(rank=4, alpha=2.0, text_encoder=True, learning_rate=3e-2, targets=["to_q", "to_v", "conv1"])
    return trained(make_state, method, tmp_path / "lora"), tmp_path / "lora"


def test_kohyas_names_through_diffusers_loader(lora, tiny_pipe, load_plain_pipe, tiny_sd_folder) -> None:
    state, folder = lora
    plain, ours = picture(tiny_pipe), picture(state.pipe)
    assert np.abs(plain - ours).max() > 20, "it has learnt something"
    path = folder / kohya.FILE_NAME
    weights = load_file(path)
    assert {key.split(".")[-1] for key in weights} == {"weight", "alpha"}
    assert all(key.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_")) for key in weights)
    assert {float(value) for key, value in weights.items() if key.endswith(".alpha")} == {2.0}
    assert header(path)["ss_network_dim"] == "4"
    assert header(path)["ss_network_alpha"] == "2.0"
    other = load_plain_pipe(tiny_sd_folder)
    other.load_lora_weights(folder, weight_name=kohya.FILE_NAME)
    assert np.abs(picture(other) - ours).max() <= 2


@pytest.mark.parametrize(("settings", "expected"), [({}, 0.5), ({"unet.use_rslora": True}, 1.0)])
def test_the_scale_is_pefts(settings: dict[str, Any], expected: float) -> None:
    assert kohya_names.scale({"unet.r": 4, "unet.lora_alpha": 2, **settings}, "unet") == expected


@pytest.mark.parametrize("file", ["", "pytorch_lora_weights.safetensors", kohya.FILE_NAME])
def test_a_lora_by_folder_or_file(lora, tiny_pipe, file: str) -> None:
    state, folder = lora
    before = picture(tiny_pipe)
    (piece,) = recognise(folder / file if file else folder)
    assert piece.kind == "lora"
    assert piece.header["trigger"] == "customcls"
    assert piece.header["step"] == "4"
    assert piece.header["prediction_type"] == "epsilon"
    apply(tiny_pipe, piece)
    assert np.abs(picture(tiny_pipe) - picture(state.pipe)).max() <= 2
    apply_half = np.abs(picture(tiny_pipe) - before).mean()
    tiny_pipe.set_adapters(["artefact"], adapter_weights=[0.0])
    assert np.abs(picture(tiny_pipe) - before).max() <= 2
    assert apply_half > 1


@pytest.mark.parametrize("file", ["", "learned_embeds.safetensors", "learned_embeds_a1111.safetensors"])
def test_an_embedding(make_state, tiny_pipe, tmp_path: Path, file: str) -> None:
    method = TextualInversion(token="customcls", initialiser="dog", vectors=2, learning_rate=0.5)
    state = trained(make_state, method, tmp_path / "ti")
    (piece,) = recognise(tmp_path / "ti" / file if file else tmp_path / "ti")
    assert piece.kind == "embedding"
    apply(tiny_pipe, piece)
    assert np.abs(picture(tiny_pipe) - picture(state.pipe)).max() <= 2


def test_an_embedding_of_another_tool_is_called_by_its_files_name(tiny_pipe, tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(2, 32)}, tmp_path / "wizard.safetensors")
    (piece,) = recognise(tmp_path / "wizard.safetensors")
    apply(tiny_pipe, piece)
    size = tiny_pipe.text_encoder.config.vocab_size
    ids = tiny_pipe.tokenizer("a Wizard, wizards", add_special_tokens=False).input_ids
    assert [number for number in ids if number >= size - 2] == [size - 2, size - 1]


def test_whole_networks_and_pipelines(make_state, tiny_pipe, tmp_path: Path) -> None:
    method = DreamBooth(prior_weight=0.0, learning_rate=1e-3)
    state = trained(make_state, method, tmp_path / "db")
    (piece,) = recognise(tmp_path / "db")
    assert (piece.kind, piece.header["class_noun"]) == ("networks", "dog")
    apply(tiny_pipe, piece)
    assert np.abs(picture(tiny_pipe) - picture(state.pipe)).max() <= 2
    method.complete(state.pipe, tmp_path / "db")
    (piece,) = recognise(tmp_path / "db")
    assert (piece.kind, piece.header["class_noun"]) == ("pipeline", "dog")


def test_adapters_that_only_peft_reads(tiny_pipe, load_plain_pipe, tiny_sd_folder, tmp_path: Path) -> None:
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_pipe.unet, LoHaConfig(r=2, target_modules=["to_q"], init_weights=False))
    model.save_pretrained(tmp_path / "unet")
    tiny_pipe.unet = model.merge_and_unload()
    other = load_plain_pipe(tiny_sd_folder)
    before = picture(other)
    (piece,) = recognise(tmp_path)
    assert piece.kind == "peft"
    apply(other, piece)
    assert np.abs(picture(other) - picture(tiny_pipe)).max() <= 2
    assert not np.array_equal(picture(other), before)


def test_an_embedding_and_its_lora_load_together(make_state, tiny_pipe, tmp_path: Path) -> None:
    method = Pivotal(
        token="customcls", initialiser="dog", rank=4, learning_rate=3e-2, token_learning_rate=0.5
    )
    state = trained(make_state, method, tmp_path / "both")
    assert [piece.kind for piece in recognise(tmp_path / "both")] == ["embedding", "lora"]
    for piece in recognise(tmp_path / "both"):
        apply(tiny_pipe, piece)
    assert np.abs(picture(tiny_pipe) - picture(state.pipe)).max() <= 2


def test_a_hypernetwork(make_state, tiny_pipe, tmp_path: Path) -> None:
    state = trained(make_state, Hypernetwork(learning_rate=3e-2), tmp_path / "hyper")
    before = picture(tiny_pipe)
    (piece,) = recognise(tmp_path / "hyper")
    assert piece.kind == "hypernetwork"
    apply(tiny_pipe, piece)
    assert np.abs(picture(tiny_pipe) - picture(state.pipe)).max() <= 2
    assert not np.array_equal(picture(tiny_pipe), before)


def test_words_are_added_to_headers_and_weights_stay(lora) -> None:
    _, folder = lora
    before = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert len(before) == 2
    annotate(folder, {"recommended_step": "4", "scores": "{}"})
    for name, weights in before.items():
        after = load_file(folder / name)
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[key], weights[key]) for key in weights)
        assert header(folder / name)["recommended_step"] == "4"
        assert header(folder / name)["trigger"] == "customcls"


def test_what_is_refused(lora, tiny_pipe, tmp_path: Path) -> None:
    for path, told in ((tmp_path / "gone", "no such file"), (tmp_path, "holds nothing to load")):
        with pytest.raises(UserError, match=f"job.artefact.*{told}"):
            recognise(path)
    (tmp_path / "old.pt").write_bytes(b"")
    with pytest.raises(UserError, match="only .safetensors"):
        recognise(tmp_path / "old.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678901")
    with pytest.raises(UserError, match="damaged"):
        recognise(tmp_path / "cut.safetensors")
    save_file({"a.b": torch.zeros(1), "c.d": torch.zeros(1)}, tmp_path / "what.safetensors")
    with pytest.raises(UserError, match="neither a LoRA nor an embedding"):
        recognise(tmp_path / "what.safetensors")
    save_file({"emb_params": torch.randn(1, 48)}, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"does not fit the model .*; set model\.path"):
        apply(tiny_pipe, recognise(tmp_path / "wide.safetensors")[0])


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=4, alpha=2.0, learning_rate=3e-2, text_encoder=True),
        Lora(rank=4, learning_rate=3e-2, dora=True, text_encoder=True),
        *(Lora(variant=variant, rank=4, learning_rate=3e-2) for variant in ("loha", "lokr", "oft")),
        DreamBooth(prior_weight=0.0, learning_rate=1e-3, text_encoder=True),
        Hypernetwork(learning_rate=3e-2),
        Pivotal(token="customcls", initialiser="dog", rank=4, learning_rate=3e-2, token_learning_rate=0.5),
    ],
    ids=["lora", "dora", "loha", "lokr", "oft", "dreambooth", "hypernetwork", "pivotal"],
)
def test_the_weight_of_what_was_trained(
    make_state, load_plain_pipe, tiny_sd_folder, tmp_path: Path, method: Any
) -> None:
    """1 is the image in memory, 0 the untouched model's to the bit, a half lies between."""
    state = trained(make_state, method, tmp_path / "artefact")

    def drawn(weight: float) -> np.ndarray:
        pipe = load_plain_pipe(tiny_sd_folder)
        for piece in recognise(tmp_path / "artefact"):
            apply(pipe, piece, weight)
        return picture(pipe)

    base = picture(load_plain_pipe(tiny_sd_folder))
    nothing, half, whole = (drawn(weight) for weight in (0.0, 0.5, 1.0))
    assert np.array_equal(nothing, base)
    assert np.abs(whole - picture(state.pipe)).max() <= 2
    distances = [np.abs(half - other).mean() for other in (base, whole)]
    assert all(0 < distance < 1.5 * np.abs(whole - base).mean() for distance in distances)


def test_what_has_no_weight(make_state, tmp_path: Path) -> None:
    method = TextualInversion(token="customcls", initialiser="dog")
    trained(make_state, method, tmp_path / "word")
    check_weight(recognise(tmp_path / "word"), 1.0)
    with pytest.raises(
        UserError, match=r"job\.weight=0\.5: job\.artefact is an embedding, .* leave job\.weight at 1"
    ):
        check_weight(recognise(tmp_path / "word"), 0.5)
    with pytest.raises(UserError, match=r"job\.weight=0: job\.artefact is a whole pipeline"):
        check_weight((Artefact("pipeline", tmp_path, {}),), 0.0)
