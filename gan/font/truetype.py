"""A TrueType file of drawn characters, and the proof that it draws them."""

import re
import string
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy as np
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables.O_S_2f_2 import calcCodePageRanges
from fontTools.ttLib.tables.ttProgram import Program
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gan.font.outlines import ASCENT, EM
from gan.font.places import GRID, Place, is_han
from gan.metrics.images import ssim

LINE = EM // 20  # thickness of a line under text, or through it
VERSION = "1.000"
SPACES = {" ": EM // 2, "\u3000": EM}  # their widths
LICENCES = {  # what a short name stands for: text, URL
    "OFL-1.1": (
        "This Font Software is licensed under the SIL Open Font License, Version 1.1.",
        "https://openfontlicense.org",
    ),
    "CC0-1.0": (
        "To the extent possible under law, all rights to this font are waived (CC0 1.0).",
        "https://creativecommons.org/publicdomain/zero/1.0/",
    ),
}
# PUSHW 511 SCANCTRL, PUSHB 4 SCANTYPE, PUSHB 1 1 INSTCTRL: drop-out control on, no instructions.
# Longer than 7 bytes, else FreeType takes the font for unhinted and moves its outlines by itself.
_PREP = bytes.fromhex("b801ff85 b0048d b101018e")
_DEPTH = 2  # values on its stack at most
_LATIN_1 = 0  # the bit of a code page
_HAN_PAGES = {17: "cp932", 18: "gb2312", 20: "big5"}  # bits, and codecs that have their Han
_NEARLY = 0.95  # share of the font's Han in a page that it is made for

Places = Mapping[str, Place]
NOWHERE: Places = MappingProxyType({})  # all in the em square

USUAL = ("Regular", "Bold", "Italic", "Bold Italic")
_SLANT = re.compile(r"[\s-]*(italic|oblique)$", re.IGNORECASE)
WEIGHTS = {
    "thin": 100,
    "extralight": 200,
    "ultralight": 200,
    "light": 300,
    "medium": 500,
    "semibold": 600,
    "demibold": 600,
    "bold": 700,
    "extrabold": 800,
    "ultrabold": 800,
    "black": 900,
    "heavy": 900,
    "extrablack": 950,
    "ultrablack": 950,
}


@dataclass(frozen=True)
class Names:
    """What a font says of itself."""

    family: str
    style: str = "Regular"
    author: str = ""
    licence: str = ""  # a text, or a name in `LICENCES`
    licence_url: str = ""
    description: str = ""

    def table(self) -> dict[str, str]:
        """Records of the name table, without empty ones."""
        text, url = LICENCES.get(self.licence, (self.licence, ""))
        full = f"{self.family} {self.named}".removesuffix(" Regular")
        usual = self.named in USUAL  # a family has four styles at most, for older programs
        within = _words(self.upright) in ("", "regular", "bold")
        plain = _plain(self.family) or "Font"
        apart = "" if full.isascii() else f"{crc32(full.encode()):08x}"
        records = {
            "copyright": f"Copyright {self.author}" if self.author else "",
            "familyName": self.family if within else f"{self.family} {self.upright}",
            "styleName": USUAL[self.bold | self.italic << 1],
            "typographicFamily": "" if usual else self.family,
            "typographicSubfamily": "" if usual else self.named,
            "uniqueFontIdentifier": f"{VERSION};{full}",
            "fullName": full,
            "version": f"Version {VERSION}",
            "psName": f"{plain[:31]}{apart}-{_plain(self.named) or 'Style'}"[:63],
            "manufacturer": self.author,
            "designer": self.author,
            "description": self.description,
            "licenseDescription": text,
            "licenseInfoURL": self.licence_url or url,
        }
        return {name: text for name, text in records.items() if text}

    @property
    def named(self) -> str:
        """The style; one of the usual four as programs look for it, however it is written."""
        same = (usual for usual in USUAL if _words(usual) == _words(self.style))
        return next(same, " ".join(self.style.split()))

    @property
    def upright(self) -> str:
        """The style without its slant, which may be nothing."""
        return _SLANT.sub("", self.named)

    @property
    def weight(self) -> int:
        """The class of its weight, 100 to 950, by the usual words."""
        return WEIGHTS.get(_words(self.upright), 400)

    @property
    def bold(self) -> bool:
        """Whether it is a bold face of its family."""
        return _words(self.upright) == "bold"

    @property
    def italic(self) -> bool:
        """Whether its style is named so, or oblique: programs choose both by that."""
        return self.upright != self.named

    @property
    def oblique(self) -> bool:
        """Whether its style is named so."""
        return self.italic and self.named.lower().endswith("oblique")


def write(path: Path, glyphs: Mapping[str, Any], names: Names, places: Places = NOWHERE) -> None:
    """Write characters and their TrueType glyphs as an installable font.

    The em square is the glyphs' canvas; those that have a place are moved there, the others are
    full-width. Spaces and a box for what is missing are added.
    """
    blank = TTGlyphPen(None).glyph()
    spaces = [character for character in SPACES if character not in glyphs]
    drawn = {_name(one): _moved(glyph, places.get(one, Place())) for one, glyph in glyphs.items()}
    outlines = {".notdef": _box(), **{_name(one): blank for one in spaces}, **drawn}
    widths = {**SPACES, **{one: place.advance for one, place in places.items()}}
    advances = {".notdef": EM, **{_name(one): widths.get(one, EM) for one in (*spaces, *glyphs)}}
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder([*outlines])
    builder.setupCharacterMap({ord(one): _name(one) for one in (*spaces, *glyphs)})
    builder.setupGlyf(outlines)
    table = builder.font["glyf"]
    lefts = {name: getattr(table[name], "xMin", 0) for name in outlines}
    highest = max(ASCENT, *(getattr(table[name], "yMax", 0) for name in outlines))
    lowest = min(ASCENT - EM, *(getattr(table[name], "yMin", 0) for name in outlines))
    builder.setupHorizontalMetrics({name: (advances[name], lefts[name]) for name in outlines})
    builder.setupHorizontalHeader(ascent=highest, descent=lowest)
    tops = {name: ASCENT - getattr(table[name], "yMax", ASCENT) for name in outlines}
    builder.setupVerticalMetrics({name: (EM, tops[name]) for name in outlines})
    builder.setupVerticalHeader(ascent=EM // 2, descent=-EM // 2)
    builder.setupNameTable(names.table(), mac=False)
    builder.setupOS2(
        version=4,
        sTypoAscender=ASCENT,  # the em square, as programs look for it in fonts of Han
        sTypoDescender=ASCENT - EM,
        sTypoLineGap=0,
        usWinAscent=highest,
        usWinDescent=-lowest,
        xAvgCharWidth=round(sum(advances.values()) / len(advances)),
        fsType=0,  # installable
        usWeightClass=names.weight,
        # italic, bold, neither of them; the typographic metrics count; oblique
        fsSelection=names.italic
        | names.bold << 5
        | (not (names.italic or names.bold)) << 6
        | 1 << 7
        | names.oblique << 9,
        yStrikeoutSize=LINE,
        yStrikeoutPosition=ASCENT - (EM - LINE) // 2,  # its upper edge, through the middle of Han
        achVendID="    ",
    )
    builder.font["head"].macStyle = names.bold | names.italic << 1
    builder.font["OS/2"].recalcUnicodeRanges(builder.font)
    builder.font["OS/2"].setCodePageRanges(_code_pages({*spaces, *glyphs}))
    builder.setupPost(
        isFixedPitch=int(len({*advances.values()}) == 1),
        underlineThickness=LINE,
        underlinePosition=ASCENT - EM + LINE,  # its upper edge, at the foot of Han
        keepGlyphNames=False,
    )
    _smooth(builder.font)
    builder.save(path)


def _moved(glyph: Any, place: Place) -> Any:
    if not glyph.numberOfContours:
        return glyph
    moved = copy(glyph)
    moved.coordinates = glyph.coordinates.copy()
    moved.coordinates.translate((place.right, place.up))
    return moved


def _code_pages(characters: Set[str]) -> set[int]:
    """Bits of the code pages that a font is made for.

    fontTools goes by a single character of each page, which few fonts of Han have.
    """
    pages = calcCodePageRanges({ord(character) for character in characters}) - {_LATIN_1}
    if characters >= {*string.ascii_letters}:
        pages.add(_LATIN_1)
    han = "".join(character for character in characters if is_han(character))
    if not han:
        return pages
    known = {bit: len(han.encode(codec, "ignore")) / 2 for bit, codec in _HAN_PAGES.items()}
    made = {bit for bit, count in known.items() if count >= _NEARLY * len(han)}
    return pages - {*_HAN_PAGES} | made


def _words(style: str) -> str:
    """A style's name without what it is written with: case, spaces and hyphens."""
    return style.lower().replace(" ", "").replace("-", "")


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isalnum())


def _name(character: str) -> str:
    code = ord(character)
    return f"uni{code:04X}" if code <= 0xFFFF else f"u{code:X}"


def _box() -> Any:
    """The drawing of a character that the font lacks: an upright frame."""
    pen = TTGlyphPen(None)
    for inset, turn in ((0, 1), (48, -1)):
        left, right = 192 + inset, EM - 192 - inset
        bottom, top = 0 + inset, 768 - inset
        corners = [(left, bottom), (left, top), (right, top), (right, bottom)][::turn]
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
    return pen.glyph()


def _smooth(font: TTFont) -> None:
    """Smoothed at every size and fitted to no grid: the outlines carry no instructions."""
    font["gasp"] = newTable("gasp")
    font["gasp"].version, font["gasp"].gaspRange = 1, {0xFFFF: 0x0A}
    font["prep"] = newTable("prep")
    font["prep"].program = Program()
    font["prep"].program.fromBytecode(_PREP)
    font["maxp"].maxStackElements = _DEPTH


def rendered(path: Path, characters: list[str], size: int, places: Places = NOWHERE) -> Tensor:
    """The font's characters by FreeType as ink [N, 1, size, size], the em square on the canvas.

    Those that have a place are taken back from there.
    """
    finer = -(-GRID // size) if places else 1  # where they are moved, by whole samples
    side = finer * size
    font = ImageFont.truetype(path, side, layout_engine=ImageFont.Layout.BASIC)
    pages = []
    for character in characters:
        right, up, _ = places.get(character, Place())
        page = Image.new("L", (side, side))
        base = (round(-side * right / EM), round(side * (ASCENT + up) / EM))
        ImageDraw.Draw(page).text(base, character, 255, font, anchor="ls")
        pages.append(np.asarray(page).reshape(size, finer, size, finer).mean((1, 3)))
    return torch.from_numpy(np.stack(pages))[:, None].float() / 255


def likeness(path: Path, drawn: Mapping[str, Tensor], places: Places = NOWHERE) -> dict[str, float]:
    """SSIM of every character as the font renders it and as it was drawn, ink [1, size, size].

    Those that have a place are taken back from there.

    Raises:
        ValueError: the file's character map lacks one of them.
    """
    with TTFont(path) as font:
        missing = [c for c in drawn if ord(c) not in font.getBestCmap()]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} characters: {''.join(missing[:20])}")
    truth = torch.stack([*drawn.values()])
    scores = ssim(rendered(path, [*drawn], truth.shape[-1], places), truth)
    return dict(zip(drawn, scores.tolist(), strict=True))
