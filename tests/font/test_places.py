"""Places: commas stand low, letters on their line, and the check sees where they are."""

import json
from pathlib import Path

import pytest
import torch
from fontTools.ttLib import TTFont
from tiny_fonts import CROSS, FRAME, SQUARE, make_font, save

from gan.data.glyphs import Spot
from gan.font import outlines, prototypes, truetype
from gan.font.ink import shapes
from gan.font.outlines import ASCENT, EM
from gan.font.places import Place, is_han, places
from gan.font.truetype import Names

SIZE = 32
HANZI = Path(__file__).parents[2] / "data/hanzi"
BOXES = {  # in 1/1000 em; the middle of the Han is 400 above the baseline
    "一": SQUARE,
    "丁": CROSS,
    "三": FRAME,
    "，": [(100, -100, 300, 100)],
    "っ": [(250, 0, 750, 500)],
    "—": [(0, 380, 1000, 460)],
    "d": [(50, 0, 450, 700)],
    "g": [(50, -250, 450, 450)],
    " ": [],
}
WIDTHS = {"d": 500, "g": 520, " ": 250}


@pytest.fixture
def font(tmp_path):
    """The path of a standard font of full-width and narrow characters."""
    made = make_font(BOXES)
    for character, width in WIDTHS.items():
        name = made.getBestCmap()[ord(character)]
        made["hmtx"][name] = width, made["hmtx"][name][1]
    return save(made, tmp_path / "standard.ttf")


@pytest.fixture
def written(font, tmp_path):
    """The font that draws the prototypes as they are: its file, the ink drawn, and the places."""
    found = prototypes.from_font(font, 0, SIZE, [*BOXES])
    drawn = {
        c: torch.from_numpy(1 - image / 255).float()[None] for c, image in found.images.items()
    }
    fields = {c: shapes(ink[None])[0, 0].numpy() for c, ink in drawn.items()}
    traced = {c: outlines.glyph(outlines.outline(field, SIZE)) for c, field in fields.items()}
    path = tmp_path / "made.ttf"
    truetype.write(path, traced, Names("Made"), places(found.spots))
    return path, drawn, places(found.spots)


def test_characters_stand_where_the_standard_font_has_them(written):
    scale = EM / (1000 / (1 - 2 / 32))  # the dash is the longest, and there is a margin
    with TTFont(written[0]) as made:
        cmap, table = made.getBestCmap(), made["glyf"]
        for character, boxes in BOXES.items():
            if not boxes:
                continue
            lefts, bottoms, rights, tops = zip(*boxes, strict=True)
            glyph = table[cmap[ord(character)]]
            across, up = (min(lefts) + max(rights)) / 2, (min(bottoms) + max(tops)) / 2
            start = 0 if character in WIDTHS else EM / 2 - 500 * scale
            assert (glyph.xMin + glyph.xMax) / 2 == pytest.approx(start + scale * across, abs=16)
            middle = ASCENT - EM / 2 + scale * (up - 400)
            assert (glyph.yMin + glyph.yMax) / 2 == pytest.approx(middle, abs=16)
        advances = {c: made["hmtx"][cmap[ord(c)]][0] for c in (*BOXES, "\u3000")}
    narrow = {c: scale * width for c, width in WIDTHS.items()}
    assert advances == pytest.approx({**dict.fromkeys(advances, EM), **narrow}, abs=4)


def test_all_that_is_drawn_lies_within_the_metrics(written):
    with TTFont(written[0]) as made:
        low, high = made["head"].yMin, made["head"].yMax
        assert low < ASCENT - EM  # the descender of g
        assert (made["hhea"].descent, made["OS/2"].usWinDescent) == (low, -low)
        assert made["hhea"].ascent == made["OS/2"].usWinAscent == max(ASCENT, high)
        assert made["OS/2"].sTypoAscender - made["OS/2"].sTypoDescender == EM


def test_lines_under_and_through_text_can_be_seen(written):
    with TTFont(written[0]) as made:
        under = made["post"].underlinePosition, made["post"].underlineThickness
        through = made["OS/2"].yStrikeoutPosition, made["OS/2"].yStrikeoutSize
    for top, thickness in (under, through):
        assert EM / 30 < thickness < EM / 10
        assert ASCENT - EM <= top - thickness < top < ASCENT
    assert under[0] < 0 < through[0] - through[1]
    assert through[0] - through[1] / 2 == pytest.approx(ASCENT - EM / 2, abs=1)


def test_the_check_takes_drawings_back_from_their_places(written):
    path, drawn, moved = written
    scores = truetype.likeness(path, drawn, moved)
    assert min(scores.values()) > 0.97
    lost = {**moved, "，": Place()}
    assert truetype.likeness(path, drawn, lost)["，"] < 0.8


def test_without_han_the_baseline_stays():
    spots = {"d": Spot(0.3, 0.4, 0.6), "g": Spot(0.3, 0.1, 0.6), "\u0301": Spot(-0.2, 0.7, 0.0)}
    d, g, accent = places(spots).values()
    base = ASCENT - EM / 2  # of the em square's middle
    assert (base + d.up, base + g.up) == pytest.approx((0.4 * EM, 0.1 * EM), abs=2)
    assert (d.advance, accent.advance) == (round(0.6 * EM), 0)
    assert EM / 2 + accent.right == pytest.approx(-0.2 * EM, abs=2)


def test_han_are_the_unified_ideographs():
    assert [is_han(c) for c in "一龘\U00020000あ、A\ue000"] == [True] * 3 + [False] * 4


def code_pages(tmp_path, characters):
    blank = outlines.glyph([])
    truetype.write(tmp_path / "x.ttf", dict.fromkeys(characters, blank), Names("X"))
    with TTFont(tmp_path / "x.ttf") as made:
        return made["OS/2"].getCodePageRanges()


def level(codec, rows):
    """The Han of a national standard in so many rows of its code."""
    codes = [bytes([row, cell]) for row in rows for cell in range(0xA1, 0xFF)]
    return "".join(code.decode(codec, "ignore") for code in codes)


def test_the_code_pages_are_those_that_have_the_drawn_han(tmp_path):
    embedded = json.loads((HANZI / "index.json").read_text(encoding="utf-8"))["characters"]
    assert code_pages(tmp_path, embedded) == {17, 18, 20}  # and no Latin
    simplified = level("gb2312", range(0xB0, 0xD8))
    assert len(simplified) == 3755
    assert code_pages(tmp_path, simplified) == {18}
    assert code_pages(tmp_path, level("euc_jp", range(0xB0, 0xD0)) + "エ") == {17}
    assert code_pages(tmp_path, simplified + "龘") == {18}  # nearly all


def test_latin_needs_its_letters_and_kana_stay_japanese(tmp_path):
    letters = "".join(chr(c) for c in range(0x41, 0x7B) if chr(c).isalpha())
    assert code_pages(tmp_path, letters) == {0}
    assert code_pages(tmp_path, letters[1:]) == set()
    assert code_pages(tmp_path, "アイウエ") == {17}
