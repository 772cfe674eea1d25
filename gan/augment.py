"""Differentiable augmentation: the discriminator sees reals and fakes under one law of changes.

DiffAugment (Zhao et al. 2020, arXiv:2006.10738). With few images a discriminator learns them by
heart; changed anew at every look, they are many more. The generator's images pass through the same
changes in both players' turns and their gradient comes back through them, so that the changes do
not leak into what it draws. Every change draws its numbers once a sample, and its input stays.

Two things move while training goes on, by tensors on the device alone, which are part of a
checkpoint: the probability of `ada`, and the strength of `noise`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gan import distributed, draws
from gan.registry import Count, Fraction, NonNegative, register

Change = Callable[[Tensor], Tensor]


class Augmentation(nn.Module):
    """What the discriminator sees of images: every change in order, or the images themselves.

    What moves is a module, and part of its state.
    """

    seen: Tensor  # real images that the discriminator has learnt, over all processes

    def __init__(self, changes: Mapping[str, Change]) -> None:
        """`ada` is no change of its own: it says how often the others are made."""
        super().__init__()
        moving = {name: change for name, change in changes.items() if isinstance(change, nn.Module)}
        self.changes = [change for change in changes.values() if not isinstance(change, Ada)]
        self.moving = nn.ModuleDict(moving)
        if moving:
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def ada(self) -> "Ada | None":
        """What says how often changes are made; None: always."""
        return next((change for change in self.moving.values() if isinstance(change, Ada)), None)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] to images of the same shape, changed in float32 or finer.

        Under autocast fakes come with 8 bits and reals with 24: numbers drawn so would tell them.
        """
        ada = self.ada
        if self.changes:
            image = image.to(torch.promote_types(image.dtype, torch.float32))
        for change in self.changes:
            changed = change(image)
            if ada is not None and not isinstance(change, Noise):
                changed = ada.some(image, changed)
            image = changed
        return image

    def learnt(self, logits: Tensor) -> dict[str, Tensor]:
        """Moves what moves, after the discriminator gave reals these logits; statistics to log.

        A batch in pieces moves it once, after its last piece.
        """
        return self._move(logits) if len(self.moving) else {}

    @torch.no_grad()
    def _move(self, logits: Tensor) -> dict[str, Tensor]:
        batch = draws.batch(len(logits))
        self.seen += len(logits) * distributed.size()
        for change in self.changes:
            if isinstance(change, Noise):
                change.fade(self.seen - self.seen % batch)
        if (ada := self.ada) is None:
            return {}
        used = {"augment_probability": ada.probability.clone()}
        ada.adapt(logits, batch, self.seen % (ada.every * batch) == 0)
        return used


@register("augment", "ada")
class Ada(nn.Module):
    """Makes the other changes with a probability that grows while the discriminator overfits.

    Karras et al. 2020, arXiv:2006.06676, section 3.1: it does where it is sure of the training
    images, that is where r = E sign(logit) of augmented reals is above a target. Then the
    probability p of each change, drawn for each sample, rises, and below the target it falls.
    """

    probability: Tensor
    signs: Tensor  # of the reals since p last moved: their sum, as a mean over processes

    def __init__(
        self,
        target: Fraction = 0.6,
        images: Count = 500_000,
        every: Count = 4,
        start: Fraction = 0.0,
        most: Fraction = 1.0,
    ) -> None:
        """p begins at `start`, moves after `every` discriminator updates, and is at most `most`.

        It takes `images` reals to get from 0 to 1. Values of the paper.
        """
        super().__init__()
        self.target, self.images, self.every, self.most = target, images, every, most
        self.register_buffer("probability", torch.tensor(min(start, most)))
        self.register_buffer("signs", torch.zeros(()))

    def some(self, image: Tensor, changed: Tensor) -> Tensor:
        """Images of which each is changed with the probability p; at 0 the images' own values."""
        return torch.where(_draw(image) < self.probability, changed, image)

    def adapt(self, logits: Tensor, batch: int, due: Tensor) -> None:
        """Count the signs of logits [B, ...]; where it is `due`, move p by sign(r - target).

        A logit that is no number counts for neither side. Signs are compared as sums: a mean is
        rounded, and r at its target would not leave p as it is.
        """
        sign = torch.sign(logits.float()).reshape(len(logits), -1)  # [B, K]
        self.signs += distributed.mean(sign.mean(1).sum())
        looked_at = self.every * batch  # reals, over all processes
        beyond = self.signs * distributed.size() - self.target * looked_at
        step = torch.sign(beyond) * (looked_at / self.images)
        moved = (self.probability + step).clamp(0, self.most)
        self.probability.copy_(torch.where(due, moved, self.probability))
        self.signs.masked_fill_(due, 0)


@register("augment", "noise")
class Noise(nn.Module):
    """Adds Gaussian noise that fades: instance noise, so that reals and fakes overlap at first.

    Sønderby et al. 2016, arXiv:1610.04490; Arjovsky and Bottou 2017, arXiv:1701.04862. The standard
    deviation falls along a line to 0. `ada` leaves it alone: all samples have it.
    """

    deviation: Tensor

    def __init__(self, strength: NonNegative = 0.1, images: Count = 500_000) -> None:
        """`strength` is the first deviation, in units of [-1, 1]; 0 after so many `images`."""
        super().__init__()
        self.strength, self.images = strength, images
        self.register_buffer("deviation", torch.tensor(float(strength)))

    def forward(self, image: Tensor) -> Tensor:
        """Images of the same shape."""
        return image + self.deviation.to(image.dtype) * draws.normal_like(image)

    def fade(self, seen: Tensor) -> None:
        """The deviation after so many images."""
        self.deviation.copy_(self.strength * (1 - seen / self.images).clamp_min(0))


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
