"""What a training step costs on a batch that is there already."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from gan.bench import by_hand, games
from gan.bench.games import COMMON, MODELS, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row, Work, alternate, row, skipped
from gan.trainer import Trainer

Case = Callable[[Options, Compose], Iterable[Row]]
FASTER = {"dcgan64": 1.10, "resnet": 1.35, "sngan": 1.30}  # than the usual loop
LAZY = 16  # updates from one penalty to the next


def overhead(options: Options, compose: Compose) -> Iterator[Row]:
    """T1: a trainer's step against a bare loop that does the same tensor work."""
    options = replace(options, rounds=max(21, options.rounds))
    for model in options.model or ("dcgan", "sngan", "wnet"):
        yield _over_bare(options, compose, model, Goal(1.02, resolved=True))


def host(options: Options, compose: Compose) -> Iterator[Row]:
    """T2: microseconds of a step beyond the bare loop's, where there is little to compute."""
    options = replace(options, steps=options.steps or 20)
    for model in options.model or ("tiny", "tiny_wnet"):
        yield _over_bare(options, compose, model, Goal(25.0))


def defaults(options: Options, compose: Compose) -> Iterator[Row]:
    """T3: default settings against the loop that most code has."""
    yield from _against_usual("T3", "defaults", options, compose, FASTER)


def compiled(options: Options, compose: Compose) -> Iterator[Row]:
    """T4: the same for compiled networks, after the warm-up."""
    options = replace(options, model=options.model or ("sngan",))
    goals = dict.fromkeys(options.model, 1.35)
    yield from _against_usual("T4", "compile", options, compose, goals, "trainer.compile=true")


def lazy(options: Options, compose: Compose) -> Iterator[Row]:
    """T5: R1 at every 16th update against none."""
    options = replace(options, steps=LAZY)
    settings = ("penalties.r1.weight=10", f"penalties.r1.every={LAZY}")
    for model in options.model or ("resnet",):
        yield _beside_none("T5", "lazy", options, compose, model, settings, Goal(1.05))


def penalties(options: Options, compose: Compose) -> Iterator[Row]:
    """T6: penalties at every update against none."""
    for model in options.model or ("resnet",):
        for name, bound in (("wgan_gp", 1.6), ("r1", 1.5)):
            on = (f"penalties.{name}.weight=10",)
            yield _beside_none("T6", f"penalties {name}", options, compose, model, on, Goal(bound))


def peers(options: Options, compose: Compose) -> Iterator[Row]:
    """T7: other frameworks, which are not part of this."""
    for name, recorded in (("mimicry", 1.08), ("torchgan", 1.14)):
        yield skipped("T7", f"peers {name}", f"no adapter: a prototype's ratio was {recorded}")


CASES: Mapping[str, Case] = {
    "overhead": overhead,
    "host": host,
    "defaults": defaults,
    "compile": compiled,
    "lazy": lazy,
    "penalties": penalties,
    "peers": peers,
}
DEFAULT = ("overhead", "host")


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    costs = [
        f"{row['model']} {row['value']:.0f} us of {row['reference']:.0f}"
        for row in rows
        if row["case"] == "host" and "value" in row
    ]
    if not costs:
        return ""
    return (
        "Beside a loop by hand with nothing to compute, a step takes longer by: "
        f"{'; '.join(costs)}. That is its checks, seeds and statistics, and does not grow with "
        "images or batches, only with the number of layers: where a step takes tens of "
        "milliseconds it is lost in them. `gan bench train` says what limits a run of yours."
    )


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


def _over_bare(options: Options, compose: Compose, model: str, goal: Goal) -> Row:
    make = _maker(compose, model)
    steps = options.steps or 2
    bare, null = (repeated(by_hand.bare(make()), steps) for _ in range(2))
    paired = alternate(played(make(), steps), bare, null, options.rounds, warm=2)
    absolute = not goal.resolved
    unit, per = ("us per step", 1e6) if absolute else ("ms per step", 1e3)
    identity, case = ("T2", "host") if absolute else ("T1", "overhead")
    settings = {"model": model, "steps": steps}
    return row(identity, case, unit, paired, per / steps, goal, settings, difference=absolute)


def _against_usual(
    identity: str,
    case: str,
    options: Options,
    compose: Compose,
    goals: Mapping[str, float],
    *overrides: str,
) -> Iterator[Row]:
    steps = options.steps or 2
    for model in options.model or tuple(goals):
        make = _maker(compose, model)
        usual, null = (repeated(by_hand.usual(make()), steps) for _ in range(2))
        ours = played(_maker(compose, model, *overrides)(), steps)
        paired = alternate(ours, usual, null, options.rounds, warm=2)
        goal = Goal(goals.get(model, min(goals.values())), "at least")
        settings = {"model": model, "steps": steps}
        yield row(identity, case, "ms per step", paired, 1e3 / steps, goal, settings)


def _beside_none(
    identity: str,
    case: str,
    options: Options,
    compose: Compose,
    model: str,
    overrides: tuple[str, ...],
    goal: Goal,
) -> Row:
    steps = options.steps or 2
    plain, null = (played(_maker(compose, model)(), steps) for _ in range(2))
    paid = played(_maker(compose, model, *overrides)(), steps)
    paired = alternate(paid, plain, null, options.rounds)
    settings = {"model": model, "steps": steps}
    return row(identity, case, "ms per step", paired, 1e3 / steps, goal, settings)


def _maker(compose: Compose, model: str, *overrides: str) -> Callable[[], Trainer]:
    values = compose(*MODELS[model], *COMMON, *overrides)
    return lambda: games.trainer(values)
