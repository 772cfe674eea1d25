"""Long runs and large stores: nothing grows (`pytest -m endurance`)."""

import contextlib
import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gan.build import build
from gan.data.building import build as build_store
from gan.data.datasets import Images
from gan.data.layout import Record
from gan.data.store import Store
from gan.data.stream import Stream
from gan.log import Log

STEPS, EVERY = 50_000, 5_000
TINY = (
    *("generator=mlp", "discriminator=mlp", "generator.width=8", "discriminator.width=8"),
    *("generator.depth=1", "discriminator.depth=1", "trainer.batch_size=4"),
    *("optimizer.generator.lr=1e-5", "optimizer.discriminator.lr=1e-5"),
    *(f"trainer.steps={STEPS}", "trainer.log_every=500", f"trainer.sample_every={EVERY}"),
    *(f"trainer.measure_every={STEPS}", f"trainer.save_every={EVERY}"),
)


def megabytes() -> float:
    """What this process holds in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.endurance
@pytest.mark.row("E20", "50,000 steps: no growth of memory, handles, readers or event files")
def test_fifty_thousand_steps_leave_everything_as_it_was(composed, glyph_store, tried):
    data = ("data=fonts", f"data.path={glyph_store}", "image.size=16", "run_dir=run")
    trainer = build(composed("model=dcgan", *data, *TINY), say=lambda _: None)
    seen, scalars = [], trainer.monitor.scalars

    def watching(counts, *given):
        scalars(counts, *given)
        if counts["step"] % EVERY == 0:
            file = trainer.stream.dataset.store._file
            seen.append((megabytes(), handles(), file.handle.readers().count("\n")))

    trainer.monitor.scalars = watching
    assert trainer.train()
    assert len(seen) == STEPS // EVERY
    memory, descriptors, readers = (np.array(column) for column in zip(*seen, strict=True))
    assert memory[-1] < 1.02 * memory[1]  # the first steps fill caches
    early, late = np.split(descriptors, 2)  # TensorBoard opens its file for each of its writes
    assert late.min() <= early.min()
    assert readers[-1] <= readers[0]
    assert len(list(Path("run/tensorboard").glob("events.*"))) <= 2  # scalars, and the HParams row
    assert len(list(Path("run/checkpoints").glob("step-*"))) == 2
    tried(STEPS)


class Millions:
    """Very many very small images, which say their own number."""

    name, shape, names, facts = "millions", (2, 2, 1), {}, {}

    def __init__(self, count: int) -> None:
        self.count = count

    def fingerprint(self) -> str:
        return str(self.count)

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        numbers = np.arange(self.count, dtype="<u4").view(np.uint8).reshape(-1, 2, 2, 1)
        return (Record(f"{number:07d}", numbers[number], {}) for number in range(self.count))


@pytest.mark.endurance
@pytest.mark.row("E21", "a store of 2 million images: open within a second, sampled uniformly")
def test_two_million_images_open_fast_and_are_drawn_evenly(tmp_path, tried):
    count = 2_000_000
    build_store(Millions(count), tmp_path / "a.lmdb")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        Store(tmp_path / "a.lmdb").close()
        times.append(time.perf_counter() - start)
    assert min(times) < 1
    with contextlib.closing(Store(tmp_path / "a.lmdb")) as store:
        stream = Stream(Images(store), 1000, seed=0, device=torch.device("cpu"), keys=["real"])
        rows = np.concatenate([stream.plan(p).images["real"] for p in range(400)])
        assert len(np.unique(rows)) == len(rows) == 400_000  # a fifth of an epoch
        counts = np.bincount(rows * 100 // count, minlength=100)
        spread = 4000 * (1 - 0.2)  # drawn without replacement
        assert ((counts - 4000) ** 2 / spread).sum() < 99 + 6 * np.sqrt(2 * 99)
        some = rows[:5000]
        out = np.empty((len(some), 2, 2, 1), np.uint8)
        store.read(some, out)
        assert np.array_equal(out.reshape(-1, 4).view("<u4")[:, 0], some)
    tried(count)


@pytest.mark.slow
@pytest.mark.row("E22", "a run with 10,000 logged lines: resumed within five seconds")
def test_a_long_log_is_resumed_fast(tiny, tried):
    assert build(tiny("dcgan", "trainer.steps=2"), say=lambda _: None).train()
    counts = {"step": 2, "images": 16, "discriminator_updates": 2}
    log = Log(Path("run"), counts, 10_000)
    for _ in range(10_000):
        log.scalars(counts, {"generator/adversarial": 0.5})
    log.close()
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) > 10_000
    start = time.process_time()  # not what other programs take
    trainer = build(tiny("dcgan", "trainer.steps=3"), say=lambda _: None)
    assert trainer.step == 2
    assert trainer.train()
    assert time.process_time() - start < 5
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert len(lines) > 10_000
    assert json.loads(lines[-1])["step"] == 3
    tried(10_000)
