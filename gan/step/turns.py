"""Who plays first in a step; where the side changes, both play on one batch and its fakes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from gan.recipe import Batch

if TYPE_CHECKING:
    from gan.trainer import Trainer

Dealt = tuple[Batch, dict[str, Tensor]]  # a batch, and what the generator made of it


def discriminator_first(run: "Trainer", critic: int) -> None:
    """`critic` discriminator updates, then the generator's on the last batch."""
    for left in reversed(range(critic)):
        dealt = run.discriminate(shared=left == 0)
    run.generate(dealt)


def generator_first(run: "Trainer", critic: int) -> None:
    """The generator's update, then `critic` discriminator updates, the first on its batch."""
    dealt: Dealt | None = run.generate()
    for _ in range(critic):
        run.discriminate(False, dealt)
        dealt = None


ORDERS: Mapping[str, Callable[["Trainer", int], None]] = {
    "discriminator": discriminator_first,
    "generator": generator_first,
}
