"""Random numbers of samples: a sample's are the same, whoever draws them.

Where a batch is split over processes or micro-batches, each part draws the numbers of the whole
batch from a common generator and keeps its own rows, so that a gradient does not depend on the
split. Whatever else is random (dropout, pools of images, `torch.randn` in a module of a user's)
comes from torch's global generator, which is seeded differently for every part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

Fill = Callable[..., Tensor]  # of a tensor in place, by a `generator`


class Share(NamedTuple):
    """The rows of a batch that are played at once."""

    first: int
    rows: int
    total: int


class _Common(NamedTuple):
    share: Share
    seed: int
    generators: dict[torch.device, torch.Generator]


_common: list[_Common] = []  # the innermost block is the last; none where batches are whole


@contextmanager
def shared(share: Share, seed: int) -> Iterator[None]:
    """Inside the block numbers are drawn for these rows, from common generators of this seed."""
    _common.append(_Common(share, seed, {}))
    try:
        yield
    finally:
        _common.pop()


def batch(rows: int) -> int:
    """Images of the whole batch that so many are played of."""
    return _common[-1].share.total if _common else rows


def normal(count: int, *shape: int, device: torch.device) -> Tensor:
    """Standard normal numbers [count, ...]."""
    if not _common:
        return torch.randn(count, *shape, device=device)
    return _rows(torch.empty(count, *shape, device=device), Tensor.normal_)


def uniform(
    count: int, *shape: int, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Uniform numbers [count, ...] from 0 to 1."""
    if not _common:
        return torch.rand(count, *shape, device=device, dtype=dtype)
    return _rows(torch.empty(count, *shape, device=device, dtype=dtype), Tensor.uniform_)


def normal_like(x: Tensor) -> Tensor:
    """Standard normal numbers [B, ...] of the same shape, dtype and memory format."""
    return _rows(x, Tensor.normal_) if _common else torch.randn_like(x)


def uniform_like(x: Tensor) -> Tensor:
    """Uniform numbers [B, ...] from 0 to 1 of the same shape, dtype and memory format."""
    return _rows(x, Tensor.uniform_) if _common else torch.rand_like(x)


def integers(low: int, high: int, count: int, *shape: int, device: torch.device) -> Tensor:
    """Uniform integers [count, ...] from `low` to below `high`."""
    if not _common:
        return torch.randint(low, high, (count, *shape), device=device)
    empty = torch.empty(count, *shape, dtype=torch.int64, device=device)
    return _rows(empty, lambda x, generator: x.random_(low, high, generator=generator))


def _rows(like: Tensor, fill: Fill) -> Tensor:
    """The rows of this share out of those of all; several numbers a sample lie one set a block.

    Raises: ValueError where the rows are not those of samples.
    """
    (first, rows, total), seed, generators = _common[-1]
    if len(like) % rows:
        raise ValueError(
            f"noise for {len(like)} rows, but {rows} samples are played at once: draw for samples"
        )
    if like.device not in generators:
        generators[like.device] = torch.Generator(like.device).manual_seed(seed)
    blocks, shape = len(like) // rows, like.shape[1:]
    packed = like.ndim == 4 and not like.is_contiguous()  # channels last, which fills in that order
    form = torch.channels_last if packed else torch.contiguous_format
    whole = torch.empty(
        (blocks * total, *shape), dtype=like.dtype, device=like.device, memory_format=form
    )
    parts = torch.split(fill(whole, generator=generators[like.device]), total)
    return torch.cat([part[first : first + rows] for part in parts])
