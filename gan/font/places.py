"""Where the drawings stand in a line of text: as the standard font has them beside its Han."""

import math
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple
from unicodedata import east_asian_width, name

from gan.data.glyphs import Spot
from gan.font.outlines import ASCENT, EM

GRID = 256  # steps in a side of the em square, by which drawings are moved
_SAME = 0.01  # relative difference of equal advances, which are whole pixels of the drawing


class Place(NamedTuple):
    """How far a drawing is moved out of the em square, and its advance, in font units."""

    right: int = 0
    up: int = 0
    advance: int = EM


def places(spots: Mapping[str, Spot]) -> dict[str, Place]:
    """The places of a font's characters, at the scale of their canvases, which are em squares.

    A middling Han character stands in the middle of the em square, as the drawings of a font of Han
    do, and the others stand above or below as they do beside it; without Han all keep their
    baseline. Full-width characters, by Unicode or because they are as wide as the font's Han, have
    the em as advance and stand from its middle as from that of their own. All others have their own
    advance and stand from its start.
    """
    han = [spot for character, spot in spots.items() if is_han(character)]
    middle = median(spot.up for spot in han) if han else ASCENT / EM - 0.5
    width = median(spot.advance for spot in han) if han else math.inf
    return {character: _place(character, spot, middle, width) for character, spot in spots.items()}


def is_han(character: str) -> bool:
    """Whether it is one of the unified ideographs."""
    return name(character, "").startswith("CJK UNIFIED IDEOGRAPH")


def _place(character: str, spot: Spot, middle: float, width: float) -> Place:
    up = _units(spot.up - middle)
    as_han = math.isclose(spot.advance, width, rel_tol=_SAME)
    if as_han or east_asian_width(character) in "WF":
        return Place(_units(spot.right - spot.advance / 2), up, EM)
    return Place(_units(spot.right - 0.5), up, round(EM * spot.advance))


def _units(sides: float) -> int:
    return EM // GRID * round(GRID * sides)
