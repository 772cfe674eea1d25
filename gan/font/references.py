"""References as they come, scans and photographs, made into what the training glyphs are.

Light ink on dark paper is turned, the paper levelled, ink told from it, the ink's box cut out and
placed on a square canvas as large as a middling training glyph is on its own, and reduced by area.
A light sheet on a darker table looks like light ink at first: what lies in it is read then.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gan.data.glyphs import FACTOR, Pixels, area_reduce, centred
from gan.data.images import read_image, whole
from gan.font.paper import Grey, levelled, light_on_dark
from gan.images import GAP, PAPER

_CONTRAST = 0.15  # least difference of ink and paper, as a share of the paper's light
_FILLED = 0.5  # least share of ink in a cell of the picture, of 256 along its side
_DUST, _SPECK = 0.01, 0.1  # shares of all inked cells, and of the largest part's
_SPAN, _THIN = 0.9, 0.03  # shares of a side: what a line takes at least, how thick it is at most
_STRAY = 0.3  # share of the character's ink that what comes in from outside has at most
_INSETS = np.arange(0.02, 0.17, 0.02)  # shares of its box's sides that a tilted sheet is cut by
_WHOLE = 0.98  # least share of light along the border within a sheet
_DARKER = 0.05  # least difference of the table and the ink on a sheet, as a share of its light
_FULL = 0.6  # share of ink in its box that few characters exceed
_LONG = 1.75  # times the short side of its box that few characters are long
_SQUARE, _BETWEEN = 0.65, 0.1  # least length of each of several, and between them, in short sides
_SHOWN = 160  # pixels of each picture of what was seen

Box = tuple[int, int, int, int]  # left, top, right, bottom


class _Part(NamedTuple):
    """Ink that is connected."""

    box: Box
    cells: int


class _Reading(NamedTuple):
    """What is taken for ink in a picture [H, W]."""

    turned: bool  # light ink on dark paper
    light: Grey  # levelled
    threshold: float
    ink: NDArray[np.bool_]
    box: Box


class Reference(NamedTuple):
    """One reference on its way to the model."""

    original: Pixels  # [H, W]
    levelled: Pixels  # the same, or the sheet on it, with ink 0 on paper 255
    box: Box  # of the ink in `levelled`
    seen: Pixels  # [size, size], what the model is given


def reference(path: Path, size: int, fill: float) -> Reference:
    """A picture of one character, dark on light or light on dark, as a training glyph.

    `fill` is the share of the canvas that the longer side of the ink takes.

    Raises:
        ValueError: the file is not read, or shows no character.
    """
    try:
        original = read_image(path, size, 1, whole)[..., 0]
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise anything in its decoder
        raise ValueError(f"--reference {path}: {error or type(error).__name__}") from error
    try:
        reading = _read(original)
        if (sheet := _sheet(original, reading)) is not None:
            reading = _read(_cut(original, sheet))
    except ValueError as error:
        raise ValueError(f"--reference {path}: {error}") from error
    for doubt in _doubts(reading):
        warnings.warn(f"--reference {path}: what is taken for the character {doubt}", stacklevel=2)
    _, light, threshold, ink, box = reading
    left, top, right, bottom = box
    side = max(round(max(right - left, bottom - top) / fill), right - left, bottom - top)
    dark, paper = np.percentile(light[ink], 20), np.median(light[~ink])
    if side >= FACTOR * size:  # the reduction smooths edges, so a blurred one may be cut here
        dark, paper = (0.5 * (threshold + value) for value in (dark, paper))
    clean = (255 * ((light - dark) / (paper - dark)).clip(0, 1)).round().astype(np.uint8)
    seen = 255 - area_reduce(centred(255 - clean[top:bottom, left:right], side), size)
    return Reference(original, clean, box, seen)


def _read(grey: Pixels) -> _Reading:
    """The ink of a picture [H, W].

    Raises:
        ValueError: there is none.
    """
    turned = light_on_dark(grey)
    light = levelled(255 - grey if turned else grey)
    threshold = otsu(light)
    ink = light < threshold
    if not 0 < ink.mean() < 1 or light[~ink].mean() - light[ink].mean() < _CONTRAST:
        raise ValueError(
            "nothing on it is clearly darker or lighter than the paper; give a picture of one "
            "character"
        )
    return _Reading(turned, light, threshold, ink, ink_box(ink))


def _sheet(grey: Pixels, reading: _Reading) -> Box | None:
    """The inside of a sheet on a darker table, where that is what was taken for light ink.

    Light encloses it, as in a character like 口, but what is dark in it is darker than the table.
    """
    inside = _enclosed(reading) if reading.turned else None
    if inside is None:
        return None
    left, top, right, bottom = reading.box
    table = ~reading.ink
    table[top:bottom, left:right] = False
    ink = _cut(reading.ink, inside)
    paper, dark = (_cut(grey, inside)[part] for part in (ink, ~ink))
    if not dark.size or not table.any():
        return None
    darker = np.percentile(grey[table], 20) - np.percentile(dark, 20)
    return inside if darker > _DARKER * np.median(paper) else None


def _enclosed(reading: _Reading) -> Box | None:
    """The largest part within the ink's box whose border is all ink."""
    left, top, right, bottom = reading.box
    for inset in _INSETS:
        x, y = round(inset * (right - left)), round(inset * (bottom - top))
        inside = left + x, top + y, right - x, bottom - y
        ink = _cut(reading.ink, inside)
        if min(line.mean() for line in (ink[0], ink[-1], ink[:, 0], ink[:, -1])) >= _WHOLE:
            return inside
    return None


