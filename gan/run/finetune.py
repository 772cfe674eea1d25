"""Fine-tuning: a new run that starts from the weights of another one."""

from pathlib import Path

import torch
from torch import Tensor

from gan.checkpoint import Checkpoint
from gan.recipe import Recipe
from gan.registry import ConfigError
from gan.run.best import weights_of
from gan.runs import located


def adopt(recipe: Recipe, source: str) -> str:
    """Copy the weights and buffers that fit from a run or a checkpoint; says which did not.

    The generator takes those of the average that the other run would draw with, the discriminator
    its raw ones. Optimizers, averages, schedules and clocks start anew, and losses, labels and data
    may be others.

    Raises: ConfigError where there is no checkpoint, or nothing in it fits.
    """
    try:
        stored = located(Path(source))
    except ValueError as error:
        raise ConfigError(f"init={error}") from error
    drawn = _drawn(stored)
    there, here = _weights(stored, drawn), _live(recipe)
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
    count += f", the generator's {drawn}"
    return "\n".join([f"{count}; these were not:" if left else count, *sorted(left)])


def _drawn(stored: Checkpoint) -> str:
    """Which of the generator's weights the run would draw with: `raw`, or its last average."""
    return ["raw", *stored.state.get("averages", {})][-1]


def _weights(stored: Checkpoint, name: str) -> dict[str, Tensor]:
    """Tensors by name: the generator's of this name, and the raw discriminator's."""
    drawn = weights_of(stored.networks, name)
    raw = {name.removeprefix("recipe/"): tensor for name, tensor in stored.networks.items()}
    judge = {name: tensor for name, tensor in raw.items() if name.startswith("discriminator.")}
    return {**{f"generator.{name}": tensor for name, tensor in drawn.items()}, **judge}


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
