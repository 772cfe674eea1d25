import os
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib.tables._c_m_a_p import CmapSubtable
from tiny_fonts import BAR, CROSS, FRAME, SQUARE, break_glyph, make_font, save, save_collection

from gan.data.faces import Face, FontError, faces, licence
from gan.data.fonts import SAME, FontFolder, families, listed_characters, spread, twins
from gan.data.glyphs import area_reduce, render
from gan.data.store import Record, Rejected, Store, build

HANZI = "一丁三"
BOXES = dict(zip(HANZI, (SQUARE, BAR, CROSS), strict=True))
RING = [(300, 200, 700, 260), (300, 540, 700, 600), (300, 200, 360, 600), (640, 200, 700, 600)]


def ink(image):
    return 1 - image / 255


def box(image):
    """Height and width of the ink of an image."""
    rows, columns = np.flatnonzero((image < 128).any(1)), np.flatnonzero((image < 128).any(0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.fixture
def draw(tmp_path):
    """Save a font and render characters of it."""

    def drawn(font, characters, size=32, **options):
        return render(Face(save(font, tmp_path / "font.ttf")), characters, size, **options)

    return drawn


# ---- usable glyphs ------------------------------------------------------------------------------


def test_every_kind_of_missing_glyph_is_refused_with_its_reason(draw):
    font = make_font({**BOXES, "下": [], "不": FRAME}, notdef=FRAME, same={"世": ".notdef"})
    glyphs = draw(font, "一丁三下不世丘")
    assert set(glyphs.images) == set(HANZI)
    assert glyphs.rejected == {
        "下": "drawn empty",
        "不": "drawn as the .notdef box",
        "世": "not mapped to a glyph",
        "丘": "not mapped to a glyph",
    }


def test_first_glyph_counts_as_missing_whatever_its_name(draw):
    font = make_font(BOXES, notdef=FRAME)
    order = font.getGlyphOrder()
    font.setGlyphOrder(["u04E00", *(name for name in order if name != "u04E00")])
    glyphs = draw(font, HANZI)
    assert glyphs.rejected == {"一": "not mapped to a glyph"}


def test_font_with_an_empty_notdef_keeps_its_glyphs(draw):
    assert not draw(make_font(BOXES), HANZI).rejected


def test_glyph_that_freetype_refuses_is_rejected_and_the_others_stay(tmp_path):
    path = save(make_font(BOXES), tmp_path / "broken.ttf")
    break_glyph(path, "u04E01")
    glyphs = render(Face(path), HANZI, 32)
    assert set(glyphs.images) == {"一", "三"}
    assert glyphs.rejected["丁"].startswith("does not render: ")


def test_notdef_that_does_not_render_refuses_nothing(tmp_path):
    path = save(make_font(BOXES, notdef=FRAME), tmp_path / "broken.ttf")
    break_glyph(path, ".notdef")
    assert set(render(Face(path), HANZI, 32).images) == set(HANZI)


def test_speck_of_ink_is_refused(draw):
    glyphs = draw(make_font({**BOXES, "丶": [(500, 400, 520, 420)]}), HANZI + "丶")
    assert glyphs.rejected["丶"].startswith("ink covers ")


def test_thin_glyph_without_a_black_pixel_is_usable(draw):
    hairlines = [(100 + 400 * i, 0, 110 + 400 * i, 8000) for i in range(20)]
    glyphs = draw(make_font({"川": hairlines}, em=10_000), "川")
    assert glyphs.images["川"].min() > 0, "the test needs a glyph that is nowhere black"
    assert not glyphs.rejected


def test_one_drawing_for_more_than_two_characters_is_refused(draw):
    pair = draw(make_font(BOXES, same={"丂": "一"}), "一丁三丂")
    assert not pair.rejected
    triple = draw(make_font(BOXES, same={"丂": "一", "七": "一"}), "一丁三丂七")
    assert set(triple.rejected) == {"一", "丂", "七"}
    assert triple.rejected["七"] == "its image serves 3 characters"


def test_homoglyphs_of_different_scripts_are_no_repetition(draw):
    latin, greek, cyrillic = "A\u0391\u0410"
    font = make_font({latin: CROSS, "B": SQUARE}, same={greek: latin, cyrillic: latin})
    assert not draw(font, "AB\u0391\u0410").rejected
    font = make_font({latin: CROSS}, same={"B": latin, "C": latin})
    assert set(draw(font, "ABC").rejected) == set("ABC")


def test_best_character_map_is_read_not_the_first_and_not_all(tmp_path):
    font = make_font(BOXES)
    roman = CmapSubtable.newSubtable(0)
    roman.platformID, roman.platEncID, roman.language = 1, 0, 0
    roman.cmap = dict.fromkeys(range(256), "u04E00")
    windows = [table for table in font["cmap"].tables if table.platformID == 3]
    font["cmap"].tables = [roman, *windows]
    face = Face(save(font, tmp_path / "roman.ttf"))
    assert set(map(chr, face.mapped)) == set(HANZI)


# ---- normalisation ------------------------------------------------------------------------------


def test_one_scale_for_the_font_keeps_small_characters_small(draw):
    glyphs = draw(make_font({**BOXES, "口": RING}), HANZI + "口", size=64)
    assert box(glyphs.images["一"]) == (60, 60)  # 64 less a margin of 1/32 at each side
    height, width = box(glyphs.images["口"])
    assert abs(height - 30) <= 1
    assert abs(width - 30) <= 1


def test_aspect_of_the_outline_is_kept_to_a_pixel(draw):
    glyphs = draw(make_font(BOXES), HANZI, size=64)
    height, width = box(glyphs.images["丁"])  # 800 x 200 units on a scale of 60 pixels for 800
    assert abs(width - 60) <= 1
    assert abs(height - 15) <= 1


def test_ink_is_centred_wherever_the_outline_lies(draw):
    low = [(0, -100, 400, 0)]
    glyphs = draw(make_font({**BOXES, "低": low}), HANZI + "低", size=64)
    weights = ink(glyphs.images["低"])
    centre = [np.average(np.arange(64), weights=weights.sum(axis)) for axis in (0, 1)]
    np.testing.assert_allclose(centre, 31.5, atol=0.25)


def test_ink_outside_the_em_survives_and_never_touches_the_border(draw):
    corners = [(-300, -400, -200, -300), (1300, 1100, 1400, 1200), SQUARE[0]]
    image = draw(make_font({"四": corners}), "四", size=64).images["四"]
    assert box(image) in {(56, 60), (57, 60)}  # 1600 x 1700 units
    assert image[[0, -1]].min() == 255
    assert image[:, [0, -1]].min() == 255


def test_small_ink_in_its_em_is_drawn_larger_instead_of_coarser(draw, monkeypatch):
    comb = [(15 * tooth, 0, 15 * tooth + 4, 150) for tooth in range(11)]
    wanted = ink(draw(make_font({"川": comb}, em=160), "川", size=64).images["川"])
    speck = make_font({"川": comb}, em=1600)
    assert np.abs(ink(draw(speck, "川", size=64).images["川"]) - wanted).mean() < 0.05
    monkeypatch.setitem(render.__globals__, "FACTOR", 0)
    assert np.abs(ink(draw(speck, "川", size=64).images["川"]) - wanted).mean() > 0.1


def test_area_reduction_equals_block_means_of_the_common_refinement():
    image = np.random.default_rng(0).integers(0, 256, (10, 10), dtype=np.uint8)
    for size in (10, 5, 4, 3):
        fine = np.kron(image, np.ones((size, size)))  # [10 * size, 10 * size]
        means = fine.reshape(size, 10, size, 10).mean(axis=(1, 3))
        np.testing.assert_array_equal(area_reduce(image, size), np.floor(means + 0.5))
    assert not np.array_equal(area_reduce(image, 5), image[::2, ::2])
    both = area_reduce(np.stack([image, image.T]), 4)
    np.testing.assert_array_equal(both, [area_reduce(image, 4), area_reduce(image.T, 4)])


def test_quantisation_changes_a_pixel_by_at_most_half_a_level():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    coarse = area_reduce(ramp, 16, levels=32)
    assert len(np.unique(coarse)) == 32
    assert np.abs(coarse.astype(float) - ramp).max() / 255 <= 1 / 62 + 0.5 / 255  # rounded to bytes


# ---- faces of a folder --------------------------------------------------------------------------


def test_all_font_files_and_all_faces_are_found_in_order(tmp_path):
    save(make_font(BOXES), tmp_path / "b" / "One.More+.TTF")
    save(make_font(BOXES), tmp_path / "a" / "same.otf")
    save(make_font(BOXES), tmp_path / "c" / "same.ttf")
    save_collection([make_font(BOXES, name=name) for name in "XY"], tmp_path / "d" / "two.ttc")
    (tmp_path / "link.ttf").symlink_to(tmp_path / "b" / "One.More+.TTF")
    (tmp_path / "readme.txt").write_text("no font")
    found, rejected = faces(tmp_path)
    assert [face.id for face in found] == [
        "a-same.otf", "One.More+", "c-same.ttf", "two-0", "two-1"
    ]  # fmt: skip
    assert [face.name for face in found[-2:]] == ["X", "Y"]
    assert not rejected


def test_a_face_named_like_another_has_its_suffix_too(tmp_path):
    save(make_font(BOXES), tmp_path / "A" / "Foo.ttc-0.ttf")
    save(make_font(BOXES), tmp_path / "Foo-0.ttf")
    save_collection([make_font(BOXES)] * 2, tmp_path / "Foo.ttc")
    ids = [face.id for face in faces(tmp_path)[0]]
    assert ids == ["Foo.ttc-0", "Foo-0", "Foo.ttc-0+", "Foo-1"]
    (tmp_path / "A" / "Foo.ttc-0.ttf").unlink()
    assert [face.id for face in faces(tmp_path)[0]] == ["Foo-0", "Foo.ttc-0", "Foo-1"]
    save_collection([make_font({**BOXES, "一": FRAME})] * 2, tmp_path / "Foo.ttc")
    report = build(FontFolder(tmp_path, 16, HANZI), tmp_path / "a.lmdb")
    assert dict(report.rejected) == {"Foo-1": "near-duplicate of Foo.ttc-0"}
    assert report.count == 6


def test_fonts_in_files_of_any_name_become_a_store(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xd7\xd6"))
    names = [Path(os.fsdecode(name)) for name in (b"\xcb\xce.ttf", b"\xcb\xd5.otf")]
    save(make_font({**BOXES, "四": []}), folder / names[0])
    (folder / names[1]).write_bytes(b"no font at all")
    build(FontFolder(folder, 16, HANZI + "四", "\\udccb\\udcce"), tmp_path / "a.lmdb")
    store = Store(tmp_path / "a.lmdb")
    assert store.source == "fonts \\udcd7\\udcd6"
    assert store.names["style"] == ["\\udccb\\udcce"]
    assert store.facts["styles"]["\\udccb\\udcce"]["file"] == "\\udccb\\udcce.ttf"
    reasons = dict(store.rejected)
    assert reasons["\\udccb\\udcd5"].startswith("\\udccb\\udcd5.otf (face 0) is no readable font")
    store.close()


def test_fonts_in_a_linked_folder_are_found_and_hidden_ones_are_not(tmp_path):
    save(make_font(BOXES), tmp_path / "installed" / "one.ttf")
    save_collection([make_font(BOXES)] * 2, tmp_path / "installed" / "two.otc")
    save(make_font(BOXES), tmp_path / "mine" / ".kept" / "three.ttf")
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "installed")
    assert [face.id for face in faces(tmp_path / "mine")[0]] == ["one", "two-0", "two-1"]


def test_unreadable_files_and_symbol_fonts_are_refused_by_name(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font at all")
    (tmp_path / "many.ttc").write_bytes(b"ttcf\0\1\0\0\xff\xff\xff\xff" + bytes(20_000))
    save(make_font(BOXES, name="Webdings Symbol"), tmp_path / "signs.ttf")
    found, rejected = faces(tmp_path)
    assert not found
    assert [key for key, _ in rejected] == ["bad", "many", "signs"]
    assert "no readable font" in rejected[0].reason
    assert "says that it holds 4294967295 faces" in rejected[1].reason
    with pytest.raises(FontError, match="holds no usable font"):
        list(FontFolder(tmp_path, 16, HANZI))


@pytest.mark.parametrize(
    ("words", "spdx"),
    [
        ("This Font Software is licensed under the SIL Open Font License, Version 1.1.", "OFL-1.1"),
        ("http://www.apache.org/licenses/LICENSE-2.0", "Apache-2.0"),
        ("GPLv2 with font embedding exception", "GPL-2.0-only WITH Font-exception-2.0"),
        ("GPL", "unknown"),
        ("", "unknown"),
    ],
)
def test_licence_is_named_only_where_the_font_names_it(words, spdx):
    assert licence(words) == spdx


# ---- designs and families -----------------------------------------------------------------------


def flat(value):
    """Three glyphs of one grey value."""
    return {character: np.full((8, 8), value, np.uint8) for character in HANZI}


def test_near_duplicates_form_single_link_clusters():
    step = round(0.75 * SAME * 255)  # neighbours are linked, the ends of a chain are not
    images = {"a": flat(0), "b": flat(step), "c": flat(2 * step), "d": flat(9 * step)}
    assert 2 * step / 255 > SAME
    assert twins(images) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_faces_are_compared_only_on_enough_common_characters():
    other = {"甲": flat(0)["一"], "乙": flat(0)["一"], "一": flat(0)["一"]}
    assert twins({"a": flat(0), "b": other})["b"] == "b"
    assert twins({"a": flat(0), "b": other | {"丁": flat(0)["丁"]}})["b"] == "a"


def test_families_join_weights_designers_and_holders(tmp_path):
    described = {
        "thin": {"name": "Grot 1 Thin", "copyright": "Copyright 2020 First Maker"},
        "bold": {"name": "Grot 2 Bold", "copyright": "Copyright 2021 Second Maker"},
        "brush": {"name": "Pinsel", "copyright": "MeisterHand"},
        "grass": {"name": "Gras", "copyright": "(c) HandMeister, all rights reserved"},
        "serif": {"name": "Antiqua", "designer": "Emma Lang"},
        "slab": {"name": "Egyptienne", "designer": "Emma Lang"},
        "alone": {"name": "Solo", "copyright": "Copyright (c) 2020"},
        "other": {"name": "Uno", "copyright": "Copyright (c) 2021"},
    }
    styles = []
    for id, names in described.items():
        path = save(make_font(BOXES, **names), tmp_path / f"{id}.ttf")
        styles.append(Face(path, 0, id))
    assert families(styles) == {
        "thin": "grot", "bold": "grot", "brush": "pinsel", "grass": "pinsel",
        "serif": "antiqua", "slab": "antiqua", "alone": "solo", "other": "uno",
    }  # fmt: skip


# ---- a folder as a source -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The prototype with its twin, an incomplete font, and one that maps but draws nothing."""
    save(make_font(BOXES, name="First"), tmp_path / "a.ttf")
    save(make_font(BOXES, name="Twin"), tmp_path / "b.ttf")
    save(make_font({"一": FRAME, "丁": RING}, name="Half"), tmp_path / "c.ttf")
    save(make_font(dict.fromkeys(HANZI, []), name="Empty"), tmp_path / "d.ttf")
    return tmp_path


def test_folder_gives_every_usable_pair_once_and_every_refusal_with_its_reason(folder):
    source = FontFolder(folder, 16, HANZI)
    items = list(source)
    records = [item for item in items if isinstance(item, Record)]
    refused = dict(item for item in items if isinstance(item, Rejected))
    assert [record.key for record in records] == [
        "a/004e00", "a/004e01", "a/004e09", "c/004e00", "c/004e01"
    ]  # fmt: skip
    assert [tuple(record.fields.values()) for record in records] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1)
    ]  # fmt: skip
    assert list(records[0].fields) == ["style", "character"]
    assert all(record.image.shape == source.shape == (16, 16, 1) for record in records)
    assert all(record.image.dtype == np.uint8 for record in records)
    assert refused == {
        "b": "near-duplicate of a",
        "c/004e09": "not mapped to a glyph",
        "d": "draws none of 3 samples: 一 is drawn empty",
    }
    assert source.names == {"style": ["a", "c"], "character": list(HANZI)}
    assert len(source) == 6
    assert source.facts["prototype"] == "a"
    assert source.facts["styles"]["c"]["name"] == "Half"
    assert source.facts["refused"]["b"] == "near-duplicate of a"


def test_folder_says_once_whose_responsibility_the_images_are(folder, caplog):
    list(FontFolder(folder, 16, HANZI))
    assert [entry.message.endswith("your responsibility.") for entry in caplog.records] == [True]


def test_prototype_stays_when_its_twin_comes_first(folder):
    source = FontFolder(folder, 16, HANZI, prototype="b")
    assert source.names["style"] == ["b", "c"]
    assert source.facts["prototype"] == "b"


def test_prototype_by_default_is_zen_hei_where_it_is_there(folder):
    save(make_font({**BOXES, "一": FRAME}, name="WenQuanYi Zen Hei"), folder / "z.ttf")
    assert FontFolder(folder, 16, HANZI).facts["prototype"] == "z"


def test_characters_that_the_prototype_lacks_are_left_out(folder):
    source = FontFolder(folder, 16, HANZI, prototype="c")
    assert source.names["character"] == ["一", "丁"]
    assert source.facts["refused"]["c/004e09"] == "not mapped to a glyph"


def test_homoglyphs_are_merged_into_the_first(tmp_path):
    save(make_font({"A": CROSS, "B": SQUARE}, same={"\u0391": "A"}), tmp_path / "a.ttf")
    source = FontFolder(tmp_path, 16, "AB\u0391")
    assert source.names["character"] == ["A", "B"]
    assert (
        source.facts["refused"]["a/000391"]
        == "the prototype draws it like A, which stands for both"
    )


def test_folder_without_full_coverage_names_the_fullest_font(folder):
    with pytest.raises(FontError, match=r"draws all 442 characters .* fullest is a with 3"):
        len(FontFolder(folder, 16))
    with pytest.raises(FontError, match="prototype=x is not among the fonts"):
        len(FontFolder(folder, 16, HANZI, prototype="x"))
    with pytest.raises(FontError, match="holds no font file"):
        FontFolder(folder / "nowhere", 16)


def test_characters_are_a_text_or_a_file(tmp_path):
    (tmp_path / "list.txt").write_text("三 一\n一\n", encoding="utf-8")
    assert listed_characters("三一 一") == ["一", "三"]
    assert listed_characters(str(tmp_path / "list.txt")) == ["一", "三"]
    with pytest.raises(FontError, match=r"cannot be read from .*missing\.txt"):
        listed_characters(str(tmp_path / "missing.txt"))
    with pytest.raises(FontError, match="white space"):
        listed_characters(" \n")


def test_spread_takes_distinct_items_over_the_whole_range():
    items = [str(number) for number in range(10)]
    assert spread(items, 4) == ["0", "2", "5", "7"]
    assert spread(items, 20) == items


def test_fingerprint_changes_with_fonts_faces_size_and_characters(folder):
    def fingerprint(**changes):
        return FontFolder(folder, **{"size": 16, "characters": HANZI, **changes}).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    changed = [fingerprint(size=32), fingerprint(characters="一丁"), fingerprint(prototype="b")]
    content = (folder / "b.ttf").read_bytes()
    (folder / "b.ttf").write_bytes(content + b"\0")
    changed.append(fingerprint())
    (folder / "b.ttf").write_bytes(content)
    assert fingerprint() == before
    (folder / "b.ttf").rename(folder / "e.ttf")
    changed.append(fingerprint())
    assert len({before, *changed}) == 6


def test_fingerprint_changes_with_rendering_parameters(folder, monkeypatch):
    before = FontFolder(folder, 16, HANZI).fingerprint()
    monkeypatch.setitem(FontFolder.fingerprint.__globals__["RENDERING"], "margin", 0.1)
    assert FontFolder(folder, 16, HANZI).fingerprint() != before
