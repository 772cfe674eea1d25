"""Who plays first in a step; where the side changes, both play on one batch and its fakes."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from gan.recipe import Batch

Dealt = tuple[Batch, dict[str, Tensor]]  # a batch, and what the generator made of it


class Table(Protocol):
    """Where two players take turns; each is dealt a fresh batch unless it is given one."""

    def generate(self, dealt: Dealt | None = None) -> Dealt:
        """One generator update."""

    def discriminate(self, shared: bool, dealt: Dealt | None = None) -> Dealt:
        """One discriminator update; what is `shared` keeps its graph."""


def discriminator_first(table: Table, critic: int) -> None:
    """`critic` discriminator updates, then the generator's on the last batch."""
    for left in reversed(range(critic)):
        dealt = table.discriminate(shared=left == 0)
    table.generate(dealt)


def generator_first(table: Table, critic: int) -> None:
    """The generator's update, then `critic` discriminator updates, the first on its batch."""
    dealt: Dealt | None = table.generate()
    for _ in range(critic):
        table.discriminate(False, dealt)
        dealt = None


ORDERS: Mapping[str, Callable[[Table, int], None]] = {
    "discriminator": discriminator_first,
    "generator": generator_first,
}
