"""Residual networks for any power of two from 8 pixels on.

Gulrajani et al. 2017, arXiv:1704.00028; Miyato et al. 2018, arXiv:1802.05957, table 4.
"""

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import interpolate

from gan.config.signature import SHAPE
from gan.networks.blocks import (
    Condition,
    Critic,
    Critique,
    Entrance,
    GeneratorNorm,
    Norm,
    Padding,
    chosen_norm,
    generator_norm,
    levels,
    normalisation,
    reparametrise,
    widths,
)
from gan.networks.resample import PooledConv2d, UpsampledConv2d
from gan.registry import Count, NonNegative, register


@register("generator", "resnet", given=("classes",), **SHAPE)
class Generator(nn.Module):
    """Latent vectors, projected to 4 x 4 pixels and doubled up to images in [-1, 1].

    `width` is the number of channels of the block at the image's size; each halving doubles it, up
    to `cap` * `width`: 1 keeps it, as at 32 pixels, and 16 with `width` 64 is the network for 128.
    With `classes` and `norm` `auto` or `conditional` the blocks' norms read the label, else the
    projection reads an embedding of it; 0: no labels. `slope` is that of the negative side of ReLU.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        latent: Count = 128,
        width: Count = 256,
        cap: Count = 1,
        norm: Literal[GeneratorNorm, "auto"] = "auto",
        slope: NonNegative = 0.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        norm = chosen_norm(norm, classes)
        inner = widths(width, levels(size) - 2, cap)[::-1]
        self.latent = latent
        self.enter = Entrance(latent, classes, norm)
        self.project = nn.Sequential(
            nn.Linear(self.enter.width, inner[0] * 4 * 4), nn.Unflatten(1, (inner[0], 4, 4))
        )
        self.blocks = nn.ModuleList(
            Double(
                nn.ModuleList(
                    generator_norm(norm, maps, classes, self.enter.width)
                    for maps in (before, after)
                ),
                before,
                after,
                slope,
                padding,
            )
            for before, after in pairwise([inner[0], *inner])
        )
        # the papers' last norm is the same for all classes
        last: GeneratorNorm = "batch" if norm == "conditional" else norm
        self.last = generator_norm(last, width, classes, self.enter.width)
        image = _convolution(width, channels, padding)
        self.image = nn.Sequential(_activation(slope), image, nn.Tanh())
        self.apply(_start)
        nn.init.xavier_uniform_(image.weight)  # no ReLU follows: gain 1
        reparametrise(self, norm)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to images [B, C, size, size]."""
        x, code = self.enter(z, label)
        x = self.project(x)  # [B, C, 4, 4]
        for block in self.blocks:
            x = block(x, code)
        return self.image(self.last(x, code))


@register("discriminator", "resnet", given=("classes",), **SHAPE)
class Discriminator(nn.Module):
    """Images, halved down to 8 x 8 pixels and refined by two blocks, to one logit each.

    Features are summed over pixels, not averaged. `width` is the number of channels of the first
    block; each halving after it doubles them, up to `cap` * `width`. `norm` acts on all maps but
    the first block's, or on all weights (`spectral`, `weight`). With `classes` the label is a
    `condition` of the logit, as in `Critic`; 0: no labels. `slope` is that of the negative side of
    ReLU, `dilation` that of the two refining blocks, which then see further at the same cost.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        condition: Condition = "projection",
        width: Count = 128,
        cap: Count = 1,
        norm: Norm = "none",
        slope: NonNegative = 0.0,
        padding: Padding = "zeros",
        dilation: Count = 1,
    ) -> None:
        super().__init__()
        inner = widths(width, max(1, levels(size) - 3), cap)
        self.first = _first(channels, width, slope, padding)
        self.halve = nn.Sequential(
            *(_halve(before, after, norm, slope, padding) for before, after in pairwise(inner))
        )
        self.refine = nn.Sequential(
            *(_refine(inner[-1], norm, slope, padding, dilation) for _ in range(2))
        )
        self.activate = _activation(slope)
        self.critic = Critic(inner[-1], classes, condition)
        self.apply(_start)
        reparametrise(self, norm)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [B, C, size, size] and labels [B] to logits [B]."""
        return self.critique(image, label).logits

    def critique(self, image: Tensor, label: Tensor | None = None) -> Critique:
        """The same, with class logits [B, classes] where there is an auxiliary head."""
        x = self.refine(self.halve(self.first(image)))
        return self.critic(self.activate(x).sum((2, 3)), label)


class Double(nn.Module):
    """Residual block to twice the size, with two norms that read a code."""

    def __init__(
        self, norms: nn.ModuleList, before: int, after: int, slope: float, padding: Padding
    ) -> None:
        super().__init__()
        self.norms, self.activate = norms, _activation(slope)
        self.first = UpsampledConv2d(before, after, padding)
        self.second = _convolution(after, after, padding)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, 2*H, 2*W]."""
        change = self.first(self.activate(self.norms[0](x, code)))
        change = self.second(self.activate(self.norms[1](change, code)))
        return interpolate(self.shortcut(x), scale_factor=2) + change  # nearest neighbour


class Residual(nn.Module):
    """The sum of two ways from one map to another."""

    def __init__(self, shortcut: nn.Module, *change: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.change = shortcut, nn.Sequential(*change)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to whatever both ways lead to."""
        return self.shortcut(x) + self.change(x)


def _first(channels: int, width: int, slope: float, padding: Padding) -> nn.Module:
    return Residual(
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, width, 1)),
        _convolution(channels, width, padding),
        _activation(slope),
        PooledConv2d(width, width, padding),
    )


def _halve(before: int, after: int, norm: Norm, slope: float, padding: Padding) -> nn.Module:
    # pooling before a 1 x 1 convolution gives what pooling after it does, at a quarter of the work
    shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))
    return Residual(
        shortcut,
        *_activated(norm, slope, _convolution(before, before, padding)),
        *_activated(norm, slope, PooledConv2d(before, after, padding)),
    )


def _refine(width: int, norm: Norm, slope: float, padding: Padding, dilation: int) -> nn.Module:
    def once() -> list[nn.Module]:
        return _activated(norm, slope, _convolution(width, width, padding, dilation))

    return Residual(nn.Identity(), *once(), *once())


def _activated(norm: Norm, slope: float, convolution: nn.Conv2d) -> list[nn.Module]:
    return [normalisation(norm, convolution.in_channels), _activation(slope), convolution]


def _activation(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def _convolution(before: int, after: int, padding: Padding, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation, padding_mode=padding)


def _start(module: nn.Module) -> None:
    """Xavier-uniform weights, with gain sqrt(2) in 3 x 3 convolutions, and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        wide = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        nn.init.xavier_uniform_(module.weight, math.sqrt(2) if wide else 1.0)
    if isinstance(module, nn.Linear | nn.Conv2d):
        assert module.bias is not None
        nn.init.zeros_(module.bias)
