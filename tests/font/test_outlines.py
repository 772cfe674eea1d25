"""Outlines out of pixels: area, direction, holes, thin strokes, few points."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.pens.areaPen import AreaPen
from fontTools.pens.boundsPen import BoundsPen
from torch.nn.functional import avg_pool2d, interpolate

from gan.data.sheets import GlyphSheets
from gan.font import outlines, truetype
from gan.font.ink import FINER, inked, shapes
from gan.font.outlines import ASCENT, EM, fitted, glyph, outline
from gan.images import to_floats
from gan.metrics.images import ssim

SIZE, FINE = 32, 16


def coverage(inside):
    """Ink [1, 1, SIZE, SIZE] of a shape given on the fine grid by pixels (x, y)."""
    middle = (np.arange(SIZE * FINE) + 0.5) / FINE
    x, y = np.meshgrid(middle, middle)
    return avg_pool2d(torch.tensor(inside(x, y))[None, None].float(), FINE)


def traced(ink):
    return outline(shapes(ink)[0, 0].numpy(), SIZE)


def real(*places):
    """Ink of glyphs of the embedded sheets, so many or a slice of them."""
    sheets = GlyphSheets(Path(__file__).parents[2] / "data/hanzi", SIZE)
    pixels = np.stack([record.image for record in itertools.islice(sheets, *places)])
    return (1 - to_floats(pixels)) / 2


def area(curves):
    """Signed area in square pixels, counter-clockwise positive, of a glyph's contours."""
    drawn = glyph(curves)
    pen = AreaPen(None)
    drawn.draw(pen, None)
    return pen.value * (SIZE / EM) ** 2


def disc(x, y, radius=10.0, cx=16.0, cy=16.0):
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def test_a_disc_has_its_area_its_place_and_few_points():
    (contour,) = traced(coverage(lambda x, y: disc(x, y, 8, 12, 20)))
    assert area([contour]) == pytest.approx(-np.pi * 64, rel=0.01)  # clockwise, as TrueType has it
    bounds = BoundsPen(None)
    glyph([contour]).draw(bounds, None)
    unit = EM / SIZE
    left, bottom, right, top = (4 * unit, ASCENT - 28 * unit, 20 * unit, ASCENT - 12 * unit)
    assert bounds.bounds == pytest.approx((left, bottom, right, top), abs=5)
    assert len(glyph([contour]).coordinates) <= 28


def test_a_hole_runs_the_other_way():
    ring = traced(coverage(lambda x, y: disc(x, y) & ~disc(x, y, 5)))
    areas = sorted(area([contour]) for contour in ring)
    assert areas == [pytest.approx(-np.pi * 100, rel=0.01), pytest.approx(np.pi * 25, rel=0.03)]
    assert area(ring) == pytest.approx(-np.pi * 75, rel=0.01)


def test_a_rectangle_has_straight_sides():
    (contour,) = traced(coverage(lambda x, y: (abs(x - 16) < 10) & (abs(y - 16) < 4)))
    assert area([contour]) == pytest.approx(-160, rel=0.02)
    long = [c for c in contour if len(c) == 2 and abs(c[1] - c[0]) > 5 * EM / SIZE]
    assert len(long) >= 2
    assert len(glyph([contour]).coordinates) <= 36


def test_a_stroke_thinner_than_a_pixel_keeps_its_weight():
    ink = coverage(lambda x, y: (abs(x - 16) < 0.35) & (abs(y - 16) < 12))  # two columns of 0.35
    assert area(traced(ink)) == pytest.approx(-0.7 * 24, rel=0.15)
    plain = interpolate(ink, scale_factor=FINER, mode="bicubic")[0, 0].numpy()
    assert not outline(plain, SIZE)  # the control: at level 0.5 of the pixels it is gone


def test_specks_are_left_out_and_a_blank_page_has_no_contour():
    ink = coverage(lambda x, y: disc(x, y, 6) | disc(x, y, 0.3, 3, 3))
    assert len(traced(ink)) == 1
    assert traced(torch.zeros(1, 1, SIZE, SIZE)) == []


def test_drawings_as_a_font_has_them_are_as_it_is_rendered(tmp_path):
    """Grey strokes become ink of their weight, or vanish, alike in both."""
    ink = real(0, 2000, 97)[:20]
    for drawn, least in ((ink, 0.98), (0.7 * ink, 0.97), (avg_pool2d(ink, 3, 1, 1), 0.97)):
        traces = [outline(field, SIZE) for field in shapes(drawn)[:, 0].numpy()]
        names = [chr(0x4E00 + place) for place in range(len(drawn))]
        truetype.write(
            tmp_path / "a.ttf",
            {name: glyph(trace) for name, trace in zip(names, traces, strict=True)},
            truetype.Names("a"),
        )
        rendered = truetype.rendered(tmp_path / "a.ttf", names, SIZE)
        assert ssim(inked(drawn), rendered).mean() > least
        assert not torch.allclose(inked(drawn), drawn, atol=0.1)
    halves = torch.tensor([-0.5, 1.5]).repeat_interleave(8).expand(1, 1, 16, 16)
    assert inked(halves).unique().tolist() == [0.0, 1.0]


def test_ink_at_the_border_is_closed():
    (contour,) = traced(coverage(lambda x, y: x < 8))
    assert area([contour]) == pytest.approx(-8 * SIZE, rel=0.02)


def test_curves_keep_to_the_tolerance_and_join():
    tolerance = 1.5
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = (300 + 60 * np.cos(3 * turn)) * np.exp(1j * turn)
    curves = list(fitted(points, tolerance))
    assert len(curves) < 20
    for before, after in zip(curves, [*curves[1:], curves[0]], strict=True):
        assert before[-1] == after[0]
    place = np.linspace(0, 1, 200)
    near = np.concatenate(
        [outlines._on(c, place) if len(c) == 4 else c[0] + (c[1] - c[0]) * place for c in curves]
    )
    gaps = np.abs(points[:, None] - near).min(1)
    assert gaps.max() <= tolerance * 1.05


def test_a_real_glyph_has_few_points():
    fields = shapes(real(12))[:, 0].numpy()
    made = [glyph(outline(field, SIZE)) for field in fields]
    points = sorted(len(one.coordinates) for one in made)
    assert points[6] < 100  # a tolerance of 0.12 pixels makes 115
