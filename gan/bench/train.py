"""A whole training loop: the share of waiting for data, and what limits it."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from gan.bench import devices, games, limits, stores
from gan.bench.desk import EAGER, played
from gan.bench.games import COMMON, MODELS, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row, Work, alternate, by, noted, row, surroundings
from gan.bench.stores import Pictures
from gan.data.datasets import Images, Resident
from gan.data.stream import Stream
from gan.trainer import Trainer

ADVICE = {
    "data": "Training waits for data: put the store on a local disk, keep it on the device "
    "(data.resident=on), or leave more cores to the stream.",
    "launch": "Starting operations limits the step, not their size: a larger trainer.batch_size or "
    "wider networks cost little time; recorded turns (trainer.graphs) on CUDA, and elsewhere "
    "trainer.compile=true, save starts.",
    "memory": "Moving maps in and out of memory limits the step: on CUDA trainer.precision=bf16 "
    "halves the bytes, and trainer.compile=true joins passes over the same map.",
    "compute": "Arithmetic limits the step: fewer channels (generator.width, discriminator.width), "
    "a smaller image.size, a lazy penalty (penalties.<name>.every=16) or a faster device help; "
    "batch sizes and loaders do not.",
}


def waiting(options: Options, compose: Compose) -> Iterator[Row]:
    """E1: training from a store against training on one batch that is there already."""
    for model in options.model or ("dcgan",):
        values = compose(*MODELS[model], *COMMON)
        ours, still, null = (games.trainer(values) for _ in range(3))
        if "prototype" in ours.recipe.reads:
            raise ValueError(f"model={model} reads glyphs: choose one that reads images alone")
        shape = values["image"]["size"], values["image"]["channels"]
        steps = options.steps or 12
        with tempfile.TemporaryDirectory(prefix="gan-bench-", dir=options.folder) as folder:
            stream = streamed(Pictures(options.images or 4096, *shape), Path(folder), ours)
            ours.stream = stream
            passed: list[float] = []

            train = noted(_awaited(played(ours, steps), ours.device), passed)
            works, timer = (played(still, steps), played(null, steps)), devices.timer(ours.device)
            paired = alternate(train, *works, rounds=options.rounds, timer=timer)
            stream.close()
        settings = {
            "model": model,
            "steps": steps,
            "waiting": round(stream.waited / sum(passed), 4),
        }
        goal = Goal(1.02, resolved=True)
        yield row("E1", "waiting", "ms per step", paired, 1e3 / steps, goal, settings)
        eager = games.trainer(compose(*MODELS[model], *COMMON, *EAGER))
        yield _limited(still, eager, settings)


CASES = {"waiting": waiting}
READS = {"waiting": "model rounds steps images folder"}
DEFAULT = tuple(CASES)


def _awaited(work: Work, device: torch.device) -> Work:
    """The same work, which returns when the device has done it."""

    def awaited() -> None:
        work()
        devices.wait(device)

    return awaited


def _limited(still: Trainer, eager: Trainer, settings: Row) -> Row:
    """What a step is bound by, beside what it takes; one that is not recorded is counted."""
    eager.play()
    counts = limits.count(eager.play)
    most = limits.ceilings(still.device, counts.flops)

    step = _awaited(still.play, still.device)
    taken = [by(time.perf_counter)(step) for _ in range(7)]
    floors = limits.bounds(counts, most)
    limit = max(floors, key=lambda name: floors[name])
    if settings["waiting"] > 0.1:
        limit = "data"
    return {
        "id": "E1",
        "case": "limits",
        "model": settings["model"],
        "value": round(1e3 * median(taken), 3),
        "unit": "ms per step",
        "images_per_second": round(still.settings.batch_size / median(taken), 1),
        "operations": counts.operations,
        "gflop": round(sum(counts.flops.values()) / 1e9, 3),
        "gigabytes": round(counts.bytes / 1e9, 3),
        "at_least_ms": {name: round(1e3 * seconds, 3) for name, seconds in floors.items()},
        "limit": limit,
        **surroundings(),
    }


def streamed(pictures: Pictures, folder: Path, game: Trainer, resident: Resident = "off") -> Stream:
    """A trainer's stream of these pictures, out of a store in the folder."""
    dataset = Images(stores.store(pictures, folder), resident=resident)
    reads = game.recipe.reads
    return Stream(dataset, game.settings.batch_size, game.seed, game.device, reads)


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    return " ".join(
        f"{row['model']}: {row['images_per_second']:g} images/s, "
        f"{row['value']:g} ms a step, limited by {row['limit']}. {ADVICE[row['limit']]}"
        for row in rows
        if row["case"] == "limits"
    )
