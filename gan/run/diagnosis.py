"""What a run leaves behind when it stops because its numbers are no longer finite.

`diagnosis.json` in the run directory: the terms and their history, gradient norms by parameter, the
batch, and the first module whose output was not finite when the turn was played once more. Of
several processes each gives its own terms and batch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gan import checkpoint, disk, distributed
from gan.metrics.report import plain
from gan.step.guard import ADVICE, DivergedError

if TYPE_CHECKING:
    from gan.trainer import Trainer

NAME = "diagnosis.json"


def write(run: "Trainer", error: DivergedError) -> str:
    """Write it for a trainer, in all its processes alike; the path, or why there is none."""
    path = run.monitor.run_dir / NAME
    try:
        everywhere = distributed.gathered(_share(run, error))
        if distributed.rank():
            return f"{path} of the first process"
        disk.replace(path, json.dumps(plain(_bundle(run, error, everywhere)), indent=2) + "\n")
    except Exception as failure:  # whatever it is, the end itself has still to be told
        return f"no diagnosis, as {path} could not be written ({failure!r})"
    return str(path)


def _share(run: "Trainer", error: DivergedError) -> dict[str, Any]:
    """What each process has of its own."""
    return {
        "terms": error.last.values,
        "batch": {key: _in_words(value) for key, value in error.batch.items()},
        "images": _images(run.stream),
    }


def _bundle(
    run: "Trainer", error: DivergedError, everywhere: list[dict[str, Any]]
) -> dict[str, Any]:
    last = error.last
    own = run.recipe.get_submodule(last.player).named_parameters()
    newest = checkpoint.newest(run.monitor.run_dir / "checkpoints", notice=lambda skipped: None)
    shares = everywhere[0] if len(everywhere) == 1 else {"processes": everywhere}
    return {
        "what": str(last),
        "player": last.player,
        "update": last.count,
        **run.counts(),
        "skipped": run.guard.skipped,
        "gradient_norms": {n: p.grad.norm().item() for n, p in own if p.grad is not None},
        "weights_not_finite": [n for n, p in run.recipe.named_parameters() if not _finite(p)],
        "first_module_not_finite": first_module(run, last.player, last.count),
        **shares,
        "history": run.monitor.history(),
        "checkpoint": str(newest) if newest else None,
        "try": list(ADVICE),
        "config": run.config,
    }


def first_module(run: "Trainer", player: str, count: int) -> str:
    """The path of the first module that makes something not finite of what is; "" for none.

    The turn is played again on its batch, with its seeds and without a step; buffers are put back.
    That takes a process of its own: a forward may wait for those of the other processes.
    """
    if distributed.size() > 1:
        return "not looked for, as several processes train: it takes one alone"
    try:
        return _replayed(run, player, count)
    except torch.OutOfMemoryError:  # it was played in micro-batches
        return "not found: there is no memory to play the whole batch at once"


def _replayed(run: "Trainer", player: str, count: int) -> str:
    recipe, here, dealer = run.recipe, (player, count), _dealer(run, player, count)
    buffers = {name: buffer.clone() for name, buffer in recipe.named_buffers()}
    with _hooked(recipe) as found, torch.no_grad(), run.seeded(*dealer):
        batch = recipe.prepare(run.stream.again())
        fakes = recipe.generate(batch)
        again = nullcontext() if dealer == here else run.seeded(*here)
        with again, torch.set_grad_enabled(player == "discriminator"):  # for penalties
            if not found:
                getattr(recipe, f"{player}_losses")(batch, fakes, count)
    with torch.no_grad():
        for name, buffer in recipe.named_buffers():
            buffer.copy_(buffers[name])
    return found[0] if found else ""


def _dealer(run: "Trainer", player: str, count: int) -> tuple[str, int]:
    """The turn that made the fakes which a turn of the present step is played on."""
    settings = run.settings
    if settings.order == "discriminator":
        return "discriminator", run.discriminator_updates - (player == "generator")
    first = replace(settings, steps=run.step).discriminator_updates()
    return ("generator", run.step) if player == "generator" or count == first else (player, count)


@contextmanager
def _hooked(recipe: nn.Module) -> Iterator[list[str]]:
    found: list[str] = []
    paths = {module: path for path, module in recipe.named_modules()}

    def look(module: nn.Module, given: Any, made: Any) -> None:
        came = {id(tensor) for tensor in _tensors(given)}  # and may be handed on
        if not all(_finite(tensor) for tensor in _tensors(made) if id(tensor) not in came):
            source = "" if all(map(_finite, _tensors(given))) else ", whose input is not either"
            found.append(f"{paths[module]}{source}")

    handles = [module.register_forward_hook(look) for module in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _in_words(value: Tensor) -> dict[str, Any]:
    numbers = value.detach().float()
    return {
        "shape": list(value.shape),
        "least": numbers.min().item(),
        "most": numbers.max().item(),
        "samples_not_finite": (~numbers.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if value.ndim > 1
        else [],
    }


def _images(stream: Any) -> dict[str, list[str]]:
    """The keys of the images in the last batch, where the stream knows them."""
    return stream.keys_at(stream.position - 1) if hasattr(stream, "keys_at") else {}
