"""Losses added up, gradients cleared, kept away and measured, at little cost."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.nn.utils import get_total_norm

SMALL = 4096  # elements up to which copying a gradient is cheaper than a call for it


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one loss, by as few operations as there are."""
    return reduce(add, terms)


def clear(parameters: Iterable[Tensor]) -> None:
    """Give up all gradients."""
    for parameter in parameters:
        parameter.grad = None


def total_norm(parameters: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients there are, as one vector; 0 where there are none.

    On the CPU a call costs more than the work on a small gradient: those are joined first.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    small = [g for g in gradients if g.numel() <= SMALL]
    if len(small) < 2 or {(g.device.type, g.dtype) for g in gradients} != {("cpu", small[0].dtype)}:
        return get_total_norm(gradients)
    joined = torch.linalg.vector_norm(_flatten_dense_tensors(small))
    if len(small) == len(gradients):
        return joined
    large = [g for g in gradients if g.numel() > SMALL]
    return torch.linalg.vector_norm(torch.stack([joined, *torch._foreach_norm(large)]))


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters that need no gradient inside the block; each gets its own flag back."""
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad = flag
