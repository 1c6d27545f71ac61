"""The full-size encoders' real classes, with random weights: loading, preprocessing, refusals. No downloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion_lab.evaluation.encoders.aesthetics import AestheticsHead
from diffusion_lab.evaluation.encoders.clip import OpenClip
from diffusion_lab.evaluation.encoders.detect import Face
from diffusion_lab.evaluation.encoders.face import FacenetEmbedder
from diffusion_lab.records import UserError


def picture(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- face -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facenet() -> Any:
    from facenet_pytorch import InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InceptionResnetV1(pretrained=None).eval()


@pytest.fixture(scope="module")
def face_file(facenet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: with the classifier's layer, which the embedding does not use."""
    path = tmp_path_factory.mktemp("face") / "face.pt"
    torch.save(
        {**facenet.state_dict(), "logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}, path
    )
    return path


def test_face_embedding_is_facenets_own_pipeline(facenet: Any, face_file: Path) -> None:
    """Crop, standardisation and network as facenet-pytorch's README chains them."""
    from facenet_pytorch.models.mtcnn import fixed_image_standardization
    from facenet_pytorch.models.utils.detect_face import extract_face

    embedder = FacenetEmbedder.load(str(face_file))
    image, face = picture(1), Face((20.4, 10.7, 70.2, 80.9), 0.99)
    crop = embedder.crop(image, face)
    published = extract_face(Image.fromarray(image), np.array(face.box), image_size=160, margin=0)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, published.permute(1, 2, 0).numpy())  # to the bit
    with torch.no_grad():
        expected = facenet(fixed_image_standardization(published)[None])
    torch.testing.assert_close(embedder.embed(crop[None]), expected, atol=1e-5, rtol=0)
    assert embedder.embed(np.zeros((0, 160, 160, 3), np.uint8)).shape == (0, 512)


def test_safetensors_and_pickle_have_one_fingerprint(facenet: Any, face_file: Path, tmp_path: Path) -> None:
    save_file(dict(facenet.state_dict()), tmp_path / "face.safetensors")
    first, second = (
        FacenetEmbedder.load(str(face_file)),
        FacenetEmbedder.load(str(tmp_path / "face.safetensors")),
    )
    assert first.version == second.version
    assert len(first.version) == 12


def test_download_that_fails_says_which_file_to_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from facenet_pytorch.models import inception_resnet_v1

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception_resnet_v1, "download_url_to_file", offline)
    with pytest.raises(
        UserError, match=r"metrics\.face_weights=vggface2.*no network.*20180402-114759-vggface2\.pt"
    ):
        FacenetEmbedder.load("vggface2")


def test_face_weights_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.face_weights=vggface3 is neither.*vggface2"):
        FacenetEmbedder.load("vggface3")
    with pytest.raises(UserError, match=r"metrics\.face_weights: there is no file"):
        FacenetEmbedder.load(str(tmp_path / "none.pt"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit InceptionResnetV1"):
        FacenetEmbedder.load(str(tmp_path / "other.safetensors"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as weights"):
        FacenetEmbedder.load(str(tmp_path / "text.safetensors"))


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        FacenetEmbedder.load(str(tmp_path / "trap.pt"))
    assert "run" not in capsys.readouterr().out


# --- CLIP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of open_clip's own classes, registered as "tiny", and its weights in a file."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    before = {**open_clip.factory._MODEL_CONFIGS}, list(open_clip.factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(folder / "tiny.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model("tiny", require_pretrained=False)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "tiny.safetensors"
    )
    yield folder / "tiny.safetensors"
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(before[0])
    open_clip.factory._MODEL_CONFIG_PATHS[:] = before[1]


def test_clip_is_open_clips_own_pipeline(tiny_clip: Path) -> None:
    clip = OpenClip.load("tiny", str(tiny_clip))
    model, _, preprocess = open_clip.create_model_and_transforms("tiny", pretrained=str(tiny_clip))
    model.eval()
    images, texts = [picture(1), picture(2, 64, 64)], ["a dog", "a photo of a woman"]
    with torch.no_grad():
        expected = model.encode_image(
            torch.stack([preprocess(Image.fromarray(i)) for i in images]), normalize=True
        )
        asked = model.encode_text(open_clip.get_tokenizer("tiny")(texts), normalize=True)
    torch.testing.assert_close(clip.embed_images(images, batch=1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.embed_texts(texts, batch=1), asked, atol=1e-5, rtol=0)
    assert clip.name == "open_clip tiny"
    assert "0.48145466" in clip.preprocessing


@pytest.mark.parametrize("quick", [True, False])
def test_a_tags_activation_is_used(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    """open_clip only warns where a tag's weights need QuickGELU and the model's name says GELU."""
    tag = {"url": "", "hf_hub": "", "quick_gelu": quick}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"published": tag})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tiny_clip))
    clip = OpenClip.load("tiny", "published")
    kinds = {type(part).__name__ for part in clip._model.modules()}
    assert ("QuickGELU" in kinds) == quick
    assert ("GELU" in kinds) != quick


def test_the_default_tag_is_one_that_needs_it() -> None:
    from diffusion_lab.config.schema import Metrics

    settings = Metrics()
    tag = open_clip.get_pretrained_cfg(settings.clip_model, settings.clip_weights)
    assert tag["quick_gelu"]


def test_clip_that_does_not_do(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.clip_model=ViT-L-15.*ViT-L-14"):
        OpenClip.load("ViT-L-15", "openai")
    with pytest.raises(UserError, match=r"metrics\.clip_weights=mine.*tag of ViT-L-14: .*openai"):
        OpenClip.load("ViT-L-14", "mine")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"metrics\.clip_weights.*could not be"):
        OpenClip.load("tiny", str(tmp_path / "other.safetensors"))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"published": {"url": "", "hf_hub": ""}})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(
        UserError, match=r"metrics\.clip_weights=published could not be downloaded.*no network"
    ):
        OpenClip.load("tiny", "published")


