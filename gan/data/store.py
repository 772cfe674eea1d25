"""The store: one file of fixed-shape uint8 images, read by row from checked views of its map.

`layout` says what the file looks like, `building` makes it, `reading` opens it.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gan import system
from gan.data.builder import Source
from gan.data.building import Report, StoreBusyError, build
from gan.data.cold import ColdFile
from gan.data.layout import Record, Rejected, read_columns, read_index
from gan.data.pages import StoreError
from gan.data.reading import CHILD, StoreFile

__all__ = [
    "Damage",
    "Record",
    "Rejected",
    "Report",
    "Source",
    "Store",
    "StoreBusyError",
    "StoreError",
    "Verification",
    "build",
    "verify",
]

PACKAGE = os.fspath(Path(__file__).parents[1])

_files: dict[str, StoreFile] = {}  # by real path: LMDB allows a process one environment per file
_registry = threading.RLock()  # taken before the lock of a file, never after


class Store:
    """Images and integer fields of one store, to be read by row.

    Several threads may read one; it survives a fork, and pickles as its path. All stores of a
    process on one file share what is open, and a closed store opens the file again when it is read.

    Attributes:
        count: number of images.
        shape: H, W, C.
        source: what it was built from, in one line.
        fingerprint: see `builder.fingerprint`.
        content_hash: SHA-256 of the content.
        stamp: what its builder wanted to compare later.
        names: for an integer field, the names of its values 0 to n - 1.
        facts: JSON, whatever else the source had to say.
        rejected, rejected_count: inputs that the source left out, the first 20 and how many.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens `path` after a check that it is whole, complete and of a known version.

        Raises:
            StoreError: naming the file, what was found, what was expected, and what to do.
        """
        self.path = Path(path)
        self._file = _acquire(self)
        meta = self._file.meta
        self.count = meta.count
        self.shape = meta.shape
        self.source = meta.source
        self.fingerprint = meta.fingerprint
        self.content_hash = meta.content_hash
        self.stamp = meta.stamp
        self.names = meta.names
        self.facts = meta.facts
        self.rejected = meta.rejected
        self.rejected_count = meta.rejected_count

    def __len__(self) -> int:
        """How many images there are."""
        return self.count

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path alone; the copy must find the same content there."""
        return _reopened, (os.fspath(self.path), self.content_hash)

    @cached_property
    def fields(self) -> dict[str, np.ndarray]:
        """The integer fields, int64 [count] each, read-only."""
        file = self._open_file()
        ranges = file.meta.fields
        with file.readers, file.lock:
            file.check_size()
            parts = [read_columns(value, len(ranges), count) for value, count in file.indices()]
            columns = np.concatenate(parts, axis=1, dtype=np.int64)
        columns.flags.writeable = False
        for column, (name, (low, high)) in zip(columns, ranges.items(), strict=True):
            if (column.min(), column.max()) != (low, high):
                raise StoreError(f"{self.path}: the field {name} does not span {low} to {high}")
        return dict(zip(ranges, columns, strict=True))

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of each row."""
        file = self._open_file()
        with file.readers, file.lock:
            file.check_size()
            indices = [read_index(v, len(file.meta.fields), n) for v, n in file.indices()]
        return tuple(key for index in indices for key in index.keys)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies the images of `rows`, int [n], into `out`, contiguous uint8 [n, H, W, C].

        A block's checksum is checked when the block is first touched in this process.

        Raises:
            StoreError: the file was cut or replaced, a block is damaged, or a row is out of range.
        """
        if out.shape != (len(rows), *self.shape) or out.dtype != np.uint8:
            raise ValueError(
                f"out must be uint8 {(len(rows), *self.shape)}, not {out.dtype} {out.shape}"
            )
        if not out.flags.c_contiguous:
            raise ValueError("out must be contiguous")
        if not len(rows):
            return
        unsigned = rows.astype(np.int64, copy=False).view(np.uint64)  # below 0 a row is huge
        if int(np.maximum.reduce(unsigned)) >= self.count:
            low, high = rows.min(), rows.max()
            raise StoreError(f"{self.path}: rows {low} to {high} leave 0 to {self.count - 1}")
        self._copy(rows, out)

    def _copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        file = self._open_file()
        with file.readers:
            file.check_size()
            file.gather(rows, out.reshape(len(rows), -1))

    def close(self) -> None:
        """Gives up this store's share of the open file."""
        _release(self)

    def _open_file(self) -> StoreFile:
        """The open file, opened again after a close or in a forked child."""
        file = self._file
        if file.closed or self not in file.users:
            with _registry:
                file = self._file = _acquire(self)
            self._require(self.content_hash)
        return file

    def _require(self, content_hash: str) -> None:
        if self._file.meta.content_hash != content_hash:
            self.close()
            raise StoreError(f"{self.path}: it was replaced since it was opened; open it anew")


def _reopened(path: str, content_hash: str) -> Store:
    store = Store(path)
    store._require(content_hash)
    return store


# ---- what is open -------------------------------------------------------------------------------


def _acquire(store: Store) -> StoreFile:
    """The open file of a store, shared with every other store of this process on it."""
    real = os.path.realpath(store.path)
    with _registry:
        for path, file in list(_files.items()):
            if not file.users:  # its stores were collected without being closed
                _close(path)
        if real in _files:
            _require_unreplaced(_files[real], store.path)
        else:
            _files[real] = _checked(store.path)
        _files[real].users.add(store)
        return _files[real]


def _checked(path: Path) -> StoreFile:
    """A newly opened file whose first and last block are whole."""
    file = ColdFile(path)
    try:
        file.touch(0)
        file.touch(file.meta.blocks - 1)
    except StoreError:
        file.close()
        raise
    return file


def _require_unreplaced(file: StoreFile, path: Path) -> None:
    if not path.exists() or not system.in_place(file.descriptor, path):
        raise StoreError(
            f"{path}: it was replaced while this process reads the old file; "
            "close every store on it first"
        )


def _release(store: Store) -> None:
    with _registry:
        for path, file in list(_files.items()):
            file.users.discard(store)
            if not file.users:
                _close(path)


def _close(path: str) -> None:
    _files.pop(path).close()


def _drop_inherited() -> None:
    """Closes in a forked child what it inherited: it may be neither used nor opened twice."""
    global _registry
    _registry = threading.RLock()  # a thread of the parent may have held the old one
    for file in _files.values():
        file.readers.threads.clear()  # they are the parent's
        file.close()
    _files.clear()


system.after_fork(after_in_child=_drop_inherited)


# ---- verifying ----------------------------------------------------------------------------------


class Damage(NamedTuple):
    """One damaged part of a store: which, and what is wrong with it."""

    part: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What `verify` has found."""

    path: Path
    count: int
    damages: list[Damage]


def verify(path: str | os.PathLike[str]) -> Verification:
    """Reads a whole store in a child process, since a damaged page may end its reader.

    Raises:
        StoreError: there is no file at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path}: there is no such store")
    count, part, damages = 0, "the file", []
    command = [sys.executable, "-P", "-c", CHILD, PACKAGE, os.fspath(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:
        for line in tqdm(child.stdout, "verify", unit=" parts", disable=None):
            kind, value = json.loads(line)
            if kind == "count":
                count = value
            elif kind == "part":
                part = value
            else:
                damages.append(Damage(part, value))
    if name := system.ended_by(child.returncode):
        damages.append(Damage(part, f"reading it ended the process ({name}); the rest is unread"))
    elif child.returncode:
        raise RuntimeError(f"the scan of {path} failed with status {child.returncode}")
    return Verification(path, count, damages)
