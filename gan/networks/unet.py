"""U-Net for any power of two from 8 pixels on: one image into another.

Ronneberger et al. 2015, arXiv:1505.04597, in the form of Isola et al. 2016, arXiv:1611.07004,
section 6.1.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as dropped

from gan.config.signature import SHAPE
from gan.networks.blocks import (
    CENTRING,
    Norm,
    dcgan_start,
    levels,
    normalisation,
    reparametrise,
    widths,
)
from gan.networks.resample import StridedConv2d, StridedConvTranspose2d
from gan.registry import Count, Fraction, register

NOISY = 3  # innermost levels of the decoder that have dropout


@register("generator", "unet", **SHAPE)
class UNet(nn.Module):
    """Images, halved down to one pixel and doubled up again, to images in [-1, 1].

    Each level of the decoder also reads the encoder's map of its size. `width` is the number of
    channels at half the image's size; each halving doubles it, up to 8 * `width`. `norm` acts on
    all maps but the first, the one of one pixel and the image, or on all weights (`spectral`,
    `weight`). `dropout` at the three innermost levels of the decoder is the only noise there is, so
    it stays on outside of training, unless `noise` is off.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        width: Count = 64,
        norm: Norm = "batch",
        dropout: Fraction = 0.5,
        noise: bool = True,
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size))
        shares = [dropout] * NOISY + [0.0] * len(inner)
        self.first = nn.Conv2d(channels, width, 4, 2, 1)
        self.shrink = nn.ModuleList(
            _shrink(before, after, norm if level < len(inner) else "none")
            for level, (before, after) in enumerate(pairwise(inner), 2)
        )
        self.grow = nn.ModuleList(
            _grow(before * (1 if level == 0 else 2), after, norm, shares[level], noise)
            for level, (before, after) in enumerate(pairwise(inner[::-1]))
        )
        image = nn.ConvTranspose2d(2 * width, channels, 4, 2, 1)
        self.image = nn.Sequential(nn.ReLU(), image, nn.Tanh())
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, size, size] to images of the same shape."""
        maps = [self.first(input)]
        for shrink in self.shrink:
            maps.append(shrink(maps[-1]))
        x = maps.pop()  # [B, D, 1, 1]
        for grow in self.grow:
            x = torch.cat([maps.pop(), grow(x)], 1)
        return self.image(x)


class Dropout(nn.Module):
    """Zeros a share of all elements and scales the rest; with `always` outside of training too."""

    def __init__(self, share: float, always: bool) -> None:
        super().__init__()
        self.share, self.always = share, always

    def forward(self, x: Tensor) -> Tensor:
        """Maps of any shape."""
        return dropped(x, self.share, training=self.training or self.always)


def _shrink(before: int, after: int, norm: Norm) -> nn.Module:
    convolution = StridedConv2d(before, after, 4, bias=norm not in CENTRING)
    return nn.Sequential(nn.LeakyReLU(0.2), convolution, normalisation(norm, after))


def _grow(before: int, after: int, norm: Norm, share: float, noise: bool) -> nn.Module:
    convolution = StridedConvTranspose2d(before, after, 4, bias=norm not in CENTRING)
    way = [nn.ReLU(), convolution, normalisation(norm, after)]
    return nn.Sequential(*way, Dropout(share, noise)) if share else nn.Sequential(*way)
