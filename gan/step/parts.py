"""A recipe's parts as the players train them: some frozen, some with rates of their own."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter

from gan import distributed
from gan.config.signature import nearest
from gan.player import Player
from gan.recipe import Recipe
from gan.registry import ConfigError

if TYPE_CHECKING:
    from gan.config.check import Checked

Freeze = list[str] | dict[str, int]
Asleep = dict[str, list[tuple[int, list[Parameter]]]]
PLAYERS = ("generator", "discriminator")


def freeze(recipe: Recipe, wanted: Freeze) -> Asleep:
    """Freeze submodules such as `generator.decoder`, for good or until an update of their player.

    Returns, by player, the parameters that wake up and when: by the innermost part that is named.
    Running statistics go on moving.

    Raises: ConfigError for what is no part of a player, or leaves one with nothing to train.
    """
    asleep: Asleep = {side: [] for side in PLAYERS}
    until = dict.fromkeys(wanted) if isinstance(wanted, list) else wanted
    for name in asleep.keys() & until.keys():
        raise ConfigError(f"freeze: {name} would leave nothing to train; name a part of it")
    taken: set[int] = set()
    for name, update in _innermost(until):
        parameters = _untaken(_part(recipe, name, "freeze"), taken)
        if update is None:
            for parameter in parameters:
                parameter.requires_grad = False
        else:
            asleep[name.partition(".")[0]].append((update, parameters))
    for side in PLAYERS:
        _require_awake(recipe, side, asleep, [n for n in until if n.startswith(f"{side}.")])
    return asleep


def _require_awake(recipe: Recipe, side: str, asleep: Asleep, named: list[str]) -> None:
    later = {id(p) for update, parameters in asleep[side] if update for p in parameters}
    trained = [p for p in recipe.get_submodule(side).parameters() if p.requires_grad]
    if named and later.issuperset(map(id, trained)):
        raise ConfigError(
            f"freeze: {' and '.join(named)} would leave nothing of the {side} to train at its "
            "first update; leave a part of it out"
        )


def groups(recipe: Recipe, side: str, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """A player's trained parameters as optimizer groups: the rest, then parts with their rates."""
    taken: set[int] = set()
    result: list[dict[str, Any]] = []
    for name, rate in _innermost(rates):
        part = _part(recipe, name, "rates")
        if name.partition(".")[0] == side:
            result.append({"params": _untaken(part, taken), "lr": rate, "part": name})
    trained = [p for p in recipe.get_submodule(side).parameters() if p.requires_grad]
    return [{"params": [p for p in trained if id(p) not in taken], "part": side}, *result]


def player(checked: "Checked", recipe: Recipe, side: str, asleep: Asleep) -> Player:
    """A side's player: what its optimizer moves, and how."""
    (opponent,) = (recipe.get_submodule(other) for other in asleep if other != side)
    trained = groups(recipe, side, checked.rates)
    optimizer = checked.create(f"optimizer.{side}", parameters=trained)
    kept = [p for group in optimizer.param_groups if group["lr"] == 0 for p in group["params"]]
    return Player(
        side,
        recipe.get_submodule(side),
        opponent,
        optimizer,
        checked.create(f"schedule.{side}"),
        checked.clip[side].sparing(kept),
        recipe.statistics,
        asleep[side],
        partial(checked.settings.autocast, distributed.device(checked.settings.device)),
    )


def _innermost(named: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Parts before those that they are in."""
    return sorted(named.items(), key=lambda item: (-item[0].count("."), item[0]))


def _untaken(part: nn.Module, taken: set[int]) -> list[Parameter]:
    """The trained parameters of a part that are not taken yet; now they are."""
    found = [p for p in part.parameters() if p.requires_grad and id(p) not in taken]
    taken |= {id(parameter) for parameter in found}
    return found


def _part(recipe: Recipe, name: str, key: str) -> nn.Module:
    known = [known for known, _ in recipe.named_modules() if known.partition(".")[0] in PLAYERS]
    if name not in known:
        near = nearest(name, known).split(" (known")[0]
        tops = [n for n in known if n.count(".") == 1]
        hint = near if near.startswith("did") else f"known: {', '.join(tops)}"
        raise ConfigError(f"{key}: {name} is no part of generator or discriminator; {hint}")
    return recipe.get_submodule(name)
