"""Building a store: atomic, resumable, and strict about what goes in."""

import contextlib
import fcntl
import hashlib
import itertools
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lmdb
import numpy as np
from tqdm import tqdm

from gan.data.layout import (
    LARGEST_VALUE,
    META,
    VERSION,
    Index,
    Meta,
    Record,
    Rejected,
    Shape,
    StoreError,
    StoreFile,
    block_header,
    block_key,
    checked_bytes,
    content_hash_of,
    explained,
    index_header,
    index_header_of,
    index_key,
    json_bytes,
    key_problem,
    read_index,
    read_meta,
)

SHOWN = 20  # rejected inputs listed by name
_FIRST_MAP = 64 << 20  # bytes


class StoreBusyError(StoreError):
    """Another process is building this store."""


class Source(Protocol):
    """What `build` reads: records in an order that depends on the fingerprint alone.

    A source that can go on in the middle has a method `after(seen)` as well.
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


@runtime_checkable
class Resumable(Protocol):
    """A source that can go on in the middle without making what comes before."""

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The records after the first `seen`."""


@dataclass(frozen=True)
class Report:
    """What `build` has made."""

    path: Path
    count: int
    rejected: list[Rejected]
    content_hash: str


def fingerprint(source: Source) -> str:
    """The fingerprint of the store that this version builds from a source."""
    text = json_bytes([VERSION, source.shape, source.name, source.fingerprint()])
    return hashlib.sha256(text).hexdigest()


def refusal(name: str, rejected: Sequence[Rejected], count: int) -> str:
    """Why a source is refused: its `count` rejected inputs, or that it has none at all."""
    if not count:
        return f"{name} holds no image"
    return (
        f"{name}: {count} image{'s' * (count > 1)} cannot be used; repair, remove or leave out "
        f"(data.on_error=skip) what follows:\n{listed(rejected, count)}"
    )


def listed(rejected: Sequence[Rejected], count: int) -> str:
    """The first rejected inputs by name, and how many more there are."""
    lines = [f"  {key}: {reason}" for key, reason in rejected[:SHOWN]]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    return "\n".join(lines)


def build(
    source: Source,
    path: str | os.PathLike[str],
    *,
    stamp: str = "",
    overwrite: bool = False,
    on_error: Literal["raise", "skip"] = "skip",
    progress: bool = True,
) -> Report:
    """Builds a store; repeated after an interruption, it goes on after the last commit.

    The work happens in `.NAME.lmdb.building` beside the target, under a lock file; the target is
    absent or complete at any time.

    Args:
        source: where the images come from.
        path: the file to make; its name ends in `.lmdb`.
        stamp: kept in the store for the caller to compare later.
        overwrite: whether a store at `path`, and the remains of building another, are replaced.
        on_error: `raise` refuses to finish while the source rejects an input, and names them.
        progress: whether a bar is shown, where there is a terminal.

    Raises:
        StoreBusyError: another process is building this store.
        StoreError: a record breaks the rules, the disk is full, or the target exists.
    """
    path = Path(path)
    if path.suffix != ".lmdb":
        raise StoreError(f"a store's name ends in .lmdb, unlike {path}")
    building = path.with_name(f".{path.name}.building")
    with contextlib.ExitStack() as held:
        with _writing(building, source):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(_exclusive(path))
        if path.is_dir() or (path.exists() and not overwrite):
            raise StoreError(f"{path} exists; give another name, or overwrite it (--overwrite)")
        if overwrite and not _resumable(building, source):
            building.unlink(missing_ok=True)
        report = _fill(source, building, stamp, on_error, progress)
        with _writing(building, source):
            _publish(building, path, report.content_hash)
    return replace(report, path=path)


def _fill(source: Source, building: Path, stamp: str, on_error: str, progress: bool) -> Report:
    """Puts all records of the source into the building file."""
    with _opened_for_writing(building, source) as environment:
        builder = _Builder(source, environment, building)
        for item in _shown(_remaining(source, builder.seen), source, builder.seen, progress):
            builder.add(item)
        builder.commit()
        rejected = builder.rejected
        if not builder.count:
            building.unlink()  # nothing to go on with
        if not builder.count or (rejected and on_error == "raise"):
            raise StoreError(refusal(source.name, rejected, len(rejected)))
        return Report(building, builder.count, rejected, builder.complete(stamp))


def _remaining(source: Source, seen: int) -> Iterable[Record | Rejected]:
    if isinstance(source, Resumable):
        return source.after(seen)
    return itertools.islice(source, seen, None)


def _shown(
    items: Iterable[Record | Rejected], source: Source, seen: int, progress: bool
) -> Iterator[Record | Rejected]:
    """The items, with a bar where there is a terminal."""
    if progress and sys.stderr.isatty():
        yield from tqdm(items, source.name, len(source), initial=seen, unit=" images")
    else:
        yield from items


def _publish(building: Path, path: Path, content_hash: str) -> None:
    """Checks what is on the disk and moves it to its place, so that it survives a power cut."""
    with contextlib.closing(StoreFile(building)) as file:
        for _, check in file.checks():
            check()
        if file.meta.content_hash != content_hash:
            raise StoreError(f"{building} changed while it was written")
    sync(building)
    os.replace(building, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Let a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened_for_writing(building: Path, source: Source) -> Iterator[lmdb.Environment]:
    """The environment of a building file, new or whole; without writemap, which a full disk kills.

    It has no lock of its own: `_exclusive` has seen to it that nobody else writes.
    """
    size = building.stat().st_size if building.exists() else 0
    if size:
        with explained(building), building.open("rb") as file:
            checked_bytes(file.fileno())
    with _writing(building, source):
        environment = lmdb.open(
            os.fspath(building), subdir=False, lock=False, map_size=max(_FIRST_MAP, size)
        )
    with contextlib.closing(environment):
        yield environment


def _resumable(building: Path, source: Source) -> bool:
    """Whether a building file is there and was begun from the same source."""
    if not building.exists():
        return False
    try:
        with (
            _opened_for_writing(building, source) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            meta = read_meta(transaction)
    except StoreError:
        return False
    return meta is None or meta.fingerprint == fingerprint(source)


@contextlib.contextmanager
def _writing(building: Path, source: Source) -> Iterator[None]:
    """Explains what goes wrong with the disk."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        folder = next(parent for parent in building.parents if parent.exists())
        free = shutil.disk_usage(folder).free
        needed = round(1.03 * len(source) * math.prod(source.shape))
        raise StoreError(
            f"{building} cannot be written: {error}; {free >> 20} MiB are free, the store needs "
            f"{(needed >> 20) + 1} MiB in all; the same command goes on after the last commit"
        ) from error


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file beside a store: only one process builds it.

    The kernel gives the lock up with its process, so what a dead one has left is no obstacle.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock, path)
    try:
        stale = os.read(descriptor, 1 << 10).decode(errors="replace")
        if stale:
            print(f"{path}: going on after {stale}, which has ended", file=sys.stderr)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, {now}".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, path: Path) -> int:
    """A descriptor that holds the lock file at this path."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 1 << 10).decode(errors="replace")
            os.close(descriptor)
            raise StoreBusyError(f"{path} is being built by {holder}") from None
        except FileNotFoundError:
            pass  # the last holder has just removed it
        os.close(descriptor)


class _Builder:
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
        with _writing(self.path, self.source):
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
        with _writing(self.path, self.source):
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
