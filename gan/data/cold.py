"""A store on a disk: what is not in memory is asked for in time, without a change of the order.

LMDB waits for one page after the other, which a cold disk, a store larger than memory or a file
system on a network make many times slower than it need be.
"""

import math
import os
from pathlib import Path

import numpy as np

from gan.data.layout import value_bytes
from gan.data.reading import StoreFile
from gan.system import waits

STEP = 128 << 10  # bytes: some kernels forget what is asked for beyond that at once
PATIENCE = 100  # reads without a wait after which nothing is asked for any more


class ColdFile(StoreFile):
    """A store's file that asks for blocks before their first touch, and for images while it waits.

    Where all is in memory nothing is waited for, and nothing asked.
    """

    def __init__(self, path: Path) -> None:
        """Like any other; see `StoreFile`."""
        super().__init__(path)
        self.unasked = set(self.fresh)
        self.patience = 0  # reads for which images are asked for

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies images to `out` uint8 [n, H * W * C], once each."""
        if self.unasked or self.patience:
            self._ask_for(rows)
        before = waits()
        super().gather(rows, out)
        self.patience = PATIENCE if waits() > before else max(0, self.patience - 1)

    def _ask_for(self, rows: np.ndarray) -> None:
        image = math.prod(self.meta.shape)
        blocks, slots = (part.tolist() for part in np.divmod(rows, self.meta.per_block))
        for number in self.unasked.intersection(blocks):
            self.unasked.discard(number)  # another thread may have asked as well
            self._ask(self.grains.begins[number], value_bytes(image * self.meta.span(number)[1]))
        if self.patience:
            for number, slot in zip(blocks, slots, strict=True):
                self._ask(self.grains.begins[number] + value_bytes(image * slot), image)

    def _ask(self, start: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):  # neither on macOS nor on Windows
            for at in range(start, start + length, STEP):
                size = min(STEP, start + length - at)
                os.posix_fadvise(self.descriptor, at, size, os.POSIX_FADV_WILLNEED)
