"""References as a generator takes them: alone, or beside their characters in the standard font."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def is_paired(writer: nn.Module) -> bool:
    """Whether a generator takes each reference beside its character in the standard font."""
    return bool(getattr(writer, "paired", False))


def paired(writer: nn.Module, references: Tensor, shown: Tensor | None) -> Tensor:
    """References [..., C, H, W] as they are, or [..., 2 * C, H, W] for a paired generator.

    The further channels are `shown`, their characters in the standard font.

    Raises:
        ValueError: a paired generator is not told what each reference shows.
    """
    if not is_paired(writer):
        return references
    if shown is None or shown.shape != references.shape:
        said = "nothing" if shown is None else [*shown.shape]
        raise ValueError(
            "a generator of generator.paired=true takes each reference beside its character in the "
            f"standard font, of the same shape: references {[*references.shape]}, shown {said}"
        )
    return torch.cat([references, shown.to(references.device)], -3)


def references_of(writer: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The references of a batch as a generator takes them, with what it has of their characters."""
    return paired(writer, batch["reference"], batch.get("shown"))
