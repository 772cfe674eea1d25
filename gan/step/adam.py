"""Adam's step over lists that are kept.

Torch gathers parameters, moments and counters anew at every step, and sorts them by device: for
small networks, and on a GPU that waits for the host, that takes longer than the step itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


class _Kept(NamedTuple):
    """What a group's step goes over; `steps` is one tensor, of which each counter is an element."""

    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    counters: list[Tensor]
    steps: Tensor


def stepping(optimizer: Optimizer) -> Callable[[], object]:
    """What takes an optimizer's step; the optimizer's own method unless it is torch's Adam."""
    return _Step(optimizer) if type(optimizer) in (Adam, AdamW) else optimizer.step


class _Step:
    """The step of a fused Adam or AdamW, to the bit; whatever is unusual is left to torch."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._state: object = None
        self._kept: list[_Kept] = []

    @torch.no_grad()
    def __call__(self) -> None:
        """Torch's own step where moments are missing, or a gradient, or a rate is a tensor."""
        if self._state is not self.optimizer.state or not self._kept:  # loaded since, or begun
            self._state, self._kept = self.optimizer.state, _gathered(self.optimizer)
        gradients = [[p.grad for p in kept.parameters] for kept in self._kept]
        if not gradients or self._hooked() or any(g is None for row in gradients for g in row):
            self.optimizer.step()
            return
        for group, kept, row in zip(
            self.optimizer.param_groups, self._kept, gradients, strict=True
        ):
            _move(group, kept, row)

    def _hooked(self) -> bool:
        hooks = self.optimizer._optimizer_step_pre_hooks, self.optimizer._optimizer_step_post_hooks
        return any(hooks)


def _move(group: dict[str, Any], kept: _Kept, gradients: list[Any]) -> None:
    kept.steps.add_(1)
    move = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    move(
        kept.parameters,
        gradients,
        kept.averages,
        kept.squares,
        [],
        kept.counters,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )


def _gathered(optimizer: Optimizer) -> list[_Kept]:
    """The lists of every group; none where a group has no moments yet, or is unusual."""
    groups, state = optimizer.param_groups, optimizer.state
    if not all(_usual(group) and all(map(state.get, group["params"])) for group in groups):
        return []
    return [_joined([state[p] for p in group["params"]], group["params"]) for group in groups]


def _usual(group: dict[str, Any]) -> bool:
    kinds = {(p.device, p.dtype) for p in group["params"]}
    numbers = all(isinstance(n, float) for n in (group["lr"], *group["betas"]))
    return bool(len(kinds) == 1 and numbers and group["fused"] and not group["amsgrad"])


def _joined(states: list[dict[str, Tensor]], parameters: list[Tensor]) -> _Kept:
    """The lists; counters become parts of one tensor, as counting each takes a call for each."""
    steps = torch.stack([state["step"] for state in states])
    for state, counter in zip(states, steps.unbind(), strict=True):
        state["step"] = counter
    averages, squares, counters = (
        [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
    )
    return _Kept([*parameters], averages, squares, counters, steps)
