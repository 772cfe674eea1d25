"""PatchGAN: one logit for each of many overlapping patches of an image.

Isola et al. 2016, arXiv:1611.07004, section 6.1.2; Li and Wand 2016, arXiv:1604.04382.
"""

from itertools import pairwise

from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import (
    Norm,
    Padding,
    dcgan_start,
    in_full,
    narrowed,
    reparametrise,
    widths,
)
from gan.registry import Count, register


@register("discriminator", "patch", given=("images",), **SHAPE)
class Patch(nn.Module):
    """Images, halved `layers` times, to a map of logits, one for each patch.

    A patch is a square of 16, 34, 70 or 142 pixels for 1, 2, 3 or 4 layers. `width` is the number
    of channels at half the image's size; each further layer doubles it, up to 8 * `width`. `norm`
    acts on all maps but the first and the last, or on all weights (`spectral`, `weight`). `images`
    is the number of images that are joined to one of more channels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        images: int = 1,
        width: Count = 64,
        layers: Count = 3,
        norm: Norm = "batch",
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        if size < 4 << layers:
            raise ValueError(
                f"image.size={size} is too small for discriminator.layers={layers}, which needs "
                f"{4 << layers} pixels: use "
                + (f"discriminator.layers={size.bit_length() - 3}" if size >= 8 else "8 or more")
            )
        inner = widths(width, layers + 1)
        first = nn.Conv2d(images * channels, width, 4, 2, 1, padding_mode=padding)
        self.inner = nn.ModuleList([nn.Sequential(first, nn.LeakyReLU(0.2))])
        for level, (before, after) in enumerate(pairwise(inner), 1):
            stride = 2 if level < layers else 1
            self.inner.append(narrowed(before, after, stride, norm, padding))
        self.logits = nn.Conv2d(inner[-1], 1, 4, 1, 1, padding_mode=padding)
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, images*C, size, size] to logits [B, 1, h, w], size / 2**layers - 2 a side."""
        return in_full(self.logits, self.features(image)[-1])

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps behind the logits, finest first."""
        maps = [image]
        for narrow in self.inner:
            maps.append(narrow(maps[-1]))
        return maps[1:]


@register("discriminator", "patches", **SHAPE)
class Patches(nn.Module):
    """Two of them, `of_a` for images of one kind and `of_b` for those of another."""

    def __init__(
        self,
        size: Count,
        channels: Count,
        width: Count = 64,
        layers: Count = 3,
        norm: Norm = "instance",
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        self.of_a = Patch(size, channels, 1, width, layers, norm, padding)
        self.of_b = Patch(size, channels, 1, width, layers, norm, padding)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, size, size] of each kind to their logits [B, 1, h, w]."""
        return self.of_a(a), self.of_b(b)
