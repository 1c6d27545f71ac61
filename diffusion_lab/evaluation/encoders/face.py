"""The full-size face embedder: facenet-pytorch's InceptionResnetV1, as published.

Bit-identical preprocessing: MTCNN's box is cropped without margin and resized to 160x160 by facenet-pytorch's own
`extract_face` (PIL, bilinear, aspect ratio not kept), then `fixed_image_standardization`, (x - 127.5) / 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion_lab.evaluation.encoders.weights import module_digest, read_weights
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.evaluation.encoders.detect import Face

PUBLISHED = ("vggface2", "casia-webface")
_FILES = {"vggface2": "20180402-114759-vggface2.pt", "casia-webface": "20180408-102900-casia-webface.pt"}


class FacenetEmbedder:
    """Embeds face crops as unit vectors of 512 dimensions."""

    name = "inception-resnet-v1"
    size = 160
    margin = 0.0
    preprocessing = "MTCNN box, margin 0, 160x160 bilinear, (x - 127.5) / 128"
    # FaceNet (Schroff et al. 2015, arXiv:1503.03832, section 5.6): squared distance 1.242 between unit vectors, i.e.
    # a cosine of 1 - 1.242 / 2. As published; not measured for these weights.
    same_person = 0.38

    def __init__(self, net: Any, *, device: str = "cpu") -> None:
        self._net = net.to(device).eval()
        self.device = torch.device(device)
        self.version = module_digest(net)

    @classmethod
    def load(cls, weights: str, device: str = "cpu") -> Self:
        """``weights``: a published name, or a local file (.safetensors, or .pt with tensors only)."""
        from facenet_pytorch import InceptionResnetV1

        if weights in PUBLISHED:
            try:
                return cls(_without_classes(InceptionResnetV1(pretrained=weights)), device=device)
            except Exception as error:  # no network, a proxy's page, an incomplete file
                raise UserError(
                    f"metrics.face_weights={weights} could not be downloaded or read ({error}). "
                    f"Without a network, download {_FILES[weights]} from the releases of "
                    "timesler/facenet-pytorch (v2.2.9) and set metrics.face_weights to that file, or put it into "
                    "torch's cache, ~/.cache/torch/checkpoints"
                ) from error
        path = Path(weights).expanduser()
        if not path.suffix:
            raise UserError(
                f"metrics.face_weights={weights} is neither a file nor one of {', '.join(PUBLISHED)}"
            )
        tensors = {
            k: v for k, v in read_weights(path, "metrics.face_weights").items() if not k.startswith("logits.")
        }
        net = InceptionResnetV1(pretrained=None)
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(
                f"metrics.face_weights: {path} does not fit InceptionResnetV1 ({error})"
            ) from error
        return cls(net, device=device)

    def crop(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
        """uint8 [160, 160, 3]."""
        from facenet_pytorch.models.utils.detect_face import extract_face

        pixels = extract_face(Image.fromarray(image), np.asarray(face.box), image_size=self.size, margin=0)
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))

    @torch.no_grad()
    def embed(self, crops: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], batch: int = 32) -> Tensor:
        """uint8 [n, 160, 160, 3] -> float32 [n, 512] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(crops), batch):
            pixels = torch.from_numpy(np.stack(list(crops[start : start + batch]))).to(self.device)
            standard = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 128
            parts.append(self._net(standard).float().cpu())
        return torch.cat(parts) if parts else torch.zeros(0, 512)


def _without_classes(net: Any) -> Any:
    """The classifier is not used. Without it, a name and a file have the same fingerprint."""
    del net.logits
    return net