def _cut(image: NDArray[Any], box: Box) -> NDArray[Any]:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _doubts(reading: _Reading) -> Iterator[str]:
    """What speaks against the ink being one whole character."""
    left, top, right, bottom = reading.box
    height, width = reading.ink.shape
    cell = _cell(reading.ink.shape)
    if min(left, top) == 0 or right + cell > width or bottom + cell > height:
        yield (
            "reaches the picture's border: give one with paper around a whole character, and no "
            "line or shadow through it"
        )
    short, long = sorted((right - left, bottom - top))
    if long >= _LONG * short and _several(reading):
        yield "looks like several: give a picture of one"
    if reading.turned and 2 * short >= long and _cut(reading.ink, reading.box).mean() > _FULL:
        yield "is mostly light: where that is the paper, cut the picture to it"


def _several(reading: _Reading) -> bool:
    """Whether blank lines across the ink part two pieces that are about square, and no dots."""
    ink = _cut(reading.ink, reading.box)
    ink = ink if ink.shape[0] > ink.shape[1] else ink.T  # long and short
    short = ink.shape[1]
    inked = np.flatnonzero(ink.mean(1) > _DUST)
    apart = np.flatnonzero(np.diff(inked) > max(_BETWEEN * short, 1)) + 1
    pieces = [ink[lines[0] : lines[-1] + 1] for lines in np.split(inked, apart) if lines.size]
    squares = [
        piece
        for piece in pieces
        if _SQUARE <= len(piece) / short <= 1 / _SQUARE and piece[:, piece.any(0)].mean() <= _FULL
    ]
    return len(squares) > 1


