"""What a store file looks like, and how one is opened: every check of its bytes is here.

A store is one immutable LMDB file. Every value is a record: a header of 48 bytes, then the payload.
The reader knows from the meta record what each header must be, so a header is compared, never
believed; its CRC-32 covers the key, the header and the payload.

    block/00000000   uint8 [count, H, W, C]; all blocks hold the same number, the last may be short
    index/00000000   int32 [fields, count], then JSON with the images' keys and the rejected inputs
    __meta__         JSON: count, shape, fields, names, source, content hash, `complete`; put last

There is one index value per commit of the builder, which is what makes building resumable. The
content hash is SHA-256 over (key, CRC-32) of all blocks and indices in order.

Run as a program, this file reads a whole store and reports on it line by line; see `store.verify`.
That is why it is one long file that imports nothing of `gan`: a damaged page may end the process
that reads it, and the child that is sent ahead must not first spend seconds on importing torch.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import stat
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

VERSION = 1
LARGEST_VALUE = 64 << 20  # bytes
LARGEST_META = 16 << 20  # bytes
LONGEST_KEY = 512  # bytes of UTF-8

META = b"__meta__"
_MAGIC = b"GANS"
_HEADER = struct.Struct("<4sHHIIIQIII8x")  # magic version kind H W C first count length crc
_CRC = slice(36, 40)

BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # LMDB: flags of a page
LARGE = 1  # LMDB: flag of a node whose value has pages of its own

Shape = tuple[int, int, int]


class StoreError(ValueError):
    """A store, or the building of one, that is not as it must be."""


class Record(NamedTuple):
    """One image on its way into a store: uint8 [H, W, C] with its integer fields."""

    key: str
    image: np.ndarray
    fields: Mapping[str, int]


class Rejected(NamedTuple):
    """One input that cannot become an image, and why."""

    key: str
    reason: str


def key_problem(key: str) -> str | None:
    """What is wrong with the key of an image, or None."""
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if length > LONGEST_KEY:
        return f"the name has {length} bytes, at most {LONGEST_KEY} are allowed"
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "the name holds a control character"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "the name is not a plain relative path"
    return None


# ---- values -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What stands before the payload of a value."""

    kind: int
    shape: Shape
    first: int  # image
    count: int  # images
    length: int  # payload bytes

    def packed(self, crc: int = 0) -> bytes:
        """The header as it is written."""
        fields = (self.kind, *self.shape, self.first, self.count, self.length)
        return _HEADER.pack(_MAGIC, VERSION, *fields, crc)

    def value(self, key: bytes, payload: bytes) -> bytes:
        """The value to be stored under a key."""
        return self.packed(self._crc(key, payload)) + payload

    def payload(self, key: bytes, value: bytes | memoryview | None) -> memoryview:
        """The payload of a value, once it has this header and its CRC agrees."""
        name = key.decode()
        if value is None:
            raise StoreError(f"{name} is missing")
        if len(value) != _HEADER.size + self.length:
            raise StoreError(f"{name} has {len(value)} bytes, not {_HEADER.size + self.length}")
        found, payload = bytes(value[: _HEADER.size]), memoryview(value)[_HEADER.size :]
        if found[:4] != _MAGIC:
            raise StoreError(f"{name} begins with {found[:4]!r}, not with {_MAGIC!r}")
        crc = self._crc(key, payload)
        if found != self.packed(crc):
            stored = int.from_bytes(found[_CRC], "little")
            raise StoreError(f"{name} is damaged: CRC {stored:08x}, its bytes give {crc:08x}")
        return payload

    def _crc(self, key: bytes, payload: bytes | memoryview) -> int:
        return zlib.crc32(payload, zlib.crc32(key + self.packed()))


def meta_header(length: int) -> Header:
    """The header of the meta record."""
    return Header(0, (0, 0, 0), 0, 0, length)


def block_header(shape: Shape, first: int, count: int) -> Header:
    """The header of a block of images."""
    return Header(1, shape, first, count, count * math.prod(shape))


