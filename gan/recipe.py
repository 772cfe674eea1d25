"""A recipe: two modules and what each of them minimises.

Everything the generator's optimizer moves is `generator`, everything the discriminator's moves is
`discriminator`; either may hold several networks. The trainer knows nothing else of a GAN.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gan.step.compiling import eager

Batch = Mapping[str, Tensor]
Judge = Callable[[Tensor], Tensor]
Penalty = Callable[[Judge, Tensor, Tensor, int], Tensor]


class Recipe(nn.Module, ABC):
    """Two modules, named losses for each, and samples to show.

    Losses are scalars, weighted, by name; their sum is what the player minimises. Names listed in
    `statistics` may stand among them: they are detached, logged and not trained.
    """

    generator: nn.Module
    discriminator: nn.Module
    reads: tuple[str, ...] = ("real",)
    facts: Mapping[str, int] = {}  # what its networks are built with, beside facts of the data
    statistics: tuple[str, ...] = ("logits_real", "logits_fake", "augment_probability")

    def prepare(self, batch: Batch) -> Batch:
        """The batch as it is played: the place for changes of the data that are drawn anew."""
        return batch

    @abstractmethod
    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """All that the generator makes of this batch, with its graph."""

    @abstractmethod
    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """The discriminator's terms; `fakes` arrive detached, `update` counts its updates."""

    @abstractmethod
    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """The generator's terms; `fakes` carry their graph."""

    @abstractmethod
    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Images [N, C, H, W] in [-1, 1] by name; `generated` by `generator`, raw or averaged."""


def detached(fakes: Batch) -> dict[str, Tensor]:
    """The same tensors without their graph."""
    return {name: fake.detach() for name, fake in fakes.items()}


def penalise(
    penalties: Mapping[str, Penalty], judge: Judge, real: Tensor, fake: Tensor, update: int
) -> dict[str, Tensor]:
    """The penalties that are due at this update, by name."""
    with eager():  # they differentiate twice, which compiled code cannot
        return {n: penalties[n](judge, real, fake, update) for n in due(penalties, update)}


def due(penalties: Mapping[str, Penalty], update: int) -> list[str]:
    """The names of the penalties that this update pays."""
    number = getattr(update, "value", update)  # which are due is known of a turn that is recorded
    paid = {n: p for n, p in penalties.items() if getattr(p, "weight", 1) != 0}
    return [name for name, p in paid.items() if number % getattr(p, "every", 1) == 0]
