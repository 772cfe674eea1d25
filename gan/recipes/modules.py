"""What recipes call on their modules beyond `forward`; any module with these attributes will do."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn


class Critique(Protocol):
    """What a discriminator says of an image."""

    @property
    def logits(self) -> Tensor:
        """The larger, the more real, [B]."""

    @property
    def class_logits(self) -> Tensor | None:
        """Which class it belongs to, [B, classes], if the discriminator says so."""


class LabelCritic(nn.Module):
    """A discriminator of images and labels; `forward` gives the logits of `critique` alone."""

    critique: Callable[[Tensor, Tensor], Critique]


class Code(Protocol):
    """What an encoder finds in an image."""

    @property
    def code(self) -> Tensor:
        """One vector for each image, [B, D]."""

    @property
    def logits(self) -> Tensor:
        """Which class it belongs to, [B, classes]."""


class GlyphWriter(nn.Module):
    """A generator that takes characters and styles apart, and puts them together.

    What it makes of images is a `Code` in training; in evaluation it is for `decode` alone.
    """

    encode_content: Callable[[Tensor], Code]  # of images [B, C, H, W]
    encode_style: Callable[[Tensor], Code]  # of references [B, (K,) C, H, W]
    decode: Callable[[Code, Code], Tensor]  # content and style to images


class GlyphCritic(nn.Module):
    """A discriminator of (prototype, image, reference) that shows its maps."""

    features: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


class Observer(Protocol):
    """A classifier that shows its maps."""

    def features(self, image: Tensor) -> Sequence[Tensor]:
        """Maps of images [B, C, H, W], finest first."""


class ImageCritic(nn.Module):
    """A discriminator of images [B, C, H, W] that shows its maps."""

    features: Callable[[Tensor], Sequence[Tensor]]


class TwoTranslators(nn.Module):
    """A generator of images of one kind from images of another, both ways."""

    to_a: nn.Module
    to_b: nn.Module


class TwoCritics(nn.Module):
    """A discriminator for each of two kinds of images."""

    of_a: nn.Module
    of_b: nn.Module
