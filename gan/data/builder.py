"""Filling a store's file with the records of a source, commit by commit."""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lmdb
import numpy as np

from gan.data.layout import (
    LARGEST_VALUE,
    META,
    VERSION,
    Index,
    Meta,
    Record,
    Rejected,
    Shape,
    block_header,
    block_key,
    content_hash_of,
    index_header,
    index_header_of,
    index_key,
    json_bytes,
    key_problem,
    read_index,
    read_meta,
)
from gan.data.pages import StoreError
from gan.data.reading import explained
from gan.disk import room

SHOWN = 20  # rejected inputs listed by name


class Source(Protocol):
    """What `build` reads: records in an order that depends on the fingerprint alone.

    A source that can go on in the middle, without making what comes before, has a method
    `after(seen)` as well.
    """

    @property
    def name(self) -> str:
        """One line that says what it is, such as "image folder photos"."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of every image."""

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """For an integer field, the names of its values 0 to n - 1."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON, whatever else is worth keeping."""

    def fingerprint(self) -> str:
        """Text that changes whenever the records would."""

    def __len__(self) -> int:
        """How many records there are at most."""

    def __iter__(self) -> Iterator[Record | Rejected]:
        """The records in order."""


def fingerprint(source: Source) -> str:
    """The fingerprint of the store that this version builds from a source."""
    text = json_bytes([VERSION, source.shape, source.name, source.fingerprint()])
    return hashlib.sha256(text).hexdigest()


