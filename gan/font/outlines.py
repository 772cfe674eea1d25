"""Images of glyphs to outlines of few curves, and those to TrueType glyphs.

The contour of a field (`gan.font.ink`) is fitted by curves between corners (Schneider 1990, "An
Algorithm for Automatically Fitting Digitized Curves", in Graphics Gems). Points are complex
numbers, x to the right, y up.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import contourpy
import numpy as np
from fontTools.pens.cu2quPen import Cu2QuPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from numpy.typing import NDArray

from gan.font.ink import FINER

EM, ASCENT = 1024, 896  # units of the em square, which is the glyph's canvas, and of its top
SPECK = 0.5  # pixels of area: what is smaller is left out
TOLERANCE = 0.17  # pixels between contour and curve; at 0.2 hairlines grow by a fifth
ERROR = 4.0  # units between a cubic and the quadratics that stand for it
CORNER = 0.9  # radians turned within about two pixels
_REACH = 4  # points of the contour, about one pixel, over which directions are taken

Points = NDArray[np.complex128]
Curve = tuple[complex, ...]  # 2 points of a line, or 4 of a cubic


def outline(field: NDArray[np.float32], size: int) -> list[list[Curve]]:
    """Closed contours of a field [4*size, 4*size], as curves in font units, ink on the right."""
    unit = EM / size  # per pixel
    contours = []
    for line in contourpy.contour_generator(z=np.pad(field, 1)).lines(0.5):
        # in pixels; the padding is one sample, centres are halves
        x, y = (np.asarray(line)[:-1].T - 0.5) / FINER
        points = unit * x + 1j * (ASCENT - unit * y)
        if abs(_area(points)) >= SPECK * unit**2:
            contours.append(list(fitted(points, TOLERANCE * unit)))
    return contours


def _area(points: Points) -> float:
    """Positive when counter-clockwise."""
    return float((np.conj(points) * np.roll(points, -1)).imag.sum() / 2)


def fitted(points: Points, tolerance: float) -> Iterator[Curve]:
    """Curves around a closed polygon [N], each within the tolerance of the points it stands for."""
    corners = _corners(points).tolist()
    smooth = not corners
    first = 0 if smooth else corners[0]
    ends = [corner - first for corner in corners or [0]] + [len(points)]
    points = np.roll(points, -first)
    points = np.append(points, points[0])
    for start, end in pairwise(ends):
        part = points[start : end + 1]
        if smooth:
            along = _direction(points[1] - points[-2])
            yield from _curves(part, along, -along, tolerance)
        else:
            reach = min(_REACH // 2, len(part) - 1)
            leaving = _direction(part[reach] - part[0])
            arriving = _direction(part[-1 - reach] - part[-1])
            yield from _curves(part, leaving, arriving, tolerance)


def _corners(points: Points) -> NDArray[np.int64]:
    """Where the polygon turns most, and by more than `CORNER`."""
    ahead = np.roll(points, -_REACH) - points
    turn = np.abs(np.angle(ahead * np.conj(np.roll(ahead, _REACH))))
    around = [np.roll(turn, shift) for shift in range(-_REACH, _REACH + 1)]
    best = turn >= np.max(around, axis=0)
    return np.flatnonzero(best & (turn > CORNER))


def _curves(part: Points, first: complex, last: complex, tolerance: float) -> Iterator[Curve]:
    """Curves along points, given the directions into the part from both of its ends."""
    chord = part[-1] - part[0]
    away = np.abs((np.conj(_direction(chord)) * (part - part[0])).imag)
    if len(part) < 3 or (chord and away.max() <= tolerance / 2):
        yield part[0], part[-1]
        return
    place = _lengths(part)
    for _ in range(3):
        curve = _least_squares(part, place, first, last)
        gaps = np.abs(_on(curve, place) - part)
        worst = int(gaps.argmax())
        if gaps[worst] <= tolerance:
            yield curve
            return
        if gaps[worst] > 4 * tolerance:
            break
        place = _nearer(curve, part, place)
    worst = min(max(worst, 1), len(part) - 2)
    low, high = max(worst - _REACH // 2, 0), min(worst + _REACH // 2, len(part) - 1)
    along = _direction(part[high] - part[low])
    yield from _curves(part[: worst + 1], first, -along, tolerance)
    yield from _curves(part[worst:], along, last, tolerance)


def _direction(vector: complex) -> complex:
    return vector / abs(vector) if vector else 1.0


def _lengths(part: Points) -> NDArray[np.float64]:
    """Each point's share of the way along the part, from 0 to 1."""
    way = np.append(0.0, np.abs(np.diff(part)).cumsum())
    return way / way[-1]


def _least_squares(
    part: Points, place: NDArray[np.float64], first: complex, last: complex
) -> Curve:
    """The cubic with these ends and directions that is nearest to the points at their places."""
    start, end = complex(part[0]), complex(part[-1])
    rest = 1 - place
    one, two = 3 * place * rest**2, 3 * place**2 * rest
    bend = part - (start * (rest**3 + one) + end * (place**3 + two))
    aa, bb, ab = one @ one, two @ two, (one @ two) * (first * last.conjugate()).real
    a, b = (np.conj(first) * bend).real @ one, (np.conj(last) * bend).real @ two
    determinant = aa * bb - ab * ab
    third = abs(end - start) / 3
    near, far = third, third
    if determinant > 1e-9 * aa * bb:
        near, far = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if min(near, far) < 0.05 * third or max(near, far) > 12 * third:
            near, far = third, third
    return start, start + near * first, end + far * last, end


def _on(curve: Curve, place: NDArray[np.float64]) -> Points:
    rest = 1 - place
    one, two = 3 * place * rest**2, 3 * place**2 * rest
    return curve[0] * rest**3 + curve[1] * one + curve[2] * two + curve[3] * place**3


def _nearer(curve: Curve, part: Points, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places moved by one step of Newton's method towards the nearest points of the curve."""
    a, b, c = (3 * (after - before) for before, after in zip(curve[:-1], curve[1:], strict=True))
    rest = 1 - place
    slope = a * rest**2 + 2 * b * rest * place + c * place**2
    bend = 2 * ((b - a) * rest + (c - b) * place)
    gap = _on(curve, place) - part
    down = np.abs(slope) ** 2 + (np.conj(gap) * bend).real
    moved = place - np.where(down > 0, (np.conj(gap) * slope).real / np.maximum(down, 1e-9), 0.0)
    return np.maximum.accumulate(moved.clip(0, 1))


def glyph(contours: Sequence[Sequence[Curve]]) -> Any:
    """A TrueType glyph: cubics become quadratics at most `ERROR` units away, outer clockwise."""
    target = TTGlyphPen(None)
    pen = Cu2QuPen(target, ERROR)
    for curves in contours:
        pen.moveTo(_pair(curves[0][0]))
        for curve in curves:
            if len(curve) == 2:
                pen.lineTo(_pair(curve[1]))
            else:
                pen.curveTo(*map(_pair, curve[1:]))
        pen.closePath()
    return target.glyph()


def _pair(point: complex) -> tuple[float, float]:
    return point.real, point.imag
