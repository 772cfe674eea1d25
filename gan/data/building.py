"""Building a store: atomic, resumable, and strict about what goes in."""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import lmdb
from tqdm import tqdm

from gan.config import floors
from gan.data.builder import SHOWN, Builder, Source, fingerprint, writing
from gan.data.layout import Record, Rejected, read_meta
from gan.data.pages import StoreError, checked_bytes
from gan.data.reading import StoreFile, explained
from gan.disk import move, sync
from gan.locks import HeldError, Lock

_FIRST_MAP = 64 << 20  # bytes


class StoreBusyError(StoreError):
    """Another process is building this store."""


@dataclass(frozen=True)
class Report:
    """What `build` has made."""

    path: Path
    count: int
    rejected: list[Rejected]
    content_hash: str


def refusal(name: str, rejected: Sequence[Rejected], count: int, others: bool = True) -> str:
    """Why a source is refused: its `count` rejected inputs, or that it has none, nor `others`."""
    if not count:
        return f"{name} holds no image"
    what = f"{name}: {count} image{'s' * (count > 1)} cannot be used"
    skip = "; repair, remove or leave out (data.on_error=skip)"
    way = skip if others else ", and there is no other; repair"
    return f"{what}{way} what follows:\n{listed(rejected, count)}"


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

    Raises:
        StoreBusyError: another process is building this store.
        StoreError: a record breaks the rules, the disk is full, or the target exists.
        ConfigError: LMDB or Pillow is a version with known holes.
    """
    path = Path(path)
    if path.suffix != ".lmdb":
        raise StoreError(f"a store's name ends in .lmdb, unlike {path}")
    with exclusive(path, source):
        return build_held(source, path, stamp, overwrite, on_error)


def build_held(
    source: Source, path: Path, stamp: str, overwrite: bool, on_error: Literal["raise", "skip"]
) -> Report:
    """The same, by who holds the lock."""
    floors.require("lmdb", "pillow")
    if path.is_dir() or (path.exists() and not overwrite):
        raise StoreError(f"{path} exists; give another name, or overwrite it (--overwrite)")
    building = path.with_name(f".{path.name}.building")
    if overwrite and not _resumable(building, source):
        building.unlink(missing_ok=True)
    report = _fill(source, building, stamp, on_error)
    with writing(building, source):
        _publish(building, path, report.content_hash)
    return replace(report, path=path)


def _fill(source: Source, building: Path, stamp: str, on_error: str) -> Report:
    """Puts all records of the source into the building file."""
    with _opened_forwriting(building, source) as environment:
        builder = Builder(source, environment, building)
        seen, unit = builder.seen, " images"
        items = _remaining(source, seen)
        for item in tqdm(items, source.name, len(source), initial=seen, unit=unit, disable=None):
            builder.add(item)
        builder.commit()
        rejected = builder.rejected
        refused = not builder.count or bool(rejected and on_error == "raise")
        content_hash = "" if refused else builder.complete(stamp)
    if not builder.count:
        building.unlink()  # nothing to go on with
    if refused:
        raise StoreError(refusal(source.name, rejected, len(rejected), bool(builder.count)))
    return Report(building, builder.count, rejected, content_hash)


def _remaining(source: Source, seen: int) -> Iterable[Record | Rejected]:
    after = getattr(source, "after", None)
    return after(seen) if after else itertools.islice(source, seen, None)


def _publish(building: Path, path: Path, content_hash: str) -> None:
    """Checks what is on the disk and moves it to its place, so that it survives a power cut."""
    with contextlib.closing(StoreFile(building)) as file:
        for _, check in file.checks():
            check()
        if file.meta.content_hash != content_hash:
            raise StoreError(f"{building} changed while it was written")
    sync(building)
    move(os.replace, building, path)
    sync(path.parent)


@contextlib.contextmanager
def _opened_forwriting(building: Path, source: Source) -> Iterator[lmdb.Environment]:
    """The environment of a building file, new or whole; without writemap, which a full disk kills.

    It has no lock of its own: `exclusive` has seen to it that nobody else writes.
    """
    size = building.stat().st_size if building.exists() else 0
    if size:
        with explained(building), building.open("rb") as file:
            checked_bytes(file.fileno())
    with writing(building, source):
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
            _opened_forwriting(building, source) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            meta = read_meta(transaction)
    except StoreError:
        return False
    return meta is None or meta.fingerprint == fingerprint(source)


@contextlib.contextmanager
def exclusive(path: Path, source: Source) -> Iterator[None]:
    """Holds the lock file beside a store, whose folder it makes: only one process builds it."""
    with writing(path, source):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(path.with_name(f".{path.name}.lock"))
        except HeldError as holder:
            raise StoreBusyError(f"{path} is being built by {holder}") from None
    try:
        if lock.stale:
            print(f"{path}: going on after {lock.stale}, which has ended", file=sys.stderr)
        yield
    finally:
        lock.release()