# --- aesthetics -------------------------------------------------------------------------------------


def test_linear_head(tmp_path: Path) -> None:
    weight, bias = torch.randn(1, 8), torch.tensor([5.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    x = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    expected = (x.numpy() @ weight.numpy().T + 5)[:, 0].clip(0, 10)
    score = AestheticsHead.load(str(tmp_path / "head.safetensors")).score(x)
    np.testing.assert_allclose(score.numpy(), expected, atol=1e-5)


def test_head_of_five_layers_without_activations(tmp_path: Path) -> None:
    """The published MLP: linear layers 0, 2, 4, 6, 7 with dropout between; the file lists them in any order."""
    published = torch.nn.Sequential(
        torch.nn.Linear(8, 12), torch.nn.Dropout(0.2), torch.nn.Linear(12, 10), torch.nn.Dropout(0.2),
        torch.nn.Linear(10, 6), torch.nn.Dropout(0.1), torch.nn.Linear(6, 4), torch.nn.Linear(4, 1),
    ).eval()  # fmt: skip
    tensors = {f"layers.{name}": value for name, value in published.state_dict().items()}
    torch.save(dict(reversed(list(tensors.items()))), tmp_path / "head.pth")
    x = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    head = AestheticsHead.load(str(tmp_path / "head.pth"))
    with torch.no_grad():
        torch.testing.assert_close(head.score(x), published(x)[:, 0].clamp(0, 10), atol=1e-6, rtol=0)


def test_ratings_stay_between_0_and_10(tmp_path: Path) -> None:
    save_file({"weight": torch.tensor([[100.0]]), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    head = AestheticsHead.load(str(tmp_path / "head.safetensors"))
    assert head.score(torch.tensor([[1.0], [-1.0], [0.05]])).tolist() == pytest.approx([10, 0, 5])


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(2, 8), "bias": torch.zeros(2)},  # two numbers
        {"weight": torch.zeros(1, 8)},  # no bias
        {"0.weight": torch.zeros(4, 8), "0.bias": torch.zeros(4), "1.weight": torch.zeros(1, 5), "1.bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 8), "bias": torch.zeros(1), "norm": torch.zeros(8)},  # something else in it
    ],
)  # fmt: skip
def test_a_file_that_is_no_head(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=r"metrics\.aesthetics_weights.*not a chain"):
        AestheticsHead.load(str(tmp_path / "head.safetensors"))


def test_a_head_of_another_clip(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="width 8.*gives 16"):
        AestheticsHead.load(str(tmp_path / "head.safetensors")).score(torch.zeros(2, 16))


def test_laions_heads_load_as_published_with_the_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their layers and names (random weights): `nn.Linear(768, 1)` and `nn.Linear(512, 1)` of
    LAION-AI/aesthetic-predictor, and improved-aesthetic-predictor's `layers`, trained with Lightning.
    """
    linear, small = torch.nn.Linear(768, 1), torch.nn.Linear(512, 1)
    torch.save(linear.state_dict(), tmp_path / "sa_0_4_vit_l_14_linear.pth")
    torch.save(small.state_dict(), tmp_path / "sa_0_4_vit_b_32_linear.pth")
    improved = torch.nn.Sequential(
        torch.nn.Linear(768, 1024), torch.nn.Dropout(0.2), torch.nn.Linear(1024, 128), torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1),
    ).eval()  # fmt: skip
    named = {f"layers.{name}": value for name, value in improved.state_dict().items()}
    torch.save(named, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    for file, net, width in (
        ("sa_0_4_vit_l_14_linear.pth", linear, 768),
        ("sa_0_4_vit_b_32_linear.pth", small, 512),
        ("sac+logos+ava1-l14-linearMSE.pth", improved, 768),
    ):
        caplog.clear()
        head = AestheticsHead.load(str(tmp_path / file))
        assert "LAION" in caplog.text
        assert "scores may be biased" in caplog.text
        x = torch.nn.functional.normalize(torch.randn(3, width), dim=1)
        with torch.no_grad():
            torch.testing.assert_close(head.score(x), net(x)[:, 0].clamp(0, 10), atol=1e-5, rtol=0)


def test_a_head_of_ones_own_goes_without_the_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusion_lab.evaluation.encoders.aesthetics import write_head

    write_head(
        torch.nn.Sequential(torch.nn.Linear(768, 1)), tmp_path / "own.safetensors",
        activation="gelu", clip="open_clip ViT-L-14 0123", notes={},
    )  # fmt: skip
    head = AestheticsHead.load(str(tmp_path / "own.safetensors"))
    assert not caplog.records
    head.check_clip("open_clip ViT-L-14 0123")
    with pytest.raises(UserError, match="was trained on open_clip ViT-L-14 0123"):
        head.check_clip("open_clip ViT-B-32 4567")
