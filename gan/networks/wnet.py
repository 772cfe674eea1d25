"""W-Net: one reference glyph gives the style, one prototype glyph the character.

Figure 2 of Jiang, Yang, Huang and Zhang 2018, arXiv:2406.06122, for any power of two from 8 pixels
on. Content enters the decoder at every level, style only at 8 x 8 pixels and below.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import in_full, levels, widths, xavier_start
from gan.networks.resample import StridedConv2d, StridedConvTranspose2d
from gan.networks.resnet import Residual
from gan.orientations import ORIENTATIONS, oriented, upright
from gan.registry import Count, Fraction, register

STYLE_SIZE = 8  # pixels: style joins at this size and below, residual blocks at this size and above


class Code(NamedTuple):
    """What an encoder finds in an image."""

    code: Tensor  # [B, D]
    logits: Tensor  # [B, characters] for content, [B, styles] for style
    shortcuts: tuple[Tensor, ...]  # maps for the decoder, coarsest first


Codes = tuple[Code, ...]  # of an image in every orientation


class Critique(NamedTuple):
    """What the discriminator says of an image."""

    logits: Tensor  # [B], the larger the more real
    style_logits: Tensor  # [B, styles]


@register("generator", "wnet", given=("styles", "characters"), **SHAPE)
class Generator(nn.Module):
    """Prototype and references to the prototype's character in the references' style.

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    8 * `width`. `blocks` residual blocks refine the shortcuts at 8 x 8 pixels, two fewer at each
    finer level, none below. `styles` and `characters` are the numbers of training classes. Every
    pass in training mode moves the encoders' running statistics, also those of encoded fakes.

    With `self_ensemble` it draws in all eight orientations once it is trained and takes the median
    of each pixel (Lim et al. 2017, arXiv:1707.02921, who take the mean). That takes a training in
    which samples were turned.

    With `paired` the style encoder sees each reference beside its character in the standard font:
    references then have 2 * C channels, as `gan.references.paired` joins them.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        styles: int,
        characters: int,
        width: Count = 16,
        blocks: Count = 5,
        dropout: Fraction = 0.5,
        self_ensemble: bool = False,
        paired: bool = False,
    ) -> None:
        super().__init__()
        self.self_ensemble, self.paired = self_ensemble, paired
        inner = widths(width, levels(size))
        self.content_encoder = Encoder(channels, inner, characters)
        self.style_encoder = Encoder((1 + paired) * channels, inner, styles)
        self.decoder = Decoder(channels, inner, blocks, dropout)
        self.apply(xavier_start)

    @staticmethod
    def reads_more(settings: Mapping[str, Any]) -> tuple[str, ...]:
        """What a batch must have for these settings, beside what the recipe reads."""
        return ("shown",) if settings["paired"] else ()

    def forward(self, prototype: Tensor, references: Tensor) -> Tensor:
        """Prototypes [B, C, H, W] and references [B, K, C, H, W] to images in [-1, 1]."""
        return self.decode(self.encode_content(prototype), self.encode_style(references))

    def encode_content(self, image: Tensor) -> Code | Codes:
        """The character of images [B, C, H, W]."""
        return self._seen(self.content_encoder, image)

    def encode_style(self, references: Tensor) -> Code | Codes:
        """The style of references [B, K, C, H, W], averaged over K; without K, of one each."""
        return self._seen(self._style_of, references)

    def decode(self, content: Code | Codes, style: Code | Codes) -> Tensor:
        """Images in [-1, 1] with the character of one code and the style of the other."""
        if isinstance(content, Code):
            return self.decoder(content, style)
        pairs = zip(content, style, strict=True)
        drawn = [upright(self.decoder(*pair), way) for way, pair in enumerate(pairs)]
        return _median(torch.stack(drawn))

    def _seen(self, encoder: Callable[[Tensor], Code], images: Tensor) -> Code | Codes:
        """The code of the images, or one for each of their orientations."""
        if self.training or not self.self_ensemble:
            return encoder(images)
        return tuple(encoder(oriented(images, way)) for way in range(ORIENTATIONS))

    def _style_of(self, references: Tensor) -> Code:
        if references.ndim == 4:
            return self.style_encoder(references)
        count = references.shape[1]
        code, logits, shortcuts = self.style_encoder(references.flatten(0, 1))  # [B*K, ...]
        averaged = tuple(_mean(shortcut, count) for shortcut in shortcuts)
        return Code(_mean(code, count), _mean(logits, count), averaged)


@register("discriminator", "wnet", given=("styles",), **SHAPE)
class Discriminator(nn.Module):
    """Prototype, image and reference, seen together, to one logit and style logits.

    `width` is the number of channels at half the image's size; each halving doubles it, up to
    32 * `width`. Layer norm and no batch norm: a sample's logit depends on that sample alone, as a
    gradient penalty needs.
    """

    def __init__(self, size: Count, channels: Count, styles: int, width: Count = 8) -> None:
        super().__init__()
        inner = widths(width, levels(size), cap=32)
        self.first = nn.Sequential(_halve(3 * channels, width), nn.LeakyReLU(0.2))
        self.inner = nn.Sequential(*(_judged(before, after) for before, after in pairwise(inner)))
        self.critic = nn.Linear(inner[-1], 1)
        self.style = nn.Linear(inner[-1], styles)
        self.apply(xavier_start)

    def forward(self, prototype: Tensor, image: Tensor, reference: Tensor) -> Critique:
        """Prototypes, images and references, each [B, C, H, W], to logits."""
        x = self.features(prototype, image, reference)[-1].flatten(1)  # [B, D]
        return Critique(in_full(self.critic, x).squeeze(1), in_full(self.style, x))

    def features(self, prototype: Tensor, image: Tensor, reference: Tensor) -> list[Tensor]:
        """The map of every level, finest first, for losses that compare images through it."""
        maps = [self.first(torch.cat([prototype, image, reference], 1))]
        for judge in self.inner:
            maps.append(judge(maps[-1]))
        return maps


