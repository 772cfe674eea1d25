"""Steps on a GPU: CUDA graphs, distance from the hardware, overhead, and feeding.

Every comparison is bounded in time, so that all of them take two and a half minutes on an H200.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gan.bench import devices, limits
from gan.bench.desk import EAGER, WARM, Desk, milliseconds
from gan.bench.games import MODELS, Compose
from gan.bench.limits import Ceilings, Counts
from gan.bench.options import Options
from gan.bench.paired import (
    Goal,
    Paired,
    Row,
    Work,
    alternate,
    failed,
    noted,
    row,
    skipped,
    surroundings,
)
from gan.bench.steps import LAZY, R1
from gan.bench.stores import Pictures
from gan.bench.train import streamed
from gan.data.stream import Stream
from gan.trainer import Trainer

Measure = Callable[[Desk, str], Iterator[Row]]

SECONDS = 1.5  # of a comparison, or its least rounds
STEPS = 10  # of a round
BATCHES = 8  # that are read for each of those, where nothing else happens
IMAGES = 16_384  # of a made-up store
GRAPHS = ("trainer.graphs=true",)

_DCGAN = "model=dcgan", "image.size=64", "image.channels=3"
_SNGAN = "model=sngan", "image.channels=3"
_WNET = "model=wnet", "image.size=64", "generator.width=64", "discriminator.width=32"  # published
GAMES: Mapping[str, tuple[str, ...]] = {
    "dcgan64_b64": (*_DCGAN, "trainer.batch_size=64"),
    "dcgan64_b256": (*_DCGAN, "trainer.batch_size=256"),
    "sngan32_b64": (*_SNGAN, "trainer.batch_size=64"),
    "sngan32_b256": (*_SNGAN, "trainer.batch_size=256"),
    "wnet64_b64": (*_WNET, "trainer.batch_size=64"),
    **{name: words for name, words in MODELS.items() if name.startswith("tiny")},
}
FLOORS = {"dcgan64_b256": 2.5, "sngan32_b256": 2.0, "wnet64_b64": 2.5}


def graph(desk: Desk, model: str) -> Iterator[Row]:
    """G1: steps replayed as CUDA graphs against the same steps operation by operation."""
    yield desk.over_plain("G1", "graph", model, Goal(2.0, "at least"), *GRAPHS)


def floor(desk: Desk, model: str) -> Iterator[Row]:
    """G2: a step against the least time that its arithmetic and its maps need on this device."""
    eager = desk.maker(model, *EAGER)()
    for _ in range(3):  # slips are looked for in the first two
        eager.play()
    counts = limits.count(eager.play)
    most, again = (limits.ceilings(eager.device, counts.flops) for _ in range(2))
    yield _ceilings(eager, model, counts, most)
    floors = limits.floor(counts, most), limits.floor(counts, again)
    yield _over_floor(desk, model, eager, floors, graphs=False)
    yield _over_floor(desk, model, desk.maker(model, *GRAPHS)(), floors, graphs=True)


def _ceilings(game: Trainer, model: str, counts: Counts, most: Ceilings) -> Row:
    """What one step asks for, and what the device was measured to give."""
    launch = {"eager": most.launch}
    if game.device.type == "cuda":
        launch["graph"] = limits.launch_in_a_graph(game.device)
    least = {**limits.bounds(counts, most), "floor": limits.floor(counts, most)}
    return {
        "id": "G2",
        "case": "ceilings",
        "model": model,
        "operations": counts.operations,
        "gflop": {_named(kind): round(n / 1e9, 3) for kind, n in counts.flops.items()},
        "gigabytes": {"eager": round(counts.bytes / 1e9, 6), "fused": round(counts.kept / 1e9, 6)},
        "tflop_per_second": {_named(kind): round(n / 1e12, 3) for kind, n in most.flops.items()},
        "gigabytes_per_second": round(most.bytes / 1e9, 1),
        "launch_us": {how: round(1e6 * seconds, 3) for how, seconds in launch.items()},
        "at_least_ms": {name: round(1e3 * seconds, 4) for name, seconds in least.items()},
        **surroundings(),
    }


def _over_floor(
    desk: Desk, model: str, game: Trainer, floors: tuple[float, float], graphs: bool
) -> Row:
    """The second floor is what the null row says: the ceilings were measured twice."""
    steps, rounds = desk.options.steps, desk.options.rounds
    host: list[float] = []
    work = noted(desk.plays(game), host)
    alone = alternate(work, lambda: None, None, rounds, desk.timer, WARM, desk.seconds).ours
    paired = Paired(alone, *([steps * floor] * len(alone) for floor in floors))
    said = {"ours": milliseconds(host, steps)}
    settings = {"model": model, "graphs": graphs, "steps": steps, "host_ms": said}
    goal = Goal(FLOORS.get(model, max(FLOORS.values())))
    return row("G2", "floor", "ms per step", paired, 1e3 / steps, goal, settings)


def defaults(desk: Desk, model: str) -> Iterator[Row]:
    """G3: default settings against the loop that most code has, in float32 and in TF32."""
    for tf32, bound in ((False, 3.0), (True, 1.0)):
        yield desk.over_usual("G3", "defaults", model, Goal(bound, "at least"), tf32=tf32)


def overhead(desk: Desk, model: str) -> Iterator[Row]:
    """G4: a trainer's step against a bare loop that does the same tensor work."""
    yield desk.over_bare("G4", "overhead", model, Goal(1.02, resolved=True))


