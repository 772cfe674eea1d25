"""LMDB folders of encoded images that other programs have made: LSUN's own, and BasicSR's.

LSUN (Yu et al. 2015, arXiv:1506.03365) stores WebP or JPEG under opaque keys. BasicSR stores PNG
under names, which `meta_info.txt` lists in their order: `name.png (height,width,channels) level`.
Neither has checksums. No lock file is written, and nothing is unpickled or kept beside them.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from gan.config import floors
from gan.data.images import (
    LARGEST_FILE,
    RULES,
    decoded,
    digest,
    fitted,
    listing,
    printable,
    record,
    require_channels,
    strictly_decoded,
)
from gan.data.layout import Record, Rejected, key_problem
from gan.data.pages import StoreError, checked_bytes
from gan.data.reading import explained
from gan.data.store import Store
from gan.system import after_fork, cores

_OTHERS = {
    b"length": "rosinality's StyleGAN 2",
    b"num-samples": "a data set for text recognition",
    b"__meta__": "a store that was moved into a folder",
}
_TOGETHER = 64  # images read at once

_opening = threading.Lock()  # LMDB allows a process one environment per file, none over a fork
after_fork(
    before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release
)


def is_foreign(path: Path) -> bool:
    """Whether a path is a folder as LMDB makes it by default, which our stores are not."""
    return (path / "data.mdb").is_file()


class Encoded:
    """The values of such a folder by number, as bytes; safe in threads and after a fork.

    Attributes:
        keys: as they are in the file, in the order of `meta_info.txt` or else of the file.
        origin: who made it, `LSUN` or `BasicSR`.
    """

    def __init__(self, path: Path) -> None:
        """Lists the keys, once the file is as long as it says and its tree is sound.

        Raises:
            StoreError: it is cut, damaged, of neither kind, or differs from its `meta_info.txt`.
            ConfigError: LMDB or Pillow is a version with known holes.
        """
        floors.require("lmdb", "pillow")
        self.path, self.file = path, path / "data.mdb"
        with explained(self.file), self.file.open("rb") as file:
            self.bytes = checked_bytes(file.fileno())
        self.listing = listing(path, [self.file])
        with self._transaction() as transaction:
            found = [bytes(key) for key in transaction.cursor().iternext(values=False)]
            names = path / "meta_info.txt"
            self.origin = "BasicSR" if names.exists() else "LSUN"
            self.keys = _listed(names, found) if names.exists() else found
            _require_images(transaction, found)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """The values of these numbers."""
        with self._transaction() as transaction:
            return [self._value(transaction, number) for number in numbers]

    def text(self, number: int) -> str:
        """A key as text, in hexadecimal digits where it is none."""
        key = self.keys[number]
        text = key.decode("ascii", "replace")
        return text if text.isascii() and not key_problem(text) else key.hex()

    def _value(self, transaction: lmdb.Transaction, number: int) -> bytes:
        value = transaction.get(self.keys[number])
        assert value is not None  # the file is the one whose keys were listed
        if len(value) > LARGEST_FILE:
            raise StoreError(
                f"{self.text(number)} has {len(value)} bytes, at most {LARGEST_FILE} are read"
            )
        return bytes(value)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        """Opens the file for as long as it takes to copy some values, which is microseconds."""
        with _opening, explained(self.file):
            if listing(self.path, [self.file]) != self.listing:
                raise StoreError("it has changed since it was opened")
            with (
                lmdb.open(
                    os.fspath(self.file), subdir=False, readonly=True, create=False, lock=False,
                    readahead=False, meminit=False, map_size=self.bytes,
                ) as environment,
                environment.begin(buffers=True) as transaction,
            ):  # fmt: skip
                yield transaction


def _listed(file: Path, found: Sequence[bytes]) -> list[bytes]:
    """The keys in the order of `meta_info.txt`, which must name each of those found once."""
    with explained(file):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise StoreError(f"it is no text: {error}") from error
        keys = [line.split(".")[0].encode() for line in lines if line.strip()]
        if sorted(keys) != sorted(found):
            odd = sorted(set(keys) ^ set(found))[:1] or keys
            raise StoreError(
                f"it names {len(keys)} images and the LMDB file has {len(found)}, they differ at "
                f"{odd[0].decode(errors='backslashreplace')!r}; copy or make it again"
            )
    return keys


def _require_images(transaction: lmdb.Transaction, keys: Sequence[bytes]) -> None:
    """Raises unless the first value is an encoded image and no key is one of other layouts."""
    if not keys:
        raise StoreError("it holds no image")
    for key, origin in _OTHERS.items():
        if transaction.get(key) is not None:
            raise StoreError(
                f"its key {key.decode()!r} is that of {origin}; read are LSUN's and BasicSR's LMDB"
            )
    head = bytes(transaction.get(keys[0], b"")[:12])
    webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    if not webp and not head.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        raise StoreError(f"its first value begins with {head[:8]!r}: no JPEG, PNG or WebP image")


class ForeignStore(Store):
    """Such a folder read as it is: images are decoded, by the rules of `ImageFolder`, when read.

    There are no fields. Decoding a JPEG of 256 x 256 pixels takes about 0.6 ms of a thread, with
    simplejpeg about half of that: many times what a store needs.

    Attributes:
        threads: how many decode at once.
    """

    def __init__(self, path: str | os.PathLike[str], size: int, channels: int) -> None:
        """Opens the folder `path`; `size` is in pixels, `channels` 1 or 3.

        Raises:
            StoreError: see `Encoded`.
        """
        require_channels(channels)
        self.path = Path(path)
        self._encoded = Encoded(self.path)
        self.count, self.threads = len(self._encoded.keys), cores()
        self.shape = (size, size, channels)
        self.source = _title(self._encoded)
        self.fingerprint = self.content_hash = digest([RULES, self.shape, self._encoded.listing])
        self.stamp, self.rejected_count, self.rejected = "", 0, []
        self.names, self.facts, self.fields = {}, {}, {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the shape."""
        return ForeignStore, (self.path, *self.shape[1:])

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of each row."""
        return tuple(map(self._encoded.text, range(self.count)))

    def _copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Decodes the images into `out`.

        Raises:
            StoreError: the file was changed, or an image is damaged.
        """
        numbers, threads = rows.tolist(), self.threads
        values = self._encoded.read(numbers)

        def share(first: int) -> None:
            for place in range(first, len(numbers), threads):
                found = self._decoded(numbers[place], values[place], out[place])
                out[place] = found  # no copy where it is there already

        with ThreadPoolExecutor(threads) as pool:  # a task for each image would cost a third more
            list(pool.map(share, range(threads)))

    def _decoded(self, number: int, value: bytes, out: np.ndarray) -> np.ndarray:
        try:
            return decoded(io.BytesIO(value), *self.shape[1:], partial(fitted, out=out))
        except Exception as error:  # a damaged image may raise anything in its decoder
            raise StoreError(
                f"{self.path}: {self._encoded.text(number)}: {error}; `gan data build` makes a "
                "store without such images"
            ) from error

    def close(self) -> None:
        """Nothing: the file is open only while it is read."""


class ForeignImages:
    """Such a folder as a source, so that it becomes a store; its keys stay, without any field."""

    def __init__(self, path: Path, size: int, channels: int = 3) -> None:
        """Opens the folder `path`; `size` is in pixels, `channels` 1 or 3.

        Raises:
            StoreError: see `Encoded`.
        """
        require_channels(channels)
        self._encoded = Encoded(path)
        self.shape = (size, size, channels)
        self.name = _title(self._encoded)
        self.names: dict[str, list[str]] = {}
        self.facts: dict[str, Any] = {}

    def fingerprint(self) -> str:
        """Changes with the size or time of the file."""
        return digest([RULES, self.shape, self._encoded.listing])

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._encoded.keys)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in order."""
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The images after the first `seen`."""
        for first in range(seen, len(self), _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, len(self)))
            for number, value in zip(numbers, self._encoded.read(numbers), strict=True):
                image = partial(strictly_decoded, io.BytesIO(value), *self.shape[1:])
                yield record(self._encoded.text(number), image, {})


def _title(encoded: Encoded) -> str:
    return printable(f"{encoded.origin}'s LMDB {encoded.path.name}")
