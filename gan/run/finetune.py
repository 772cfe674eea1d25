"""Fine-tuning: a new run that starts from the weights of another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan import checkpoint
from gan.checkpoint import Checkpoint
from gan.recipe import Recipe
from gan.registry import ConfigError


def adopt(recipe: Recipe, source: str) -> str:
    """Copy the weights and buffers that fit from a run or a checkpoint; says which did not.

    The generator takes those of the average that the other run would draw with, the discriminator
    its raw ones. Optimizers, averages, schedules and clocks start anew, and losses, labels and data
    may be others.

    Raises: ConfigError where there is no checkpoint, or nothing in it fits.
    """
    stored = _checkpoint(Path(source))
    there, here = _weights(stored), _live(recipe)
    taken = [name for name in here if _fits(here[name], there.get(name))]
    if not any(isinstance(here[name], torch.nn.Parameter) for name in taken):
        raise ConfigError(
            f"init={source} has no weight that fits {type(recipe.generator).__name__} and "
            f"{type(recipe.discriminator).__name__}: choose the networks and widths it was "
            "trained with"
        )
    with torch.no_grad():
        for name in taken:
            here[name].copy_(there[name])
    left = [f"  {name}: {_reason(there.get(name), here[name])}" for name in here.keys() - {*taken}]
    left += [f"  {name}: not part of this run" for name in there.keys() - here.keys()]
    count = f"init={stored.path}: {len(taken)} of {len(here)} tensors taken"
    return "\n".join([f"{count}; these were not:" if left else count, *sorted(left)])


def _checkpoint(source: Path) -> Checkpoint:
    path = source
    if (source / "checkpoints").is_dir():
        path = checkpoint.newest(source / "checkpoints") or source
    if not (path / checkpoint.MANIFEST).exists():
        raise ConfigError(
            f"init={source} holds no checkpoint: name a run's directory, such as runs/wnet-hanzi, "
            "or one of its checkpoints"
        )
    return checkpoint.load(path, networks_only=True)


def _weights(stored: Checkpoint) -> dict[str, Tensor]:
    """Tensors by name: the generator that the run would draw with, and the raw discriminator."""
    averages: Mapping[str, Any] = stored.state.get("averages", {})
    generator = f"average/{[*averages][-1]}/" if averages else "recipe/generator."
    discriminator = "recipe/discriminator."
    return {
        side + name.removeprefix(prefix): tensor
        for prefix, side in ((generator, "generator."), (discriminator, "discriminator."))
        for name, tensor in stored.networks.items()
        if name.startswith(prefix)
    }


def _live(recipe: Recipe) -> dict[str, Tensor]:
    """The recipe's own tensors under the same names."""
    state = recipe.state_dict(keep_vars=True)
    return {n: t for n, t in state.items() if n.startswith(("generator.", "discriminator."))}


def _fits(here: Tensor, there: Tensor | None) -> bool:
    return there is not None and (here.shape, here.dtype) == (there.shape, there.dtype)


def _reason(there: Tensor | None, here: Tensor) -> str:
    if there is None:
        return "not in that run"
    return f"{[*there.shape]} there, {[*here.shape]} here"
