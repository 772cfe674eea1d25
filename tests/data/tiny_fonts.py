"""Tiny fonts made of rectangles, for tests of what fonts do wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

Box = tuple[int, int, int, int]  # left, bottom, right, top, in 1/1000 em

SQUARE: list[Box] = [(100, 0, 900, 800)]
BAR: list[Box] = [(100, 300, 900, 500)]
CROSS: list[Box] = [(100, 350, 900, 450), (450, 0, 550, 800)]
FRAME: list[Box] = [
    (100, 0, 900, 60), (100, 740, 900, 800), (100, 60, 160, 740), (840, 60, 900, 740)
]  # fmt: skip


def make_font(
    glyphs: Mapping[str, Sequence[Box]],
    *,
    notdef: Sequence[Box] = (),
    same: Mapping[str, str] | None = None,
    name: str = "Tiny",
    em: int = 1000,
    **names: str,
) -> TTFont:
    """A font that maps characters to boxes, and those of `same` to the glyph of another."""
    builder = FontBuilder(em, isTTF=True)
    outlines = {".notdef": notdef, **{f"u{ord(one):05X}": boxes for one, boxes in glyphs.items()}}
    mapping = {one: one for one in glyphs} | dict(same or {})
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap(
        {
            ord(one): ".notdef" if other == ".notdef" else f"u{ord(other):05X}"
            for one, other in mapping.items()
        }
    )
    builder.setupGlyf({glyph: _outline(boxes) for glyph, boxes in outlines.items()})
    bearings = {
        glyph: min((box[0] for box in boxes), default=0) for glyph, boxes in outlines.items()
    }
    builder.setupHorizontalMetrics({glyph: (em, left) for glyph, left in bearings.items()})
    builder.setupHorizontalHeader(ascent=em * 88 // 100, descent=-em * 12 // 100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular", "fullName": name, **names})
    builder.setupOS2()
    builder.setupPost()
    return builder.font


def save(font: TTFont, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
    return path


def save_collection(fonts: Sequence[TTFont], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    collection = TTCollection()
    collection.fonts = list(fonts)
    collection.save(path)
    return path


def _outline(boxes: Sequence[Box]) -> object:
    pen = TTGlyphPen(None)
    for left, bottom, right, top in boxes:
        pen.moveTo((left, bottom))
        pen.lineTo((left, top))
        pen.lineTo((right, top))
        pen.lineTo((right, bottom))
        pen.closePath()
    return pen.glyph()


def break_glyph(path: Path, name: str) -> None:
    """Give a glyph more contours than it has points, which FreeType refuses to load."""
    with TTFont(path) as font:
        start = font.reader.tables["glyf"].offset + font["loca"][font.getGlyphID(name)]
    content = bytearray(path.read_bytes())
    content[start : start + 2] = (0x7FFF).to_bytes(2, "big")
    path.write_bytes(content)
