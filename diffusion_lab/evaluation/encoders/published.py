"""Where weights of the metrics' networks are published: names, sizes, checksums."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_lab.models.wanted import Wanted

# Where facenet-pytorch publishes its weights (its source has the same addresses), with the SHA-256 by which others
# check the first one; none is published for the second.
FACE_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
FACE_FILES = {
    "vggface2": (
        "20180402-114759-vggface2.pt",
        111_898_327,
        "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
    ),
    "casia-webface": ("20180408-102900-casia-webface.pt", 116e6, ""),
}
# Inception as the FID paper used it; the name ends in the first digits of its SHA-256, as is the custom of torch's hub.
INCEPTION_RELEASE = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
INCEPTION_FILE, INCEPTION_BYTES = "pt_inception-2015-12-05-6726825d.pth", 95.6e6

# The aesthetics head that LAION's v2 subsets were chosen with (christophschuhmann/improved-aesthetic-predictor), from
# TRL's copy of it on the hub. Size and SHA-256 are those of the hub's own record of the file.
HEAD_REPO = "trl-lib/ddpo-aesthetic-predictor"
HEAD_REVISION = "e62d0b3d501a41272ad2c7d6454c99aefe8be459"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_BYTES = 3_714_759
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


def head() -> Wanted:
    """The published aesthetics head, for CLIP ViT-L/14 with OpenAI's weights."""
    return Wanted(
        key="metrics.aesthetics_weights=laion", name=HEAD_FILE, size=HEAD_BYTES, repo=HEAD_REPO,
        revision=HEAD_REVISION, sha256=HEAD_SHA256,
        by_hand=f"fetch {HEAD_FILE}, also in christophschuhmann/improved-aesthetic-predictor, and set "
                "metrics.aesthetics_weights to the file",
    )  # fmt: skip


def inception() -> Wanted:
    """The network of FID and KID: what there is in torch's cache, else the one of the FID paper."""
    from diffusion_lab.evaluation.encoders.weights import INCEPTION_FILES

    folder = torch_home() / "hub" / "checkpoints"
    known = [folder / name for name in INCEPTION_FILES if (folder / name).is_file()]
    return Wanted(
        key="metrics.inception_weights", name=INCEPTION_FILE, size=INCEPTION_BYTES,
        url=INCEPTION_RELEASE + INCEPTION_FILE, target=folder / INCEPTION_FILE, path=known[0] if known else None,
        sha256=INCEPTION_FILE.rpartition("-")[2].removesuffix(".pth"),
        by_hand=f"fetch it from the releases of mseitzer/pytorch-fid and put it into {folder}, or set "
                "metrics.inception_weights to the file; fid_clip and kid_clip do without",
    )  # fmt: skip


def looks_like_hub_id(name: str) -> bool:
    """owner/name, and no folder on this machine."""
    return (
        name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).expanduser().exists()
    )


def torch_home() -> Path:
    """torch's cache, as torch and facenet-pytorch find it."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser()
