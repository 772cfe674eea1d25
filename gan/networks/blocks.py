"""What several networks are made of: levels, normalisation, class conditions, weight starts."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Norm = Literal["batch", "instance", "layer", "group", "spectral", "weight", "none"]

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def levels(size: int) -> int:
    """How often an image can be halved down to one pixel.

    Raises: ValueError for a size that is no power of two of at least 8.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(
            f"image.size must be a power of two, 8 or more, for this network, not {size}"
        )
    return size.bit_length() - 1


def widths(first: int, count: int, cap: int = 8) -> list[int]:
    """Channels per level: `first` nearest the image, then doubling up to `cap * first`."""
    return [first * min(2**level, cap) for level in range(count)]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """A layer that normalises maps [B, C, H, W]; the identity for norms that act on weights.

    `layer` normalises each sample over C, H and W with one gain and bias per channel; `group` does
    so for groups of 16 channels where they divide (Wu and He 2018, arXiv:1803.08494).
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    return nn.Identity()


def reparametrise(network: nn.Module, norm: Norm) -> None:
    """Put spectral or weight normalisation on every weight; other norms change nothing.

    Call it when the weights have their starting values: weight normalisation starts from them.
    Spectral: Miyato et al. 2018, arXiv:1802.05957; one power iteration per forward while training.
    Weight: Salimans and Kingma 2016, arXiv:1602.07868; one length per output channel.
    """
    for module in [module for module in network.modules() if isinstance(module, _WEIGHTED)]:
        if norm == "spectral":
            parametrizations.spectral_norm(module)
        elif norm == "weight":
            parametrizations.weight_norm(module, dim=int(isinstance(module, nn.ConvTranspose2d)))


def dcgan_start(module: nn.Module) -> None:
    """Weights from N(0, 0.02), batch norm gains from N(1, 0.02), zero biases (arXiv:1511.06434)."""
    if isinstance(module, _WEIGHTED):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    _zero_bias(module)


def xavier_start(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases; normalisation keeps its gain 1 and bias 0."""
    if isinstance(module, _WEIGHTED):
        nn.init.xavier_normal_(module.weight)
    _zero_bias(module)


class Latent(nn.Module):
    """Latent vectors [B, latent], joined with an embedding of the class where there are classes.

    `width` is the length of the result. Mirza and Osindero 2014, arXiv:1411.1784.
    """

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(classes, latent)] if classes else [])
        self.width = latent * (1 + len(self.embeddings))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to [B, width]."""
        _require_label(label, wanted=bool(self.embeddings))
        return torch.cat([z, *(embedding(label) for embedding in self.embeddings)], 1)


class Critic(nn.Module):
    """One logit per sample, linear in its features; with classes, plus a projection on the class.

    Miyato and Koyama 2018, arXiv:1802.05637.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embeddings = nn.ModuleList([nn.Embedding(classes, features)] if classes else [])

    def forward(self, features: Tensor, label: Tensor | None = None) -> Tensor:
        """Features [B, F] and labels [B] to logits [B]."""
        _require_label(label, wanted=bool(self.embeddings))
        logits = self.linear(features).squeeze(1)
        for embedding in self.embeddings:
            logits = logits + (embedding(label) * features).sum(1)
        return logits


def _zero_bias(module: nn.Module) -> None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)


def _require_label(label: Tensor | None, wanted: bool) -> None:
    if wanted and label is None:
        raise ValueError("label must be given: this network was built for classes")
    if label is not None and not wanted:
        raise ValueError("label must be None: this network was built with classes=0")
