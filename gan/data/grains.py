"""A batch of images copied by one `take` out of LMDB's own map of a store's file."""

import ctypes
import math
from array import array

import numpy as np

from gan.data.layout import Meta, value_bytes
from gan.data.pages import starts

PAGE = 4096  # bytes of LMDB's pages
HEAD = 16  # bytes of a page before a large value, which has pages of its own
SHORTEST = 256  # bytes of a row below which views are copied as fast
LARGEST = 1 << 16  # bytes of an image above which they are


class Grains:
    """LMDB's map of a file as rows of equal length, of which every image is the next few.

    One `take` of such rows copies a batch as fast as one out of an array of images. They are those
    bytes alone that checked views show: of each block it is the address of its view that says where
    it is. Blocks that do not begin a whole number of rows apart, such as a last one so small that
    it lies within a page, are `odd`. Where rows would be short, or images are large, none is taken.
    """

    def __init__(self, descriptor: int, size: int, meta: Meta) -> None:
        image = math.prod(meta.shape)
        self.bytes = size
        self.length = math.gcd(PAGE, image)  # bytes of a row
        self.many = image // self.length  # rows of an image
        self.first = (HEAD + value_bytes(0)) % self.length  # byte of the file
        self.begins = array("Q", starts(descriptor))[1:]  # the meta record is the first value
        self.per_block = meta.per_block
        self.shifts = np.zeros(meta.blocks, np.int64)  # rows that a touched block's are further on
        self.taken = self.length >= SHORTEST and image <= LARGEST
        self.odd: set[int] = set()
        self.inside = np.arange(self.many)
        self.base = 0  # address of the map
        self.rows: np.ndarray | None = None

    def found(self, number: int, view: np.ndarray) -> None:
        """Takes note of where a block is, by its checked view."""
        address = view.__array_interface__["data"][0]
        begin = self.begins[number] + value_bytes(0)
        if self.rows is None:
            self.base = address - begin
            whole = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(self.base))
            count = (self.bytes - self.first) // self.length
            self.rows = whole[self.first :][: count * self.length].reshape(count, self.length)
        place, rest = divmod(begin - self.first, self.length)
        self.shifts[number] = place - number * self.per_block * self.many
        if rest or address != self.base + begin or begin + view.nbytes > self.bytes:
            self.odd.add(number)

    def whole(self, blocks: np.ndarray) -> bool:
        """Whether all these touched blocks begin with a row."""
        return self.taken and (not self.odd or self.odd.isdisjoint(blocks.tolist()))

    def take(self, images: np.ndarray, blocks: np.ndarray, out: np.ndarray) -> None:
        """Copies images of these touched blocks to `out` [n, H * W * C]."""
        assert self.rows is not None
        at = self.shifts[blocks] + images * self.many
        if self.many > 1:
            at = (at[:, None] + self.inside).reshape(-1)
        # "raise" would copy twice; what the file holds was checked, and so were the rows
        self.rows.take(at, axis=0, out=out.reshape(-1, self.length), mode="clip")

    def close(self) -> None:
        """Forgets the map, which goes with its file."""
        self.rows = None
