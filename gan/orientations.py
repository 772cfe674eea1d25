"""The eight orientations of a square: turned by quarters, and mirrored."""

from collections.abc import Callable

from torch import Tensor

CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.flip(-1),
    lambda x: x.flip(-2),
    lambda x: x.transpose(-2, -1),
)  # one for each bit of an orientation's number, in this order; each is its own inverse
ORIENTATIONS = 2 ** len(CHANGES)


def oriented(images: Tensor, orientation: int) -> Tensor:
    """Images [..., S, S] in an orientation from 0, which is their own, to 7."""
    for bit, change in enumerate(CHANGES):
        images = change(images) if orientation >> bit & 1 else images
    return images


def upright(images: Tensor, orientation: int) -> Tensor:
    """What `oriented` changed, as it was."""
    for bit, change in reversed([*enumerate(CHANGES)]):
        images = change(images) if orientation >> bit & 1 else images
    return images
