"""What bounds a training step: arithmetic, memory, starting operations, or waiting for data.

Three estimates out of counts of one step and of what the device was measured to do: operations
times the time of the smallest one, floating-point operations by the rate of a matrix product, and
bytes that operations read and write by the rate of a large copy. The largest is what limits. They
overlap, so they are no shares of the time, and what stays in a cache moves faster than a copy.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gan.bench.devices import wait

VIEWS = {"view", "detach", "alias", "expand", "permute", "transpose", "slice", "select", "t"}
MOVING = ("_fused_", "_foreach_lerp")  # what moves weights and averages


@dataclass(frozen=True)
class Counts:
    """One step: operations, floating-point operations by number, bytes read and written.

    `kept` are the bytes that stay when all else is done on the way: those of products,
    convolutions, optimizers and averages.
    """

    operations: int
    flops: Mapping[torch.dtype, int]
    bytes: int
    kept: int


@dataclass(frozen=True)
class Ceilings:
    """What a device can do: seconds per small operation, operations and bytes per second."""

    launch: float
    flops: Mapping[torch.dtype, float]
    bytes: float


class _Tally(TorchDispatchMode):
    """Counts operations that do work, and the bytes of what goes in and comes out."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.operations = self.bytes = self.kept = 0
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name.strip("_") in VIEWS:
            return out
        moved = sum(leaf.nbytes for leaf in _tensors((args, kwargs, out)))
        if not func._schema.returns:  # what it writes it has read, and does not give
            moved += sum(leaf.nbytes for leaf in _tensors(_written(func, args, kwargs)))
        self.operations += 1
        self.bytes += moved
        product = flop_registry.get(func.overloadpacket)
        if product is not None:
            self.flops[_tensors(args)[0].dtype] += product(*args, **kwargs, out_val=out)
        if product is not None or name.startswith(MOVING):
            self.kept += moved
        return out


def count(step: Callable[[], Any]) -> Counts:
    """The counts of one call; call it once before, so that optimizers have their state."""
    with _Tally() as tally:
        step()
    return Counts(tally.operations, dict(tally.flops), tally.bytes, tally.kept)


def ceilings(device: torch.device, kinds: Iterable[torch.dtype] = (torch.float32,)) -> Ceilings:
    """Measured on this device with the threads that torch uses now, for these kinds of numbers."""
    gpu = device.type == "cuda"
    scalar = torch.ones((), device=device)
    side = 8192 if gpu else 1024
    many, copy = (torch.rand(1 << (28 if gpu else 24), device=device) for _ in range(2))
    flops = {}
    for kind in kinds:
        square = torch.randn(side, side, device=device).to(kind)
        flops[kind] = 2 * side**3 / _seconds(partial(torch.matmul, square, square), device, 3)
    return Ceilings(
        launch=_seconds(lambda: scalar + scalar, device, 200),
        flops=flops,
        bytes=2 * many.nbytes / _seconds(lambda: copy.copy_(many), device, 3),
    )


def bounds(counts: Counts, most: Ceilings) -> dict[str, float]:
    """Seconds that one step takes at least, by what would limit it."""
    return {
        "launch": counts.operations * most.launch,
        "compute": sum(number / most.flops[kind] for kind, number in counts.flops.items()),
        "memory": counts.bytes / most.bytes,
    }


def floor(counts: Counts, most: Ceilings) -> float:
    """Seconds below which no way to run the step gets: arithmetic, or the bytes that are kept."""
    return max(bounds(counts, most)["compute"], counts.kept / most.bytes)


def launch_in_a_graph(device: torch.device) -> float:
    """Seconds of a small operation inside a CUDA graph."""
    scalar, times = torch.ones((), device=device), 1000
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            scalar = scalar + 1
    return _seconds(graph.replay, device, 1) / times


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to; optimizers would scale gradients, and do not."""
    named = {spec.name: value for spec, value in zip(func._schema.arguments, args, strict=False)}
    given = {**named, **kwargs}
    return [
        given[spec.name]
        for spec in func._schema.arguments
        if spec.name in given.keys() - {"grads"}
        if spec.alias_info is not None and spec.alias_info.is_write
    ]


def _seconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """The fastest of a few tries: a ceiling, and no mean."""
    taken = []
    for _ in range(7):
        wait(device)
        started = time.perf_counter()
        for _ in range(times):
            work()
        wait(device)
        taken.append((time.perf_counter() - started) / times)
    return min(taken)
