"""A whole training loop: its start, the share of waiting for data, and what limits it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from gan.bench import devices, games, limits, stores
from gan.bench.desk import EAGER, played
from gan.bench.games import COMMON, MODELS, Compose
from gan.bench.options import Options
from gan.bench.paired import Goal, Row, Work, alternate, by, noted, row, surroundings
from gan.bench.stores import Pictures
from gan.data.building import build
from gan.data.datasets import Dataset, Images, Resident
from gan.data.sources import embedded, guess
from gan.data.store import Store
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.trainer import Trainer

STARTS = 5  # rounds of whole starts
PROMPT = 10.0  # seconds
COMMAND = "import sys; from gan.commands.train import main; sys.exit(main())"
GLYPHS = ("image.channels=1",)
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
        words = (*MODELS[model], *COMMON, *GLYPHS) if "wnet" in model else (*MODELS[model], *COMMON)
        values = compose(*words)
        ours, still, null = (games.trainer(values) for _ in range(3))
        steps = options.steps or 12
        with options.scratch() as folder:
            ours.stream = stream = _fed(ours, values["image"], options.images or 4096, Path(folder))
            passed: list[float] = []

            train = noted(_awaited(played(ours, steps), ours.device), passed)
            works, timer = (played(still, steps), played(null, steps)), devices.timer(ours.device)
            paired = alternate(train, *works, rounds=options.rounds, timer=timer)
            stream.close()
        waited = round(stream.waited / sum(passed), 4)
        settings = {"model": model, "steps": steps, "waiting": waited}
        goal = Goal(1.01 if ours.device.type == "cuda" else 1.02, resolved=True)
        yield row("E1", "waiting", "ms per step", paired, 1e3 / steps, goal, settings)
        eager = games.trainer(compose(*words, *EAGER))
        yield _limited(still, eager, settings)


def start(options: Options, compose: Compose) -> Iterator[Row]:
    """E2: seconds from the command to its first step, beside those that importing torch takes.

    By the clock. The store, and W-Net's classifier, are there from a round that does not count.
    """
    for model in options.model or ("dcgan", "wnet"):
        words = *(word for word in MODELS[model] if not word.startswith("image.channels")), *GLYPHS
        compose(*words)  # a mistake is told before any process is started
        with options.scratch() as folder:
            begin = partial(_begin, words, Path(folder))
            load = partial(subprocess.run, [sys.executable, "-c", "import torch"], check=True)
            rounds = options.rounds or STARTS
            paired = alternate(begin, load, rounds=rounds, timer=by(time.perf_counter))
        found = row("E2", "start", "s", paired, 1.0, None, {"model": model})
        yield {**found, "goal": f"at most {PROMPT:g} s", "passed": found["value"] <= PROMPT}


def _begin(words: Sequence[str], folder: Path) -> None:
    """Start a run in a folder, and end it when it has told of its first step."""
    run = f"run_dir={tempfile.mkdtemp(dir=folder)}", "trainer.steps=1000000", "trainer.log_every=1"
    command = [sys.executable, "-u", "-c", COMMAND, *words, *run]
    path = {"PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env={**os.environ, **path},
    ) as process:
        assert process.stdout is not None
        begun = any(line.startswith("step 1/") for line in process.stdout)
        process.kill()
    if not begun:
        raise RuntimeError(f"the run of {' '.join(words)} ended before its first step")


CASES = {"waiting": waiting, "start": start}
READS = {"waiting": "model rounds steps images folder", "start": "model rounds folder"}
DEFAULT = ("waiting",)


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


def _fed(game: Trainer, image: Mapping[str, int], count: int, folder: Path) -> Stream:
    """A trainer's stream of what it reads: the embedded glyphs, or so many made-up pictures."""
    if "prototype" not in game.recipe.reads:
        return streamed(Pictures(count, image["size"], image["channels"]), folder, game)
    path = folder / "glyphs.lmdb"
    build(guess(embedded("hanzi"), image["size"], image["channels"]), path)
    return _stream(Glyphs(Store(path), resident="off"), game)


def streamed(pictures: Pictures, folder: Path, game: Trainer, resident: Resident = "off") -> Stream:
    """A trainer's stream of these pictures, out of a store in the folder."""
    return _stream(Images(stores.store(pictures, folder), resident=resident), game)


def _stream(dataset: Dataset, game: Trainer) -> Stream:
    reads = game.recipe.reads
    return Stream(dataset, game.settings.batch_size, game.seed, game.device, reads)


def advice(rows: list[Row]) -> str:
    """What the rows say to somebody who wants to train."""
    starts = "; ".join(f"{r['model']} {r['value']:g} s" for r in rows if r["case"] == "start")
    limits = (
        f"{row['model']}: {row['images_per_second']:g} images/s, "
        f"{row['value']:g} ms a step, limited by {row['limit']}. {ADVICE[row['limit']]}"
        for row in rows
        if row["case"] == "limits"
    )
    begun = [f"From the command to the first step: {starts}."] if starts else []
    return " ".join([*begun, *limits])
