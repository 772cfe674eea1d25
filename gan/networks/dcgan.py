"""DCGAN for any power of two from 8 pixels on.

Radford, Metz and Chintala 2015, arXiv:1511.06434.
"""

from itertools import pairwise

from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import (
    CENTRING,
    Condition,
    Critic,
    Critique,
    Entrance,
    GeneratorNorm,
    Norm,
    Padding,
    chosen_norm,
    dcgan_start,
    generator_norm,
    levels,
    narrowed,
    reparametrise,
    widths,
)
from gan.registry import Count, register


@register("generator", "dcgan", given=("classes",), **SHAPE)
class Generator(nn.Module):
    """Latent vectors, projected to 4 x 4 pixels and doubled up to images in [-1, 1].

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    8 * `width`. `norm` acts on all maps but the image, or on all weights (`spectral`, `weight`).
    With `classes` the projection also reads an embedding of the label, with `norm=conditional` the
    norms do instead; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        latent: Count = 128,
        width: Count = 64,
        norm: GeneratorNorm = "batch",
    ) -> None:
        super().__init__()
        norm = chosen_norm(norm, classes)
        inner = widths(width, levels(size) - 2)[::-1]
        self.latent = latent
        self.enter = Entrance(latent, classes, norm)
        bias = norm not in CENTRING
        project = nn.ConvTranspose2d(self.enter.width, inner[0], 4, bias=bias)  # 1 to 4 pixels
        double = [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=bias) for a, b in pairwise(inner)]
        self.grow = nn.ModuleList([project, *double])
        self.norms = nn.ModuleList(
            generator_norm(norm, after, classes, self.enter.width) for after in inner
        )
        self.activate = nn.ReLU()
        self.image = nn.Sequential(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh())
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to images [B, C, size, size]."""
        x, code = self.enter(z, label)
        x = x[:, :, None, None]  # [B, D, 1, 1]
        for grow, norm in zip(self.grow, self.norms, strict=True):
            x = self.activate(norm(grow(x), code))
        return self.image(x)


@register("discriminator", "dcgan", given=("classes",), **SHAPE)
class Discriminator(nn.Module):
    """Images, halved down to 4 x 4 pixels, to one logit each.

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    8 * `width`. `norm` acts on all maps but the first, or on all weights (`spectral`, `weight`).
    Batch norm mixes the samples of a batch, so it cannot serve a gradient penalty. With `classes`
    the label is a `condition` of the logit, as in `Critic`; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        condition: Condition = "projection",
        width: Count = 64,
        norm: Norm = "batch",
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size) - 2)
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1, padding_mode=padding), nn.LeakyReLU(0.2)
        )
        self.inner = nn.Sequential(
            *(narrowed(before, after, 2, norm, padding) for before, after in pairwise(inner))
        )
        self.critic = Critic(inner[-1] * 4 * 4, classes, condition)
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [B, C, size, size] and labels [B] to logits [B]."""
        return self.critique(image, label).logits

    def critique(self, image: Tensor, label: Tensor | None = None) -> Critique:
        """The same, with class logits [B, classes] where there is an auxiliary head."""
        return self.critic(self.inner(self.first(image)).flatten(1), label)
