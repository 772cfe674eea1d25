"""Glyphs out of fonts: which characters a face really draws, and images at one scale per font.

A character map is no proof: fonts map characters to empty glyphs, to a box, or to outlines that
FreeType refuses. A glyph is usable only after it was drawn, and every other one says why not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from unicodedata import name as unicode_name
from unicodedata import normalize

import fontTools
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from gan.data.faces import Face, FontError

Pixels = NDArray[np.uint8]

FACTOR = 4  # pixels drawn per pixel kept, at least, along each side
MARGIN = 1 / 32  # paper left at each side of the largest glyph, as a share of the canvas
INK = 8  # a drawn pixel belongs to the ink box from this value on (0 paper, 255 black)
LEAST_INK = 0.003  # mean ink of a usable glyph on its canvas

RENDERING: dict[str, float] = {
    "format": 1,  # raise it when the same font would give other pixels
    "factor": FACTOR,
    "margin": MARGIN,
    "ink": INK,
    "least_ink": LEAST_INK,
}
_EM = 6  # em in kept pixels: a full-width glyph is then drawn at about six times its size
_EMPTY = "drawn empty"  # why a blank has no image
_SPECK = 1 / 20  # a face whose longest ink is less of its em is not drawn at all
_SAME_SCRIPT_TWINS = ("ÐĐƉ",)  # three Latin letters that are one drawing by design


class UnusableError(ValueError):
    """One character that a face does not draw; the message is the reason."""


class _Ink(NamedTuple):
    """The inked part of a drawn character and where its corner lies from the origin."""

    pixels: Pixels  # [h, w], 255 where black
    left: int
    top: int  # below the baseline


class _Pen:
    """A face at one em size, drawing the ink of single characters."""

    def __init__(self, face: Face, em: int) -> None:
        self.em = em
        self.mapped = set(face.mapped.tolist())
        try:
            self.font = ImageFont.truetype(
                face.path, em, index=face.index, layout_engine=ImageFont.Layout.BASIC
            )
        except OSError as error:
            raise FontError(f"{face.file} (face {face.index}) does not open: {error}") from error
        self.box = self._box()

    def ink(self, character: str) -> _Ink:
        """The ink of a character.

        Raises:
            UnusableError: the face has no drawing of its own for this character.
        """
        if ord(character) not in self.mapped:
            raise UnusableError("not mapped to a glyph")
        ink = self._draw(character)
        if not ink.pixels.size:
            raise UnusableError(_EMPTY)
        if self.box is not None and np.array_equal(ink.pixels, self.box):
            raise UnusableError("drawn as the .notdef box")
        return ink

    def advance(self, character: str) -> float:
        """From the character's origin to that of the next, in drawn pixels."""
        return self.font.getlength(character)

    def _draw(self, character: str) -> _Ink:
        try:
            left, top, right, bottom = map(int, self.font.getbbox(character, anchor="ls"))
            canvas = Image.new("L", (right - left + 2, bottom - top + 2))
            ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, 255, self.font, anchor="ls")
        except OSError as error:
            raise UnusableError(f"does not render: {error}") from error
        pixels = np.asarray(canvas)
        inked = pixels >= INK
        rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        if not rows.size:
            return _Ink(pixels[:0, :0], 0, 0)
        ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return _Ink(ink, left - 1 + int(columns[0]), top - 1 + int(rows[0]))

    def _box(self) -> Pixels | None:
        """The drawing of .notdef, by way of a character not mapped; it may fail itself."""
        private = set(range(0xF0000, 0x10FFFF)) - self.mapped
        try:
            return self._draw(chr(max(private))).pixels
        except ValueError:  # everything is mapped, or .notdef does not render
            return None


class Spot(NamedTuple):
    """Where the middle of a character's canvas is from its origin on the baseline, right and up.

    In sides of the canvas; `advance` leads to the next character's origin.
    """

    right: float
    up: float
    advance: float


class Rendered(NamedTuple):
    """The usable glyphs of a face, [size, size] with ink 0 on 255, and why the others are not.

    `spots` are the places in a line of all that are drawn, and of blanks, which have no ink.
    """

    images: dict[str, Pixels]
    rejected: dict[str, str]
    spots: Mapping[str, Spot] = MappingProxyType({})


