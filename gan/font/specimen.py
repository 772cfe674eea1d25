"""A page that shows a font at several sizes and all, or many, of its characters."""

from collections.abc import Sequence
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from gan.data.fonts import spread

WIDTH, EDGE = 1240, 60  # pixels: a page of A4 at 150 a inch
_LINES = (96, 64, 48, 32, 24, 16)  # pixels of the em
_CELL, _ROWS, _TITLE = 56, 20, 28


def specimen(font: Path, name: str, characters: Sequence[str]) -> Image.Image:
    """One page [H, W] in grey: a line of text at each size, then up to 400 characters in rows.

    Its head has the name, where this font or Pillow's own draws it, and the number of characters.
    """
    across = (WIDTH - 2 * EDGE) // _CELL
    shown = spread(characters, _ROWS * across)
    rows = -(-len(shown) // across)
    head = EDGE + 60 + sum(round(1.4 * size) for size in _LINES) + 40
    page = Image.new("L", (WIDTH, head + rows * _CELL + EDGE), 255)
    draw = ImageDraw.Draw(page)
    plain = ImageFont.load_default(_TITLE)
    assert isinstance(plain, ImageFont.FreeTypeFont)  # it is where Pillow has FreeType
    count = f"{len(characters)} character{'s' * (len(characters) != 1)}"
    left: float = EDGE
    for title in (ImageFont.truetype(font, _TITLE), plain):
        if _draws(title, name):
            draw.text((left, EDGE + _TITLE), name, 0, title, anchor="ls")
            left += title.getlength(name) + _TITLE
            break
    draw.text((left, EDGE + _TITLE), count, 0, plain, anchor="ls")
    top = EDGE + 60
    text = "".join(spread(characters, (WIDTH - 2 * EDGE) // _LINES[-1]))
    for size in _LINES:
        line = text[: (WIDTH - 2 * EDGE) // size]
        draw.text((EDGE, top), line, 0, ImageFont.truetype(font, size))
        top += round(1.4 * size)
    cell = ImageFont.truetype(font, _CELL - 12)
    for place, character in enumerate(shown):
        at = EDGE + place % across * _CELL, head + place // across * _CELL
        draw.text(at, character, 0, cell)
    return page


def _draws(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has all characters of a text."""
    with TTFont(font.path) as opened:
        return {ord(character) for character in text} <= opened.getBestCmap().keys()
