"""A recipe's parts as the players train them: some frozen, some with rates of their own."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gan import distributed
from gan.config.signature import nearest
from gan.player import Player
from gan.recipe import Recipe
from gan.registry import ConfigError
from gan.step.guard import SIDES

if TYPE_CHECKING:
    from gan.config.check import Checked

LARGEST = torch.finfo(torch.float32).max
Freeze = list[str] | dict[str, int]
Sleepers = Sequence[tuple[int, list[Parameter]]]  # the update at which they wake up
Asleep = dict[str, list[tuple[int, list[Parameter]]]]  # by player


def freeze(recipe: Recipe, wanted: Freeze) -> Asleep:
    """Freeze submodules such as `generator.decoder`, for good or until an update of their player.

    Returns, by player, the parameters that wake up and when: by the innermost part that is named.
    Running statistics go on moving.

    Raises: ConfigError for what is no part of a player, or leaves one with nothing to train.
    """
    asleep: Asleep = {side: [] for side in SIDES}
    until = dict.fromkeys(wanted) if isinstance(wanted, list) else wanted
    for name in asleep.keys() & until.keys():
        raise ConfigError(f"freeze: {name} would leave nothing to train; name a part of it")
    taken: set[int] = set()
    for name, update in _innermost(until):
        parameters = _untaken(_part(recipe, name, "freeze"), taken)
        if update is None:
            _still(parameters)
        else:
            asleep[_side(name)].append((update, parameters))
    for side in SIDES:
        _require_awake(recipe, side, asleep[side], [n for n in until if _side(n) == side], "freeze")
    return asleep


def _require_awake(
    recipe: Recipe, side: str, asleep: Sleepers, named: Sequence[str], key: str
) -> None:
    later = {id(p) for update, parameters in asleep if update for p in parameters}
    if named and later.issuperset(map(id, _trained(recipe, side))):
        raise ConfigError(
            f"{key}: {' and '.join(named)} would leave nothing of the {side} to train at its "
            "first update; leave a part of it out"
        )


def groups(
    recipe: Recipe, side: str, rates: Mapping[str, float], asleep: Sleepers = ()
) -> list[dict[str, Any]]:
    """A player's trained parameters as optimizer groups: the rest, then parts with their rates.

    A part with a rate of 0 is frozen for good and in no group.

    Raises: ConfigError for what is no part of a player or frozen already, or where the rates of 0
        leave nothing to train while others are `asleep`.
    """
    taken: set[int] = set()
    result: list[dict[str, Any]] = []
    for name, rate in _innermost(rates):
        part = _part(recipe, name, "rates")
        if _side(name) == side:
            parameters = _untaken(part, taken)
            _require_trained(part, name, rate, taken)
            if rate:
                result.append({"params": parameters, "lr": rate, "part": name})
            else:
                _still(parameters)
    none = [f"{name}: 0" for name, rate in rates.items() if not rate and _side(name) == side]
    _require_awake(recipe, side, asleep, none, "rates")
    rest = [p for p in _trained(recipe, side) if id(p) not in taken]
    return [{"params": rest, "part": side}, *result]


def _require_trained(part: nn.Module, name: str, rate: float, taken: Container[int]) -> None:
    if rate and not any(id(parameter) in taken for parameter in part.parameters()):
        raise ConfigError(
            f"rates: {name} has a rate of {rate}, but nothing of it is trained: take it out of "
            "rates, or what freezes it out of freeze"
        )


def player(checked: "Checked", recipe: Recipe, side: str, asleep: Asleep) -> Player:
    """A side's player: what its optimizer moves, and how."""
    (opponent,) = (recipe.get_submodule(other) for other in asleep if other != side)
    trained = groups(recipe, side, rates(checked, side), asleep[side])
    optimizer = checked.create(f"optimizer.{side}", parameters=trained)
    clip = checked.clip[side]
    if not any(group["lr"] for group in optimizer.param_groups):
        clip = replace(clip, weights=None)  # what never moves stays as it is
    return Player(
        side,
        recipe.get_submodule(side),
        opponent,
        optimizer,
        schedule(checked, side),
        clip,
        recipe.statistics,
        _waking(asleep[side]),
        partial(checked.settings.autocast, distributed.device(checked.settings.device)),
    )


