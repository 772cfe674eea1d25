"""References as they come, scans and photographs, made into what the training glyphs are.

The paper is levelled, ink told from paper, the ink's box cut out and placed on a square canvas as
large as a middling training glyph is on its own, and reduced by area.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from gan.data.glyphs import FACTOR, Pixels, area_reduce
from gan.data.images import read_image, whole
from gan.images import GAP, PAPER

_COARSE = 160  # pixels of the longer side when the paper is estimated
_WIDEST = 0.2  # share of the picture's side that half a stroke may take
_CONTRAST = 0.15  # least difference of ink and paper, as a share of the paper's light
_NEAR = 0.04  # difference of light within the paper
_FILLED = 0.5  # least share of ink in a cell of the picture, of 256 along its side
_DUST = 0.01  # share of all inked cells
_SPAN, _THIN = 0.9, 0.03  # shares of a side: what a line takes at least, how thick it is at most
_STRAY = 0.3  # share of the character's ink that what comes in from outside has at most
_SHOWN = 160  # pixels of each picture of what was seen

Grey = NDArray[np.float32]


class Reference(NamedTuple):
    """One reference on its way to the model."""

    original: Pixels  # [H, W]
    levelled: Pixels  # [H, W], ink 0 on paper 255
    box: tuple[int, int, int, int]  # of the ink: left, top, right, bottom
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
    light = levelled(original)
    threshold = otsu(light)
    if np.median(_border(light)) < threshold:  # light ink on dark paper
        light = levelled(255 - original)
        threshold = otsu(light)
    ink = light < threshold
    if not ink.any() or light[~ink].mean() - light[ink].mean() < _CONTRAST:
        raise ValueError(
            f"--reference {path}: nothing on it is clearly darker or lighter than the paper; give "
            "a picture of one character"
        )
    box = ink_box(ink)
    left, top, right, bottom = box
    cell = _cell(ink.shape)
    if min(left, top) == 0 or right + cell > ink.shape[1] or bottom + cell > ink.shape[0]:
        warnings.warn(
            f"--reference {path}: what is taken for the character reaches the picture's border: "
            "give one with paper around a whole character, and no line or shadow through it",
            stacklevel=2,
        )
    side = max(round(max(right - left, bottom - top) / fill), 1)
    dark, paper = np.percentile(light[ink], 20), np.median(light[~ink])
    if side >= FACTOR * size:  # the reduction smooths edges, so a blurred one may be cut here
        dark, paper = (0.5 * (threshold + value) for value in (dark, paper))
    clean = (255 * ((light - dark) / (paper - dark)).clip(0, 1)).round().astype(np.uint8)
    seen = 255 - area_reduce(_centred(255 - clean[top:bottom, left:right], side), size)
    return Reference(original, clean, box, seen)


def levelled(grey: Pixels) -> Grey:
    """The picture [H, W] divided by the light of its paper, which is 1 then, whatever lit it.

    Paper is what a grey closing, which fills dark parts narrower than two fifths of the picture,
    leaves as it is; its light is a polynomial of the third degree in both directions, fitted twice:
    the second time to all that the first found near.
    """
    image = torch.from_numpy(grey.astype(np.float32))[None, None] / 255
    coarse = _smaller(image, _COARSE)
    reach = max(1, round(_WIDEST * max(coarse.shape[-2:])))
    closed = -_largest(-_largest(coarse, reach), reach)
    light = coarse[0, 0].double().flatten()
    basis = _polynomials(*coarse.shape[-2:])
    paper = (closed - coarse).flatten() <= _NEAR
    for _ in range(2):
        fitted = basis @ torch.linalg.lstsq(basis[paper], light[paper, None], driver="gelsd")[0]
        near = (light - fitted[:, 0]).abs() <= 2 * _NEAR
        paper = near if near.any() else paper
    surface = fitted.float().reshape(coarse.shape).clamp_min(1 / 255)
    surface = interpolate(surface, image.shape[-2:], mode="bilinear", align_corners=False)
    return (image / surface).clamp(0, 1)[0, 0].numpy()


def _polynomials(height: int, width: int, degree: int = 3) -> Tensor:
    """Products of powers of both coordinates, [height * width, 10] for the third degree."""
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return torch.stack([(y[:, None] ** i * x**j).flatten() for i, j in powers], 1)


def _smaller(image: Tensor, longest: int) -> Tensor:
    factor = max(image.shape[-2:]) / longest
    if factor <= 1:
        return image
    size = [max(1, round(side / factor)) for side in image.shape[-2:]]
    return interpolate(image, size, mode="area")


def _largest(image: Tensor, reach: int) -> Tensor:
    side = 2 * reach + 1
    rows = max_pool2d(torch.nn.functional.pad(image, (reach, reach), value=-2.0), (1, side), 1)
    return max_pool2d(torch.nn.functional.pad(rows, (0, 0, reach, reach), value=-2.0), (side, 1), 1)


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


def _border(image: Grey) -> Grey:
    wide = max(1, min(image.shape) // 32)
    parts = image[:wide], image[-wide:], image[:, :wide], image[:, -wide:]
    return np.concatenate([part.ravel() for part in parts])


def ink_box(ink: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the character's ink [H, W], without dust and ruled lines."""
    cell = _cell(ink.shape)
    height, width = (side // cell * cell for side in ink.shape)
    cells = ink[:height, :width].reshape(height // cell, cell, width // cell, cell).mean((1, 3))
    strong = cells >= _FILLED
    most = cells[strong].sum() >= cells.sum() / 2  # else strokes are thinner than cells
    filled = _character(strong if most and strong.any() else cells > 0)
    left, top, right, bottom = _box(filled)
    return left * cell, top * cell, right * cell, bottom * cell


def _cell(shape: tuple[int, ...]) -> int:
    """Pixels of a side of the cells that ink is looked for in."""
    return max(1, max(shape) // 256)


def _box(filled: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(filled.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1] + 1), int(rows[-1] + 1)


def _character(filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells [H, W] of the parts that are no dust, and do not come in from outside of the picture.

    What reaches the border, lines of ruled paper, shadows, neighbours, is left out if it is all
    beside the rest, and but for lines not much beside it: otherwise it may be the character, cut
    close.
    """
    parts = [part for part in _parts(filled) if part.sum() >= _DUST * filled.sum()]
    outer = [part for part in parts if _touches(_box(part), part.shape)]
    inner = [part for part in parts if not _touches(_box(part), part.shape)]
    if not inner:
        return np.any(parts, axis=0)
    kept = np.any(inner, axis=0)
    strays = sum(int(part.sum()) for part in outer if not _line(part))
    beside = not any(_overlap(_box(part), _box(kept)) for part in outer)
    return kept if beside and strays <= _STRAY * kept.sum() else np.any(parts, axis=0)


def _parts(filled: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Connected cells [H, W], corners included, one part at a time."""
    inside = torch.from_numpy(filled)[None, None].double()
    part = torch.arange(1, filled.size + 1, dtype=torch.float64).reshape(inside.shape) * inside
    while not torch.equal(grown := max_pool2d(part, 3, 1, 1) * inside, part):
        part = grown  # the largest number spreads over its part
    for number in part[part > 0].unique():
        yield (part[0, 0] == number).numpy()


def _touches(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    left, top, right, bottom = box
    return left == 0 or top == 0 or right == shape[1] or bottom == shape[0]


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return all(one[side] < other[side + 2] and other[side] < one[side + 2] for side in range(2))


def _line(part: NDArray[np.bool_]) -> bool:
    """Whether a part runs through the picture and is thin."""
    left, top, right, bottom = _box(part)
    height, width = part.shape
    along, side = max((right - left, width), (bottom - top, height), key=lambda x: x[0] / x[1])
    return along >= _SPAN * side and int(part.sum()) <= _THIN * max(part.shape) * along


def _centred(ink: Pixels, side: int) -> Pixels:
    side = max(side, *ink.shape)
    canvas = np.zeros((side, side), np.uint8)
    top, left = ((side - length) // 2 for length in ink.shape)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


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
    wide = max(1, max(one.original.shape) // 120)
    frame = np.zeros(one.original.shape, bool)
    frame[max(0, top - wide) : bottom + wide, max(0, left - wide) : right + wide] = True
    frame[top:bottom, left:right] = False
    return np.where(frame, 128, one.levelled).astype(np.uint8)
