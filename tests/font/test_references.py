"""References: a photograph becomes what a clean glyph is, and what is no glyph is refused."""

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from gan.font import references
from gan.font.references import fill_of, ink_box, otsu, picture, reference

SIZE, FILL = 32, 0.85
HANZI = Path(__file__).parents[2] / "data/hanzi"


def clean(width=360, height=300):
    """A dark character on white, 200 pixels wide and 160 high, with its middle off the centre's."""
    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((60, 70, 259, 95), fill=0)
    draw.rectangle((140, 70, 165, 229), fill=0)
    draw.ellipse((190, 150, 240, 200), outline=0, width=16)
    return image


def saved(tmp_path, image, name="reference.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def seen(tmp_path, image, **options):
    return reference(saved(tmp_path, image, **options), SIZE, FILL).seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return seen(tmp_path_factory.mktemp("plain"), clean())


def photographed(image, noise=6.0, fall=0.5, haze=40):
    """The same in uneven light, dull and noisy."""
    grey = np.asarray(image, float)
    rows, columns = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]]
    light = 0.9 - fall * columns / grey.shape[1] - 0.15 * rows / grey.shape[0]
    random = np.random.default_rng(0)
    dull = (haze + 0.8 * grey) * light + random.normal(0, noise, grey.shape)
    return Image.fromarray(dull.clip(0, 255).astype(np.uint8))


def difference(one, other):
    return np.abs(one.astype(int) - other).mean() / 255


def test_the_ink_is_centred_and_of_the_size_of_training_glyphs(plain):
    left, top, right, bottom = ink_box(plain < 128)
    assert abs(right - left - FILL * SIZE) <= 1
    assert abs((right - left) / (bottom - top) - 200 / 160) < 0.1  # its shape is kept
    assert abs(left + right - SIZE) <= 1
    assert abs(top + bottom - SIZE) <= 1
    assert plain.max() == 255
    assert plain.min() < 40


@pytest.mark.parametrize("stroke", [4, 6, 10, 40])
def test_a_hairline_character_in_a_large_picture_is_seen_whole(stroke):
    ink = np.zeros((3000, 3000), bool)
    ink[1500 : 1500 + stroke, 900:2100] = True
    ink[900:2100, 1500 : 1500 + stroke] = True
    ink[100:102, 100:102] = True  # dust
    left, top, right, bottom = ink_box(ink)
    for start, end in ((left, right), (top, bottom)):
        assert abs(start - 900) <= 12
        assert abs(end - 2100) <= 12


def test_a_photograph_is_seen_like_the_clean_character(tmp_path, plain):
    photo = photographed(clean())
    assert np.asarray(photo).max() < 245
    assert difference(seen(tmp_path, photo), plain) < 0.01
    columns = np.asarray(photo)[:, [5, -5]].mean(0)
    assert columns[0] - columns[1] > 60  # one threshold for all of it would take paper for ink


def test_light_ink_on_dark_paper_is_turned(tmp_path, plain):
    negative = Image.fromarray(255 - np.asarray(clean()))
    assert difference(seen(tmp_path, negative), plain) < 0.01


@pytest.mark.parametrize("ground", [2, 20, 50, 80])
def test_dark_paper_need_not_be_black(tmp_path, plain, ground):
    white = 1 - np.asarray(clean()) / 255
    board = ground + (240 - ground) * white
    assert difference(seen(tmp_path, Image.fromarray(board.astype(np.uint8))), plain) < 0.01
    assert difference(seen(tmp_path, photographed(Image.fromarray(board))), plain) < 0.01


def test_the_negative_of_a_photograph_is_turned(tmp_path, plain):
    negative = Image.fromarray(255 - np.asarray(photographed(clean())))
    assert difference(seen(tmp_path, negative), plain) < 0.01


def on_a_table(page, table, margin=60, tilt=0.0):
    """A grey page, turned a little, with the table around it."""
    turned = page.rotate(tilt, Image.Resampling.BICUBIC, expand=True, fillcolor=table)
    return ImageOps.expand(turned, margin, fill=table)


USUAL = {(0, 25, 60), (0, 70, 150), (4, 25, 100), (4, 70, 60), (-4, 25, 150), (-4, 70, 100)}
TABLES = [
    case if case in USUAL else pytest.param(*case, marks=pytest.mark.slow)
    for case in product([0, 4, -4], [25, 70], [60, 100, 150])
]


