"""Losses added up, gradients cleared, kept away and measured, at little cost."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.nn.utils import get_total_norm

from gan.config.signature import ConfigError

SMALL = 16_384  # elements up to which copying a gradient is cheaper than a call for it


def trained(
    player: str, terms: Mapping[str, Tensor], module: nn.Module, statistics: Collection[str]
) -> list[Tensor]:
    """The terms that move a player's module, apart from its statistics.

    Raises: ConfigError for one that cannot, or where there is none.
    """
    if not isinstance(terms, Mapping):
        raise ConfigError(f"{player}_losses must give losses by name, not a {type(terms).__name__}")
    losses = [(name, term) for name, term in terms.items() if name not in statistics]
    moving = [term for name, term in losses if _moves(player, name, term, module)]
    if not moving:
        raise ConfigError(
            f"the recipe gives the {player} no loss that trains it: return one from {player}_losses"
        )
    return moving


def _moves(player: str, name: str, term: Tensor, module: nn.Module) -> bool:
    if not isinstance(term, Tensor):
        raise ConfigError(
            f"the {player}'s loss {name!r} is a {type(term).__name__}, which has no gradient: "
            "remove the item() or float() on its way"
        )
    if term.ndim:
        raise ConfigError(
            f"the {player}'s loss {name!r} has the shape {[*term.shape]}: take its mean"
        )
    if not term.requires_grad and all(p.requires_grad for p in module.parameters()):
        raise ConfigError(
            f"the {player}'s loss {name!r} has no gradient: remove the detach, no_grad "
            "or float() on its way, or list its name in the recipe's statistics"
        )
    return term.requires_grad  # False for a term of frozen parts alone


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
    if {g.is_cpu for g in gradients} != {True} or len({g.dtype for g in gradients}) > 1:
        return get_total_norm(gradients)
    small: list[Tensor] = []
    large: list[Tensor] = []
    for gradient in gradients:
        (small if gradient.numel() <= SMALL else large).append(gradient)
    joined = [torch.linalg.vector_norm(_flatten_dense_tensors(small))] if small else []
    if not large:
        return joined[0]
    return torch.linalg.vector_norm(torch.stack([*joined, *torch._foreach_norm(large)]))


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters that need no gradient inside the block; each gets its own flag back."""
    awake = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in awake:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in awake:
            parameter.requires_grad = True
