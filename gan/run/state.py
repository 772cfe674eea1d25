"""All that a run consists of, as names and tensors, and back again."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gan import checkpoint, distributed
from gan.average import Average
from gan.checkpoint import CheckpointError
from gan.metrics.extractors import weights_hash
from gan.player import Player
from gan.recipe import Batch, Recipe
from gan.run import optimizer_state, sealed
from gan.run.sealed import STATE
from gan.step.guard import beside

if TYPE_CHECKING:
    from gan.trainer import Trainer

_looks: WeakKeyDictionary[Recipe, list[str]] = WeakKeyDictionary()  # what is frozen stays


class Stream(Protocol):
    """Endless batches with a position that can be stored."""

    position: int
    content: str  # a hash of what the batches are made of
    waited: float  # seconds, so far

    def __next__(self) -> Batch:
        """The next batch."""

    def again(self) -> Batch:
        """The last one once more."""

    def close(self) -> None:
        """Stop reading ahead."""


def save(run: "Trainer", folder: Path, elsewhere: Mapping[str, Tensor], origin: str | None) -> None:
    """Write a verified checkpoint and drop the oldest ones.

    `elsewhere` are buffers that other processes have values of their own for, `origin` is the
    checkpoint that the run was told to start from.
    """
    networks, optimizers, rest = gather(run.recipe, run.averages, run.players)
    counts = run.counts()
    path = checkpoint.save(
        folder,
        counts["step"],
        run_id=run.run_id,
        networks={**networks, **elsewhere},
        optimizers=optimizers,
        state={
            **rest,
            **counts,
            "position": run.stream.position,
            "content": run.stream.content,
            "terms": run.monitor.pending(),
            "skipped": run.guard.skipped,
            "best": run.monitor.best.state(run.settings.measured),
            "owed": run.monitor.owed,
            "from": origin,
        },
        config=run.config,
        facts=_facts(run),
    )
    best = run.monitor.best.step
    pinned = {counts["step"], counts["step"] if best is None else best}
    checkpoint.rotate(folder, run.run_id, run.settings.keep, pinned)
    run.monitor.saved(folder, sum(file.stat().st_size for file in path.iterdir()))


def resume(run: "Trainer", path: Path) -> dict[str, Any]:
    """Put a checkpoint back in place; returns its plain values.

    Raises: CheckpointError where the data or the networks are others. Warns where versions,
    threads, device or processes are others: the order of samples stays, the last bits may not.
    """
    stored = checkpoint.load(path)
    try:
        return _put_back(run, stored, path)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its {STATE} is not that of a run ({error!r}); choose another one"
        ) from error


def _put_back(run: "Trainer", stored: checkpoint.Checkpoint, path: Path) -> dict[str, Any]:
    clocks = {name: stored.state[name] for name in ("step", "discriminator_updates", "position")}
    if wrong := {name: n for name, n in clocks.items() if type(n) is not int or n < 0}:
        raise ValueError(f"no counts: {wrong}")
    content = stored.state.get("content", run.stream.content)
    if content != run.stream.content:
        raise CheckpointError(
            f"checkpoint {path} was trained on data with the content hash {content}, which is now "
            f"{run.stream.content}: bring the data back (data.path, data.labels), or choose "
            "another run_dir"
        )
    before = {**stored.manifest["facts"], **stored.manifest["versions"]}
    now = {**_facts(run), **sealed.versions()}
    changed = [f"{k} was {before[k]}, is {now.get(k)}" for k in before if before[k] != now.get(k)]
    if changed:
        warnings.warn(
            f"{path} goes on elsewhere, not to the last bit: {'; '.join(changed)}", stacklevel=4
        )
    run.guard.skipped |= stored.state.get("skipped", {})
    spread(stored, run.recipe, run.averages, run.players)
    run.monitor.restore(stored.state["terms"], run.device)
    run.monitor.owed = stored.state.get("owed") is True and run.monitor.evaluation is not None
    folder, measured = run.monitor.run_dir / "checkpoints", run.settings.measured
    run.monitor.best.restore(stored.state.get("best"), folder, measured, run.monitor.tell)
    return stored.state


def fingerprints(run: "Trainer") -> dict[str, int]:
    """A sum over the bits of every parameter by name: equal where the processes are in step."""
    return {
        name: int(p.detach().flatten().view(torch.uint8).sum(dtype=torch.int64).item())
        for name, p in run.recipe.named_parameters()
    }


def _facts(run: "Trainer") -> dict[str, Any]:
    """What the last bits of a result depend on, beside versions."""
    return {
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "looks_through": _looks_through(run.recipe),
    }


def _looks_through(recipe: Recipe) -> list[str]:
    """Hashes of the networks that a recipe's losses look through, which no checkpoint holds."""
    if recipe not in _looks:
        networks = (held for _, held in beside(recipe) if isinstance(held, nn.Module))
        _looks[recipe] = sorted({weights_hash(network.state_dict()) for network in networks})
    return _looks[recipe]


def gather(
    recipe: Recipe, averages: Mapping[str, Average], players: Iterable[Player]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Networks and optimizer tensors by name, and the rest as plain values."""
    networks = _networks(recipe, averages)
    optimizers: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for player in players:
        tensors, groups[player.name] = optimizer_state.flatten(player.optimizer)
        optimizers |= {f"{player.name}/{name}": tensor for name, tensor in tensors.items()}
    counts = {n: {"updates": a.updates, "images": a.images} for n, a in averages.items()}
    return networks, optimizers, {"optimizers": groups, "averages": counts}


def spread(
    stored: checkpoint.Checkpoint,
    recipe: Recipe,
    averages: Mapping[str, Average],
    players: Iterable[Player],
) -> None:
    """Put a checkpoint's tensors and values back where `gather` found them.

    Raises: CheckpointError, before anything is copied, where names or shapes do not fit.
    """
    states = [(p.optimizer, _state_of(p, stored)) for p in players]
    counts = {n: (c["updates"], c["images"]) for n, c in stored.state["averages"].items()}
    checkpoint.restore(
        _networks(recipe, averages), _own(stored.networks), f"checkpoint {stored.path}"
    )
    for optimizer, state in states:
        optimizer_state.put(optimizer, state)
    for name, average in averages.items():
        average.updates, average.images = counts[name]


def _state_of(player: Player, stored: checkpoint.Checkpoint) -> dict[str, Any]:
    """What a player's optimizer can load."""
    prefix, groups = f"{player.name}/", stored.state["optimizers"][player.name]
    tensors = {
        n.removeprefix(prefix): t for n, t in stored.optimizers.items() if n.startswith(prefix)
    }
    return optimizer_state.fitting(player.optimizer, tensors, groups)


def _own(networks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of this process: its own buffers in place of the first one's."""
    prefix = f"ranks/{distributed.rank()}/"
    shared = {name: t for name, t in networks.items() if not name.startswith("ranks/")}
    own = {name.removeprefix(prefix): t for name, t in networks.items() if name.startswith(prefix)}
    return shared | {f"recipe/{name}": t for name, t in own.items() if f"recipe/{name}" in shared}


def _networks(recipe: Recipe, averages: Mapping[str, Average]) -> dict[str, Tensor]:
    networks = {f"recipe/{name}": tensor for name, tensor in recipe.state_dict().items()}
    for name, average in averages.items():
        for key, tensor in average.state_dict().items():
            own = key.removeprefix("generator.")
            place = "average-state" if own == key else "average"
            networks[f"{place}/{name}/{own}"] = tensor
    return networks
