"""Faces of a real photograph (scikit-image's astronaut) against facenet-pytorch itself; odd sizes and turned heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.encoders.detect import FaceDetector
from diffusion_lab.evaluation.encoders.face import FacenetEmbedder


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """512x512, public domain."""
    from skimage import data

    return np.asarray(data.astronaut())


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(enlarge_to=160)  # as the bank has it


@pytest.fixture(scope="module")
def embedder() -> FacenetEmbedder:
    from facenet_pytorch import InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FacenetEmbedder(InceptionResnetV1(pretrained=None))


def turned(photograph: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).rotate(degrees, resample=Image.Resampling.BILINEAR))


def scaled(photograph: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).resize((side, side), Image.Resampling.LANCZOS))


def test_box_crop_and_standardisation_are_facenet_pytorchs(
    photograph: np.ndarray, detector: FaceDetector, embedder: FacenetEmbedder
) -> None:
    """What `MTCNN(image_size=160, margin=0)` hands to the network, to the bit."""
    from facenet_pytorch import MTCNN

    picture = Image.fromarray(photograph)
    published = MTCNN(image_size=160, margin=0)
    (face,) = detector.detect([photograph])
    assert face is not None
    boxes, probabilities = published.detect(picture)
    assert face.box == tuple(float(v) for v in boxes[0])
    assert face.probability == float(probabilities[0])
    seen: list[torch.Tensor] = []
    hook = embedder._net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = embedder.embed(embedder.crop(photograph, face)[None])
    hook.remove()
    expected = published(picture)
    assert torch.equal(seen[0][0], expected)
    with torch.no_grad():  # of another memory layout: the network's sums may round otherwise
        torch.testing.assert_close(found, embedder._net(expected[None]), atol=1e-6, rtol=0)


def test_turned_heads(photograph: np.ndarray, detector: FaceDetector) -> None:
    """Up to an eighth of a turn it is found; upside down it is not, as anywhere with MTCNN. Nothing fails."""
    tilted = detector.detect([turned(photograph, degrees) for degrees in (-30, -10, 10, 30, 45)])
    assert all(face is not None and face.probability > 0.9 for face in tilted)
    for quarter in (1, 2, 3):
        (face,) = detector.detect([np.rot90(photograph, quarter).copy()])
        assert face is None or face.probability < 0.99


def test_several_faces_give_one(photograph: np.ndarray, detector: FaceDetector) -> None:
    """A second face of half the size: the large one, though both are sure."""
    small = photograph.copy()
    small[256:, 256:] = scaled(photograph, 256)
    alone, both = detector.detect([photograph, small])
    assert alone is not None
    assert both is not None
    np.testing.assert_allclose(both.box, alone.box, atol=4)


def test_sizes(photograph: np.ndarray, detector: FaceDetector) -> None:
    (face,) = detector.detect([scaled(photograph, 96)])
    assert face is not None
    left, top, right, bottom = np.array(face.box) * 512 / 96
    assert left < 224 < right
    assert top < 117 < bottom
    large = detector.detect([photograph.repeat(3, axis=0).repeat(3, axis=1)])[0]
    assert large is not None
    assert large.box[2] > 512  # in pixels of the large one
    nothing = [np.zeros((*size, 3), np.uint8) for size in ((1, 1), (1, 4000), (4000, 7), (3, 40), (8, 9))]
    assert detector.detect(nothing) == [None] * 5


def test_a_batch_of_all_kinds_through_the_full_bank(
    photograph: np.ndarray, embedder: FacenetEmbedder, tmp_path: Path
) -> None:
    """None, one, several, tilted, tiny and huge in one call; each as if it were alone."""
    torch.save(embedder._net.state_dict(), tmp_path / "face.pt")
    bank = EncoderBank(Metrics(encoders="full", face_weights=str(tmp_path / "face.pt"), batch_size=4))
    images = [
        np.full((64, 48, 3), 128, np.uint8),
        photograph,
        np.concatenate([photograph, photograph], axis=1),
        turned(photograph, 20),
        np.zeros((2, 3, 3), np.uint8),
        photograph.repeat(3, axis=0).repeat(3, axis=1),
    ]
    found = bank.features(images, texts=None, needs={"face"}).face
    assert found is not None
    assert found.isnan().any(1).tolist() == [True, False, False, False, True, False]
    for row, image in enumerate(images):
        alone: Any = bank.features([image], texts=None, needs={"face"}).face
        torch.testing.assert_close(found[row], alone[0], equal_nan=True, atol=1e-5, rtol=0)
    told = bank.identities()
    assert "enlarged to 160" in told["detector"]
    assert "(x - 127.5) / 128" in told["face"]