def render(
    face: Face,
    characters: Sequence[str],
    size: int,
    levels: int = 256,
    framed: Sequence[str] | None = None,
) -> Rendered:
    """Draw characters at one scale for the whole font, each centred by its ink.

    The canvas is a square around the largest ink side among the usable characters, or `framed`
    ones, plus a margin: cropping each glyph alone would make a dot as large as a full character.
    Drawn at `FACTOR` times the size or more, above any embedded bitmap, and reduced by area to
    `levels` grey values.

    Raises:
        FontError: the face does not open for drawing, or draws specks.
    """

    def measured(pen: _Pen) -> tuple[int, dict[str, str]]:
        longest, rejected = _measure(pen, characters)
        return (longest if framed is None else _measure(pen, framed)[0]), rejected

    pen = _Pen(face, max(_EM * size, 128))
    longest, rejected = measured(pen)
    if 0 < longest < FACTOR * size:  # Latin fills little of its em: draw larger
        if longest < _SPECK * pen.em:
            raise FontError(
                f"{face.name} draws nothing longer than {longest / pen.em:.1%} of its em"
            )
        pen = _Pen(face, math.ceil(pen.em * FACTOR * size / longest))
        longest, rejected = measured(pen)
    side = math.ceil(longest / (1 - 2 * MARGIN))
    blanks = [character for character, reason in rejected.items() if reason == _EMPTY]
    spots = {blank: Spot(0.0, 0.0, pen.advance(blank) / max(side, 1)) for blank in blanks}
    images: dict[str, Pixels] = {}
    for character in characters:
        if character in rejected:
            continue
        ink = pen.ink(character)
        if max(ink.pixels.shape) > side:
            rejected[character] = "larger than the canvas"
            continue
        share = ink.pixels.sum(dtype=np.int64) / (255 * side**2)
        if share < LEAST_INK:
            rejected[character] = f"ink covers {share:.2%} of the canvas, less than {LEAST_INK:.1%}"
        else:
            images[character] = 255 - area_reduce(centred(ink.pixels, side), size, levels)
            spots[character] = _spot(ink, pen.advance(character), side)
    repeated = _repeated(images)
    kept = {character: image for character, image in images.items() if character not in repeated}
    return Rendered(kept, rejected | repeated, spots)


def _measure(pen: _Pen, characters: Iterable[str]) -> tuple[int, dict[str, str]]:
    """The longest ink side among the characters in drawn pixels, and the characters without ink."""
    longest, rejected = 0, {}
    for character in characters:
        try:
            longest = max(longest, *pen.ink(character).pixels.shape)
        except UnusableError as error:
            rejected[character] = str(error)
    return longest, rejected


def centred(ink: Pixels, side: int) -> Pixels:
    """Ink in the middle of a square canvas, which is at least as large."""
    canvas = np.zeros((side, side), np.uint8)
    top, left = _margins(ink, side)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


def _margins(ink: Pixels, side: int) -> tuple[int, int]:
    """Pixels above ink and to its left on a canvas that it is in the middle of."""
    return (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2


def _spot(ink: _Ink, advance: float, side: int) -> Spot:
    above, before = _margins(ink.pixels, side)
    return Spot((ink.left - before) / side + 0.5, (above - ink.top) / side - 0.5, advance / side)


def area_reduce(images: Pixels, size: int, levels: int = 256) -> Pixels:
    """Shrink square images [..., side, side] to [..., size, size] by area means, in `levels` greys.

    Overlaps are counted in whole units (1/size of a source pixel), so all sums are integers below
    2^53 and the result does not depend on the order of additions.
    """
    side = images.shape[-1]
    edges, steps = np.arange(size + 1) * side, np.arange(side + 1) * size
    overlap = np.minimum(edges[1:, None], steps[1:]) - np.maximum(edges[:-1, None], steps[:-1])
    weights = overlap.clip(0).astype(np.float64)  # [size, side], each row sums to side
    sums = (weights @ images.astype(np.float64) @ weights.T).astype(np.int64)  # [..., size, size]
    full = 255 * side**2
    level = (2 * (levels - 1) * sums + full) // (2 * full)  # rounded, 0 .. levels - 1
    return ((2 * 255 * level + levels - 1) // (2 * (levels - 1))).astype(np.uint8)


def _repeated(images: Mapping[str, Pixels]) -> dict[str, str]:
    """Characters whose image serves more than two characters of one script, with the reason.

    Homoglyph classes are excepted: letters that look alike in different scripts (A in Latin, Greek
    and Cyrillic), compatibility variants, and the few of one script drawn alike by design.
    """
    groups: dict[bytes, list[str]] = {}
    for character, image in images.items():
        groups.setdefault(image.tobytes(), []).append(character)
    repeated: dict[str, str] = {}
    for alike in groups.values():
        scripts: dict[str, set[str]] = {}
        for character in alike:
            scripts.setdefault(_script(character), set()).add(_homoglyph(character))
        if max(map(len, scripts.values())) > 2:
            reason = f"its image serves {len(alike)} characters"
            repeated.update(dict.fromkeys(alike, reason))
    return repeated


def _script(character: str) -> str:
    """The first word of the Unicode name: LATIN, GREEK, CJK, ..."""
    return unicode_name(character, "PRIVATE").split()[0]


def _homoglyph(character: str) -> str:
    """The first member of a character's class of homoglyphs within its script."""
    plain = normalize("NFKC", character)
    return next((group[0] for group in _SAME_SCRIPT_TWINS if plain in group), plain)


def versions() -> dict[str, str]:
    """The versions of the libraries that decide pixels."""
    freetype = features.version("freetype2") or "unknown"
    return {"pillow": PIL.__version__, "freetype": freetype, "fonttools": fontTools.version}
