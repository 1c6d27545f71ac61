"""The full-size rehearsal's own code at toy size, and that its stand-ins are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import full_size, rehearsal, stand_ins


def test_the_tokenizer_is_clips() -> None:
    import open_clip

    texts = ["a photo of customcls man, smiling", "Don't: 12 dogs & a café!", ""]
    ours = stand_ins.tokenizer()(texts, padding="max_length", max_length=77).input_ids
    theirs = open_clip.get_tokenizer("ViT-L-14")(texts).tolist()
    for mine, published in zip(ours, theirs, strict=True):
        end = published.index(49407) + 1
        assert mine[:end] == published[:end]
    assert len(stand_ins.tokenizer()) == 49408


def test_the_full_size_is_stable_diffusion_15s() -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from diffusion_lab.families import FAMILIES

    published = FAMILIES["sd"].parameters
    with torch.device("meta"):
        vae, text = AutoencoderKL(**full_size.VAE), CLIPTextModel(CLIPTextConfig(**full_size.TEXT))
    assert sum(p.numel() for p in vae.parameters()) == published["vae"]
    assert sum(p.numel() for p in text.parameters()) == published["text_encoder"]


def test_random_values_keep_activations_finite() -> None:
    with torch.device("meta"):
        net = torch.nn.Sequential(
            torch.nn.Linear(512, 2048), torch.nn.BatchNorm1d(2048), torch.nn.Linear(2048, 3)
        )
    values = stand_ins.random_tensors(net.state_dict(), torch.float16)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        name: tuple(value.shape) for name, value in net.state_dict().items()
    }
    assert float(values["0.weight"].float().std()) == pytest.approx(512**-0.5, rel=0.02)
    assert bool((values["1.running_var"] == 1).all())
    again = stand_ins.random_tensors(net.state_dict(), torch.float16)
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_the_command_lines_are_accepted(tmp_path: Path) -> None:
    """Every method's words compose, whatever the size."""
    from diffusion_lab.cli.compose import compose

    for method in rehearsal.METHODS:
        (tmp_path / "encoders").mkdir(exist_ok=True)
        words = [w for w in rehearsal.words(tmp_path, method, 64, "cpu") if not w.startswith("hydra.")]
        assert compose(words).method.name == method


def test_a_failure_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.stand_ins, "build", lambda folder, size: None)
    report = rehearsal.rehearse(tmp_path, size="tiny", device="cpu", pixels=64, methods=["lora"])
    assert not all(passed for passed, _ in report.lines)
    assert any("lora: exit status 2" in words for _, words in report.lines)


@pytest.mark.slow
def test_the_rehearsal_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same code as at full size: every encoder's class, all metrics, and the artefact in plain diffusers."""
    status = rehearsal.main(["--size", "tiny", "--methods", "lora", "--keep", str(tmp_path)])
    told = capsys.readouterr().out
    assert "FAIL" not in told
    assert status == 0
    assert "PASS  lora: its artefact draws in plain diffusers" in told
    result = json.loads((tmp_path / "runs" / "lora" / "result.json").read_text())
    assert result["cost"]["start"]["peak_memory_bytes"] > 0
    assert set(result["cost"]["estimate"]) == {"start", "training", "evaluation"}
