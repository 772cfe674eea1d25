"""Random batches of a store that does not fit into memory, from a cold disk.

    systemd-run --scope -p MemoryMax=1G \\
        env PYTHONPATH=. python tests/benchmarks/larger_than_memory.py /tmp/big.lmdb [plain]

Builds 262,144 images of 64 pixels, 3.2 GB, where they are missing (without the limit, please). By
`plain` LMDB is left alone with the disk. Bytes and waits do not depend on what else runs.
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from gan.bench.stores import DISTINCT, Pictures
from gan.data.store import Store, build

BATCH, PART, PARTS = 64, 100, 4


def spent():
    """Seconds, bytes read from the disk, and waits for it, of this process so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    fetched = next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    waits = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return np.array([time.perf_counter(), fetched, waits])


def own_memory():
    """MB of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def main(path, plain=""):
    pictures = Pictures(262_144, 64)
    if not Path(path).exists():
        build(pictures, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if plain:
        del os.posix_fadvise
    store, out = Store(path), np.empty((BATCH, *pictures.shape), np.uint8)
    order = np.random.default_rng(0).permutation(len(pictures))[: BATCH * PART * PARTS]
    for number, part in enumerate(order.reshape(PARTS, PART, BATCH)):
        before = spent()
        for rows in part:
            store.read(rows, out)
            assert all(
                np.array_equal(image, pictures.pixels(row % DISTINCT))
                for image, row in zip(out[:8], rows[:8], strict=True)
            )
        seconds, fetched, waits = spent() - before
        count, first = BATCH * PART, number * PART
        print(
            f"batches {first:3} to {first + PART:3}: {count / seconds:6.0f} images/s, "
            f"{fetched / count:7.0f} bytes and {waits / count:6.2f} waits an image, "
            f"{own_memory()} MB of its own",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