class Encoder(nn.Module):
    """Image to code: halved down to one pixel, with the map of every level on the way."""

    def __init__(self, channels: int, inner: list[int], classes: int) -> None:
        super().__init__()
        self.first = _halve(channels, inner[0])
        self.inner = nn.ModuleList(_encoded(before, after) for before, after in pairwise(inner))
        self.head = nn.Linear(inner[-1], classes)

    def forward(self, image: Tensor) -> Code:
        """Images [B, C, H, W] to their codes; training needs at least two images."""
        if self.training and len(image) < 2:
            raise ValueError(
                "trainer.batch_size and trainer.micro_batch must leave W-Net at least 2 images per "
                "process while training, not 1: batch norm has no variance at one pixel"
            )
        maps = [self.first(image)]
        for halve in self.inner:
            maps.append(halve(maps[-1]))
        *shortcuts, code = maps
        code = code.flatten(1)  # [B, D]
        return Code(code, in_full(self.head, code), tuple(reversed(shortcuts)))


class Decoder(nn.Module):
    """Two codes and their shortcuts to an image.

    The residual blocks of the shortcuts live here, after the mean over references, so that encoding
    an image for its code alone costs none of them.
    """

    def __init__(self, channels: int, inner: list[int], blocks: int, dropout: float) -> None:
        super().__init__()
        sizes = [2**level for level in range(1, len(inner))]  # pixels, coarsest first
        self.levels = nn.ModuleList()
        before = 2 * inner[-1]
        for size, after in zip(sizes, inner[-2::-1], strict=True):
            sources = 1 + (size <= STYLE_SIZE)
            self.levels.append(Level(before, after, sources, _depth(size, blocks), dropout))
            before = (1 + sources) * after
        self.image = nn.Sequential(nn.ReLU(), _double(before, channels), nn.Tanh())

    def forward(self, content: Code, style: Code) -> Tensor:
        """Codes to images [B, C, H, W] in [-1, 1]."""
        x = torch.cat([content.code, style.code], 1)[:, :, None, None]  # [B, 2*D, 1, 1]
        shortcuts = zip(content.shortcuts, style.shortcuts, strict=True)
        for level, pair in zip(self.levels, shortcuts, strict=True):
            x = level(x, pair)
        return self.image(x)


class Level(nn.Module):
    """One step of the decoder: twice the size, then the refined shortcuts beside it.

    With one source the level reads content alone, with two it reads content and style.
    """

    def __init__(self, before: int, after: int, sources: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.ReLU(), _double(before, after), nn.BatchNorm2d(after), nn.Dropout(dropout)
        )
        self.refine = nn.ModuleList(
            nn.Sequential(*(_residual(after) for _ in range(depth))) for _ in range(sources)
        )

    def forward(self, x: Tensor, shortcuts: tuple[Tensor, Tensor]) -> Tensor:
        """Maps [B, before, H, W] with content and style [B, after, 2*H, 2*W] to one map."""
        read = shortcuts[: len(self.refine)]
        refined = [refine(shortcut) for refine, shortcut in zip(self.refine, read, strict=True)]
        return torch.cat([self.grow(x), *refined], 1)  # [B, (1 + sources) * after, 2*H, 2*W]


def _residual(channels: int) -> nn.Module:
    """Pre-activation residual block of constant width (He et al. 2016, arXiv:1603.05027)."""

    def once() -> list[nn.Module]:
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        return [nn.BatchNorm2d(channels), nn.ReLU(), convolution]

    return Residual(nn.Identity(), *once(), *once())


def _depth(size: int, blocks: int) -> int:
    finer = int(math.log2(size / STYLE_SIZE))  # levels above 8 x 8 pixels
    return max(0, blocks - 2 * finer) if finer >= 0 else 0


def _halve(before: int, after: int) -> nn.Module:
    return StridedConv2d(before, after, 5)


def _double(before: int, after: int) -> nn.Module:
    return StridedConvTranspose2d(before, after, 5)


def _encoded(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.2), _halve(before, after), nn.BatchNorm2d(after))


def _judged(before: int, after: int) -> nn.Module:
    return nn.Sequential(_halve(before, after), nn.GroupNorm(1, after), nn.LeakyReLU(0.2))


def _mean(x: Tensor, count: int) -> Tensor:
    return x.reshape(-1, count, *x.shape[1:]).mean(1)  # [B, ...]


def _median(drawings: Tensor) -> Tensor:
    """The median over the first dimension, of an even number the mean of the middle two."""
    ordered, middle = drawings.sort(0).values, len(drawings) // 2
    return ordered[middle - 1 : middle + 1].mean(0) + 0 * ordered[-1]  # NaN is last, and stays
