"""How the cost of a step grows: with the batch, the image, the store, and the loss terms.

A round of every point runs beside one of the first, so that a row's ratio is the growth since
then. On a CPU all times are processor time.
"""

import gc
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gan.bench import stores
from gan.bench.desk import Desk
from gan.bench.games import MODELS, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row, Work, by, processor, skipped
from gan.bench.stores import Pictures
from gan.bench.train import streamed
from gan.data.datasets import Images
from gan.data.stream import Stream
from gan.trainer import Trainer

SECONDS = 4.0  # of a point, or its least rounds
BATCHES = 4, 8, 16, 32, 64, 128
SIZES = 16, 32, 64
RECORDS = 10_000, 100_000, 1_000_000, 2_000_000
BATCH = 64
# little to write or compute
SHUFFLED = "image.size=8", "image.channels=1", f"trainer.batch_size={BATCH}"
PASSES = 100  # batches that are read by themselves
TERMS = (  # of W-Net beside the adversarial one and its penalty, with the published weights
    "recipe.l1=50",
    "recipe.encoder_character=0.2",
    "recipe.encoder_style=0.2",
    "recipe.style_class=1",
    "recipe.constant_content=3",
    "recipe.constant_style=5",
    "recipe.feature=75",
)

KEYS = {"batch": "batch", "image": "image", "store": "records", "terms": "terms"}
WORDS = {
    "batch": "images in a batch",
    "image": "pixels along a side",
    "store": "records in a store",
    "terms": "loss terms",
}

Points = Mapping[int, tuple[str, ...]]  # overrides, by what grows


def batch(options: Options, compose: Compose) -> Iterator[Row]:
    """S1: images in a batch."""
    points = {many: (f"trainer.batch_size={many}",) for many in options.batch or BATCHES}
    for model in options.model or ("dcgan",):
        yield from _grown(_desk(options, compose), "S1", "batch", model, points)


def image(options: Options, compose: Compose) -> Iterator[Row]:
    """S2: pixels along a side, in batches of one size."""
    points = {size: (f"image.size={size}",) for size in options.size or SIZES}
    for model in options.model or ("dcgan",):
        yield from _grown(_desk(options, compose), "S2", "image", model, points)


def terms(options: Options, compose: Compose) -> Iterator[Row]:
    """S4: terms of W-Net's losses, one more at a time."""
    for model in options.model or ("wnet",):
        if "wnet" not in model:
            yield skipped("S4", "terms", "only W-Net has terms to leave out", model=model)
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unused: no loss reaches")  # heads without a term
            yield from _grown(_desk(options, compose), "S4", "terms", model, weighed())


def weighed() -> Points:
    """Settings of W-Net by the number of its terms."""
    off = [f"{word.partition('=')[0]}=0" for word in TERMS]
    return {2 + on: (*TERMS[:on], *off[on:]) for on in range(len(TERMS) + 1)}


def _grown(desk: Desk, identity: str, case: str, model: str, points: Points) -> Iterator[Row]:
    first: Work | None = None
    for x, words in points.items():
        game = desk.maker(model, *words)()
        work = desk.plays(game)
        first = first or work
        row = desk.compare(identity, case, model, None, work, first, settings={case: x})
        yield {**row, "us_per_image": round(1e3 * row["value"] / game.settings.batch_size, 2)}


def store(options: Options, compose: Compose) -> Iterator[Row]:
    """S3: records in the store that a tiny game is trained from, and the memory that they take."""
    desk, counts = _desk(options, compose, steps=10), sorted({*(options.records or RECORDS)})
    make = desk.maker("tiny", *SHUFFLED)
    with options.scratch() as folder:
        places = {count: Path(folder) / str(count) for count in counts}
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each in its own memory
            built = dict(zip(counts, pool.starmap(_write, places.items(), 1), strict=True))
            memory = dict(zip(counts, pool.starmap(_occupied, places.items(), 1), strict=True))
        with _opened(desk, make(), counts[0], places[counts[0]]) as first:
            for count, place in places.items():
                with _opened(desk, make(), count, place) as point:
                    row = _of_a_store(desk, point, first)
                build = {"build_s": round(built[count], 2)}
                yield {**row, "records": count, **build, "memory_mb": memory[count]}


def _pictures(count: int) -> Pictures:
    return Pictures(count, 8, channels=1)


def _write(count: int, place: Path) -> float:
    """A store of so many records; the processor seconds that it took."""
    place.mkdir()
    return by(processor)(lambda: stores.store(_pictures(count), place).close())


class _Point(NamedTuple):
    work: Work
    stream: Stream


@contextmanager
def _opened(desk: Desk, game: Trainer, count: int, place: Path) -> Iterator[_Point]:
    """A game that is trained from a store of so many records."""
    with closing(streamed(_pictures(count), place, game)) as stream:
        game.stream = stream
        yield _Point(desk.plays(game), stream)


def _of_a_store(desk: Desk, point: _Point, first: _Point) -> Row:
    """Beside the step: a batch read by itself."""
    file, size = point.stream.dataset.store, point.stream.batch_size
    buffer = np.empty((size, *file.shape), np.uint8)

    def read() -> None:
        for position in range(PASSES):
            file.read(point.stream.plan(position).images["real"], buffer)

    goal, taken = Goal(1.05, resolved=True), min(by(processor)(read) for _ in range(3))
    row = desk.compare("S3", "store", "tiny", goal, point.work, first.work)
    return {
        **row,
        "megabytes": round(file.path.stat().st_size / 1e6, 1),
        "read_us_per_image": round(1e6 * taken / PASSES / size, 3),
    }


def _occupied(count: int, place: Path) -> dict[str, float]:
    """The memory of a process that streams two epochs, or so many batches, of a store.

    Its `own` part is not given back; the `mapped` one is the file's in the cache of the system.
    """
    dataset = Images(stores.store(_pictures(count), place), resident="off")
    with closing(Stream(dataset, BATCH, 0, torch.device("cpu"), ("real",))) as stream:
        for _ in range(min(PASSES, 2 * count // BATCH)):
            next(stream)
        gc.collect()
        return _memory()


def _memory() -> dict[str, float]:
    """Megabytes of this process: its own, and mapped files; none where the system does not say."""
    try:
        said = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return {}
    kilobytes = dict(re.findall(r"Rss(Anon|File):\s+(\d+) kB", said))
    names = {"own": "Anon", "mapped": "File"}
    return {name: round(int(kilobytes[key]) / 1024, 1) for name, key in names.items()}


CASES: Mapping[str, Callable[[Options, Compose], Iterator[Row]]] = {
    "batch": batch,
    "image": image,
    "store": store,
    "terms": terms,
}
READS = {
    "batch": "model batch rounds steps",
    "image": "model size rounds steps",
    "store": "records rounds steps folder",
    "terms": "model rounds steps",
}
DEFAULT = tuple(CASES)


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    said = []
    for case in dict.fromkeys(row["case"] for row in rows):
        shown = [row for row in rows if row["case"] == case and "value" in row]
        if len(shown) > 1:
            key, last = KEYS[case], shown[-1]
            said.append(f"{shown[0][key]} to {last[key]} {WORDS[case]}: {last['ratio']:g} times")
    if not said:
        return ""
    return (
        f"What a step takes grows from {'; from '.join(said)}. With images, pixels and terms grows "
        "the arithmetic; with the records of a store nothing should: where that ratio is above "
        "those of null_iqr, batches wait for a disk."
    )


def _desk(options: Options, compose: Compose, steps: int = 1) -> Desk:
    return Desk(replace(options, steps=options.steps or steps), compose, MODELS, seconds=SECONDS)
