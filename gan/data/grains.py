"""A batch of images copied by one `take` out of LMDB's own map of a store's file."""

import ctypes
import math
from array import array

import numpy as np

from gan.data.layout import Meta, value_bytes
from gan.data.pages import starts

PAGE = 4096  # bytes of LMDB's pages: large values begin at the same place of one
SHORTEST = 256  # bytes of a row below which views are copied as fast


class Grains:
    """LMDB's map of a file as rows of equal length, of which every image is the next few.

    One `take` of such rows copies a batch as fast as one out of an array of images. They are those
    bytes alone that checked views show: of each block it is the address of its view that says where
    it is. Where blocks do not begin a whole number of rows apart, as very small ones do not, or
    rows would be short, images are copied out of the views.
    """

    def __init__(self, descriptor: int, size: int, meta: Meta) -> None:
        image = math.prod(meta.shape)
        self.length = math.gcd(PAGE, image)  # bytes of a row
        self.even = self.length >= SHORTEST
        self.bytes, self.many = size, image // self.length
        self.begins = array("Q", starts(descriptor))[1:]  # the meta record is the first value
        self.places = np.zeros(meta.blocks, np.int64)
        self.inside = np.arange(self.many)
        self.base = self.first = 0
        self.rows: np.ndarray | None = None

    def found(self, number: int, view: np.ndarray) -> None:
        """Takes note of where a block is, by its checked view."""
        address = view.__array_interface__["data"][0]
        payload = self.begins[number] + value_bytes(0)
        if self.rows is None:
            self.base, self.first = address - payload, payload % self.length
            whole = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(self.base))
            count = (self.bytes - self.first) // self.length
            self.rows = whole[self.first :][: count * self.length].reshape(count, self.length)
        place, rest = divmod(payload - self.first, self.length)
        self.places[number] = place
        self.even = self.even and not rest and address == self.base + payload

    def take(self, blocks: np.ndarray, slots: np.ndarray, out: np.ndarray) -> None:
        """Copies images that stand at these places of touched blocks to `out` [n, H * W * C]."""
        assert self.rows is not None
        at = self.places[blocks] + slots * self.many
        if self.many > 1:
            at = (at[:, None] + self.inside).reshape(-1)
        # "raise" would copy twice; what the file holds was checked, and so were the rows
        np.take(self.rows, at, axis=0, out=out.reshape(-1, self.length), mode="clip")

    def close(self) -> None:
        """Forgets the map, which goes with its file."""
        self.rows = None