def index_header(fields: int, first: int, count: int, length: int) -> Header:
    """The header of an index."""
    return Header(2, (fields, 0, 0), first, count, length)


def block_key(number: int) -> bytes:
    """The key of a block."""
    return b"block/%08d" % number


def index_key(number: int) -> bytes:
    """The key of an index."""
    return b"index/%08d" % number


def value_bytes(length: int) -> int:
    """How many bytes of a value the header and so many of its payload are."""
    return _HEADER.size + length


def content_hash_of(transaction: lmdb.Transaction) -> str:
    """SHA-256 over (key, CRC-32) of all blocks and indices in order, from their headers."""
    digest = hashlib.sha256()
    for key, value in transaction.cursor():
        if bytes(key) != META:
            digest.update(bytes(key) + bytes(value[_CRC]))
    return digest.hexdigest()


def json_bytes(value: Any) -> bytes:
    """JSON in as few bytes as possible, without NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Meta:
    """The meta record, checked."""

    version: int
    complete: bool
    fingerprint: str
    source: str
    shape: tuple[int, int, int]
    per_block: int
    count: int
    index: list[tuple[int, int]]  # images, payload bytes
    fields: dict[str, tuple[int, int]]  # smallest, largest
    names: dict[str, list[str]]
    facts: dict[str, Any]
    rejected_count: int
    rejected: list[Rejected]
    content_hash: str
    stamp: str

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.count // self.per_block)

    def span(self, block: int) -> tuple[int, int]:
        """First image and number of images of a block."""
        first = block * self.per_block
        return first, min(self.per_block, self.count - first)

    def name_of(self, block: int) -> str:
        """A block in words."""
        first, count = self.span(block)
        return f"block {block}, images {first} to {first + count - 1}"

    def value(self) -> bytes:
        """The meta record as it is stored."""
        payload = json_bytes(vars(self))
        if len(payload) > LARGEST_META:
            raise StoreError(f"names and facts take {len(payload)} bytes, not {LARGEST_META}")
        return meta_header(len(payload)).value(META, payload)


def read_meta(transaction: lmdb.Transaction) -> Meta | None:
    """The meta record by way of a transaction with buffers; None where there is no such record."""
    value = transaction.get(META)
    if value is None:
        return None
    length = len(value) - _HEADER.size
    if not 0 <= length <= LARGEST_META:
        raise StoreError(f"__meta__ has {len(value)} bytes, not up to {LARGEST_META}")
    version = int.from_bytes(value[4:6], "little")
    if value[:4] == _MAGIC and version != VERSION:
        raise StoreError(f"it has format version {version}, this program reads {VERSION}")
    payload = meta_header(length).payload(META, value)
    try:
        return _meta_of(json.loads(bytes(payload)))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"__meta__ is malformed: {error!r}") from error


def _meta_of(raw: dict[str, Any]) -> Meta:
    height, width, channels = (int(n) for n in raw["shape"])
    checked = {
        "shape": (height, width, channels),
        "index": [(int(count), int(length)) for count, length in raw["index"]],
        "fields": {name: (int(low), int(high)) for name, (low, high) in raw["fields"].items()},
        "rejected": [Rejected(str(key), str(reason)) for key, reason in raw["rejected"]],
    }
    meta = Meta(**{**raw, **checked})
    if min(*meta.shape, meta.per_block) < 1 or meta.count < 0:
        raise ValueError("a count or a size is not positive")
    if meta.per_block * math.prod(meta.shape) > LARGEST_VALUE:
        raise ValueError("a block is larger than 64 MiB")
    if any(count < 0 or not 0 <= length <= LARGEST_VALUE for count, length in meta.index):
        raise ValueError("an index is larger than 64 MiB")
    if meta.complete and sum(count for count, _ in meta.index) != meta.count:
        raise ValueError("the indices do not add up to the count")
    for name, (low, high) in meta.fields.items():
        if meta.names.get(name) and not 0 <= low <= high < len(meta.names[name]):
            raise ValueError(f"the field {name} leaves the range of its names")
    return meta


class Index(NamedTuple):
    """Keys and fields of the images of one commit, and what it takes to go on after it."""

    fields: np.ndarray  # int32 [fields, count]
    keys: list[str]
    names: list[str]  # of the fields
    rejected: list[Rejected]
    seen: int  # items of the source up to the end of this commit

    def payload(self) -> bytes:
        """The index as it is stored."""
        rest = {name: value for name, value in self._asdict().items() if name != "fields"}
        return self.fields.astype("<i4").tobytes() + json_bytes(rest)


def read_columns(payload: memoryview, fields: int, count: int) -> np.ndarray:
    """The fields of an index, int32 [fields, count], a view of its payload."""
    return np.frombuffer(payload, "<i4", fields * count).reshape(fields, count)


def read_index(payload: memoryview, fields: int, count: int) -> Index:
    """An index out of its payload."""
    try:
        rest = json.loads(bytes(payload[4 * fields * count :]))
        rest["rejected"] = [Rejected(key, reason) for key, reason in rest["rejected"]]
        index = Index(read_columns(payload, fields, count), **rest)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"an index is malformed: {error!r}") from error
    if len(index.keys) != count or len(index.names) != fields:
        raise StoreError(f"an index has {len(index.keys)} keys for {count} images")
    return index


def index_header_of(value: bytes | memoryview, first: int) -> Header:
    """The header that an index claims to have, where no meta record says so yet."""
    if len(value) < _HEADER.size:
        raise StoreError(f"an index has {len(value)} bytes")
    _, _, _, fields, _, _, _, count, length, _ = _HEADER.unpack_from(value)
    return index_header(fields, first, count, length)


# ---- files --------------------------------------------------------------------------------------


class _Tree(NamedTuple):
    """What a meta page of LMDB 0.9 on a 64-bit machine says."""

    transaction: int
    page: int  # bytes
    last: int  # page
    flags: int
    depth: int
    entries: int
    root: int  # page


def checked_bytes(descriptor: int) -> int:
    """How long an LMDB file is by its newer meta page, once it is that long and its tree is sound.

    LMDB itself does not look. Reading behind the end of a cut file ends the process, and so does
    asking for a value whose node claims a length of 4 GiB, since py-lmdb touches all its pages.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError("it is not a regular file")
    if status.st_size == 0:
        raise StoreError("it is empty")
    tree = newest_tree(descriptor)
    required = (tree.last + 1) * tree.page
    if status.st_size < required:
        raise StoreError(
            f"it is cut: {status.st_size} bytes of {required} are there; copy or build it again"
        )
    if tree.flags or not 0 <= tree.depth <= 8:
        raise StoreError("its tree is damaged")
    try:
        walked = _count_entries(descriptor, tree, tree.root, tree.depth, set()) if tree.depth else 0
    except struct.error as error:
        raise StoreError("its tree is damaged: a node leaves its page") from error
    if walked != tree.entries:
        raise StoreError(f"its tree is damaged: it has {walked} nodes of {tree.entries}")
    return required


