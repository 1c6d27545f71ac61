"""Saving memory changes no number: same losses, same weights, to the bit on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Memory, Metrics, Steps
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.jobs import assist, finetune
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.textual_inversion import TextualInversion
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.system import processes
from diffusion_lab.training import loop, memory
from diffusion_lab.training.loop import training_step

METHODS = {
    "lora": lambda: Lora(rank=4, text_encoder=True, learning_rate=1e-2),
    "lora_unet": lambda: Lora(rank=4, learning_rate=1e-2),
    "dreambooth": lambda: DreamBooth(prior_images=3, learning_rate=1e-3),
    "textual_inversion": lambda: TextualInversion(token="customcls", initialiser="dog", learning_rate=5e-2),
}


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(session_cache))


def losses(state: Any, n: int = 3) -> list[float]:
    from diffusion_lab.system.modes import training_mode

    with training_mode(*state.trained_modules):
        return [training_step(state, Steps(batch_size=2))[0] for _ in range(n)]


def weights(state: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in state.trained]


@pytest.mark.parametrize("method", METHODS)
def test_recomputed_activations_change_nothing(make_state, method: str, monkeypatch) -> None:
    plain = make_state(method=METHODS[method]())
    saving = make_state(method=METHODS[method](), memory=Memory(gradient_checkpointing=True))
    calls = []
    block = saving.pipe.unet.up_blocks[-1].resnets[-1]  # behind all that trains, in every method
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert losses(plain) == losses(saving)
    assert len(calls) == 6, "each forward pass once more on the way back"
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(saving), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_where_latents_and_text_are_kept_changes_nothing(make_state, method: str, precision: str) -> None:
    """In memory, on disk, or not at all: the same random numbers give the same losses and weights."""
    found = {}
    for cache in ("memory", "disk", "off"):
        state = make_state(
            method=METHODS[method](), memory=Memory(cache=cache), flip=True, precision=precision
        )
        found[cache] = (losses(state), weights(state))
    for cache in ("disk", "off"):
        assert found[cache][0] == found["memory"][0], cache
        assert all(torch.equal(a, b) for a, b in zip(found[cache][1], found["memory"][1], strict=True))


def test_latents_on_disk_serve_later_runs(tiny_pipe, tiny_subject, tmp_path: Path, monkeypatch) -> None:
    from diffusion_lab.training.latents import encode_pictures

    def source(resolution: int = 64) -> Any:
        return encode_pictures(
            tiny_pipe, tiny_subject.train[:2], resolution, flip=True, keep="disk", folder=tmp_path
        )

    def sample(latents: Any) -> torch.Tensor:
        return latents.sample([1, 0, 1], torch.Generator().manual_seed(3))

    first = sample(source())
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 4, "two pictures, each also mirrored"
    files[0].write_bytes(files[0].read_bytes()[:-10])
    assert torch.equal(sample(source()), first), "a damaged file is made anew"
    encode = tiny_pipe.vae.encode
    monkeypatch.setattr(tiny_pipe.vae, "encode", None)
    assert torch.equal(sample(source()), first), "nothing is encoded twice"
    monkeypatch.setattr(tiny_pipe.vae, "encode", encode)
    source(32)
    with torch.no_grad():
        tiny_pipe.vae.quant_conv.weight += 1
    source()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 12, "resolution and VAE are part of the name"


def test_what_rests_while_training(make_state, monkeypatch) -> None:
    bank = EncoderBank(Metrics())
    lora, ti = make_state(), make_state(method=METHODS["textual_inversion"]())
    assert memory.idle_networks(lora, bank) == [lora.pipe.vae, lora.pipe.text_encoder]
    assert memory.idle_networks(ti, None) == [ti.pipe.vae], "its text encoder is at work"
    _ = bank._embedder, bank._clip
    assert len(memory.idle_networks(ti, bank)) == 1 + 2
    moves = []
    monkeypatch.setattr(memory, "to_device", lambda networks, device: moves.append((len(networks), device)))
    with memory.awake(lora, bank, Memory(offload=True)):
        assert moves == [(4, lora.device)]
    assert moves[1:] == [(4, torch.device("cpu"))]
    with memory.awake(lora, bank, Memory()):
        pass
    assert len(moves) == 2


def test_what_rests_does_so_before_the_first_step(monkeypatch, tmp_path: Path) -> None:
    """Whether or not an evaluation comes before it: none does in a run that goes on, nor beside the main process."""
    happened: list[Any] = []
    monkeypatch.setattr(memory, "to_device", lambda parts, device: happened.append((len(parts), device.type)))
    monkeypatch.setattr(loop, "train", lambda state, **given: happened.append("training"))
    monkeypatch.setattr(processes, "shared", lambda value: (tmp_path, []))
    monkeypatch.setattr(finetune, "_measure_photographs", lambda *_: None)
    config = fill_defaults(compose(["experiment=debug", "metrics=debug", "memory.offload=true"]))
    assist.assist(config, torch.device("cpu"))
    assert happened == [(2, "cpu"), "training"]
    happened.clear()
    finetune.run(config, tmp_path)
    assert happened == [(2, "cpu"), "training"]


def test_attention_runs_through_torchs_kernels(tiny_pipe) -> None:
    kinds = {type(processor).__name__ for processor in tiny_pipe.unet.attn_processors.values()}
    assert kinds == {"AttnProcessor2_0"}
    assert tiny_pipe.text_encoder.config._attn_implementation == "sdpa"


def wrong(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """A compiler whose forward pass is right and whose gradients are not."""

    def run(*values: Any) -> Any:
        return tuple(
            x + 0.5 * (x - x.detach()) if isinstance(x, torch.Tensor) and x.requires_grad else x
            for x in graph(*values)
        )

    return run


def test_compiled_blocks_are_kept_only_with_the_right_gradients(make_state, caplog) -> None:
    def compiled(state: Any) -> list[Any]:
        return [m for m in state.pipe.unet.modules() if getattr(m, "_compiled_call_impl", None) is not None]

    plain, good, bad = make_state(), make_state(), make_state()
    assert not memory.compile_blocks(plain, Memory())
    assert memory.compile_blocks(good, Memory(compile=True), backend="eager")
    assert compiled(good)
    assert losses(good) == pytest.approx(losses(plain), rel=1e-5), "the run's random numbers are untouched"
    assert not memory.compile_blocks(bad, Memory(compile=True), backend=wrong)
    assert not compiled(bad)
    assert "off eager's" in caplog.text


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"memory\.offload=true: needs memory\.cache"):
        Memory(offload=True, cache="off")
    with pytest.raises(UserError, match=r"memory\.cache=ram"):
        Memory(cache="ram")
