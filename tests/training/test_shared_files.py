"""What a run that trains whole networks leaves on the disk: each weight once, and nothing that the base model has."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.dreambooth import RECORD, DreamBooth, is_unchanged
from diffusion_lab.records import UserError
from diffusion_lab.training import checkpoint
from diffusion_lab.training.loop import evaluated_weights, training_step

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "text": {"text_encoder": True}, "average": {"ema": True}}
UNET = "unet/diffusion_pytorch_model.safetensors"


def method(kind: str) -> DreamBooth:
    return DreamBooth(prior_weight=0.0, learning_rate=1e-3, **KINDS[kind])


def trained(make_state: Any, kind: str, steps: int) -> Any:
    state = make_state(method=method(kind))
    for _ in range(steps):
        training_step(state, Steps(batch_size=1))
        state.step += 1
    return state


def keep(state: Any, root: Path) -> Path:
    """A checkpoint and the adapter of the same step, in the loop's order."""
    state.kept = (state.step, checkpoint.write(checkpoint.capture(state), root / "checkpoints"))
    with evaluated_weights(state):
        state.save(root / "adapters" / f"step-{state.step:06d}")
    return state.kept[1]


def sizes(folder: Path) -> int:
    """Bytes on the disk below a folder, linked files once."""
    return sum({p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}.values())


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.trained, b.trained, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_that_is_the_base_models(make_state, tmp_path: Path, kind: str) -> None:
    state = trained(make_state, kind, 0)
    folder = keep(state, tmp_path)
    adapter = tmp_path / "adapters" / "step-000000"
    assert [path.name for path in adapter.rglob("*")] == [RECORD]
    assert is_unchanged(adapter)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert sizes(tmp_path) < 100_000 < sum(p.numel() for p in state.trained) * 4

    # Into a run just built, and into one that has moved on since.
    found = checkpoint.read(folder)
    for other in (trained(make_state, kind, 0), trained(make_state, kind, 2)):
        checkpoint.restore(other, found)
        assert other.step == 0
        assert same(other, state)
        if kind == "average":
            ours, theirs = other.pipe.unet.average, state.pipe.unet.average
            assert ours.optimization_step == 0
            assert all(
                torch.equal(a, b) for a, b in zip(ours.shadow_params, theirs.shadow_params, strict=True)
            )
        other.method.load(other.pipe, adapter)
    with pytest.raises(UserError, match="freshly loaded"):
        state.method.load(trained(make_state, kind, 1).pipe, adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_and_checkpoint_share_their_files(make_state, tmp_path: Path, kind: str) -> None:
    state = trained(make_state, kind, 2)
    folder = keep(state, tmp_path)
    adapter = tmp_path / "adapters" / "step-000002"
    files = [path.relative_to(adapter) for path in adapter.rglob("*.safetensors")]
    assert len(files) == (2 if kind == "text" else 1)
    for name in files:
        assert (adapter / name).samefile(folder / name)
        assert load_file(adapter / name)
    weights = sum(p.numel() for p in state.trained) * 4
    # The files; two moments of AdamW and, beside an average, the weights themselves.
    assert sizes(tmp_path) < weights * (4 if kind == "average" else 3) * 1.1

    other = trained(make_state, kind, 0)
    checkpoint.restore(other, checkpoint.read(folder))
    assert same(other, state)
    for each in (state, other):  # and both go on alike
        training_step(each, Steps(batch_size=1))
        each.step += 1
    assert same(other, state)
    shutil.rmtree(folder)  # the adapter outlives the checkpoint
    plain = trained(make_state, kind, 2)  # without a checkpoint
    plain.save(tmp_path / "plain")
    for name in files:
        assert (adapter / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_damaged_shared_file_is_noticed(make_state, tmp_path: Path, caplog) -> None:
    state = trained(make_state, "plain", 1)
    keep(state, tmp_path)
    training_step(state, Steps(batch_size=1))
    state.step += 1
    folder = keep(state, tmp_path)
    with (tmp_path / "adapters" / "step-000002" / UNET).open("r+b") as file:  # the checkpoint's file as well
        file.seek(-4, 2)
        file.write(b"\x01\x02\x03\x04")
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 1
    assert f"{folder} is damaged" in caplog.text
    assert UNET in caplog.text


def test_no_file_is_read_again_for_its_checksum(make_state, tmp_path: Path, monkeypatch) -> None:
    state = trained(make_state, "plain", 1)
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: opened.append(self) or real(self, mode, *a, **k)
    )
    folder = checkpoint.write(checkpoint.capture(state), tmp_path)
    monkeypatch.undo()
    assert not [path for path in opened if path.suffix in (".pt", ".safetensors")]
    told = json.loads((folder / checkpoint.CHECKSUM).read_text())
    known = {checkpoint.STATE: told["sha256"], **told["files"]}
    assert known == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in known}
    assert set(known) == {checkpoint.STATE, UNET}


def test_an_artefact_of_step_0_draws_as_the_base_model(make_state, tiny_pipe, tmp_path: Path) -> None:
    state = trained(make_state, "plain", 0)
    state.save(tmp_path / "artefact")
    state.method.complete(state.pipe, tmp_path / "artefact")
    assert [path.name for path in (tmp_path / "artefact").iterdir()] == [RECORD]
    (piece,) = recognise(tmp_path / "artefact")
    before = [value.clone() for value in tiny_pipe.unet.state_dict().values()]
    apply(tiny_pipe, piece)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_pipe.unet.state_dict().values(), strict=True))
    assert piece.header["base_model"] == str(state.notes["base_model"])


def test_a_step_that_moves_nothing_writes_nothing(make_state, tmp_path: Path) -> None:
    """A warm-up's first step has the rate 0."""
    state = make_state(method=method("plain"), lr_warmup=2, lr_scheduler="constant_with_warmup")
    training_step(state, Steps(batch_size=1))
    state.step = 1
    keep(state, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    training_step(state, Steps(batch_size=1))
    state.step = 2
    keep(state, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
