import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_fonts import BAR, CROSS, FRAME, SQUARE, make_font, save, save_collection

from gan.commands import main
from gan.data.embedded import (
    ALLOWED_LICENCES,
    PACKAGES,
    REGION_NEUTRAL,
    STYLES,
    WEB_STYLES,
    Pick,
)
from gan.data.faces import Face
from gan.data.fonts import twins
from gan.data.glyphs import area_reduce, render
from gan.data.sheets import (
    GlyphSheets,
    SheetError,
    build_sheets,
    cut,
    drawn_of,
    level_one,
    paste,
    refuse_licences,
    region_neutral,
)
from gan.data.store import Record, Rejected

ROOT = Path(__file__).parents[2]
HANZI = ROOT / "data" / "hanzi"
WEB = ROOT / "data" / "hanzi-web"
MORE = ROOT / "data" / "hanzi-more"
FONTS = {".ttf", ".otf", ".ttc", ".woff", ".woff2", ".pfb", ".pfa", ".pcf", ".bdf"}

TINY = {"light": Pick("fonts-konatu", "light.ttf"), "dark": Pick("fonts-seto", "dark.ttf")}
CHARACTERS = "一丁三"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two fonts and their sheets, drawn once."""
    folder = tmp_path_factory.mktemp("drawn")
    save(make_font({"一": BAR, "丁": CROSS, "三": FRAME}), folder / "fonts" / "light.ttf")
    save(make_font({"一": SQUARE, "丁": BAR}), folder / "fonts" / "dark.ttf")
    build(folder / "fonts", folder / "sheets")
    return folder


@pytest.fixture
def fonts(drawn, tmp_path):
    return shutil.copytree(drawn / "fonts", tmp_path / "fonts")


@pytest.fixture
def sheets(drawn, tmp_path):
    return shutil.copytree(drawn / "sheets", tmp_path / "sheets")


def build(fonts, target, **options):
    tiny = {"styles": TINY, "characters": CHARACTERS, "prototype": "light"}
    return build_sheets(fonts, target, **{**tiny, **options})


# ---- building and reading -----------------------------------------------------------------------


def test_sheets_give_back_the_rendered_pixels_exactly(fonts, sheets):
    records = [item for item in GlyphSheets(sheets) if isinstance(item, Record)]
    assert [record.key for record in records] == [
        "dark/004e00", "dark/004e01", "light/004e00", "light/004e01", "light/004e09"
    ]  # fmt: skip
    for id, number in (("dark", 0), ("light", 1)):
        drawn = render(Face(fonts / f"{id}.ttf"), CHARACTERS, 64, levels=32).images
        mine = [record for record in records if record.fields["style"] == number]
        assert len(mine) == len(drawn)
        for record in mine:
            character = chr(int(record.key.split("/")[1], 16))
            assert character == CHARACTERS[record.fields["character"]]
            np.testing.assert_array_equal(record.image[..., 0], drawn[character])


def test_every_style_may_draw_a_share_of_the_characters(fonts, tmp_path):
    save(make_font({"一": BAR, "丁": CROSS, "三": FRAME, "上": SQUARE}), fonts / "light.ttf")
    four = {"characters": "一丁三上", "every": 2}
    build(fonts, tmp_path / "sheets", **four)
    source = GlyphSheets(tmp_path / "sheets")
    entries = source.index["styles"]
    assert {id: entry.get("characters") for id, entry in entries.items()} == {
        "dark": "一三", "light": None
    }  # fmt: skip
    assert len(source) == 6
    records = [item for item in source if isinstance(item, Record)]
    light = [f"light/{ord(character):06x}" for character in "一丁三上"]
    assert [record.key for record in records] == ["dark/004e00", *light]
    assert [item for item in source if isinstance(item, Rejected)] == [
        Rejected("dark/004e09", "not mapped to a glyph")
    ]
    assert [record.fields["character"] for record in records] == [0, 0, 1, 2, 3]
    drawn = render(Face(fonts / "light.ttf"), "一丁三上", 64, levels=32).images
    for record, character in zip(records[1:], "一丁三上", strict=True):
        np.testing.assert_array_equal(record.image[..., 0], drawn[character])
    build(fonts, tmp_path / "other", **{**four, "prototype": "dark"})
    entries = GlyphSheets(tmp_path / "other").index["styles"]
    assert [entry.get("characters") for entry in entries.values()] == [None, "丁上"]


def test_other_characters_may_decide_the_scale(fonts):
    face = Face(fonts / "light.ttf")
    together = render(face, CHARACTERS, 64).images
    alone, framed = (render(face, "一", 64, framed=one).images["一"] for one in (None, "一三"))
    np.testing.assert_array_equal(framed, together["一"])
    assert not np.array_equal(alone, framed)
    boxes = {"一": [(0, 0, 900, 900)], "丁": [(400, 400, 600, 600)]}
    save(make_font(boxes), fonts / "boxes.ttf")
    small = render(Face(fonts / "boxes.ttf"), "一丁", 64, framed="丁")
    assert (small.images.keys(), small.rejected) == ({"丁"}, {"一": "larger than the canvas"})


def test_unusable_glyph_is_rejected_with_the_reason_of_the_index(sheets):
    rejected = [item for item in GlyphSheets(sheets) if isinstance(item, Rejected)]
    assert rejected == [Rejected("dark/004e09", "not mapped to a glyph")]


def test_smaller_size_is_the_area_mean_and_other_sizes_are_refused(sheets):
    large = next(iter(GlyphSheets(sheets, 64)))
    small = next(iter(GlyphSheets(sheets, 32)))
    means = large.image[..., 0].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(small.image[..., 0], np.floor(means + 0.5))
    for size in (128, 24, 0):
        with pytest.raises(SheetError, match=rf"size={size} .* build from the fonts"):
            GlyphSheets(sheets, size)


def test_facts_and_names_come_from_the_index(fonts, sheets):
    source = GlyphSheets(sheets)
    assert source.names == {"style": ["dark", "light"], "character": list(CHARACTERS)}
    assert source.facts["prototype"] == "light"
    style = source.facts["styles"]["dark"]
    assert (style["family"], style["licence"], style["cluster"]) == ("seto", "OFL-1.1", "dark")
    assert style["sha256"] == hashlib.sha256((fonts / "dark.ttf").read_bytes()).hexdigest()
    assert len(source) == 6


def test_fingerprint_changes_with_pixels_and_size(fonts, sheets, tmp_path):
    save(make_font({"一": SQUARE, "丁": CROSS}), fonts / "dark.ttf")
    build(fonts, tmp_path / "two")
    sources = [GlyphSheets(sheets), GlyphSheets(sheets, 32), GlyphSheets(tmp_path / "two")]
    assert len({source.fingerprint() for source in sources}) == 3
    assert GlyphSheets(sheets).fingerprint() == sources[0].fingerprint()


def test_same_fonts_give_equal_pixels_and_nothing_is_written_again(fonts, tmp_path):
    target = tmp_path / "sheets"
    assert build(fonts, target).written
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    again = build(fonts, target)
    assert not again.differences
    assert not again.written
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_changed_font_is_reported_and_written_only_on_request(fonts, sheets):
    target, before = sheets, GlyphSheets(sheets).fingerprint()
    save(make_font({"一": SQUARE, "丁": CROSS}), fonts / "dark.ttf")
    report = build(fonts, target)
    assert {line.split(":")[0] for line in report.differences} == {
        "index.styles.dark.sha256", "index.styles.dark.pixels"
    }  # fmt: skip
    assert GlyphSheets(target).fingerprint() == before
    assert build(fonts, target, overwrite=True).written
    assert GlyphSheets(target).fingerprint() != before


def test_style_that_is_no_longer_embedded_leaves_no_sheet_behind(fonts, sheets):
    target = sheets
    build(fonts, target, overwrite=True, styles={"light": TINY["light"]})
    assert {path.name for path in target.iterdir()} == {"index.json", "light.png"}


def test_damaged_and_missing_sheets_are_errors(sheets):
    target = sheets
    pixels = np.array(Image.open(target / "dark.png"))
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(target / "dark.png")
    with pytest.raises(SheetError, match=r"dark\.png does not hold the pixels"):
        list(GlyphSheets(target))
    (target / "dark.png").unlink()
    with pytest.raises(SheetError, match="sheet of style dark cannot be read"):
        list(GlyphSheets(target))
    (target / "index.json").write_text('{"format": 1, "cell": 64, "characters": "", "styles": {}}')
    with pytest.raises(SheetError, match="lacks prototype, region, rendering, versions"):
        GlyphSheets(target)
    (target / "index.json").write_text('{"format": 99}')
    with pytest.raises(SheetError, match="has format 99, this version reads 1"):
        GlyphSheets(target)


def test_foreign_pictures_are_not_overwritten(fonts, tmp_path):
    target = tmp_path / "pictures"
    target.mkdir()
    (target / "dark.png").write_bytes(b"mine")
    with pytest.raises(SheetError, match=r"holds dark\.png but no index\.json"):
        build(fonts, target)
    assert (target / "dark.png").read_bytes() == b"mine"


def test_licence_outside_the_list_is_refused_with_style_and_licence(fonts, tmp_path, monkeypatch):
    with pytest.raises(
        SheetError, match=r"style ming \(fonts-cwtex-ming\) has the licence unknown"
    ):
        build(fonts, tmp_path / "sheets", styles={"ming": Pick("fonts-cwtex-ming", "dark.ttf")})
    refused = PACKAGES["fonts-seto"]._replace(licence="CC-BY-3.0")
    monkeypatch.setitem(PACKAGES, "fonts-seto", refused)
    with pytest.raises(SheetError, match="style dark .* CC-BY-3.0"):
        build(fonts, tmp_path / "sheets")
    assert not (tmp_path / "sheets").exists()


def test_missing_packages_and_near_duplicates_are_refused(fonts, tmp_path):
    absent = {"a": Pick("fonts-train", "a.ttf"), "b": Pick("fonts-seto", "b.ttf")}
    with pytest.raises(SheetError, match="lacks fonts of these packages: fonts-seto fonts-train"):
        build(fonts, tmp_path / "sheets", styles=absent)
    shutil.copy(fonts / "dark.ttf", fonts / "twin.ttf")
    twin = {**TINY, "twin": Pick("fonts-train", "twin.ttf")}
    with pytest.raises(SheetError, match="style twin is a near-duplicate of dark"):
        build(fonts, tmp_path / "sheets", styles=twin)


def test_region_neutral_characters_have_one_glyph_in_every_region(tmp_path):
    for series in ("Sans", "Serif"):
        regions = []
        for region, drawn in (("JP", "一"), ("SC", "一"), ("TC", "丁"), ("KR", "丁")):
            shapes = {"一": BAR, "丁": CROSS, "三": FRAME}
            if series == "Serif" and region == "SC":
                del shapes["三"]
            name = f"Noto {series} CJK {region}"
            regions.append(make_font(shapes, same={"上": drawn}, name=name))
        save_collection(regions, tmp_path / f"Noto{series}CJK-Regular.ttc")
    assert region_neutral(tmp_path) == "一丁"
    (tmp_path / "NotoSerifCJK-Regular.ttc").unlink()
    with pytest.raises(SheetError, match=r"lacks NotoSerifCJK-Regular\.ttc"):
        region_neutral(tmp_path)


def test_paste_and_cut_are_inverse_and_fill_with_paper():
    cells = np.random.default_rng(0).integers(0, 255, (5, 4, 4), dtype=np.uint8)
    sheet = paste(list(cells), columns=3)
    assert sheet.shape == (8, 12)
    np.testing.assert_array_equal(sheet[:4, 4:8], cells[1])
    np.testing.assert_array_equal(cut(sheet, 4)[:5], cells)
    assert (cut(sheet, 4)[5:] == 255).all()


# ---- the embedded set ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index():
    return json.loads((HANZI / "index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def web():
    return json.loads((WEB / "index.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", [HANZI, WEB])
def test_embedded_pixels_are_those_of_the_index(folder):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for entry in index["styles"].values():
        sheet = np.asarray(Image.open(folder / entry["sheet"]))
        assert sheet.shape == (1024, 1024)
        digest = hashlib.sha256(str(sheet.shape).encode() + sheet.tobytes()).hexdigest()
        assert digest == entry["pixels"], entry["sheet"]
        assert len(np.unique(sheet)) <= index["levels"] == 32


def test_embedded_set_is_complete_and_small(index):
    sheets = {path.stem for path in HANZI.glob("*.png")}
    assert sheets == index["styles"].keys() == STYLES.keys()
    assert len(sheets) == 32
    assert sum(path.stat().st_size for path in HANZI.iterdir()) <= 6_000_000
    assert not any(entry["unusable"] for entry in index["styles"].values())
    assert index["prototype"] == "wqy-zenhei"


def test_embedded_characters_are_evenly_spaced_region_neutral_ones(index):
    characters = index["characters"]
    assert len(set(characters)) == 256
    assert len(set(REGION_NEUTRAL)) == len(REGION_NEUTRAL) == 442
    assert list(characters) == sorted(characters)
    shared = [one for one in REGION_NEUTRAL if one != "穆"]  # Sawarabi Mincho lacks it
    assert list(characters) == [shared[place * 441 // 256] for place in range(256)]


def test_embedded_styles_keep_a_family_apart_enough_to_split(index):
    families = {entry["family"] for entry in index["styles"].values()}
    assert len(families) == 18
    alone = [e for e in index["styles"].values() if e["family"] == "zenhei"]
    assert len(alone) == 1, "the prototype's family would be lost to every split"


def test_every_embedded_style_names_an_allowed_licence_and_its_owner(index):
    refuse_licences(STYLES)
    notices = (HANZI / "LICENSES.md").read_text(encoding="utf-8")
    for id, entry in index["styles"].items():
        assert entry["licence"] in ALLOWED_LICENCES
        assert f"## {entry['licence']}" in notices
        row = (f"`{id}`", entry["name"], entry["licence"], entry["copyright"], entry["package"])
        assert f"| {' | '.join(row)} |" in notices


@pytest.mark.parametrize("folder", [HANZI, WEB])
def test_embedded_glyphs_are_centred_even_in_size_and_not_clipped(folder):
    inked = np.stack([record.image[..., 0] < 255 for record in GlyphSheets(folder)])
    for lines in (inked.any(1), inked.any(2)):  # [N, 64] columns and rows that hold ink
        assert not lines[:, [0, -1]].any()
        first, last = lines.argmax(1), 63 - lines[:, ::-1].argmax(1)
        assert (abs(first + last - 63) <= 2).all()


def test_the_web_set_has_the_same_characters_in_other_designs(index, web):
    assert web["characters"] == index["characters"]
    assert {path.stem for path in WEB.glob("*.png")} == web["styles"].keys() == WEB_STYLES.keys()
    assert len(WEB_STYLES) == 34
    assert sum(path.stat().st_size for path in WEB.iterdir()) <= 6_000_000
    assert not any(entry["unusable"] for entry in web["styles"].values())
    families = [{e["family"] for e in one["styles"].values()} for one in (index, web)]
    assert (len(families[1]), families[0] & families[1]) == (16, {"sawarabi"})
    assert web["prototype"] in WEB_STYLES
    drawn = {}
    for folder, one in ((HANZI, index), (WEB, web)):
        for id, entry in one["styles"].items():
            cells = cut(np.asarray(Image.open(folder / entry["sheet"])), 64)
            drawn[id] = dict(zip(one["characters"][::8], cells[::8], strict=False))
    assert len(drawn) == 66
    assert all(id == first for id, first in twins(drawn).items())


def test_every_style_of_the_web_names_its_owner(web):
    refuse_licences(WEB_STYLES)
    notices = (WEB / "LICENSES.md").read_text(encoding="utf-8")
    for id, entry in web["styles"].items():
        assert entry["licence"] == "OFL-1.1"
        row = (f"`{id}`", entry["name"], entry["copyright"], entry["package"])
        assert f"| {' | '.join(row)} |" in notices


def test_the_command_draws_the_web_set_of_the_same_characters(tmp_path, monkeypatch, capsys):
    fonts, target = tmp_path / "fonts", tmp_path / "hanzi-web"
    save(make_font({"一": BAR, "丁": CROSS}), fonts / "a.ttf")
    assert main(["data", "build", str(fonts), str(target)])
    assert "lacks fonts of these packages: @fontsource/dela-gothic-one" in capsys.readouterr().err
    monkeypatch.setattr("gan.data.embedded.WEB_STYLES", {"a": Pick("fonts-seto", "a.ttf")})
    assert not main(["data", "build", str(fonts), str(target)])
    built = json.loads((target / "index.json").read_text(encoding="utf-8"))
    assert built["characters"] == json.loads((HANZI / "index.json").read_text())["characters"]
    assert built["styles"].keys() == {"a"}
    assert built["prototype"] == "noto-sans-jp-400"


def test_more_characters_are_those_of_the_standards_and_few_in_each_style(index, web):
    more = json.loads((MORE / "index.json").read_text(encoding="utf-8"))
    assert {*more["characters"]} == level_one() - {*index["characters"]}
    assert len(more["characters"]) == 1327
    assert more["prototype"] == index["prototype"]
    assert {path.stem for path in MORE.glob("*.png")} == more["styles"].keys()
    assert sum(path.stat().st_size for path in MORE.iterdir()) <= 6_000_000
    known = index["styles"] | web["styles"]
    assert more["styles"].keys() == known.keys()
    same = ("name", "family", "licence", "copyright", "package", "file", "face")
    for place, (id, entry) in enumerate(sorted(more["styles"].items())):
        assert [entry[name] for name in same] == [known[id][name] for name in same]
        share = more["characters"][place % 12 :: 12]
        assert entry.get("characters") == (None if id == "wqy-zenhei" else share)
        assert len(entry["unusable"]) <= 3, id
        many = len(drawn_of(more, entry))
        sheet = np.asarray(Image.open(MORE / entry["sheet"]))
        assert sheet.shape == (64 * -(-many // 16), 1024)
    assert not more["styles"]["wqy-zenhei"]["unusable"]
    records = [item for item in GlyphSheets(MORE, 32) if isinstance(item, Record)]
    refused = sum(len(entry["unusable"]) for entry in more["styles"].values())
    assert len(records) + refused == len(GlyphSheets(MORE))
    ink = np.stack([255 - record.image for record in records]).mean((1, 2, 3))
    styles = np.array([record.fields["style"] for record in records])
    full = [*GlyphSheets(HANZI, 32), *GlyphSheets(WEB, 32)]
    base = np.array([(255 - item.image).mean() for item in full]).reshape(66, 256).mean(1)
    ids = [*index["styles"], *web["styles"]]
    for number, id in enumerate(more["styles"]):  # strokes of one weight at one scale
        ratio = ink[styles == number].mean() / base[ids.index(id)]
        assert 0.95 < ratio < 1.6, (id, ratio)


def test_half_size_of_the_embedded_set_is_the_area_mean():
    large = next(iter(GlyphSheets(HANZI)))
    small = next(iter(GlyphSheets(HANZI, 32)))
    np.testing.assert_array_equal(small.image[..., 0], area_reduce(large.image[..., 0], 32))
    assert small.key == large.key == "aoyagi-kouzan/004e00"


def test_no_font_file_is_in_the_tree():
    ignored = {".git", ".venv", "venv", "node_modules"}
    files = (path for path in ROOT.rglob("*") if not ignored & set(path.relative_to(ROOT).parts))
    assert not [path for path in files if path.suffix.lower() in FONTS]
