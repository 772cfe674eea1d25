"""What reading costs: our store against a map of the memory, a copy, and usual data sets."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gan.bench import stores
from gan.bench.options import Options
from gan.bench.paired import Goal, Paired, Row, Work, alternate, by, processor, row, skipped
from gan.bench.stores import Pictures
from gan.data.datasets import Images
from gan.data.foreign import ForeignStore
from gan.data.store import Store
from gan.data.stream import Stream

SIZES = 32, 64
WORKERS = 2  # processes of the usual data sets
FFCV = (
    "pip install ffcv builds it where OpenCV and libjpeg-turbo are installed for development; a "
    "prototype's ratios were 2.1, 1.9 and 1.27 at 32, 64 and 256 pixels, and 0.6 to 0.75 for JPEG"
)


def batch(options: Options) -> Iterator[Row]:
    """D1: a shuffled batch out of the store, and by `np.take` out of a flat file."""
    goals = {32: 3.0, 64: 2.0, 256: 1.25}
    for size, pictures, folder in _sets(options):
        ours = _stream(stores.store(pictures, folder), size)
        taken = _taken(stores.flat(pictures, folder), size)
        paired = alternate(ours, taken, rounds=options.rounds)
        yield _per_thousand("D1", "batch", paired, pictures, Goal(goals.get(size, 3.0)))


def limit(options: Options) -> Iterator[Row]:
    """D2: two threads reading, against one thread that copies the same bytes; by the clock."""
    goals = {32: 0.3, 64: 0.4, 256: 0.9}
    for size, pictures, folder in _sets(options):
        with ThreadPoolExecutor(2) as pool:
            copied = _copied(stores.flat(pictures, folder), size)
            works = _read_by_two(pool, pictures, folder, size), copied
            paired = alternate(*works, None, options.rounds, by(time.perf_counter))
        yield _per_thousand("D2", "limit", paired, pictures, Goal(goals.get(size, 0.3), "at least"))


def dataloader(options: Options) -> Iterator[Row]:
    """D4: the store, and an LMDB with one image per value in a DataLoader of two workers."""
    goals = {32: 20.0, 64: 10.0, 256: 5.0}
    yield from _against(options, "D4", "dataloader", stores.LmdbImages, goals)


def zipped(options: Options) -> Iterator[Row]:
    """D5: the store, and PNG files in a zip in a DataLoader of two workers."""
    goals = {32: 100.0, 64: 100.0, 256: 40.0}
    yield from _against(options, "D5", "zip", stores.ZipImages, goals)


def disk(options: Options) -> Iterator[Row]:
    """D7: bytes of the store by bytes of the pixels."""
    for size, pictures, folder in _sets(options):
        written = stores.store(pictures, folder).path.stat().st_size
        raw = len(pictures) * int(np.prod(pictures.shape))
        settings = {"size": size, "images": len(pictures)}
        sizes = Paired([written], [raw], [raw])  # without noise
        yield row("D7", "disk", "bytes", sizes, 1, Goal(1.03), settings)


def ffcv(options: Options) -> Iterator[Row]:
    """D3: the store, and FFCV's raw format where that is installed; one thread each."""
    goals = {32: 1.5, 64: 1.5, 256: 1.1}
    for size, pictures, folder in _sets(options):
        ours = _stream(stores.store(pictures, folder), size)
        yield _beside_ffcv(options, "D3", "ffcv", ours, pictures, folder, goals.get(size, 1.1))


def jpeg(options: Options) -> Iterator[Row]:
    """D6: an LMDB of JPEGs as it is, against a DataLoader of two workers and against FFCV's."""
    for size, pictures, folder in _sets(replace(options, size=options.size or (256,))):
        store = ForeignStore(stores.encoded(pictures, folder), *pictures.shape[1:])
        ours = _stream(store, size)
        loader = _loader(stores.JpegImages(pictures, folder), size)
        yield _beside_loader(options, "D6", "jpeg", ours, loader, pictures, 1.5)
        store.threads = 1  # as FFCV's loader has: two on one core take more of its time
        yield _beside_ffcv(options, "D6", "jpeg ffcv", ours, pictures, folder, 0.7, "jpg")


CASES: Mapping[str, Callable[[Options], Iterable[Row]]] = {
    "batch": batch,
    "limit": limit,
    "ffcv": ffcv,
    "dataloader": dataloader,
    "zip": zipped,
    "jpeg": jpeg,
    "disk": disk,
}
READS = {case: "size images folder" + " rounds" * (case != "disk") for case in CASES}
DEFAULT = ("batch", "dataloader", "disk")


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    read = [row for row in rows if row["case"] == "batch" and "value" in row]
    if not read:
        return ""
    speeds = "; ".join(f"{1000 / row['value']:,.0f} images of {row['size']} pixels" for row in read)
    text = f"One core reads, out of a file that is in memory, each second: {speeds}."
    return (
        f"{text} Training that asks for less never waits for data: compare with "
        "speed/images_per_second of a run. Where the file does not fit into memory, the disk "
        "decides; a faster disk or a smaller image.size help, more processes do not."
    )


