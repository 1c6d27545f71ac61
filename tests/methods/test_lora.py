"""LoRA: what trains, what stays, and that the saved file gives the same pictures elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.artefacts import kohya
from diffusion_lab.config.schema import Steps
from diffusion_lab.families import FAMILIES
from diffusion_lab.methods.lora import FILE_NAME, Lora
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import train, training_step

PROMPT = "a photo of customcls dog"


def image(pipe) -> np.ndarray:
    """float32 [1, 64, 64, 3] in 0..1, three steps with fixed noise."""
    generator = torch.Generator().manual_seed(1)
    return pipe(PROMPT, num_inference_steps=3, output_type="np", generator=generator).images


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rank": 0}, "method.rank=0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"targets": []}, "method.targets"),
        ({"learning_rate": -1e-3}, "method.learning_rate=-0.001"),
        ({"text_encoder_learning_rate": 0.0}, "method.text_encoder_learning_rate=0.0"),
        ({"weight_decay": -1.0}, "method.weight_decay=-1.0"),
    ],
)
def test_wrong_values_name_their_key(values: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        Lora(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [["to_q", "to_w"], ["nothing"], ["to_k", "norm1"]])
def test_one_target_that_fits_nowhere_is_refused(tiny_pipe, targets: list[str]) -> None:
    with pytest.raises(UserError, match=r"method\.targets: .* named (to_w|nothing|norm1)"):
        Lora(targets=targets).attach(tiny_pipe)
    assert not hasattr(tiny_pipe.unet, "peft_config")


def test_parameters_and_rates(tiny_pipe) -> None:
    groups = Lora(
        rank=2, targets=["to_q", "to_k", "to_v", "to_out.0"], text_encoder=True, weight_decay=0.5
    ).attach(tiny_pipe)
    assert [(g.name, g.learning_rate, g.weight_decay) for g in groups] == [
        ("unet", 1.5e-3, 0.5),
        ("text_encoder", pytest.approx(1.5e-4), 0.5),
    ]
    attentions = [n for n, _ in tiny_pipe.unet.named_modules() if n.endswith(("attn1", "attn2"))]
    assert attentions
    assert len(groups[0].params) == len(attentions) * 4 * 2  # q, k, v, out; A and B
    layers = tiny_pipe.text_encoder.config.num_hidden_layers
    assert len(groups[1].params) == layers * 4 * 2
    for group in groups:
        assert all(p.dtype == torch.float32 and p.requires_grad for p in group.params)


def test_default_targets_go_by_the_models_size(tiny_pipe) -> None:
    assert Lora().default_targets(FAMILIES["sd"], small=False) == ["to_q", "to_k", "to_v", "to_out.0"]
    layers = [n for n, _ in tiny_pipe.unet.named_modules()]
    wanted = [
        n
        for n in layers
        if any(n.endswith(f".{t}") for t in Lora().default_targets(FAMILIES["sd"], small=True))
    ]
    (group,) = Lora(rank=2).attach(tiny_pipe)
    assert len(group.params) == 2 * len(wanted)
    assert any("conv1" in n for n in wanted)


CASES = {
    "plain": Lora(rank=4, learning_rate=2e-2),
    "alpha": Lora(rank=4, alpha=10.0, learning_rate=2e-2),
    "fraction": Lora(rank=4, alpha=0.5, learning_rate=2e-2),
    "text": Lora(rank=2, alpha=3.0, text_encoder=True, learning_rate=2e-2),
    "stabilised": Lora(rank=4, alpha=3.0, rank_stabilised=True, learning_rate=2e-2),
    "dora": Lora(rank=4, dora=True, text_encoder=True, learning_rate=2e-2),
    "targets": Lora(rank=4, alpha=8.0, targets=["to_q", "conv_in", "ff.net.2"], learning_rate=2e-2),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_file_gives_the_same_image_in_plain_diffusers(
    make_state, tiny_sd_folder: Path, load_plain_pipe, tmp_path: Path, case: str
) -> None:
    state = make_state(method=CASES[case])
    step(state)
    saved = [p.name for p in state.save(tmp_path / "adapter")]
    assert saved == ([FILE_NAME] if case == "dora" else [FILE_NAME, kohya.FILE_NAME])
    ours = image(state.pipe)

    plain = load_plain_pipe(tiny_sd_folder)
    base = image(plain)
    plain.load_lora_weights(tmp_path / "adapter")
    theirs = image(plain)
    assert np.abs(ours - base).max() > 0.01  # there is an effect to lose
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    assert plain.unet.peft_config["default_0"].lora_alpha == (CASES[case].alpha or CASES[case].rank)


def test_header_tells_what_the_file_is(make_state, tmp_path: Path) -> None:
    from safetensors import safe_open

    state = make_state(method=CASES["alpha"])
    step(state, 2)
    state.save(tmp_path)
    with safe_open(tmp_path / FILE_NAME, framework="np") as file:
        header = file.metadata()
    told = {key: header[key] for key in ("method", "rank", "alpha", "trigger", "class_noun", "step")}
    assert told == {
        "method": "lora", "rank": "4", "alpha": "10.0", "trigger": "customcls", "class_noun": "dog",
        "step": "2",
    }  # fmt: skip
    assert header["base_model"].endswith("sd")
    assert json.loads(header["lora_adapter_metadata"])["unet.lora_alpha"] == 10.0
    there = {p.name for p in tmp_path.iterdir()}
    assert there == {FILE_NAME, kohya.FILE_NAME}  # nothing half-written beside it


@pytest.mark.parametrize("case", ["alpha", "text"])
def test_load_restores_the_trained_weights(make_state, tmp_path: Path, case: str) -> None:
    trained = make_state(method=CASES[case])
    step(trained)
    trained.save(tmp_path)
    fresh = make_state(method=CASES[case], seed=5)
    fresh.method.load(fresh.pipe, tmp_path)
    for a, b in zip(trained.trained, fresh.trained, strict=True):
        assert torch.equal(a, b)
        assert b.requires_grad
    assert np.array_equal(image(trained.pipe), image(fresh.pipe))


def test_load_refuses_other_settings(make_state, tmp_path: Path) -> None:
    state = make_state(method=CASES["alpha"])
    state.save(tmp_path)
    for method, key in (
        (Lora(rank=8, alpha=10.0), "method.rank=4"),
        (Lora(rank=4), "method.alpha=10"),
        (Lora(rank=4, alpha=10.0, rank_stabilised=True), "method.rank_stabilised=False"),
        (Lora(rank=4, alpha=10.0, dora=True), "method.dora=False"),
        (Lora(rank=4, alpha=10.0, targets=["to_q"]), "method.targets"),
    ):
        other = make_state(method=method)
        with pytest.raises(UserError, match=key):
            other.method.load(other.pipe, tmp_path)
    with pytest.raises(UserError, match="is missing"):
        state.method.load(state.pipe, tmp_path / "nowhere")


def test_dropout_is_active_in_training_and_off_in_evaluation(make_state) -> None:
    """The adapter's B must be non-zero for dropout to show: train first, then compare two forward passes."""
    state = make_state(method=Lora(rank=4, dropout=0.5, learning_rate=2e-2), total=2, every=2)
    images = []
    modes = []

    def evaluate(_: int) -> None:
        images.append(np.array_equal(image(state.pipe), image(state.pipe)))
        modes.append(state.pipe.unet.training)

    seen = []
    loss = Lora.loss

    def watch(self, pipe, batch, generator):
        seen.append(pipe.unet.training)
        return loss(self, pipe, batch, generator)

    Lora.loss = watch  # type: ignore[method-assign]
    try:
        train(state, steps=Steps(total=2, every=2, batch_size=2), evaluate=evaluate,
              on_log=lambda *_: None, on_step=lambda _: None)  # fmt: skip
    finally:
        Lora.loss = loss  # type: ignore[method-assign]
    assert images == [True, True]
    assert modes == [False, False]
    assert seen == [True, True]
    assert not state.pipe.unet.training  # restored
