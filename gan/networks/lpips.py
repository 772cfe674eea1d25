"""The learned perceptual distance: weighted differences of normalised maps of a known network."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gan.config.settings import exact
from gan.networks.pretrained import (
    TorchvisionClassifier,
    installed,
    read_weights,
    require_digest,
)

NETWORKS = {  # how the hash of torchvision's weights begins: network, its layers, name of the heads
    "7be5be79": ("alexnet", (1, 4, 7, 9, 11), "alex"),
    "397923af": ("vgg16", (3, 8, 15, 22, 29), "vgg"),
    "b8a52dc0": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), "squeeze"),
}


class Lpips:
    """Zhang et al. 2018, arXiv:1801.03924, equation 1, version 0.1.

    The network's weights are torchvision's, from a file; those of its heads come with torchmetrics.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        """`weights` are those of AlexNet, VGG-16 or SqueezeNet 1.1, read when first needed.

        Raises:
            ValueError: no such file, other weights, or torchmetrics is not installed.
        """
        self.key = require_digest("lpips", weights, NETWORKS)
        folder = installed("torchmetrics", "lpips") / "functional" / "image" / "lpips_models"
        self.name, self._places, heads = NETWORKS[self.key[:8]]
        self._weights, self._heads, self._device = weights, folder / f"{heads}.pth", device

    @cached_property
    def network(self) -> TorchvisionClassifier:
        """The network; Raises: ValueError for a file that cannot be read."""
        layers = [f"features.{place}" for place in self._places]
        return TorchvisionClassifier(self.name, layers, str(self._weights)).to(self._device)

    @cached_property
    def heads(self) -> list[Tensor]:
        """The weights of each map's channels, [1, C, 1, 1]."""
        stored = read_weights(str(self._heads))
        count = len(self._places)
        return [stored[f"lin{n}.model.1.weight"].to(self._device) for n in range(count)]

    @torch.no_grad()
    @exact()
    def __call__(self, image: Tensor, truth: Tensor) -> Tensor:
        """Distances [N] of images and truths [N, 1 or 3, H, W] in [0, 1], without TF32.

        Raises:
            ValueError: images of less than 32 pixels, of which deep maps have none left.
        """
        self.require_size(image)
        total = torch.zeros(len(image), device=image.device)
        both = zip(self._maps(image), self._maps(truth), self.heads, strict=True)
        for one, other, head in both:
            apart = (one - other).square() * head  # [N, C, h, w]; heads [1, C, 1, 1]
            total = total + apart.sum(1).mean((1, 2))
        return total

    def require_size(self, image: Tensor) -> None:
        """Raises: ValueError for images [..., H, W] that are too small."""
        if min(image.shape[-2:]) < 32:
            raise ValueError(f"lpips needs images of 32 pixels or more, not {image.shape[-1]}")

    def _maps(self, image: Tensor) -> list[Tensor]:
        maps = self.network.features((2 * image - 1).expand(-1, 3, -1, -1))
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in maps]
