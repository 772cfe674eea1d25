"""Paired measurements: ours and a reference take turns in one process, in random order.

Machines are shared and noisy, so only ratios within a round are compared, in processor time where
nothing else is asked for. The reference also runs a second time in every round, and the spread of
this null row says what the machine can resolve.
"""

import math
import os
import platform
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import torch

from gan import system
from gan.config.floors import installed

Work = Callable[[], Any]
Clock = Callable[[], float]
Timer = Callable[[Work], float]  # does the work and gives its seconds
Row = dict[str, Any]  # one JSON object
Kind = Literal["at most", "at least"]

ROUNDS = 15
LEAST = 5  # rounds, however long they take


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
    return time.process_time() + system.of_children()


def by(clock: Clock) -> Timer:
    """A timer that reads a clock before the work and after it."""

    def timed(work: Work) -> float:
        started = clock()
        work()
        return clock() - started

    return timed


def noted(work: Work, passed: list[float]) -> Work:
    """The same work, which notes the seconds until it returns, whatever a device still does."""

    def timed() -> None:
        passed.append(by(time.perf_counter)(work))

    return timed


def alternate(
    ours: Work,
    reference: Work,
    null: Work | None = None,
    rounds: int = 0,
    timer: Timer | None = None,
    warm: int = 1,
    seconds: float = math.inf,
) -> Paired:
    """Run all three in a new random order in each round, after `warm` rounds that do not count.

    `null` is a second instance of the reference, by default the same one; 0 rounds are the usual
    number; `timer` is by default one of processor time. After so many `seconds` no round is begun
    beyond the least number.
    """
    works = {"ours": ours, "reference": reference, "null": null or reference}
    taken: dict[str, list[float]] = {name: [] for name in works}
    shuffler, timer = random.Random(0), timer or by(processor)
    end = time.monotonic() + seconds
    for number in range(-warm, rounds or ROUNDS):
        if number >= LEAST and time.monotonic() > end:
            break
        order = list(works)
        shuffler.shuffle(order)
        for name in order:
            spent = timer(works[name])
            if number >= 0:
                taken[name].append(spent)
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


def in_words(rows: Sequence[Row]) -> str:
    """What the rows say, for those of which a benchmark says nothing of its own."""
    said = []
    for found in rows:
        if found.get("ratio") is None:
            continue
        named = " ".join(str(found[key]) for key in ("case", "model", "size") if key in found)
        kind = "times as fast as" if str(found["goal"]).startswith("at least") else "times"
        missed = ", missed" if found["passed"] is False else ""
        aim = f" (aim: {found['goal']}{missed})" if found["goal"] else ""
        low, high = found["null_iqr"]
        said.append(
            f"{named}: {found['ratio']:g} {kind} the reference, which is {low:g} to {high:g} "
            f"{kind} itself{aim}"
        )
    return f"{'; '.join(said)}." if said else ""


def skipped(identity: str, case: str, reason: str, **settings: Any) -> Row:
    """The row of a case that cannot run here."""
    return {"id": identity, "case": case, **settings, "skipped": reason, **surroundings()}


def failed(identity: str, case: str, error: Exception, **settings: Any) -> Row:
    """The row of a case that broke off."""
    said = f"{type(error).__name__}: {error}"
    return {"id": identity, "case": case, **settings, "failed": said, **surroundings()}


def surroundings() -> Row:
    """The machine, with its GPU once that was used; the versions that matter; how busy it is."""
    used = torch.cuda.is_initialized()
    gpu = f", {torch.cuda.get_device_name()}" if used else ""
    return {
        "machine": f"{_processor_name()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads used{gpu}",
        "versions": {
            "python": platform.python_version(),
            **{name: installed(name) for name in ("torch", "numpy", "lmdb", "pillow")},
            **(_of_cuda() if used else {}),
        },
        "load": system.load(),
    }


def _of_cuda() -> dict[str, str | None]:
    """Versions of CUDA, of cuDNN, and of the driver as its module reports itself."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        said = ""
    driver = re.search(r"Module.*?(\d+\.[\d.]+)", said)
    return {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": driver[1] if driver else None,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
