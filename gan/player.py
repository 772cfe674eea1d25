"""One side of the game: a module, its optimizer, its learning rates and its clipping."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from gan import distributed
from gan.config.settings import UNCLIPPED, Clip
from gan.explain import explained
from gan.optimizers import set_rate
from gan.recipe import detached
from gan.step.adam import stepping
from gan.step.gradients import clear, frozen, total, total_norm, trained
from gan.step.guard import NonFiniteError

Losses = dict[str, Tensor]


class Player:
    """Takes optimizer steps for one module while the opponent stands still."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        opponent: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        clip: Clip = UNCLIPPED,
        statistics: Collection[str] = (),
        asleep: Sequence[tuple[int, list[nn.Parameter]]] = (),
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`schedule` maps an update to a factor of the rates; `asleep` is frozen until one."""
        self.name, self.optimizer, self.schedule, self.clip = name, optimizer, schedule, clip
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.opponent = [p for p in opponent.parameters() if p.requires_grad]
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.statistics, self.asleep, self.autocast = frozenset(statistics), asleep, autocast
        self.module, self._step = module, stepping(optimizer)

    def update(self, losses_of: Callable[[], Losses], count: int) -> Losses:
        """One optimizer step on the sum of losses; returns terms, statistics and gradient norm.

        Raises: NonFiniteError before the step, in all processes alike, if the sum or norm is none.
        """
        self.prepare(count)
        terms, size = self.differentiate(losses_of, count)
        if not isfinite(size.item()):  # the one host read of an update
            raise NonFiniteError(self.name, count, terms)
        self.move(terms["gradient_norm"])
        return terms

    def differentiate(self, losses_of: Callable[[], Losses], count: int) -> tuple[Losses, Tensor]:
        """Gradients; returns the terms with their norm, and what is finite if all squares are."""
        clear(self.parameters)
        with explained(self.name, count, losses_of), frozen(self.opponent):
            with self.autocast():
                terms = losses_of()
            loss = total(self.trained(terms))
            torch.autograd.backward(loss)
        loss = distributed.average_gradients(self.parameters, loss.detach())
        norm = total_norm(self.parameters)
        return detached({**terms, "gradient_norm": norm}), torch.addcmul(loss, norm, norm)

    def move(self, norm: Tensor) -> None:
        """The optimizer step on gradients of this total norm, with the clipping around it."""
        self.clip.bound_gradients(self.parameters, norm)
        self._step()
        self.clip.bound_weights(self.parameters)

    def prepare(self, count: int) -> None:
        """Rates and frozen parts at an update: functions of its number, hence never stored."""
        factor = self.schedule(count)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            set_rate(group, rate * factor)
        for until, parameters in self.asleep:
            for parameter in parameters:
                parameter.requires_grad = count >= until

    def trained(self, terms: Losses) -> list[Tensor]:
        """The terms that are part of the loss; Raises: ConfigError for one that cannot be."""
        return trained(self.name, terms, self.module, self.statistics)
