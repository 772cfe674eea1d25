"""The pages of an LMDB file, which LMDB itself believes: looked at before it opens the file."""

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from gan.system import pread

_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # flags of a page
_LARGE = 1  # flag of a node whose value has pages of its own


class StoreError(ValueError):
    """A store, or the building of one, that is not as it must be."""


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
    tree = _newest_tree(descriptor)
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


def _newest_tree(descriptor: int) -> _Tree:
    """What the newer meta page of an LMDB file says."""
    page = _tree(pread(descriptor, 152, 0)).page
    return max(_tree(pread(descriptor, 152, start)) for start in (0, page))


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
    page = pread(descriptor, tree.page, number * tree.page)
    flags, lower = struct.unpack_from("=HH", page, 10)
    if flags != (_LEAF if depth == 1 else _BRANCH):
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
    if flags != _LARGE:
        raise StoreError("its tree is damaged: a value leaves its page")
    (first,) = struct.unpack_from("=Q", page, data)
    pages = (16 + size - 1) // tree.page + 1
    if not 2 <= first <= tree.last + 1 - pages:
        raise StoreError(f"its tree is damaged: a value of {size} bytes leaves the file")
    _, kind, count = struct.unpack("=HHI", pread(descriptor, 8, first * tree.page + 8))
    if (kind, count) != (_OVERFLOW, pages):
        raise StoreError(f"its tree is damaged at page {first}")


def starts(descriptor: int) -> Iterator[int]:
    """Where in a file that has been checked its values begin, in the order of their keys."""
    tree = _newest_tree(descriptor)
    return _starts(descriptor, tree.page, tree.root)


def _starts(descriptor: int, size: int, number: int) -> Iterator[int]:
    page = pread(descriptor, size, number * size)
    flags, lower = struct.unpack_from("=HH", page, 10)
    for start in struct.unpack_from(f"={(lower - 16) // 2}H", page, 16):
        low, middle, high, key = struct.unpack_from("=HHHH", page, start)
        if flags == _BRANCH:
            yield from _starts(descriptor, size, low | middle << 16 | high << 32)
        elif high == _LARGE:
            yield struct.unpack_from("=Q", page, start + 8 + key)[0] * size + 16
        else:
            yield number * size + start + 8 + key
