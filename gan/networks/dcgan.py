"""DCGAN for any power of two from 8 pixels on.

Radford, Metz and Chintala 2015, arXiv:1511.06434.
"""

from itertools import pairwise

from torch import Tensor, nn

from gan.networks.blocks import (
    Critic,
    Latent,
    Norm,
    dcgan_start,
    levels,
    normalisation,
    reparametrise,
    widths,
)
from gan.registry import Count, register


@register(
    "generator", "dcgan", size="${image.size}", channels="${image.channels}", given=("classes",)
)
class Generator(nn.Module):
    """Latent vectors, projected to 4 x 4 pixels and doubled up to images in [-1, 1].

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    8 * `width`. With `classes` the projection also reads an embedding of the label; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        latent: Count = 128,
        width: Count = 64,
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size) - 2)[::-1]
        self.latent = latent
        self.join = Latent(latent, classes)
        self.project = nn.Sequential(
            nn.Unflatten(1, (self.join.width, 1, 1)),
            nn.ConvTranspose2d(self.join.width, inner[0], 4, bias=False),
            nn.BatchNorm2d(inner[0]),
            nn.ReLU(),
        )
        self.inner = nn.Sequential(*(_double(before, after) for before, after in pairwise(inner)))
        self.image = nn.Sequential(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh())
        self.apply(dcgan_start)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to images [B, C, size, size]."""
        return self.image(self.inner(self.project(self.join(z, label))))


@register(
    "discriminator", "dcgan", size="${image.size}", channels="${image.channels}", given=("classes",)
)
class Discriminator(nn.Module):
    """Images, halved down to 4 x 4 pixels, to one logit each.

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    8 * `width`. `norm` acts on all maps but the first, or on all weights (`spectral`, `weight`).
    Batch norm mixes the samples of a batch, so it cannot serve a gradient penalty. With `classes`
    the logit has a projection on the label; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        width: Count = 64,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size) - 2)
        self.first = nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2))
        self.inner = nn.Sequential(
            *(_halve(before, after, norm) for before, after in pairwise(inner))
        )
        self.critic = Critic(inner[-1] * 4 * 4, classes)
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [B, C, size, size] and labels [B] to logits [B]."""
        return self.critic(self.inner(self.first(image)).flatten(1), label)


def _double(before: int, after: int) -> nn.Module:
    deconvolution = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
    return nn.Sequential(deconvolution, nn.BatchNorm2d(after), nn.ReLU())


def _halve(before: int, after: int, norm: Norm) -> nn.Module:
    convolution = nn.Conv2d(before, after, 4, 2, 1, bias=norm not in ("batch", "instance"))
    return nn.Sequential(convolution, normalisation(norm, after), nn.LeakyReLU(0.2))
