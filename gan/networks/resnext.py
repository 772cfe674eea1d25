"""Residual networks of grouped convolutions, without normalisation: those of R3GAN.

Huang et al. 2025, arXiv:2501.05441, configuration E. At the start no block changes its maps, and
signals keep their variance through however many there are (Fixup, Zhang et al. 2019,
arXiv:1901.09321).
"""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import Condition, Critic, Critique, Latent, levels, widths
from gan.networks.penalised import PenalisedConv2d
from gan.networks.resample import BilinearHalf, BilinearTwice
from gan.registry import Count, NonNegative, register


@register("generator", "resnext", given=("classes",), **SHAPE)
class Generator(nn.Module):
    """Latent vectors that weigh learned maps of 4 x 4 pixels, doubled up to images.

    Images are not bounded in training; in evaluation mode they are cut to [-1, 1]. `width` is the
    number of channels at the image's size; each halving doubles it, up to `cap` * `width`: 768 and
    1 at 32 pixels, 384 and 2 at 64, 96 and 8 at 256. Each size has as many `blocks`, with
    `expansion` times as many maps inside, convolved in groups of `group` where that divides them.
    With `classes` an embedding of the label joins the latent vector; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        latent: Count = 64,
        width: Count = 768,
        cap: Count = 1,
        blocks: Count = 2,
        expansion: Count = 2,
        group: Count = 16,
        slope: NonNegative = 0.2,
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size) - 1, cap)[::-1]
        self.latent = latent
        self.join = Latent(latent, classes)
        self.weigh = nn.Linear(self.join.width, inner[0], bias=False)
        self.maps = nn.Parameter(torch.empty(inner[0], 4, 4))
        stage = partial(_stage, blocks, expansion, group, slope)
        stages = [stage(inner[0])]
        for before, after in pairwise(inner):
            stages += [*_matched(before, after), BilinearTwice(after), stage(after)]
        self.stages = nn.Sequential(*stages)
        self.image = nn.Conv2d(width, channels, 1, bias=False)
        _start(self)
        nn.init.normal_(self.maps)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to images [B, C, size, size]."""
        weights = self.weigh(self.join(z, label))
        images = self.image(self.stages(weights[:, :, None, None] * self.maps))
        return images if self.training else images.clamp(-1, 1)


@register("discriminator", "resnext", given=("classes",), **SHAPE)
class Discriminator(nn.Module):
    """Images, halved down to 4 x 4 pixels that are weighed and summed, to one logit each.

    Its settings are the generator's. With `classes` the label is a `condition` of the logit, as in
    `Critic`; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        condition: Condition = "projection",
        width: Count = 768,
        cap: Count = 1,
        blocks: Count = 2,
        expansion: Count = 2,
        group: Count = 16,
        slope: NonNegative = 0.2,
    ) -> None:
        super().__init__()
        inner = widths(width, levels(size) - 1, cap)
        self.first = PenalisedConv2d(channels, width, 1, bias=False)
        stage = partial(_stage, blocks, expansion, group, slope)
        stages = [stage(width)]
        for before, after in pairwise(inner):
            stages += [BilinearHalf(before), *_matched(before, after), stage(after)]
        self.stages = nn.Sequential(*stages)
        self.gather = PenalisedConv2d(inner[-1], inner[-1], 4, groups=inner[-1], bias=False)
        self.critic = Critic(inner[-1], classes, condition)
        _start(self)
        for weight in self.critic.embeddings.parameters():
            nn.init.normal_(weight, std=1 / math.sqrt(classes * inner[-1]))

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [B, C, size, size] and labels [B] to logits [B]."""
        return self.critique(image, label).logits

    def critique(self, image: Tensor, label: Tensor | None = None) -> Critique:
        """The same, with class logits [B, classes] where there is an auxiliary head."""
        return self.critic(self.gather(self.stages(self.first(image))).flatten(1), label)


class Block(nn.Module):
    """Adds what three convolutions make of maps: 1 x 1, 3 x 3 in groups, and 1 x 1."""

    def __init__(self, width: int, expansion: int, group: int, slope: float) -> None:
        super().__init__()
        inner = width * expansion
        groups = inner // math.gcd(inner, group)
        self.widen = PenalisedConv2d(width, inner, 1)
        self.convolve = PenalisedConv2d(inner, inner, 3, padding=1, groups=groups)
        self.narrow = PenalisedConv2d(inner, width, 1, bias=False)
        self.activate = nn.LeakyReLU(slope)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, width, H, W] to maps of the same shape."""
        return x + self.narrow(self.activate(self.convolve(self.activate(self.widen(x)))))


def _stage(blocks: int, expansion: int, group: int, slope: float, width: int) -> nn.Module:
    return nn.Sequential(*(Block(width, expansion, group, slope) for _ in range(blocks)))


def _matched(before: int, after: int) -> list[nn.Module]:
    return [] if before == after else [PenalisedConv2d(before, after, 1, bias=False)]


def _start(network: nn.Module) -> None:
    """Weights from N(0, gain^2 / fan-in) and zero biases.

    The gain of what leads into an activation makes up for it, by the paper's share of that: the
    number of blocks to the power of -1/4. That of a block's last convolution is 0, of others 1.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):  # a linear layer of as many numbers, one of them 1
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.num_embeddings))
    for block in blocks:
        gain = nn.init.calculate_gain("leaky_relu", block.activate.negative_slope)
        for layer in (block.widen, block.convolve):
            layer.weight.data *= gain * len(blocks) ** -0.25
        nn.init.zeros_(block.narrow.weight)
