"""DINO, Inception and transformers' CLIP: the real classes with random weights, and their preprocessing on a
photograph (scikit-image's astronaut) against the published reference."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion_lab.evaluation.encoders import weights
from diffusion_lab.evaluation.encoders.bank import is_transformers
from diffusion_lab.evaluation.encoders.clip_transformers import TransformersClip
from diffusion_lab.evaluation.encoders.dino import DinoEncoder, published_transform
from diffusion_lab.evaluation.encoders.inception import (
    InceptionEncoder,
    build,
    prepare_fid,
    prepare_torchvision,
)
from diffusion_lab.evaluation.encoders.weights import INCEPTION_FILES
from diffusion_lab.records import UserError


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """512x512, public domain."""
    from skimage import data

    return np.asarray(data.astronaut())


def cropped(photograph: np.ndarray) -> list[np.ndarray]:
    """Square, tall, wide, small and large."""
    return [
        photograph,
        photograph[:, 100:400],
        photograph[50:250],
        photograph[::8, ::8],
        photograph.repeat(3, 0).repeat(3, 1),
    ]


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


# --- CLIP through transformers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with CLIP's own preprocessing, as transformers saves it."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": len(tokens) - 1,
            "bos_token_id": len(tokens) - 2, "pad_token_id": len(tokens) - 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 224, "patch_size": 56,
        },
        projection_dim=12,
    )  # fmt: skip
    seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def openai_transform() -> Any:
    """OpenAI's CLIP repository, clip/clip.py, `_transform(224)`."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    return Compose(
        [
            Resize(224, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(224),
            ToTensor(),
            Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )


def test_clip_prepares_photographs_as_openai_published(clip_folder: Path, photograph: np.ndarray) -> None:
    clip = TransformersClip.load(str(clip_folder))
    assert len(cropped(photograph)) == 5
    for image in cropped(photograph):
        ours = clip._processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        published = openai_transform()(Image.fromarray(image))
        torch.testing.assert_close(ours, published, atol=1e-6, rtol=0)  # rounding of the last bit


def test_open_clip_prepares_photographs_as_openai_published(photograph: np.ndarray) -> None:
    import open_clip

    ours = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    for image in cropped(photograph):
        picture = Image.fromarray(image)
        assert torch.equal(ours(picture), openai_transform()(picture))  # to the bit


def test_clip_is_transformers_own(clip_folder: Path, photograph: np.ndarray) -> None:
    from transformers import AutoTokenizer, CLIPModel

    clip = TransformersClip.load(str(clip_folder))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    texts = ["a dog", "a photo of a woman", "x" * 200]
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        texts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    pixels = torch.stack([openai_transform()(Image.fromarray(i)) for i in cropped(photograph)[:2]])
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(clip.embed_texts(texts), output.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        clip.embed_images(cropped(photograph)[:2], batch=1), output.image_embeds, atol=1e-5, rtol=0
    )
    assert clip.name == "transformers tiny"
    assert len(clip.version) == 12
    assert "224" in clip.preprocessing


def test_which_library_a_name_belongs_to(clip_folder: Path) -> None:
    assert is_transformers(str(clip_folder))
    assert is_transformers("openai/clip-vit-large-patch14")
    assert not is_transformers("ViT-L-14")
    assert not is_transformers("ViT-L/14")


def test_clip_folders_that_do_not_do(tmp_path: Path, dino_folder: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.clip_model=.*model\.safetensors is missing"):
        TransformersClip.load(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        TransformersClip.load("./nowhere")
    with pytest.raises(UserError, match="ViTModel, which does not embed text and images"):
        TransformersClip.load(str(dino_folder))
    with pytest.raises(UserError, match=r"owner/name could not be downloaded.*config\.json"):
        TransformersClip.load("owner/name")
    with pytest.raises(UserError, match=r"owner/clip-1\.5 could not be downloaded"):  # a dot is no ending
        TransformersClip.load("owner/clip-1.5")
    with pytest.raises(UserError, match=r"clip\.safetensors: there is no such folder"):
        TransformersClip.load("weights/clip.safetensors")
    file = tmp_path / "clip.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"clip\.safetensors: that is a file; give a folder"):
        TransformersClip.load(str(file))


# --- DINO ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino") / "vits"
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=56
    )
    seeded(lambda: ViTModel(config, add_pooling_layer=False)).save_pretrained(folder)
    return folder


def test_dino_is_the_class_token(dino_folder: Path, photograph: np.ndarray) -> None:
    from transformers import ViTModel

    dino = DinoEncoder.load(str(dino_folder))
    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    pixels = torch.stack([published_transform()(Image.fromarray(i)) for i in cropped(photograph)])
    assert pixels.shape == (5, 3, 224, 224)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(pixel_values=pixels).last_hidden_state[:, 0], dim=1)
    torch.testing.assert_close(dino.embed_images(cropped(photograph), batch=2), expected, atol=1e-5, rtol=0)
    assert DinoEncoder.load(str(dino_folder)).version == dino.version  # no random pooler in it


def test_dino_prepares_photographs_as_published(photograph: np.ndarray) -> None:
    """facebookresearch/dino, eval_knn.py, by Pillow and NumPy alone: Resize(256, 3), CenterCrop(224), ImageNet."""
    for image in cropped(photograph):
        picture = Image.fromarray(image)
        short = min(picture.size)
        size = [256 if side == short else int(256 * side / short) for side in picture.size]
        left, top = (round((side - 224) / 2) for side in size)
        resized = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
        expected = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        ours = published_transform()(picture).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-6)  # rounding of the last bit


