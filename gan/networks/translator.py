"""Image translators: a residual one, and pairs that translate both ways.

Johnson et al. 2016, arXiv:1603.08155, as Zhu et al. 2017, arXiv:1703.10593, section 7.2, have it.
"""

from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import (
    CENTRING,
    Norm,
    Padding,
    dcgan_start,
    levels,
    normalisation,
    reparametrise,
)
from gan.networks.resnet import Residual
from gan.networks.unet import UNet
from gan.registry import Count, Fraction, register


@register("generator", "translator", **SHAPE)
class Translator(nn.Module):
    """Images, halved twice, refined by residual blocks and doubled twice, to images in [-1, 1].

    `width` is the number of channels at the image's size, twice and four times as many at half and
    a quarter of it. The authors take 6 `blocks` for 128 pixels and 9 for 256. `norm` acts on all
    maps but the image, or on all weights (`spectral`, `weight`).
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        width: Count = 64,
        blocks: Count = 9,
        norm: Norm = "instance",
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        levels(size)  # refuses sizes that two halvings would round
        bias = norm not in CENTRING
        self.enter = nn.Sequential(
            nn.Conv2d(channels, width, 7, 1, 3, bias=bias, padding_mode=padding),
            *_normed(width, norm),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=bias),
            *_normed(2 * width, norm),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=bias),
            *_normed(4 * width, norm),
        )
        self.refine = nn.Sequential(*(_block(4 * width, norm, padding) for _ in range(blocks)))
        self.leave = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1, bias=bias),
            *_normed(2 * width, norm),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1, bias=bias),
            *_normed(width, norm),
            nn.Conv2d(width, channels, 7, 1, 3, padding_mode=padding),
            nn.Tanh(),
        )
        self.apply(dcgan_start)
        reparametrise(self, norm)

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, size, size] to images of the same shape."""
        return self.leave(self.refine(self.enter(input)))


class Pair(nn.Module):
    """Two translators: `to_b` from images of one kind to those of another, `to_a` back."""

    def __init__(self, to_b: nn.Module, to_a: nn.Module) -> None:
        super().__init__()
        self.to_b, self.to_a = to_b, to_a

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, size, size] of each kind to images of the other."""
        return self.to_b(a), self.to_a(b)


@register("generator", "translators", **SHAPE)
class Translators(Pair):
    """Two residual translators, `to_b` and `to_a`."""

    def __init__(
        self,
        size: Count,
        channels: Count,
        width: Count = 64,
        blocks: Count = 9,
        norm: Norm = "instance",
        padding: Padding = "reflect",
    ) -> None:
        super().__init__(
            *(Translator(size, channels, width, blocks, norm, padding) for _ in range(2))
        )


@register("generator", "unets", **SHAPE)
class UNets(Pair):
    """Two U-Nets, `to_b` and `to_a`; without dropout unless it is asked for."""

    def __init__(
        self,
        size: Count,
        channels: Count,
        width: Count = 64,
        norm: Norm = "instance",
        dropout: Fraction = 0.0,
        noise: bool = True,
    ) -> None:
        super().__init__(*(UNet(size, channels, width, norm, dropout, noise) for _ in range(2)))


def _normed(channels: int, norm: Norm) -> list[nn.Module]:
    return [normalisation(norm, channels), nn.ReLU()]


def _block(width: int, norm: Norm, padding: Padding) -> nn.Module:
    def convolution() -> nn.Module:
        bias = norm not in CENTRING
        return nn.Conv2d(width, width, 3, 1, 1, bias=bias, padding_mode=padding)

    return Residual(
        nn.Identity(),
        convolution(),
        *_normed(width, norm),
        convolution(),
        normalisation(norm, width),
    )
