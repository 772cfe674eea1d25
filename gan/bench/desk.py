"""Where steps of games are measured: which games, how many steps a round, on what device."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from gan import distributed
from gan.bench import by_hand, devices, games
from gan.bench.games import COMMON, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row, Timer, Work, alternate, noted, row
from gan.config.check import Checked, check
from gan.config.settings import exact
from gan.trainer import Trainer

WARM = 2  # rounds that do not count
EAGER = ("trainer.graphs=false",)


def repeated(step: Work, times: int) -> Work:
    """A step so many times."""

    def work() -> None:
        for _ in range(times):
            step()

    return work


def played(game: Trainer, times: int) -> Work:
    """So many steps of a trainer, whose terms are read and dropped as a log would."""

    def work() -> None:
        for _ in range(times):
            game.play()
        game.monitor.restore({}, game.device)  # nothing is read back

    return work


@dataclass(frozen=True)
class Desk:
    """What is asked for, the games by name, a device; `seconds` bound what a comparison takes."""

    options: Options
    compose: Compose
    models: Mapping[str, tuple[str, ...]]
    device: str = "auto"
    seconds: float = math.inf

    @property
    def timer(self) -> Timer:
        """The clock of the device."""
        return devices.timer(distributed.device(self.device))

    def checked(self, model: str, *overrides: str) -> Checked:
        """A model's settings."""
        device = f"trainer.device={self.device}"
        return _checked(self.compose, *self.models[model], *COMMON, device, *overrides)

    def maker(self, model: str, *overrides: str) -> Callable[[], Trainer]:
        """A function that builds a model's trainer."""
        return lambda: games.trainer_of(self.checked(model, *overrides))

    def plays(self, game: Trainer) -> Work:
        """A round of a trainer's steps."""
        return played(game, self.options.steps)

    def compare(
        self,
        identity: str,
        case: str,
        model: str,
        goal: Goal | None,
        ours: Work,
        reference: Work,
        null: Work | None = None,
        absolute: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Row:
        """A round of steps beside a round of a reference's; `absolute`: their difference.

        `host_ms` is the wall time of a step until all of it was handed to the device.
        """
        steps = self.options.steps
        hosts: dict[str, list[float]] = {"ours": [], "reference": []}
        paired = alternate(
            noted(ours, hosts["ours"]),
            noted(reference, hosts["reference"]),
            null,
            self.options.rounds,
            self.timer,
            WARM,
            self.seconds,
        )
        host = {name: milliseconds(seconds, steps) for name, seconds in hosts.items()}
        said = {"model": model, **(settings or {}), "steps": steps, "host_ms": host}
        unit, per = ("us per step", 1e6) if absolute else ("ms per step", 1e3)
        return row(identity, case, unit, paired, per / steps, goal, said, difference=absolute)

    def over_bare(self, identity: str, case: str, model: str, goal: Goal) -> Row:
        """A step beside a bare loop that does the same tensor work, operation by operation.

        A goal that is not `resolved` bounds the difference, in microseconds.
        """
        make = self.maker(model, *EAGER)
        bare, null = (repeated(by_hand.bare(make()), self.options.steps) for _ in range(2))
        ours, absolute = self.plays(make()), not goal.resolved
        return self.compare(identity, case, model, goal, ours, bare, null, absolute)

    def over_usual(
        self, identity: str, case: str, model: str, goal: Goal, *overrides: str, tf32: bool = False
    ) -> Row:
        """A step with these settings beside the loop that most code has, in exact float32 or not.

        On a CPU there is no TF32.
        """
        make = self.maker(model)
        loops = [repeated(by_hand.usual(make()), self.options.steps) for _ in range(2)]
        usual, null = loops if tf32 else [exact()(loop) for loop in loops]
        ours, said = self.plays(self.maker(model, *overrides)()), {"tf32": tf32}
        return self.compare(identity, case, model, goal, ours, usual, null, settings=said)

    def over_plain(
        self,
        identity: str,
        case: str,
        model: str,
        goal: Goal,
        *overrides: str,
        common: tuple[str, ...] = EAGER,
    ) -> Row:
        """A step with these settings, beyond what is common, beside one without."""
        make = self.maker(model, *common)
        plain, null = (self.plays(make()) for _ in range(2))
        ours = self.plays(self.maker(model, *common, *overrides)())
        return self.compare(identity, case, model, goal, ours, plain, null)

    def over_written(self, identity: str, case: str, model: str, goal: Goal) -> Row:
        """A step beside the same with the arithmetic of convolutions as most code writes them."""
        make = self.maker(model)
        games = [make() for _ in range(2)]
        for game in games:
            by_hand.as_written(game.recipe)
        plain, null = map(self.plays, games)
        return self.compare(identity, case, model, goal, self.plays(make()), plain, null)


@cache
def _checked(compose: Compose, *words: str) -> Checked:
    """Checked once: that builds a game in miniature, and rows have games in common."""
    return check(compose(*words))


def milliseconds(host: list[float], steps: int) -> float:
    """A step's share of a round, out of the seconds of rounds that were noted, warm ones too."""
    return round(1e3 * median(host[WARM:]) / steps, 4)
