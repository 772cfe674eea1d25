"""An optimizer's state as names and tensors, and back again to the bit."""

import copy
import math
import reprlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gan.checkpoint import CheckpointError, restore
from gan.run.sealed import plain

_KERNELS = {"foreach", "fused", "capturable", "differentiable"}  # how an optimizer computes
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}  # as which they are kept


def flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's live tensors by "<parameter's number>/<name>", and its groups as JSON.

    Numbers of a parameter's state are tensors too.

    Raises: CheckpointError for a state that is neither, or of no parameter.
    """
    packed = optimizer.state_dict()
    for index in packed["state"]:
        if not isinstance(index, int):
            raise CheckpointError(f"the state {index!r} is of no parameter: keep it in a group")
    tensors = {
        f"{index}/{name}": _tensor(f"{index}/{name}", value)
        for index, state in packed["state"].items()
        for name, value in state.items()
    }
    groups = [
        {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in packed["param_groups"]
    ]
    return tensors, plain(groups, "param_groups")


def _tensor(name: str, value: Any) -> Tensor:
    """A tensor as it is, a number as one."""
    if isinstance(value, Tensor):
        return value
    if type(value) in _NUMBERS and math.isfinite(value):
        return torch.tensor(value, dtype=_NUMBERS[type(value)])
    raise CheckpointError(
        f"{name} is {reprlib.repr(value)}, but a checkpoint keeps tensors and finite numbers of an "
        "optimizer's state"
    )


def unflatten(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Give an optimizer the state that `flatten` took from its like, to the bit or not at all.

    Raises: CheckpointError as `fitting`.
    """
    put(optimizer, fitting(optimizer, tensors, groups))


def put(optimizer: Optimizer, packed: dict[str, Any]) -> None:
    """Load what `fitting` gave; torch alone would cast tensors to the type of their parameter."""
    optimizer.load_state_dict(packed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in packed["state"].items():
        live = optimizer.state[parameters[index]]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dtype != live[key].dtype:
                live[key] = value.to(live[key].device)


def fitting(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The same as a state that the optimizer can load; it stays as it is.

    Options come from the checkpoint, but how a step is computed (`fused`, ...) is the optimizer's.
    One that is not torch's may have more of a parameter than its first step makes, and larger.

    Raises:
        CheckpointError: groups, names, shapes or dtypes that this optimizer would not have.
    """
    what = f"the state of {type(optimizer).__name__}"
    merged = _merged(optimizer.state_dict()["param_groups"], groups, what)
    members = [
        (options, parameter)
        for options, group in zip(merged, optimizer.param_groups, strict=True)
        for parameter in group["params"]
    ]
    stepped = {name.partition("/")[0] for name in tensors}
    state = {
        index: _blank(optimizer, options, parameter)
        for index, (options, parameter) in enumerate(members)
        if str(index) in stepped
    }
    values = {f"{index}/{name}": v for index, named in state.items() for name, v in named.items()}
    if not _of_torch(optimizer):
        values |= {
            name: _later(tensor, values.get(name))
            for name, tensor in tensors.items()
            if name.partition("/")[0] in map(str, state)
        }
    forms = {name: _form(value, tensors.get(name)) for name, value in values.items()}
    restore(forms, tensors, what)
    for name, form in forms.items():
        index, _, key = name.partition("/")
        state[int(index)][key] = form if isinstance(values[name], Tensor) else form.item()
    return {"state": state, "param_groups": merged}


def _merged(
    live: Sequence[dict[str, Any]], stored: Sequence[Mapping[str, Any]], what: str
) -> list[dict[str, Any]]:
    """The live groups with the stored options; one that a newer torch has added stays as it is."""
    here, there = ([len(group["params"]) for group in groups] for groups in (live, stored))
    if here != there:
        raise CheckpointError(
            f"{what} does not fit: parameters by group {there}, here {here} (none with a rate of "
            "0); another run can start from its weights (init)"
        )
    merged = []
    for own, group in zip(live, stored, strict=True):
        if unknown := sorted(group.keys() - own.keys()):
            raise CheckpointError(f"{what} does not fit: the options {unknown} are unknown here")
        if own.get("part") != group.get("part"):
            raise CheckpointError(
                f"{what} does not fit: its rates are of {group.get('part')} where they are of "
                f"{own.get('part')} here"
            )
        taken = group.keys() - _KERNELS - {"params"}
        merged.append(own | {key: _like(own[key], group[key]) for key in taken})
    return merged


def _like(own: Any, value: Any) -> Any:
    """The value in the other's type, where JSON knows neither tuples nor tensors."""
    if isinstance(own, Tensor):
        return torch.full_like(own, value)
    return tuple(value) if isinstance(own, tuple) else value


def _form(value: Any, stored: Tensor | None) -> Tensor:
    """What a stored tensor fits into; that of a number may be of any type, as it may change."""
    if isinstance(value, Tensor):
        return torch.empty_like(value)
    found = None if stored is None else stored.dtype
    return torch.empty((), dtype=found if found in _NUMBERS.values() else _NUMBERS[type(value)])


def _of_torch(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim")


def _later(stored: Tensor, first: Any) -> Any:
    """A value formed like a stored one, of which `first` is what one step would make, if at all."""
    if first is None:
        number = stored.dim() == 0 and stored.dtype in _NUMBERS.values()
        return stored.item() if number else stored
    larger = isinstance(first, Tensor) and first.shape != stored.shape
    return first.new_empty(stored.shape) if larger else first


def _blank(optimizer: Optimizer, options: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Values formed like the state of this parameter, found by one step of a stand-in for it."""
    state = optimizer.state.get(parameter) if _of_torch(optimizer) else None
    if not state:
        stand_in = torch.zeros_like(parameter).requires_grad_()
        stand_in.grad = torch.zeros_like(parameter)
        probe = copy.copy(optimizer)  # with neither hooks nor a schedule's wrapping of `step`
        own = {n: value for n, value in vars(optimizer).items() if n not in {*vars(probe), "step"}}
        vars(probe).update(own)
        probe.state = defaultdict(dict)
        probe.param_groups = [options | {"params": [stand_in]}]
        probe.step()
        state = probe.state[stand_in]
    return {**state}
