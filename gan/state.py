"""All that a run consists of, as names and tensors, and back again."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gan import checkpoint
from gan.average import Average
from gan.player import Player
from gan.recipe import Recipe


def gather(
    recipe: Recipe, average: Average | None, players: Iterable[Player]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Networks and optimizer tensors by name, and the rest as plain values."""
    networks = _networks(recipe, average)
    optimizers: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for player in players:
        tensors, groups[player.name] = checkpoint.flatten(player.optimizer)
        optimizers |= {f"{player.name}/{name}": tensor for name, tensor in tensors.items()}
    counts = None if average is None else average.counts()
    return networks, optimizers, {"optimizers": groups, "average": counts}


def spread(
    stored: checkpoint.Checkpoint,
    recipe: Recipe,
    average: Average | None,
    players: Iterable[Player],
) -> None:
    """Put a checkpoint's tensors and values back where `gather` found them.

    Raises: CheckpointError, before anything is copied, where names or shapes do not fit.
    """
    checkpoint.restore(_networks(recipe, average), stored.networks, f"checkpoint {stored.path}")
    for player in players:
        prefix = f"{player.name}/"
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in stored.optimizers.items()
            if name.startswith(prefix)
        }
        checkpoint.unflatten(player.optimizer, tensors, stored.state["optimizers"][player.name])
    if average is not None:
        average.resume(stored.state["average"])


def _networks(recipe: Recipe, average: Average | None) -> dict[str, Tensor]:
    networks = {f"recipe/{name}": tensor for name, tensor in recipe.state_dict().items()}
    averaged = {} if average is None else average.generator.state_dict()
    return networks | {f"average/{name}": tensor for name, tensor in averaged.items()}