def test_dino_v2_and_its_preprocessing(tmp_path: Path, photograph: np.ndarray) -> None:
    """Our transform against the processor that is stored with `facebook/dinov2-small`."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=112, patch_size=56
    )
    seeded(lambda: Dinov2Model(config)).save_pretrained(tmp_path / "v2")
    assert DinoEncoder.load(str(tmp_path / "v2")).embed_images([photograph]).norm() == pytest.approx(1)
    stored = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    # Not the wide one: of an odd margin transformers' crop begins one pixel before the published one.
    for image in [*cropped(photograph)[:2], *cropped(photograph)[3:]]:
        theirs = stored(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(published_transform()(Image.fromarray(image)), theirs, atol=1e-6, rtol=0)


def test_dino_that_does_not_do(clip_folder: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.dino_model=.*it is a clip model, and DINO is one of vit"):
        DinoEncoder.load(str(clip_folder))
    with pytest.raises(
        UserError, match=r"facebook/dino-vits16 could not be downloaded.*config\.json and model"
    ):
        DinoEncoder.load("facebook/dino-vits16")


# --- Inception ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = seeded(lambda: build(fid=True))
    tensors = {**net.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "fid.safetensors"
    save_file(tensors, path)
    return path


def test_pool_features(fid_file: Path, photograph: np.ndarray) -> None:
    encoder = InceptionEncoder.load(str(fid_file))
    assert encoder.fid
    found = encoder.embed_images([photograph, photograph[:80, :60]], batch=1)
    assert found.shape == (2, 2048)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found >= 0).all()  # after a ReLU and an average
    assert not torch.equal(found[0], found[1])


def test_logits_are_the_whole_networks(photograph: np.ndarray, tmp_path: Path) -> None:
    from torchvision.models import Inception3

    whole = seeded(
        lambda: Inception3(num_classes=10, aux_logits=False, transform_input=True, init_weights=False).eval()
    )
    save_file(dict(whole.state_dict()), tmp_path / "whole.safetensors")
    encoder = InceptionEncoder.load(str(tmp_path / "whole.safetensors"))
    pooled = encoder.embed_images([photograph])
    found = encoder.logits(pooled)
    with torch.no_grad():
        expected = whole(prepare_torchvision(photograph)[None])
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    save_file(
        {k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")}, tmp_path / "cut.safetensors"
    )
    assert InceptionEncoder.load(str(tmp_path / "cut.safetensors")).logits(pooled) is None


def test_the_fid_network_differs_from_torchvisions_where_it_should() -> None:
    """A constant picture: without the padding in its average a pool leaves it constant up to the border."""
    fid, plain = build(fid=True), build(fid=False)
    assert set(fid.state_dict()) == set(plain.state_dict())
    x = torch.ones(1, 192, 5, 5)
    for name in ("Mixed_5b",):
        ours, theirs = getattr(fid, name), getattr(plain, name)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            pooled, counted = ours._forward(x)[3], theirs._forward(x)[3]
        assert torch.allclose(pooled, pooled[..., :1, :1].expand_as(pooled), atol=1e-5)
        assert torch.allclose(pooled[..., 2, 2], counted[..., 2, 2], atol=1e-5)
        assert not torch.allclose(counted[..., 0, 0], counted[..., 2, 2], atol=1e-5)


def test_inception_prepares_photographs_as_published(photograph: np.ndarray) -> None:
    """pytorch-fid: ToTensor, `F.interpolate` to 299, 2x - 1; torchvision's: its own transforms."""
    from torchvision.models import Inception_V3_Weights
    from torchvision.transforms import ToTensor

    for image in cropped(photograph):
        theirs = torch.nn.functional.interpolate(
            ToTensor()(Image.fromarray(image))[None], size=(299, 299), mode="bilinear", align_corners=False
        )
        assert torch.equal(prepare_fid(image), 2 * theirs[0] - 1)  # to the bit
        transforms = Inception_V3_Weights.IMAGENET1K_V1.transforms()
        assert torch.equal(prepare_torchvision(image), transforms(Image.fromarray(image)))


def test_inception_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"metrics\.inception_weights is not set.*{INCEPTION_FILES[0]}"):
        InceptionEncoder.load(None)
    with pytest.raises(UserError, match="there is no such file"):
        InceptionEncoder.load(str(tmp_path / "none.pth"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit Inception v3"):
        InceptionEncoder.load(str(tmp_path / "other.safetensors"))


# --- identity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TransformersClip, DinoEncoder])
def test_weights_are_hashed_once_for_the_same_files(
    kind: Any, clip_folder: Path, dino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(clip_folder if kind is TransformersClip else dino_folder, folder)
    real, hashed = weights.module_digest, list[str]()
    monkeypatch.setattr(weights, "module_digest", lambda net: hashed.append(real(net)) or hashed[-1])
    first = kind.load(str(folder)).version
    assert kind.load(str(folder)).version == first
    assert hashed == [first]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = min(name for name, value in tensors.items() if value.is_floating_point())
    before = file.stat()
    save_file({**tensors, name: tensors[name] + 1}, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change still tells
    changed = kind.load(str(folder)).version
    assert changed != first
    assert hashed == [first, changed]
    for path in (tmp_path / "cache" / "fingerprints").iterdir():
        path.write_text("{")
    assert kind.load(str(folder)).version == changed
    assert len(hashed) == 3
