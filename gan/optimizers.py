"""Optimizers with explicit signatures, and learning-rate schedules as functions of the update.

A schedule's length is in updates of its player; left open, it becomes the length of the run
when that starts.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gan.registry import Count, Fraction, NonNegative, Positive, Whole, register

Schedule = Callable[[int], float]
Beta = Fraction


@register("optimizer", "adam", given=("parameters",))
def adam(
    parameters: Iterable[Tensor],
    lr: NonNegative = 2e-4,
    betas: tuple[Beta, Beta] = (0.5, 0.999),
    eps: Positive = 1e-8,
    weight_decay: Fraction = 0.0,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam, fused. Kingma and Ba 2014, arXiv:1412.6980."""
    return torch.optim.Adam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=True,
    )


@register("optimizer", "adamw", given=("parameters",))
def adamw(
    parameters: Iterable[Tensor],
    lr: NonNegative = 2e-4,
    betas: tuple[Beta, Beta] = (0.5, 0.999),
    eps: Positive = 1e-8,
    weight_decay: Fraction = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay, fused. Loshchilov and Hutter 2017, arXiv:1711.05101."""
    return torch.optim.AdamW(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
    )


@register("optimizer", "sgd", given=("parameters",))
def sgd(
    parameters: Iterable[Tensor],
    lr: NonNegative = 1e-2,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
    weight_decay: Fraction = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum, fused."""
    optimizer = torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=True,
    )
    if momentum:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: Optimizer, *_: object) -> None:
    """Start at 0 where a weight has no momentum yet: torch's fused step takes that of all or none.

    Its first step is then its gradient's, as with torch, also where the weight thaws later.
    """
    if len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups):
        return  # all have moved
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@register("optimizer", "rmsprop", given=("parameters",))
def rmsprop(
    parameters: Iterable[Tensor],
    lr: NonNegative = 5e-5,
    alpha: Fraction = 0.99,
    eps: Positive = 1e-8,
    momentum: Fraction = 0.0,
    weight_decay: Fraction = 0.0,
) -> Optimizer:
    """RMSprop, the optimizer of the first Wasserstein GAN (arXiv:1701.07875)."""
    return torch.optim.RMSprop(
        parameters, lr=lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay
    )


@register("schedule", "constant")
def constant(length: Count | None = None, warmup: Whole = 0) -> Schedule:
    """The full rate after `warmup` updates of linear increase."""
    return _warmed(lambda share: 1.0, length, warmup)


@register("schedule", "linear")
def linear(
    length: Count | None = None, warmup: Whole = 0, start: Fraction = 0.0, end: Fraction = 0.0
) -> Schedule:
    """Full until `start` (a share of the length), then straight down to `end` times the rate."""
    return _warmed(
        lambda share: 1 - (1 - end) * max(0.0, share - start) / max(1 - start, 1e-12),
        length,
        warmup,
    )


@register("schedule", "exponential")
def exponential(length: Count | None = None, warmup: Whole = 0, end: Positive = 0.01) -> Schedule:
    """The same factor at every update, down to `end` times the rate."""
    return _warmed(lambda share: end**share, length, warmup)


@register("schedule", "cosine")
def cosine(length: Count | None = None, warmup: Whole = 0, end: Fraction = 0.0) -> Schedule:
    """Half a cosine down to `end` times the rate. Loshchilov and Hutter 2016, arXiv:1608.03983."""
    return _warmed(
        lambda share: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share)), length, warmup
    )


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a group its learning rate, in the tensor that a recorded step reads, if it has one."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _warmed(factor: Callable[[float], float], length: int | None, warmup: int) -> Schedule:
    """The factor at an update: linear increase over `warmup` updates, then the schedule's own."""

    def at(update: int) -> float:
        rise = min(1.0, (update + 1) / (warmup + 1))
        return rise * factor(min(1.0, update / length if length else 0.0))

    return at