def require_movable(side: str, network: nn.Module, optimizer: Optimizer) -> None:
    """Refuse a network whose weights have no shape yet, or gradients that no update takes.

    Raises: ConfigError naming the first of them.
    """
    for name, module in network.named_modules(prefix=side):
        kind = type(module).__name__
        if any(map(is_lazy, [*module.parameters(False), *module.buffers(False)])):
            raise ConfigError(f"{name} is a {kind}, which has no weights yet: give all its sizes")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ConfigError(f"{name}: sparse gradients are not trained with: set sparse=False")
    imaginary = [name for name, p in network.named_parameters(prefix=side) if p.is_complex()]
    if imaginary and optimizer.param_groups[0].get("fused"):
        raise ConfigError(
            f"{imaginary[0]} is complex, and the fused optimizer.{side} takes real numbers: choose "
            "rmsprop, or keep real and imaginary parts (torch.view_as_complex)"
        )


def schedule(checked: "Checked", side: str) -> Callable[[int], float]:
    """A side's schedule. It raises ConfigError for a factor that would climb, or is no number."""
    factor, where = checked.create(f"schedule.{side}"), f"schedule.{side}"
    usual = checked.entries[f"optimizer.{side}"][1].get("lr")
    own = [rate for name, rate in checked.rates.items() if _side(name) == side]
    largest = max(*own, usual if isinstance(usual, int | float) else 0.0, 0.0)

    def at(update: int) -> float:
        try:
            value: Any = factor(update)
            number = _number(value)
        except OverflowError:
            value = number = math.inf
        if not 0 <= number < math.inf:
            name = checked.entries[where][0].name
            raise ConfigError(
                f"{where}={name} gives {value!r} for update {update}: the learning rate's factor "
                "must be a finite number of at least 0"
            )
        if number * largest > LARGEST:
            raise ConfigError(
                f"a rate of optimizer.{side} or rates, {largest:g}, times {number:g} ({where}) is "
                f"more than a float32 holds, for update {update}: lower it"
            )
        return number

    at(0)
    return at


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def rates(checked: "Checked", side: str) -> Mapping[str, float]:
    """The rates of parts, with 0 for all the rest where the optimizer's own rate is 0."""
    moves = any(rate for name, rate in checked.rates.items() if _side(name) == side)
    usual = checked.entries[f"optimizer.{side}"][1].get("lr")
    return {side: 0.0, **checked.rates} if moves and usual == 0 else checked.rates


def _waking(asleep: Sleepers) -> list[tuple[int, list[Parameter]]]:
    """Without those that a rate of 0 keeps frozen."""
    pairs = [(update, [p for p in several if p.requires_grad]) for update, several in asleep]
    return [(update, parameters) for update, parameters in pairs if parameters]


def _side(name: str) -> str:
    return name.partition(".")[0]


def _still(parameters: Iterable[Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad = False


def _trained(recipe: Recipe, side: str) -> list[Parameter]:
    return [p for p in recipe.get_submodule(side).parameters() if p.requires_grad]


def _innermost(named: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Parts before those that they are in."""
    return sorted(named.items(), key=lambda item: (-item[0].count("."), item[0]))


def _untaken(part: nn.Module, taken: set[int]) -> list[Parameter]:
    """The trained parameters of a part that are not taken yet; now they are."""
    found = [p for p in part.parameters() if p.requires_grad and id(p) not in taken]
    taken |= {id(parameter) for parameter in found}
    return found


def _part(recipe: Recipe, name: str, key: str) -> nn.Module:
    every = {known: part for known, part in recipe.named_modules() if _side(known) in SIDES}
    known = [known for known, part in every.items() if any(True for _ in part.parameters())]
    if name not in known:
        near = "" if name in every else nearest(name, known).split(" (known")[0]
        tops = [n for n in known if n.count(".") == 1]
        hint = near if near.startswith("did") else f"known: {', '.join(tops)}"
        fault = "has no parameters" if name in every else "is no part of generator or discriminator"
        raise ConfigError(f"{key}: {name} {fault}; {hint}")
    return recipe.get_submodule(name)