@contextlib.contextmanager
def writing(building: Path, source: Source) -> Iterator[None]:
    """Explains what goes wrong with the disk."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        free, needed = room(building), round(1.03 * len(source) * math.prod(source.shape))
        raise StoreError(
            f"{building} cannot be written: {error}; {free >> 20} MiB are free, the store needs "
            f"{(needed >> 20) + 1} MiB in all; the same command goes on after the last commit"
        ) from error


class Builder:
    """Appends the records of a source to an open building file, commit by commit.

    A new one takes up what an earlier build has committed.
    """

    def __init__(self, source: Source, environment: lmdb.Environment, path: Path) -> None:
        self.source = source
        self.environment = environment
        self.path = path
        self.fingerprint = fingerprint(source)
        if math.prod(source.shape) > LARGEST_VALUE:
            raise StoreError(f"{source.name}: images of {source.shape} are larger than 64 MiB")
        self.per_block = _images_per_block(source.shape)
        self.per_commit = _images_per_commit(source.shape)
        self.keys: set[str] = set()
        self.ranges: dict[str, tuple[int, int]] = {}  # of the fields
        self.index: list[tuple[int, int]] = []
        self.rejected: list[Rejected] = []
        self.seen = 0
        self.pending: list[Record] = []
        self.pending_rejected: list[Rejected] = []
        with self.environment.begin(buffers=True) as transaction, explained(path):
            begun = self._take_up(transaction)
        if not begun:
            self._put([(META, self._meta().value())])

    @property
    def count(self) -> int:
        """How many images there are, committed or not."""
        return len(self.keys)

    def add(self, item: Record | Rejected) -> None:
        """Takes the next item of the source."""
        self.seen += 1
        if isinstance(item, Rejected):
            self.rejected.append(item)
            self.pending_rejected.append(item)
            return
        self._check(item)
        self.keys.add(item.key)
        for name, value in item.fields.items():
            self._widen(name, int(value), int(value))
        self.pending.append(item)
        if len(self.pending) == self.per_commit:
            self.commit()

    def commit(self) -> None:
        """Writes what is pending: whole blocks, except at the very end."""
        if not self.pending and not self.pending_rejected:
            return
        first = self.count - len(self.pending)
        payload, key = self._pending_index().payload(), index_key(len(self.index))
        header = index_header(len(self.ranges), first, len(self.pending), len(payload))
        self._put([*self._pending_blocks(first), (key, header.value(key, payload))])
        self.index.append((len(self.pending), len(payload)))
        self.pending.clear()
        self.pending_rejected.clear()

    def complete(self, stamp: str) -> str:
        """Writes the final meta record, syncs, and returns the content hash."""
        with self.environment.begin(buffers=True) as transaction:
            content_hash = content_hash_of(transaction)
        self._put([(META, self._meta(content_hash, stamp).value())])
        with writing(self.path, self.source):
            self.environment.sync(True)
        return content_hash

    def _take_up(self, transaction: lmdb.Transaction) -> bool:
        """Reads what is committed; False where that is nothing."""
        meta = read_meta(transaction)
        if meta is None:
            return False
        self._require_same_source(meta)
        while (value := transaction.get(index_key(len(self.index)))) is not None:
            self._take_up_index(value)
        return True

    def _require_same_source(self, meta: Meta) -> None:
        if meta.fingerprint != self.fingerprint:
            raise StoreError(
                f"it was begun from {meta.source} (fingerprint {meta.fingerprint[:12]}), not from "
                f"{self.source.name} as it is now (fingerprint {self.fingerprint[:12]}); remove "
                "it, or start again with --overwrite"
            )

    def _take_up_index(self, value: bytes | memoryview) -> None:
        header = index_header_of(value, self.count)
        payload = header.payload(index_key(len(self.index)), value)
        index = read_index(payload, header.shape[0], header.count)
        for name, column in zip(index.names, index.fields, strict=True):
            if header.count:
                self._widen(name, int(column.min()), int(column.max()))
        self.keys.update(index.keys)
        self.rejected.extend(index.rejected)
        self.index.append((header.count, header.length))
        self.seen = index.seen

    def _widen(self, name: str, low: int, high: int) -> None:
        lowest, highest = self.ranges.get(name, (low, high))
        self.ranges[name] = min(low, lowest), max(high, highest)

    def _check(self, record: Record) -> None:
        problem = key_problem(record.key) or self._image_problem(record.image)
        if record.key in self.keys:
            problem = "the name occurs twice"
        elif self.keys and record.fields.keys() != self.ranges.keys():
            problem = f"it has the fields {[*record.fields]}, the others have {[*self.ranges]}"
        for name, value in record.fields.items():
            problem = problem or self._field_problem(name, value)
        if problem:
            raise StoreError(f"{self.source.name}: {record.key!r} is refused: {problem}")

    def _image_problem(self, image: np.ndarray) -> str | None:
        if image.dtype != np.uint8 or image.shape != tuple(self.source.shape):
            return f"it is {image.dtype} {image.shape}, expected uint8 {self.source.shape}"
        return None

    def _field_problem(self, name: str, value: int) -> str | None:
        known = len(self.source.names.get(name, ()))
        low, high = (0, known) if known else (-(1 << 31), 1 << 31)
        if not isinstance(value, int | np.integer) or not low <= value < high:
            return f"the field {name} is {value!r}, expected an integer from {low} to {high - 1}"
        return None

    def _pending_blocks(self, first: int) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(self.pending), self.per_block):
            images = np.stack([r.image for r in self.pending[start : start + self.per_block]])
            key = block_key((first + start) // self.per_block)
            header = block_header(self.source.shape, first + start, len(images))
            yield key, header.value(key, images.tobytes())

    def _pending_index(self) -> Index:
        columns = [[int(r.fields[name]) for r in self.pending] for name in self.ranges]
        return Index(
            np.array(columns, np.int32),
            [r.key for r in self.pending],
            list(self.ranges),
            self.pending_rejected,
            self.seen,
        )

    def _meta(self, content_hash: str = "", stamp: str = "") -> Meta:
        source = self.source
        return Meta(
            version=VERSION,
            complete=bool(content_hash),
            fingerprint=self.fingerprint,
            source=source.name,
            shape=source.shape,
            per_block=self.per_block,
            count=self.count,
            index=self.index,
            fields=self.ranges,
            names={field: [str(name) for name in names] for field, names in source.names.items()},
            facts=dict(source.facts),
            rejected_count=len(self.rejected),
            rejected=self.rejected[:SHOWN],
            content_hash=content_hash,
            stamp=stamp,
        )

    def _put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """One commit, in a map that grows as needed."""
        with writing(self.path, self.source):
            while True:
                try:
                    with self.environment.begin(write=True) as transaction:
                        for key, value in records:
                            transaction.put(key, value)
                    return
                except lmdb.MapFullError:
                    self.environment.set_mapsize(2 * self.environment.info()["map_size"])


def _images_per_block(shape: Shape) -> int:
    """64 to 128 small images, as they fill pages of 4096 bytes best, or 1 MiB of larger ones."""
    image = math.prod(shape)
    if image > 64 * 64 * 3:
        return max(1, (1 << 20) // image)
    return min(range(128, 63, -1), key=lambda count: (-(64 + count * image) % 4096) / count)


def _images_per_commit(shape: Shape) -> int:
    """At most 1,000 images and 64 MiB, in whole blocks."""
    block = _images_per_block(shape)
    return max(1, min(1000, LARGEST_VALUE // math.prod(shape)) // block) * block