def feed(desk: Desk, model: str) -> Iterator[Row]:
    """G5: training out of a store against images on the device; the store against pinned memory."""
    games = {False: desk.maker(model, *EAGER)(), True: desk.maker(model, *GRAPHS)()}
    real = next(games[False].stream)["real"]
    pictures = Pictures(desk.options.images or IMAGES, real.shape[-1], real.shape[1])
    with desk.options.scratch() as folder:
        both = (streamed(pictures, Path(folder), games[False], where) for where in ("off", "on"))
        with closing(next(both)) as store, closing(next(both)) as kept:
            for graphs, game in games.items():
                ours, resident = _reading(desk, game, store), _reading(desk, game, kept)
                goal, said = Goal(1.01, resolved=True), {"graphs": graphs, "images": len(pictures)}
                yield desk.compare("G5", "feed", model, goal, ours, resident, settings=said)
            yield _copying(desk, model, store)


def _reading(desk: Desk, game: Trainer, stream: Stream) -> Work:
    """A round of a trainer's steps with batches of this stream."""
    play = desk.plays(game)

    def work() -> None:
        game.stream = stream
        play()

    return work


def _copying(desk: Desk, model: str, store: Stream) -> Row:
    """Batches put on the device, in gigabytes per second, beside a copy of pinned memory."""
    shape, pinned = (store.batch_size, *store.dataset.store.shape), store.device.type == "cuda"
    here = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
    there = torch.zeros(shape, dtype=torch.uint8, device=store.device)
    batches = BATCHES * desk.options.steps

    def read() -> None:
        for _ in range(batches + store.ahead):  # as many may have been read before
            next(store)

    def copy() -> None:
        for _ in range(batches):
            there.copy_(here, non_blocking=True)

    paired = alternate(read, copy, None, desk.options.rounds, desk.timer, WARM, desk.seconds)
    settings = {"model": model, "batches": batches}
    found = row("G5", "copy", "GB per second", paired, 1.0, Goal(0.9, "at least"), settings)
    gigabytes = batches * here.nbytes / 1e9
    rates = {key: round(gigabytes / found[key], 3) for key in ("value", "reference")}
    return {**found, **rates}


def lazy(desk: Desk, model: str) -> Iterator[Row]:
    """G7: R1 at every 16th update against none."""
    desk = replace(desk, options=replace(desk.options, steps=LAZY))
    yield desk.over_plain("G7", "lazy", model, Goal(1.05, resolved=True), *R1)


def measured(
    identity: str,
    case: str,
    models: tuple[str, ...],
    measure: Measure,
    options: Options,
    compose: Compose,
    device: str = "cuda",
) -> Iterator[Row]:
    """The rows of all models; what breaks off leaves a row that says so, and the others go on."""
    if device == "cuda" and not torch.cuda.is_available():
        yield skipped(identity, case, "there is no GPU here")
        return
    options = replace(options, steps=options.steps or STEPS)
    desk = Desk(options, compose, GAMES, device, SECONDS)
    for model in options.model or models:
        try:
            yield from measure(desk, model)
        except Exception as error:  # it is shown, and makes the command fail in the end
            traceback.print_exception(error, file=sys.stderr)
            yield failed(identity, case, error, model=model)
        devices.release(torch.device(device))


_SMALL = ("dcgan64_b64", "sngan32_b64")
_ALL: tuple[tuple[str, Measure, tuple[str, ...]], ...] = (
    ("G1", graph, _SMALL),
    ("G2", floor, tuple(FLOORS)),
    ("G3", defaults, ("dcgan64_b64", "dcgan64_b256", "sngan32_b64")),
    ("G4", overhead, ("dcgan64_b64", "dcgan64_b256", "sngan32_b64")),
    ("G5", feed, ("dcgan64_b256",)),
    ("G7", lazy, ("sngan32_b64",)),
)
CASES = {
    measure.__name__: partial(measured, identity, measure.__name__, models, measure)
    for identity, measure, models in _ALL
}
READS = dict.fromkeys(CASES, "model rounds steps") | {
    "lazy": "model rounds",
    "feed": "model rounds steps images folder",
}
DEFAULT = tuple(CASES)


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    said = [
        f"{row['model']} takes {row['reference']:g} ms a step and {row['value']:g} ms with "
        f"{GRAPHS[0]}"
        for row in rows
        if row["case"] == "graph" and "value" in row
    ]
    said += [
        f"{row['model']}{' with graphs' if row['graphs'] else ''} takes {row['ratio']:g} times "
        "what its arithmetic and maps need here"
        for row in rows
        if row["case"] == "floor" and "value" in row
    ]
    if not said:
        return ""
    return (
        f"{'; '.join(said)}. Where at_least_ms has more for launch than for its floor, the host "
        "starts operations too slowly for the device: recorded turns (trainer.graphs) or a larger "
        "trainer.batch_size help, smaller networks do not. Where a step is close to its floor, "
        "only less work is faster."
    )


def _named(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
