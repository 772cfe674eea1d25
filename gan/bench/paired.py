"""Paired measurements: ours and a reference take turns in one process, in random order.

Machines are shared and noisy, so only ratios within a round are compared, in processor time where
nothing else is asked for. The reference also runs a second time in every round, and the spread of
this null row says what the machine can resolve.
"""

import os
import platform
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import torch

Work = Callable[[], Any]
Clock = Callable[[], float]
Row = dict[str, Any]  # one JSON object
Kind = Literal["at most", "at least"]

ROUNDS = 15


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio; where `resolved`, a bound from above gives way to the null's spread."""

    bound: float
    kind: Kind = "at most"
    resolved: bool = False

    def reached(self, ratio: float, null: tuple[float, float]) -> bool:
        """Whether a ratio keeps to it, beside the quartiles of the null ratio."""
        if self.kind == "at least":
            return ratio >= self.bound
        return ratio <= (max(self.bound, null[1]) if self.resolved else self.bound)


@dataclass(frozen=True)
class Paired:
    """Seconds of every round for ours, the reference, and the reference again."""

    ours: Sequence[float]
    reference: Sequence[float]
    null: Sequence[float]

    def ratios(self, faster: bool = False) -> list[float]:
        """Ours by the reference round by round; `faster`: how many times as fast ours is."""
        pairs = zip(self.ours, self.reference, strict=True)
        return [r / o if faster else o / r for o, r in pairs]

    def null_ratios(self, faster: bool = False) -> list[float]:
        """The same for the reference that ran again."""
        return Paired(self.null, self.reference, self.null).ratios(faster)


def processor() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def alternate(
    ours: Work,
    reference: Work,
    null: Work | None = None,
    rounds: int = ROUNDS,
    clock: Clock = processor,
    warm: int = 1,
) -> Paired:
    """Run all three in a new random order in each round, after `warm` rounds that do not count.

    `null` is a second instance of the reference, by default the same one.
    """
    works = {"ours": ours, "reference": reference, "null": null or reference}
    taken: dict[str, list[float]] = {name: [] for name in works}
    shuffler = random.Random(0)
    for number in range(-warm, rounds):
        order = list(works)
        shuffler.shuffle(order)
        for name in order:
            started = clock()
            works[name]()
            if number >= 0:
                taken[name].append(clock() - started)
    return Paired(**taken)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def row(
    identity: str,
    case: str,
    unit: str,
    paired: Paired,
    per: float,
    goal: Goal | None = None,
    settings: Mapping[str, Any] | None = None,
    difference: bool = False,
) -> Row:
    """One result, with the goal's verdict.

    A second is worth `per` units. The ratio of a goal `at least` is how many times as fast ours is.
    With `difference` the value is ours beyond the reference, and the goal bounds that.
    """
    faster = goal is not None and goal.kind == "at least"
    ratios, nulls = paired.ratios(faster), paired.null_ratios(faster)
    value, reference = median(paired.ours) * per, median(paired.reference) * per
    compared, spread = median(ratios), quartiles(nulls)
    if difference:
        pairs = list(zip(paired.ours, paired.reference, paired.null, strict=True))
        value = compared = median(ours - other for ours, other, _ in pairs) * per
        spread = quartiles([(again - other) * per for _, other, again in pairs])
    return {
        "id": identity,
        "case": case,
        **(settings or {}),
        "value": _short(value),
        "unit": unit,
        "reference": _short(reference),
        "ratio": _short(median(ratios)),
        "iqr": [_short(q) for q in quartiles(ratios)],
        "null_ratio": _short(median(nulls)),
        "null_iqr": [_short(q) for q in quartiles(nulls)],
        "rounds": len(paired.ours),
        "goal": None if goal is None else f"{goal.kind} {goal.bound:g}",
        "passed": None if goal is None else goal.reached(compared, spread),
        **surroundings(),
    }


def skipped(identity: str, case: str, reason: str, **settings: Any) -> Row:
    """The row of a case that cannot run here."""
    return {"id": identity, "case": case, **settings, "skipped": reason, **surroundings()}


def surroundings() -> Row:
    """The machine, the versions that matter, and how busy it is."""
    return {
        "machine": f"{_processor_name()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads used",
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "numpy", "lmdb", "pillow")},
        },
        "load": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
