"""Averages of the generator's parameters over the course of training."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gan.step.buffers import exchanged, normed, others, places, settled


class Average(nn.Module, ABC):
    """A second generator whose parameters follow the first one's.

    Parameters are averaged in fp32 and buffers copied: averaged power-iteration vectors would let
    the spectral norm exceed 1, averaged counters mean nothing.
    """

    def __init__(self, generator: nn.Module) -> None:
        """Start as a copy of the generator."""
        super().__init__()
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        self.updates = self.images = 0
        self._followed: list[Tensor] = list(generator.parameters())
        self._averaged: list[Tensor] = list(self.generator.parameters())
        self._places = places(generator), places(self.generator)

    @abstractmethod
    def weight(self, images: int) -> float:
        """The weight of the newest parameters, when this update stands for so many images."""

    @torch.no_grad()
    def update(self, images: int, draw: Callable[[], object] | None = None) -> None:
        """Take in the generator that it was made of; `draw` has that one draw a batch."""
        torch._foreach_lerp_(self._averaged, self._followed, self.weight(images))
        there, here = ([owner[name] for owner, name in found] for found in self._places)
        if here:
            torch._foreach_copy_(here, there)
        self.updates += 1
        self.images += images

    def refreshed(self) -> nn.Module:
        """The averaged generator, ready to draw."""
        return settled(self.generator)


class Ema(Average):
    """Exponential average with a half-life in images, hence the same at any batch size.

    With `rampup` the half-life is at most that share of the images seen: the first update copies.
    Karras et al. 2020, arXiv:2006.06676.
    """

    def __init__(self, generator: nn.Module, halflife: float, rampup: float | None = 0.05) -> None:
        super().__init__(generator)
        self.halflife, self.rampup = halflife, rampup

    def weight(self, images: int) -> float:
        """1 - 0.5 ** (images / half-life)."""
        ramped = self.halflife if self.rampup is None else self.rampup * self.images
        halflife = min(self.halflife, ramped)
        return 1.0 - 0.5 ** (images / halflife) if halflife > 0 else 1.0


class Uniform(Average):
    """The mean of the parameters after every update from the `start`-th on; before, a copy.

    Izmailov et al. 2018, arXiv:1803.05407; Yazici et al. 2019, arXiv:1806.04498. The newest
    parameters are too far from it to share running statistics: it draws batches for its own.
    """

    def __init__(self, generator: nn.Module, start: int = 1) -> None:
        super().__init__(generator)
        self.start, self._source = start, (generator,)  # in a tuple, so that it is no submodule
        self._places = others(generator), others(self.generator)

    def update(self, images: int, draw: Callable[[], object] | None = None) -> None:
        """Without `draw` running statistics stay as they are; after a while every tenth counts."""
        super().update(images)
        if draw and normed(self.generator) and (self.updates <= 100 or self.updates % 10 == 0):
            with exchanged(*self._source, self.generator):
                draw()

    def weight(self, images: int) -> float:
        """1 / n for the n-th update that counts."""
        return 1.0 / max(1, self.updates + 2 - self.start)
