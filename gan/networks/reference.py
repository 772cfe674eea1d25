"""Inception and VGG-16 as torch-fidelity has them: the features that published numbers are of.

Their weights come from a file, or are downloaded for those who ask for it.
"""

import math
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gan.config.settings import exact
from gan.images import to_bytes
from gan.networks.lpips import Lpips
from gan.networks.pretrained import installed, read_weights, require_digest

PORTION = 64  # images that a network sees at once


class Known(NamedTuple):
    """A reference network: its class in torch-fidelity, its layers, how its file's hash begins."""

    build: str
    layers: tuple[str, ...]
    digest: str
    resize: str


REFERENCES = {
    "inception": Known(
        "FeatureExtractorInceptionV3",
        ("2048", "logits_unbiased"),
        "6726825d",
        "bilinear to 299 px as TensorFlow 1, no antialias",
    ),
    "vgg16": Known(
        "FeatureExtractorVGG16",
        ("fc2_relu",),
        "397923af",
        "bilinear to 224 px as TensorFlow 1, no antialias",
    ),
}


class OfReference:
    """Inception or VGG-16 as torch-fidelity has them, of bytes and three channels.

    The weights are read when images are first looked at.
    """

    def __init__(self, name: str, weights: Path, device: torch.device) -> None:
        """`weights` is the state dict that torch-fidelity or torchvision use, and no other.

        Raises:
            ValueError: no such file, other weights, or torch-fidelity is not installed.
        """
        known = REFERENCES[name]
        self.name, self.resize = name, known.resize
        self.key = require_digest(name, weights, [known.digest])
        installed("torch_fidelity", name)
        self._weights, self._device = weights, device

    @cached_property
    def network(self) -> nn.Module:
        """The network; Raises: ValueError for a file that cannot be read."""
        known, state = REFERENCES[self.name], read_weights(str(self._weights))
        with tempfile.TemporaryDirectory() as folder:
            safe = str(Path(folder, "weights.pth"))
            torch.save(state, safe)  # the library unpickles its file without restriction
            with torch.random.fork_rng(devices=[]):
                network: nn.Module = getattr(_library(), known.build)(
                    self.name, [*known.layers], feature_extractor_weights_path=safe
                )
        return network.to(self._device)

    @torch.no_grad()
    @exact()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits; in float32, whatever TF32 is set to."""
        found = [self._seen(part) for part in torch.split(images, PORTION)]
        features, logits = zip(*found, strict=True)
        return torch.cat(features), torch.cat(logits)

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.moveaxis(to_bytes(images), -1, 1).copy()).to(images.device)
        found = self.network(pixels.expand(-1, 3, -1, -1))
        logits = found[1] if len(found) > 1 else found[0][:, :0]
        diverged = ~images.flatten(1).isfinite().all(1, keepdim=True)  # bytes do not show it
        return found[0].masked_fill(diverged, math.nan).cpu(), logits.cpu()


def reference_networks(weights: Mapping[str, Path], device: torch.device) -> dict[str, Any]:
    """`OfReference` by name, and `Lpips` under `lpips`, of the files of their weights.

    Raises: ValueError as they do.
    """
    return {
        name: Lpips(path, device) if name == "lpips" else OfReference(name, path, device)
        for name, path in weights.items()
    }


def downloaded(name: str) -> Path:
    """The file of Inception's weights, or of a network of torchvision's, fetched once.

    Only for those who ask for it: nothing else here opens a connection.
    """
    if name == "inception":
        url = _library().feature_extractor_inceptionv3.URL_INCEPTION_V3
    else:
        from torchvision.models import get_model_weights

        url = get_model_weights(name).IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        digest = path.stem.rpartition("-")[2]  # the name ends in how the hash begins
        torch.hub.download_url_to_file(url, str(path), digest)
    return path


def _library() -> Any:
    installed("torch_fidelity", "inception")
    import torch_fidelity

    return torch_fidelity