def newest_tree(descriptor: int) -> _Tree:
    """What the newer meta page of an LMDB file says."""
    page = _tree(os.pread(descriptor, 152, 0)).page
    return max(_tree(os.pread(descriptor, 152, start)) for start in (0, page))


def _tree(head: bytes) -> _Tree:
    """A meta page, from its first 152 bytes."""
    if len(head) < 152 or struct.unpack_from("=II", head, 16) != (0xBEEFC0DE, 1):
        raise StoreError("it is not an LMDB file, or its first pages are cut or damaged")
    (page,) = struct.unpack_from("=I", head, 40)
    flags, depth = struct.unpack_from("=HH", head, 92)
    entries, root, last, transaction = struct.unpack_from("=QQQQ", head, 120)
    if page not in (1 << shift for shift in range(9, 17)):
        raise StoreError(f"it has a page size of {page} bytes")
    return _Tree(transaction, page, last, flags, depth, entries, root)


def _count_entries(descriptor: int, tree: _Tree, number: int, depth: int, seen: set[int]) -> int:
    """How many values there are below a page, once all of them lie within the file.

    A page with two ways to it is refused: eight levels of them would never be walked to the end.
    """
    if not 2 <= number <= tree.last or number in seen:
        raise StoreError(f"its tree is damaged: it leads to page {number} of {tree.last}")
    seen.add(number)
    page = os.pread(descriptor, tree.page, number * tree.page)
    flags, lower = struct.unpack_from("=HH", page, 10)
    if flags != (_LEAF if depth == 1 else BRANCH):
        raise StoreError(f"its tree is damaged at page {number}")
    starts = struct.unpack_from(f"={(lower - 16) // 2}H", page, 16)
    if len(starts) < (1 if depth == 1 else 2):  # LMDB ends the process over a branch of one
        raise StoreError(f"its tree is damaged: page {number} has {len(starts)} nodes")
    if depth == 1:
        for start in starts:
            _check_leaf_node(descriptor, tree, page, start)
        return len(starts)
    nodes = [struct.unpack_from("=HHHH", page, start) for start in starts]
    if any(start + 8 + key > tree.page for start, (*_, key) in zip(starts, nodes, strict=True)):
        raise StoreError(f"its tree is damaged: a key leaves page {number}")
    below = [low | middle << 16 | high << 32 for low, middle, high, _ in nodes]
    return sum(_count_entries(descriptor, tree, child, depth - 1, seen) for child in below)