def otsu(light: Grey) -> float:
    """The threshold that parts values in [0, 1] best: Otsu 1979, doi:10.1109/TSMC.1979.4310076."""
    counts, edges = np.histogram(light, 256, (0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    lower, upper = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    between = below * above * (lower - upper) ** 2  # 0 where one side is empty
    best = np.flatnonzero(between == between.max())  # a gap in the histogram: its middle
    return float(edges[1:][best].mean())


def ink_box(ink: NDArray[np.bool_]) -> Box:
    """The box of the character's ink [H, W], without dust and ruled lines.

    Raises:
        ValueError: there is no ink, but for the last rows and columns that fill no cell.
    """
    cell = _cell(ink.shape)
    height, width = (side // cell * cell for side in ink.shape)
    cells = ink[:height, :width].reshape(height // cell, cell, width // cell, cell).mean((1, 3))
    if not cells.any():
        raise ValueError(
            "no ink lies further in than its edge; give a picture of one whole character"
        )
    strong = cells >= _FILLED
    most = cells[strong].sum() >= cells.sum() / 2  # else strokes are thinner than cells
    filled = strong if most and strong.any() else cells > 0
    left, top, right, bottom = _around(_character(_parts(filled), filled.shape))
    return left * cell, top * cell, right * cell, bottom * cell


def _cell(shape: tuple[int, ...]) -> int:
    """Pixels of a side of the cells that ink is looked for in."""
    return max(1, max(shape) // 256)


def _parts(filled: NDArray[np.bool_]) -> list[_Part]:
    """Cells [H, W] that are connected, corners included."""
    numbers, _ = ndimage.label(filled, np.ones((3, 3)))
    cells = np.bincount(numbers.ravel())[1:]
    return [
        _Part((x.start, y.start, x.stop, y.stop), int(count))
        for (y, x), count in zip(ndimage.find_objects(numbers), cells, strict=True)
    ]


def _character(parts: Sequence[_Part], shape: tuple[int, ...]) -> list[_Part]:
    """The parts that are no dust, and do not come in from outside of the picture.

    Dust is small beside all ink, and beside the largest part: a character may be made of dots.
    What reaches the border, lines of ruled paper, shadows, neighbours, is left out if it is all
    beside the rest, and but for lines not much beside it: otherwise it may be the character, cut
    close.
    """
    cells = [part.cells for part in parts]
    least = min(_DUST * sum(cells), _SPECK * max(cells))
    parts = [part for part in parts if part.cells >= least]
    outer = [part for part in parts if _touches(part.box, shape)]
    inner = [part for part in parts if not _touches(part.box, shape)]
    if not inner:
        return parts
    box = _around(inner)
    beside = not any(_overlap(part.box, box) for part in outer)
    strays = sum(part.cells for part in outer if not _line(part, shape))
    kept = sum(part.cells for part in inner)
    return inner if beside and strays <= _STRAY * kept else parts


def _around(parts: Sequence[_Part]) -> Box:
    lefts, tops, rights, bottoms = zip(*(part.box for part in parts), strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _touches(box: Box, shape: tuple[int, ...]) -> bool:
    left, top, right, bottom = box
    return left == 0 or top == 0 or right == shape[1] or bottom == shape[0]


def _overlap(one: Box, other: Box) -> bool:
    return all(one[side] < other[side + 2] and other[side] < one[side + 2] for side in range(2))


def _line(part: _Part, shape: tuple[int, ...]) -> bool:
    """Whether a part runs through the picture and is thin."""
    left, top, right, bottom = part.box
    height, width = shape
    along, side = max((right - left, width), (bottom - top, height), key=lambda x: x[0] / x[1])
    return along >= _SPAN * side and part.cells <= _THIN * max(shape) * along


def fill_of(glyphs: Pixels) -> float:
    """The middle one of the glyphs' [N, H, W] longer ink sides, as a share of the canvas."""
    sides = []
    for glyph in glyphs:
        left, top, right, bottom = ink_box(glyph < 128) if (glyph < 128).any() else (0, 0, 1, 1)
        sides.append(max(right - left, bottom - top) / len(glyph))
    return float(np.median(sides))


def picture(references: Sequence[Reference], standard: Sequence[Pixels] = ()) -> Image.Image:
    """A row for each reference: as it came, levelled with the ink's box, and what the model saw.

    Then the same character in the `standard` font, where it is known.
    """
    step = _SHOWN + 2 * GAP
    rows = [[one.original, _boxed(one), one.seen] for one in references]
    for row, glyph in zip(rows, standard, strict=bool(standard)):
        row.append(glyph)
    sheet = Image.new("L", (len(rows[0]) * step, len(rows) * step), PAPER)
    for place, row in enumerate(rows):
        for column, pixels in enumerate(row):
            shown = Image.fromarray(pixels)
            smooth = Image.Resampling.LANCZOS if column < 2 else Image.Resampling.NEAREST
            scale = _SHOWN / max(shown.size)
            shown = shown.resize([max(1, round(scale * side)) for side in shown.size], smooth)
            sheet.paste(shown, (column * step + GAP, place * step + GAP))
    return sheet


def _boxed(one: Reference) -> Pixels:
    left, top, right, bottom = one.box
    wide = max(1, max(one.levelled.shape) // 120)
    frame = np.zeros(one.levelled.shape, bool)
    frame[max(0, top - wide) : bottom + wide, max(0, left - wide) : right + wide] = True
    frame[top:bottom, left:right] = False
    return np.where(frame, 128, one.levelled).astype(np.uint8)
