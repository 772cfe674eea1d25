"""What a training step costs on a batch that is there already."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from gan.bench.desk import EAGER, Desk
from gan.bench.games import MODELS, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row
from gan.bench.peers import PEERS, compared

Case = Callable[[Options, Compose], Iterable[Row]]
FASTER = {"dcgan64": 1.10, "resnet": 1.35, "sngan": 1.30}  # than the usual loop
LAZY = 16  # updates from one penalty to the next
R1 = "penalties.r1.weight=10", f"penalties.r1.every={LAZY}"


def overhead(options: Options, compose: Compose) -> Iterator[Row]:
    """T1: a trainer's step against a bare loop that does the same tensor work."""
    desk = _desk(replace(options, rounds=options.rounds or 21), compose)
    for model in options.model or ("dcgan", "sngan", "wnet"):
        yield desk.over_bare("T1", "overhead", model, Goal(1.02, resolved=True))


def host(options: Options, compose: Compose) -> Iterator[Row]:
    """T2: microseconds of a step beyond the bare loop's, where there is little to compute.

    The bare loop takes its steps by torch's `Adam.step`, which the trainer's are cheaper than.
    """
    many = options.rounds or 101  # short rounds in pairs: what others do here is in both
    desk = _desk(replace(options, rounds=many), compose, steps=3)
    for model in options.model or ("tiny", "tiny_wnet"):
        yield desk.over_bare("T2", "host", model, Goal(25.0))


def defaults(options: Options, compose: Compose) -> Iterator[Row]:
    """T3: default settings against the loop that most code has."""
    desk, least = _desk(options, compose), min(FASTER.values())
    for model in options.model or tuple(FASTER):
        yield desk.over_usual("T3", "defaults", model, Goal(FASTER.get(model, least), "at least"))


def compiled(options: Options, compose: Compose) -> Iterator[Row]:
    """T4: the same for compiled networks, after the warm-up."""
    desk, goal = _desk(options, compose), Goal(1.35, "at least")
    for model in options.model or ("sngan",):
        yield desk.over_usual("T4", "compile", model, goal, "trainer.compile=true")


def lazy(options: Options, compose: Compose) -> Iterator[Row]:
    """T5: R1 at every 16th update against none."""
    desk = _desk(replace(options, steps=LAZY), compose)
    for model in options.model or ("resnet",):
        yield desk.over_plain("T5", "lazy", model, Goal(1.05), *R1)


def penalties(options: Options, compose: Compose) -> Iterator[Row]:
    """T6: penalties at every update against none."""
    desk = _desk(options, compose)
    for model in options.model or ("resnet",):
        for name, bound in (("wgan_gp", 1.6), ("r1", 1.5)):
            on = f"penalties.{name}.weight=10"
            yield desk.over_plain("T6", f"penalties {name}", model, Goal(bound), on)


def convolutions(options: Options, compose: Compose) -> Iterator[Row]:
    """T8: convolutions that leave arithmetic out, against the same ones as most code has them.

    In R3GAN what differs is the second derivative, for its penalties.
    """
    desk = _desk(options, compose)
    for model in options.model or ("sngan", "wnet", "r3gan"):
        yield desk.over_written("T8", "convolutions", model, Goal(1.05, "at least"))


def precision(options: Options, compose: Compose) -> Iterator[Row]:
    """T9: networks that play in bf16 against the same in float32."""
    desk = _desk(options, compose)
    for model in options.model or ("dcgan64", "sngan", "wnet"):
        full, half = ("trainer.precision=fp32",), "trainer.precision=bf16"
        goal = Goal(1.1, "at least")
        yield desk.over_plain("T9", "precision", model, goal, half, common=EAGER + full)


def peers(options: Options, compose: Compose) -> Iterator[Row]:
    """T7: a step against that of other frameworks, on their networks, where they are installed."""
    desk = replace(_desk(options, compose), device="cpu")
    for name in PEERS:
        yield compared(desk, name)


CASES: Mapping[str, Case] = {
    "overhead": overhead,
    "host": host,
    "defaults": defaults,
    "compile": compiled,
    "lazy": lazy,
    "penalties": penalties,
    "convolutions": convolutions,
    "precision": precision,
    "peers": peers,
}
READS = dict.fromkeys(CASES, "model rounds steps")
READS |= {"lazy": "model rounds", "peers": "rounds steps"}
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


def _desk(options: Options, compose: Compose, steps: int = 2) -> Desk:
    return Desk(replace(options, steps=options.steps or steps), compose, MODELS)
