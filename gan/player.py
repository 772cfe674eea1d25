"""One side of the game: a module, its optimizer, its learning rates and its clipping."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gan import distributed
from gan.settings import Clip

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
        clip: Clip = Clip(),
        statistics: Collection[str] = (),
    ) -> None:
        """`schedule` maps an update's number to a factor of the learning rates."""
        self.name, self.optimizer, self.schedule, self.clip = name, optimizer, schedule, clip
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.opponent = [p for p in opponent.parameters() if p.requires_grad]
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.statistics = frozenset(statistics)

    def update(self, losses_of: Callable[[], Losses], count: int) -> Losses:
        """One optimizer step on the sum of the losses; returns them and the statistics, detached."""
        self.set_rates(count)
        self.optimizer.zero_grad(set_to_none=True)
        with frozen(self.opponent):
            terms = losses_of()
            total = torch.stack(
                [term for name, term in terms.items() if self._trains(name, term)]
            ).sum()
            total.backward()
        distributed.average_gradients(self.parameters)
        self._clip_gradients()
        self.optimizer.step()
        self._clip_weights()
        return {name: term.detach() for name, term in terms.items()}

    def set_rates(self, count: int) -> None:
        """Learning rates of the update with this number: a function of it, hence never stored."""
        factor = self.schedule(count)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients of the last update, after clipping."""
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )

    def _trains(self, name: str, term: Tensor) -> bool:
        if name in self.statistics:
            return False
        if not term.requires_grad:
            raise ValueError(
                f"the {self.name}'s loss {name!r} has no gradient: remove the detach, no_grad or float() "
                "on its way, or list its name in the recipe's statistics"
            )
        return True

    def _clip_gradients(self) -> None:
        if self.clip.value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip.value)
        if self.clip.norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip.norm)

    @torch.no_grad()
    def _clip_weights(self) -> None:
        if self.clip.weights is not None:
            torch._foreach_clamp_min_(self.parameters, -self.clip.weights)
            torch._foreach_clamp_max_(self.parameters, self.clip.weights)


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
