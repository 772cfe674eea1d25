"""What a store file looks like: every check of its records is here.

A store is one immutable LMDB file. Every value is a record: a header of 48 bytes, then the payload.
The reader knows from the meta record what each header must be, so a header is compared, never
believed; its CRC-32 covers the key, the header and the payload.

    block/00000000   uint8 [count, H, W, C]; all blocks hold the same number, the last may be short
    index/00000000   int32 [fields, count], then JSON with the images' keys and the rejected inputs
    __meta__         JSON: count, shape, fields, names, source, content hash, `complete`; put last

There is one index value per commit of the builder, which is what makes building resumable. The
content hash is SHA-256 over (key, CRC-32) of all blocks and indices in order.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import lmdb
import numpy as np

from gan.data.pages import StoreError

VERSION = 1
LARGEST_VALUE = 64 << 20  # bytes
LARGEST_META = 16 << 20  # bytes
LONGEST_KEY = 512  # bytes of UTF-8

META = b"__meta__"
_MAGIC = b"GANS"
_HEADER = struct.Struct("<4sHHIIIQIII8x")  # magic version kind H W C first count length crc
_CRC = slice(36, 40)

Shape = tuple[int, int, int]


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
