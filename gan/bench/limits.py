"""What bounds a training step: arithmetic, memory, starting operations, or waiting for data.

Three estimates out of counts of one step and of what the device was measured to do: operations
times the time of the smallest one, floating-point operations by the rate of a matrix product, and
bytes that operations read and write by the rate of a large copy. The largest is what limits. They
overlap, so they are no shares of the time, and what stays in a cache moves faster than a copy.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

VIEWS = {"view", "detach", "alias", "expand", "permute", "transpose", "slice", "select", "t"}


@dataclass(frozen=True)
class Counts:
    """One step: operations, floating-point operations, bytes read and written by operations."""

    operations: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class Ceilings:
    """What a device can do: seconds per small operation, operations and bytes per second."""

    launch: float
    flops: float
    bytes: float


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts operations that do work, and the bytes of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch types none of its class
        self.operations = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation."""
        out = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::").strip("_") not in VIEWS:
            self.operations += 1
            leaves = tree_leaves((args, kwargs, out))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return out


def count(step: Callable[[], Any]) -> Counts:
    """The counts of one call; call it once before, so that optimizers have their state."""
    flops = FlopCounterMode(display=False)
    with flops:
        step()
    with _Tally() as tally:
        step()
    return Counts(tally.operations, flops.get_total_flops(), tally.bytes)


def ceilings(device: torch.device) -> Ceilings:
    """Measured on this device with the threads that torch uses now."""
    scalar = torch.ones((), device=device)
    square = torch.ones(1024, 1024, device=device)
    many, copy = (torch.ones(1 << 24, device=device) for _ in range(2))  # 64 MiB each
    return Ceilings(
        launch=_seconds(lambda: scalar + scalar, device, 200),
        flops=2 * 1024**3 / _seconds(lambda: square @ square, device, 3),
        bytes=2 * many.nbytes / _seconds(lambda: copy.copy_(many), device, 3),
    )


def bounds(counts: Counts, most: Ceilings) -> dict[str, float]:
    """Seconds that one step takes at least, by what would limit it."""
    return {
        "launch": counts.operations * most.launch,
        "compute": counts.flops / most.flops,
        "memory": counts.bytes / most.bytes,
    }


def _seconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """The fastest of a few tries: a ceiling, and no mean."""
    taken = []
    for _ in range(7):
        _wait(device)
        started = time.perf_counter()
        for _ in range(times):
            work()
        _wait(device)
        taken.append((time.perf_counter() - started) / times)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