@pytest.mark.parametrize(("tilt", "margin", "table"), TABLES)
def test_a_sheet_on_a_darker_table_is_not_the_character(tmp_path, tilt, margin, table):
    page = Image.fromarray((25 + 0.8 * np.asarray(clean())).astype(np.uint8))
    photo = on_a_table(page, table, margin, tilt)
    alone = seen(tmp_path, clean().rotate(tilt, Image.Resampling.BICUBIC, True, fillcolor=255))
    assert difference(seen(tmp_path, photographed(photo, fall=0.2, haze=0)), alone) < 0.015
    one = reference(saved(tmp_path, photo), SIZE, FILL)
    assert difference(one.seen, alone) < 0.015
    assert max(one.levelled.shape) < max(one.original.shape)
    assert picture([one]).size == (3 * 164, 164)


def test_a_sheet_on_a_table_as_dark_as_the_ink_is_told(tmp_path):
    photo = on_a_table(clean(), table=0)
    with pytest.warns(UserWarning, match="mostly light: where that is the paper, cut the picture"):
        seen(tmp_path, photo)


@pytest.mark.parametrize("around", [10, 24, 40])
@pytest.mark.parametrize("dull", [False, True])
def test_a_light_character_that_is_closed_is_no_sheet(tmp_path, around, dull):
    board = np.full((300, 300), 20, np.uint8)
    board[50:250, 50:250] = 240
    board[50 + around : 250 - around, 50 + around : 250 - around] = 20
    board[140:160, 90:210] = 240
    page = Image.fromarray(board)
    path = saved(tmp_path, photographed(page) if dull else page)
    full = (board[50:250, 50:250] == 240).mean() > 0.6
    with pytest.warns(UserWarning, match="mostly light") if full else nullcontext():
        one = reference(path, SIZE, FILL)
    assert one.box == (50, 50, 250, 250)


@pytest.mark.parametrize("stroke", [2, 8, 35, 80])
@pytest.mark.parametrize(("ground", "ink"), [(20, 240), (80, 240), (255, 0)])
def test_thin_and_wide_strokes_are_found_on_any_ground(tmp_path, stroke, ground, ink):
    page = np.full((400, 400), ground, np.uint8)
    page[200 : 200 + stroke, 80:320] = page[80:320, 200 : 200 + stroke] = ink
    one = reference(saved(tmp_path, Image.fromarray(page)), SIZE, FILL)
    assert one.box == (80, 80, 320, 320)
    assert one.levelled[0, 0] == 255


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_dark_frame_along_the_border_does_not_make_the_paper_ink(tmp_path, width):
    image = clean()
    ImageDraw.Draw(image).rectangle((0, 0, 359, 299), outline=0, width=width)
    with pytest.warns(UserWarning, match="reaches the picture's border"):
        one = reference(saved(tmp_path, image), SIZE, FILL)
    assert np.median(one.levelled) == 255


