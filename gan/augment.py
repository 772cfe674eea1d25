"""Differentiable augmentation: the discriminator sees reals and fakes under one law of changes.

DiffAugment (Zhao et al. 2020, arXiv:2006.10738). With few images a discriminator learns them by
heart; changed anew at every look, they are many more. The generator's images pass through the same
changes in both players' turns and their gradient comes back through them, so that the changes do
not leak into what it draws. Every change draws its numbers once a sample, and its input stays.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gan import draws
from gan.registry import Fraction, NonNegative, register

Change = Callable[[Tensor], Tensor]


def augmented(image: Tensor, changes: Iterable[Change]) -> Tensor:
    """Images [B, C, H, W] after every change, in order; without changes the images themselves."""
    for change in changes:
        image = change(image)
    return image


@register("augment", "brightness")
class Brightness:
    """Adds a number of [-strength, strength] to a whole sample."""

    def __init__(self, strength: NonNegative = 0.5) -> None:
        """In units of [-1, 1]."""
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        """Images of the same shape."""
        return image + self.strength * (2 * _draw(image) - 1)


@register("augment", "saturation")
class Saturation:
    """Scales the distance of each pixel's channels to their mean by one of 1 +- strength."""

    def __init__(self, strength: NonNegative = 1.0) -> None:
        """At 1 from grey to twice the colour; images of one channel stay as they are."""
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        """Images of the same shape."""
        return _scaled(image, image.mean(1, keepdim=True), self.strength)


@register("augment", "contrast")
class Contrast:
    """Scales the distance of each value to its sample's mean by one of 1 +- strength."""

    def __init__(self, strength: NonNegative = 0.5) -> None:
        """At 0.5 from half to one and a half times the contrast."""
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        """Images of the same shape."""
        return _scaled(image, image.mean((1, 2, 3), keepdim=True), self.strength)


@register("augment", "shift")
class Shift:
    """Moves a sample by whole pixels, each way by up to a share of its side."""

    def __init__(self, ratio: Fraction = 0.125, border: bool = False) -> None:
        """What comes in is grey (0), as published, or repeats the `border`."""
        self.ratio, self.border = ratio, border

    def __call__(self, image: Tensor) -> Tensor:
        """Images of the same shape; a gather, since a penalty differentiates it twice."""
        rows, inside_rows = self._moved(image, image.shape[2])
        columns, inside_columns = self._moved(image, image.shape[3])
        samples = torch.arange(len(image), device=image.device)[:, None, None]
        moved = image.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None]]
        moved = moved.permute(0, 3, 1, 2)
        if self.border:
            return moved
        return moved * (inside_rows[:, None, :, None] & inside_columns[:, None, None])

    def _moved(self, image: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Where each of a side's places comes from, [B, side], and whether it lies inside."""
        most = int(side * self.ratio + 0.5)
        by = draws.integers(-most, most + 1, len(image), 1, device=image.device)
        source = torch.arange(side, device=image.device) - by
        return source.clamp(0, side - 1), (source >= 0) & (source < side)


@register("augment", "cutout")
class Cutout:
    """Greys a box out whose sides are a share of the sample's; it may reach over the border."""

    def __init__(self, ratio: Fraction = 0.5) -> None:
        """The box of DeVries and Taylor 2017, arXiv:1708.04552, once a sample."""
        self.ratio = ratio

    def __call__(self, image: Tensor) -> Tensor:
        """Images of the same shape."""
        rows, columns = (self._covered(image, side) for side in image.shape[2:])
        return image * ~(rows[:, None, :, None] & columns[:, None, None])

    def _covered(self, image: Tensor, side: int) -> Tensor:
        """Which of a side's places the box covers, [B, side]."""
        width = int(side * self.ratio + 0.5)
        most = side + 1 - width % 2
        centre = draws.integers(0, most, len(image), 1, device=image.device)
        place = torch.arange(side, device=image.device)
        return (place >= centre - width // 2) & (place < centre - width // 2 + width)


def _draw(image: Tensor) -> Tensor:
    """One number of [0, 1) a sample, [B, 1, 1, 1]."""
    return draws.uniform(len(image), 1, 1, 1, device=image.device, dtype=image.dtype)


def _scaled(image: Tensor, mean: Tensor, strength: float) -> Tensor:
    return mean + (image - mean) * (1 + strength * (2 * _draw(image) - 1))