def _sets(options: Options) -> Iterator[tuple[int, Pictures, Path]]:
    """Pictures of every size in a folder of their own, which is gone afterwards."""
    for size in options.size or SIZES:
        with options.scratch() as folder:
            yield size, Pictures(options.images or _images(size), size), Path(folder)


def _images(size: int) -> int:
    return 10_000 if size <= 64 else 3_000


def _batch(size: int) -> int:
    return 128 if size <= 64 else 64


def _batches(order: np.ndarray, many: int) -> Iterator[np.ndarray]:
    for first in range(0, len(order) - many + 1, many):
        yield order[first : first + many]


def _stream(store: Store, size: int) -> Work:
    """One epoch of plans and copies into a reused buffer: the work of the thread that feeds."""
    dataset, many = Images(store), _batch(size)
    stream = Stream(dataset, many, 0, torch.device("cpu"), ("real",))
    buffer = np.empty((many, *store.shape), np.uint8)

    def epoch() -> None:
        for position in range(store.count // many):
            dataset.store.read(stream.plan(position).images["real"], buffer)

    return epoch


def _read_by_two(pool: ThreadPoolExecutor, pictures: Pictures, folder: Path, size: int) -> Work:
    store, order = stores.store(pictures, folder), _shuffled(len(pictures))
    halves = [list(_batches(half, _batch(size))) for half in np.array_split(order, 2)]

    def half(number: int) -> None:
        buffer = np.empty((_batch(size), *pictures.shape), np.uint8)
        for rows in halves[number]:
            store.read(rows, buffer)

    return lambda: list(pool.map(half, range(2)))


def _copied(pixels: np.ndarray, size: int) -> Work:
    """One epoch in the order of the file, into a ring of three buffers."""
    pixels, many = np.asarray(pixels), _batch(size)
    buffers = [np.empty((many, *pixels.shape[1:]), np.uint8) for _ in range(3)]

    def copy() -> None:
        for number in range(len(pixels) // many):
            np.copyto(buffers[number % 3], pixels[number * many :][:many])

    return copy


def _taken(pixels: np.ndarray, size: int) -> Work:
    """One epoch by `np.take` into a reused buffer."""
    pixels = np.asarray(pixels)
    buffer = np.empty((_batch(size), *pixels.shape[1:]), np.uint8)

    def take() -> None:
        for rows in _batches(_shuffled(len(pixels)), len(buffer)):
            np.take(pixels, rows, axis=0, out=buffer, mode="clip")  # without a second buffer

    return take


def _through(loader: Iterable[Any]) -> Work:
    """One epoch of a data loader."""

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def _shuffled(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=0)).permutation(count)


def _against(
    options: Options,
    identity: str,
    case: str,
    kind: Callable[[Pictures, Path], Dataset],
    goals: Mapping[int, float],
) -> Iterator[Row]:
    for size, pictures, folder in _sets(options):
        loader = _loader(kind(pictures, folder), size)
        ours = _stream(stores.store(pictures, folder), size)
        goal = goals.get(size, min(goals.values()))
        yield _beside_loader(options, identity, case, ours, loader, pictures, goal)


def _loader(dataset: Dataset, size: int) -> DataLoader:
    usual: dict[str, Any] = {"batch_size": _batch(size), "shuffle": True, "drop_last": True}
    return _by_workers(dataset, usual)


def _by_workers(dataset: Dataset, batches: dict[str, Any]) -> DataLoader:
    way = "fork" if hasattr(os, "fork") else "spawn"
    return DataLoader(dataset, **batches, num_workers=WORKERS, multiprocessing_context=way)


def _beside_loader(
    options: Options,
    identity: str,
    case: str,
    ours: Work,
    loader: DataLoader,
    pictures: Pictures,
    least: float,
) -> Row:
    start = _cost(_through(_by_workers(loader.dataset, {"batch_sampler": ()})))  # reads nothing
    paired = alternate(ours, _through(loader), rounds=options.rounds)
    goal = Goal(least, "at least")
    return _per_thousand(identity, case, _without(start, paired), pictures, goal)


def _beside_ffcv(
    options: Options,
    identity: str,
    case: str,
    ours: Work,
    pictures: Pictures,
    folder: Path,
    least: float,
    mode: str = "raw",
) -> Row:
    try:
        loader = stores.beton(pictures, folder, _batch(pictures.shape[0]), mode)
    except ImportError as error:
        return skipped(identity, case, f"{error}; {FFCV}", size=pictures.shape[0])
    paired = alternate(ours, _through(loader), rounds=options.rounds)
    return _per_thousand(identity, case, paired, pictures, Goal(least, "at least"))


def _cost(work: Work) -> float:
    return median(by(processor)(work) for _ in range(3))


def _without(start: float, paired: Paired) -> Paired:
    """The times of the reference without what starting its workers costs."""
    reference, null = ([t - start for t in ts] for ts in (paired.reference, paired.null))
    return replace(paired, reference=reference, null=null)


def _per_thousand(identity: str, case: str, paired: Paired, pictures: Pictures, goal: Goal) -> Row:
    per = 1000 / len(pictures)
    settings = {"size": pictures.shape[0], "images": len(pictures)}
    return row(identity, case, "s per 1000 images", paired, per, goal, settings)