def dotted(pitch, radius, side=400):
    """A cross of dots on white, and the box of their middles."""
    middles = range(pitch // 2, side, pitch)
    strokes = [m for m in middles if abs(m - side // 2) <= side // 13]
    inner = [m for m in middles if side // 5 <= m <= side - side // 5]
    image = Image.new("L", (side, side), 255)
    for x, y in {
        *((x, y) for x in strokes for y in inner),
        *((y, x) for x in strokes for y in inner),
    }:
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(image).ellipse(box, fill=0)
    return image, inner[0] - radius, inner[-1] + radius + 1


@pytest.mark.parametrize(("pitch", "radius", "side"), [(10, 3, 400), (14, 4, 400), (14, 4, 1200)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_character_of_many_dots_is_seen_whole(tmp_path, pitch, radius, side, turned):
    image, low, high = dotted(pitch, radius, side)
    ImageDraw.Draw(image).point([(5, 5), (side - 5, 5)], fill=0)  # dust
    pixels = np.asarray(image)
    page = Image.fromarray(255 - pixels if turned else pixels)
    box = reference(saved(tmp_path, page), SIZE, FILL).box
    assert np.abs(np.array(box) - (low, low, high, high)).max() <= side // 256


def test_dust_is_what_is_small_beside_all_ink():
    ink = np.zeros((200, 200), bool)
    ink[50:150, 90:110] = True
    ink[10:14, 10:14] = True  # 16 of 2016
    assert ink_box(ink) == (90, 50, 110, 150)
    ink[10:16, 10:16] = True
    assert ink_box(ink) == (10, 10, 110, 150)


@pytest.mark.parametrize("place", [np.s_[-1:], np.s_[:, -1:], np.s_[:0]])
def test_no_ink_but_where_no_cell_is_whole_is_refused(tmp_path, place):
    ink = np.zeros((515, 515), bool)  # cells of two pixels
    ink[place] = True
    with pytest.raises(ValueError, match="no ink lies further in than its edge; give a picture"):
        ink_box(ink)
    if ink.any():
        page = Image.fromarray(np.where(ink, 0, 255).astype(np.uint8))
        with pytest.raises(ValueError, match=r"--reference .*reference\.png: no ink lies further"):
            seen(tmp_path, page)


def test_dust_does_not_move_the_box(tmp_path, plain):
    image = clean(720, 600).resize((720, 600))
    draw = ImageDraw.Draw(image)
    before = difference(seen(tmp_path, image), plain)
    for x, y in [(5, 5), (712, 590), (700, 20)]:
        draw.rectangle((x, y, x + 4, y + 4), fill=0)
    assert before < 0.01
    assert difference(seen(tmp_path, image), plain) < 0.01


def ruled(image, ys, width=5, tilt=0):
    draw = ImageDraw.Draw(image)
    for y in ys:
        draw.line((0, y, image.width, y + tilt), fill=90, width=width)
    return image


@pytest.mark.parametrize(("ys", "tilt"), [((40, 262), 0), ((20, 250), 15)])
def test_lines_of_ruled_paper_beside_the_character_are_left_out(tmp_path, plain, ys, tilt):
    image = photographed(ruled(clean(), ys, tilt=tilt))
    assert difference(seen(tmp_path, image), plain) < 0.01
    margin = ruled(clean().rotate(90, expand=True), [20]).rotate(-90, expand=True)
    assert difference(seen(tmp_path, margin), plain) < 0.01


def test_a_line_through_the_character_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"reference\.png: .* reaches the picture's border"):
        seen(tmp_path, ruled(clean(), [120]))


def test_a_neighbour_at_the_border_is_left_out(tmp_path, plain):
    image = clean()
    ImageDraw.Draw(image).rectangle((345, 0, 359, 60), fill=0)
    assert difference(seen(tmp_path, image), plain) < 0.01


@pytest.mark.parametrize(
    "strokes",
    [
        [(0, 20, 14, 180), (50, 10, 64, 190), (110, 20, 124, 180)],  # three upright ones
        [(20, 0, 100, 5), (35, 95, 90, 100), (0, 194, 124, 199)],  # three level ones, thin
        [(0, 0, 124, 6), (0, 0, 6, 99), (25, 25, 95, 140)],  # one around another
        [(0, 45, 124, 50)],
    ],
)
def test_a_character_cut_close_stays_whole(tmp_path, strokes):
    def drawn(margin):
        image = Image.new("L", (125 + 2 * margin, 200 + 2 * margin), 255)
        for left, top, right, bottom in strokes:
            box = (left + margin, top + margin, right + margin, bottom + margin)
            ImageDraw.Draw(image).rectangle(box, fill=0)
        return image

    with pytest.warns(UserWarning, match="reaches the picture's border"):
        close = seen(tmp_path, drawn(0))
    assert difference(close, seen(tmp_path, drawn(30))) < 0.02


def bars(*boxes):
    """Bars on a page of 480 by 480, and a dot of dust."""
    image = Image.new("L", (480, 480), 255)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=0)
    ImageDraw.Draw(image).point((240, 150), fill=0)
    return image


def cross(left, top, side=120):
    """Two bars that cross within a square."""
    middle = side // 2
    return (
        (left, top + middle - 8, left + side, top + middle + 8),
        (left + middle - 8, top, left + middle + 8, top + side),
    )


@pytest.mark.parametrize("turn", [0, 90])
@pytest.mark.parametrize("between", [15, 80])
@pytest.mark.parametrize("dull", [False, True])
def test_several_characters_in_one_picture_are_told(tmp_path, turn, between, dull):
    image = bars(*cross(60, 180), *cross(180 + between, 180)).rotate(turn)
    with pytest.warns(UserWarning, match="looks like several: give a picture of one"):
        seen(tmp_path, photographed(image) if dull else image)


@pytest.mark.parametrize(
    "boxes",
    [
        [(60, 200, 420, 230)],  # 一
        [(120, 140, 360, 165), (60, 300, 420, 330)],  # 二
        [(80, 100, 110, 380), (200, 100, 230, 380), (330, 100, 360, 380)],  # 川
        [(80, 120, 360, 145), (100, 210, 340, 235), (60, 320, 420, 345)],  # 三
        [(60, 150, 180, 330), (260, 150, 420, 330)],  # as wide as 八
        [(220, 100, 280, 160), (220, 300, 280, 360)],  # a colon
        [(220, 100, 280, 160), (220, 180, 280, 240)],  # a colon of a black style
        [(220, 60, 260, 340), (220, 380, 260, 420)],  # an exclamation mark
        [*cross(60, 180), (240, 228, 300, 252)],  # a character and a dash
        [*cross(60, 180), *cross(180, 180)],  # touching
    ],
)
def test_few_strokes_and_colons_are_not_taken_for_several(tmp_path, boxes):
    seen(tmp_path, bars(*boxes))  # a warning is an error


@pytest.mark.parametrize(
    "style", ["seto", "smiley-sans", "kouzan-mouhitsu-gyosho", "aoyagi-soseki", "mplus-black"]
)
def test_no_embedded_character_looks_like_several(style):
    with Image.open(HANZI / f"{style}.png") as image:
        sheet = np.asarray(image.convert("L"))
    cells = sheet.reshape(-1, 64, sheet.shape[1] // 64, 64).swapaxes(1, 2).reshape(-1, 64, 64)
    pages = [np.pad(cell, 16, constant_values=255) for cell in cells if cell.min() < 128]
    assert len(pages) > 100
    for page in pages:
        ink = page < 128
        reading = references._Reading(False, page / np.float32(255), 0.5, ink, ink_box(ink))
        assert not list(references._doubts(reading))


def test_transparency_and_turned_photographs_are_resolved(tmp_path, plain):
    ink = Image.new("RGBA", (360, 300), (0, 0, 0, 0))
    ink.putalpha(Image.fromarray(255 - np.asarray(clean())))
    assert difference(seen(tmp_path, ink), plain) < 0.01
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = clean().transpose(Image.Transpose.ROTATE_90)
    assert difference(seen(tmp_path, turned, exif=exif), plain) < 0.01


def test_a_glyph_of_the_training_set_stays_what_it_is(tmp_path, plain):
    small = Image.fromarray(plain)
    again = reference(saved(tmp_path, small), SIZE, fill_of(plain[None])).seen
    assert difference(again, plain) < 0.02


@pytest.mark.parametrize("grey", [255, 128, 0])
def test_a_blank_page_is_refused(tmp_path, grey):
    with pytest.raises(ValueError, match="nothing on it is clearly darker or lighter"):
        seen(tmp_path, Image.new("L", (50, 40), grey))


def test_files_that_are_no_picture_are_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"--reference .*text\.png"):
        reference(tmp_path / "text.png", SIZE, FILL)
    with pytest.raises(ValueError, match="convert it to PNG"):
        reference(saved(tmp_path, clean(), "scan.tif"), SIZE, FILL)
    with pytest.raises(ValueError, match=r"--reference .*scan: its name has no suffix; end it in"):
        reference((tmp_path / "scan.tif").rename(tmp_path / "scan"), SIZE, FILL)


def test_otsu_finds_the_gap_between_two_groups():
    values = np.concatenate([np.full(30, 0.2), np.full(300, 0.8)]).astype(np.float32)
    assert 0.4 < otsu(values) < 0.6


def test_the_picture_has_a_row_for_each_reference(tmp_path):
    one = reference(saved(tmp_path, clean()), SIZE, FILL)
    assert picture([one, one]).size == (3 * 164, 2 * 164)