def _check_leaf_node(descriptor: int, tree: _Tree, page: bytes, start: int) -> None:
    low, high, flags, key = struct.unpack_from("=HHHH", page, start)
    size, data = low | high << 16, start + 8 + key
    if flags == 0 and data + size <= tree.page:
        return
    if flags != LARGE:
        raise StoreError("its tree is damaged: a value leaves its page")
    (first,) = struct.unpack_from("=Q", page, data)
    pages = (16 + size - 1) // tree.page + 1
    if not 2 <= first <= tree.last + 1 - pages:
        raise StoreError(f"its tree is damaged: a value of {size} bytes leaves the file")
    _, kind, count = struct.unpack("=HHI", os.pread(descriptor, 8, first * tree.page + 8))
    if (kind, count) != (_OVERFLOW, pages):
        raise StoreError(f"its tree is damaged at page {first}")


class StoreFile:
    """An open store: one LMDB environment, one read transaction, and checked views of its blocks.

    A process may have one per file. Views live as long as the transaction: they never leave this
    class, and whoever reads or closes holds `lock`.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`, unless it is cut, incomplete, of another version, or no store at all."""
        self.path = path
        self.lock = threading.RLock()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.ahead = 0
        self.closed = False
        with contextlib.ExitStack() as resources, explained(path):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
        """Closes the file for all its users."""
        self.closed = True
        self.views.clear()
        self.resources.close()

    def replaced(self) -> bool:
        """Whether another file stands at the path now."""
        return not os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))

    def check_size(self) -> None:
        """Raises before a read behind the end of a file that was cut in place."""
        if self.closed:
            raise StoreError(f"{self.path}: it was closed during a read")
        size = os.fstat(self.descriptor).st_size
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
            view = self.views[number] = self.block(number)
        return view

    def touch_next(self) -> bool:
        """Touches the next block in the order of the file; False once all have been."""
        while self.ahead < len(self.views) and self.views[self.ahead] is not None:
            self.ahead += 1
        if self.ahead < len(self.views):
            self.touch(self.ahead)
        return self.ahead < len(self.views)

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies images to `out` uint8 [n, H * W * C], once each and by one call.

        That is as fast as it gets without a map of our own: a `take` per block pays a second copy,
        and an assignment per image costs more than a view of it.
        """
        blocks, slots = (part.tolist() for part in np.divmod(rows, self.meta.per_block))
        views = {number: self.touch(number) for number in sorted(set(blocks))}
        images = [views[number][slot] for number, slot in zip(blocks, slots, strict=True)]
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


def _scan(path: Path) -> None:
    """Says each part of a store before it is read, and each damage after it."""
    try:
        file = StoreFile(path)
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


if __name__ == "__main__":
    _scan(Path(sys.argv[1]))
