"""An open store file: its checked blocks and indices, and a scan of all of it.

A damaged page may end the process that reads it. So `store.verify` sends a child ahead, which knows
of `gan` no more than this file needs: it must not first spend seconds on importing torch.
"""

import contextlib
import itertools
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from gan import system
from gan.data.grains import Grains
from gan.data.layout import (
    Meta,
    block_header,
    block_key,
    content_hash_of,
    index_header,
    index_key,
    read_meta,
)
from gan.data.pages import StoreError, checked_bytes

CHILD = """
import sys, types
package = types.ModuleType("gan")
package.__path__ = [sys.argv[1]]
sys.modules["gan"] = package  # without what importing it would import
from gan.data.reading import scan
scan(sys.argv[2])
"""


class Readers:
    """The threads that read a file at this moment, each inside `with`; whoever closes it waits.

    Single operations on a set need no lock: two threads copy at once and none waits for another.
    """

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        self.threads.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self.threads.discard(threading.get_ident())

    def wait(self) -> None:
        """Returns when no other thread reads."""
        while self.threads - {threading.get_ident()}:
            time.sleep(0.001)


class StoreFile:
    """An open store: one LMDB environment, one read transaction, and checked views of its blocks.

    A process may have one per file. Views live as long as the transaction: they never leave this
    class, and whoever reads is one of `readers` meanwhile. What asks LMDB holds `lock` beside.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`, unless it is cut, incomplete, of another version, or no store at all."""
        self.path = path
        self.lock = threading.RLock()
        self.readers = Readers()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.closed = False
        with contextlib.ExitStack() as resources, explained(path):
            self.descriptor = os.open(path, os.O_RDONLY | system.flags("O_CLOEXEC", "O_NONBLOCK"))
            resources.callback(os.close, self.descriptor)
            self.bytes = checked_bytes(self.descriptor)
            self.handle = lmdb.open(
                os.fspath(path), subdir=False, readonly=True, create=False, lock=False,
                readahead=False, meminit=False, map_size=self.bytes,
            )  # fmt: skip
            resources.callback(self.handle.close)
            self.transaction = self.handle.begin(buffers=True)
            resources.callback(self.transaction.abort)
            self.meta = self._checked_meta()
            self.resources = resources.pop_all()
        self.views: list[np.ndarray | None] = [None] * self.meta.blocks
        self.fresh = set(range(self.meta.blocks))  # blocks that were never touched
        self.grains = Grains(self.descriptor, self.bytes, self.meta)
        self.starts = list(itertools.accumulate((n for n, _ in self.meta.index), initial=0))

    def _checked_meta(self) -> Meta:
        meta = read_meta(self.transaction)
        if meta is None:
            raise StoreError("it is an LMDB file without our meta record: it is no store")
        if meta.complete is not True:
            raise StoreError("it is not complete")
        if meta.count < 1:
            raise StoreError("it holds no image")
        entries = self.handle.stat()["entries"]
        if entries != meta.blocks + len(meta.index) + 1:
            expected = meta.blocks + len(meta.index) + 1
            raise StoreError(f"it has {entries} values, expected {expected}")
        return meta

    def close(self) -> None:
        """Closes the file for all its users, once no other thread reads it."""
        self.closed = True
        self.readers.wait()
        self.views.clear()
        self.grains.close()
        self.resources.close()

    def check_size(self) -> None:
        """Raises before a read behind the end of a file that was cut in place."""
        if self.closed:
            raise StoreError(f"{self.path}: it was closed during a read")
        size = os.lseek(self.descriptor, 0, os.SEEK_END)
        if size < self.bytes:
            raise StoreError(
                f"{self.path}: it is cut: {size} bytes of {self.bytes} are there; "
                "copy or build it again"
            )

    def block(self, number: int) -> np.ndarray:
        """The checked view uint8 [count, H * W * C] of a block."""
        first, count = self.meta.span(number)
        key, header = block_key(number), block_header(self.meta.shape, first, count)
        with explained(self.path, self.meta.name_of(number)):
            payload = header.payload(key, self.transaction.get(key))
        return np.frombuffer(payload, np.uint8).reshape(count, -1)

    def touch(self, number: int) -> np.ndarray:
        """The kept view of a block, checked at its first touch."""
        view = self.views[number]
        if view is None:
            with self.lock:
                view = self.views[number] = self.block(number)
                self.grains.found(number, view)
                self.fresh.discard(number)
        return view

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies images to `out` uint8 [n, H * W * C], once each and by one call.

        A `take` per block pays a second copy, an assignment per image costs more than a view of it.
        """
        blocks = rows // self.meta.per_block
        if self.fresh:
            for number in sorted(self.fresh.intersection(blocks.tolist())):
                self.touch(number)
        if self.grains.whole(blocks):
            self.grains.take(rows, blocks, out)
        else:
            slots = rows - blocks * self.meta.per_block
            images = [
                self.touch(number)[slot]
                for number, slot in zip(blocks.tolist(), slots.tolist(), strict=True)
            ]
            np.concatenate(images, out=out.reshape(-1))

    def index(self, number: int) -> tuple[memoryview, int]:
        """The checked payload of an index, and its number of images."""
        count, length = self.meta.index[number]
        key = index_key(number)
        header = index_header(len(self.meta.fields), self.starts[number], count, length)
        with explained(self.path, f"index {number}"):
            return header.payload(key, self.transaction.get(key)), count

    def indices(self) -> Iterator[tuple[memoryview, int]]:
        """All indices in order."""
        return map(self.index, range(len(self.meta.index)))

    def check_content_hash(self) -> None:
        """Raises when a value is not the one that the meta record was written for."""
        with explained(self.path, "content hash"):
            found = content_hash_of(self.transaction)
            if found != self.meta.content_hash:
                raise StoreError(f"it is {found}, expected {self.meta.content_hash}")

    def checks(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Every part of the store by name, with the function that raises if it is damaged."""
        for number in range(self.meta.blocks):
            yield self.meta.name_of(number), partial(self.block, number)
        for number in range(len(self.meta.index)):
            yield f"index {number}", partial(self.index, number)
        yield "content hash", self.check_content_hash


@contextlib.contextmanager
def explained(path: Path, part: str = "") -> Iterator[None]:
    """Turns what goes wrong with a file into a StoreError with its path."""
    where = f"{path}: {part}: " if part else f"{path}: "
    try:
        yield
    except StoreError as error:
        advice = f"; `gan data verify {path}` lists the damage, `gan data build` builds it anew"
        raise StoreError(f"{where}{error}{advice if part else ''}") from error
    except OSError as error:
        raise StoreError(f"{where}it cannot be opened: {error.strerror}") from error
    except lmdb.Error as error:
        raise StoreError(f"{where}LMDB cannot read it: {error}") from error


def _say(kind: str, value: Any) -> None:
    print(json.dumps([kind, value]), flush=True)


def scan(path: str) -> None:
    """Says each part of a store before it is read, and each damage after it."""
    try:
        file = StoreFile(Path(path))
    except StoreError as error:
        _say("damage", str(error))
        return
    _say("count", file.meta.count)
    for part, check in file.checks():
        _say("part", part)
        try:
            check()
        except StoreError as error:
            _say("damage", str(error))
