"""Folders of images as sources: every rule for odd files, and stores that are kept for them."""

import argparse
import os
import re
import shutil
import struct
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_fonts import BAR, CROSS, FRAME, SQUARE, make_font
from tiny_fonts import save as save_font

from gan.commands import data
from gan.data import archives, building, entries, images, joined, sources
from gan.data.datasets import Images
from gan.data.embedded import REGION_NEUTRAL
from gan.data.images import read_image
from gan.data.sources import (
    ImageFolder,
    embedded,
    guess,
    kept_store,
    kind,
    open_store,
    stamp,
    store_path,
)
from gan.data.store import Record, Rejected, Store, StoreError, build, verify
from gan.registry import create

BOXES = (BAR, CROSS, FRAME)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes and a sub-folder, with an other file and a hidden one."""
    folder = tmp_path / "photos"
    for name in ("dog/b.png", "dog/a.jpg", "cat/x/c.webp", "cat/B.PNG"):
        save(folder / name, noise(20, 12))
    (folder / "dog" / "notes.txt").write_text("no image")
    (folder / "dog" / "._a.jpg").write_text("no image either")
    return folder


def items(folder: Path, size: int = 8, channels: int = 3) -> list[Record | Rejected]:
    return list(ImageFolder(folder, size, channels))


# ---- folders -------------------------------------------------------------------------------------


def test_files_are_sorted_and_folders_are_classes(photos: Path) -> None:
    source = ImageFolder(photos, 8)
    records = list(source)
    assert source.name == "image folder photos"
    assert source.names == {"label": ["cat", "dog"]}
    assert [record.key for record in records] == [
        "cat/B.PNG",
        "cat/x/c.webp",
        "dog/a.jpg",
        "dog/b.png",
    ]
    assert [record.fields["label"] for record in records] == [0, 0, 1, 1]
    assert len(source) == 4
    assert [record.key for record in source.after(3)] == ["dog/b.png"]


def test_files_that_are_not_read_neither_make_classes_nor_unmake_them(photos: Path) -> None:
    for name in ("logo.gif", "fox/c.gif"):
        save(photos / name, noise(20, 12))
    source = ImageFolder(photos, 8)
    assert source.names == {"label": ["cat", "dog"]}
    found = {item.key: getattr(item, "fields", None) for item in source}
    assert found["dog/b.png"] == {"label": 1}
    assert found["logo.gif"] is None  # rejected
    assert found["fox/c.gif"] is None


def test_a_folder_without_classes_has_no_label(photos: Path) -> None:
    save(photos / "top.png", noise(8, 8))
    assert ImageFolder(photos, 8).names == {}
    assert {tuple(record.fields) for record in items(photos)} == {()}


def test_an_image_beside_the_classes_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photos / "top.png", noise(8, 8))
    store = open_store(photos, 8, 3, folder=tmp_path / "data")
    said = "top.png lies beside the sub-folders, which are no classes therefore"
    with pytest.raises(StoreError, match=rf"data\.label=label is no field of .*none: {said}"):
        Images(store, "label")
    capsys.readouterr()
    assert Images(store).gives == ("real",)
    assert capsys.readouterr().err == f"{store.path}: {said}\n"
    store.close()


def test_folders_around_all_images_are_no_classes_as_in_an_archive(
    photos: Path, tmp_path: Path
) -> None:
    around = tmp_path / "a" / "b"
    around.mkdir(parents=True)
    photos.rename(around / "photos")
    save(around / "logo.gif", noise(8, 8))  # is not read, and of no class
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(around.rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "a"))
    wrapped, packed = (guess(tmp_path / name, 8) for name in ("a", "a.zip"))
    assert wrapped.names == packed.names == {"label": ["cat", "dog"]}
    found = [
        {item.key: dict(item.fields) for item in source if isinstance(item, Record)}
        for source in (wrapped, packed)
    ]
    assert found[0] == found[1]
    assert [fields["label"] for fields in found[0].values()] == [0, 0, 1, 1]
    assert ImageFolder(around / "photos" / "cat", 8).names == {}
    assert ImageFolder(around / "photos" / "dog", 8).names == {}
    shutil.rmtree(around / "photos" / "cat")
    one = ImageFolder(around / "photos", 8)
    assert one.names == {"label": ["dog"]}
    assert [item.fields for item in one] == [{"label": 0}] * 2


@pytest.mark.parametrize("zipped", [False, True])
def test_a_store_of_other_rules_for_folders_is_built_again(
    zipped: bool,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = shutil.make_archive(str(photos), "zip", photos) if zipped else photos
    fingerprint = guess(path, 8).fingerprint()
    open_store(path, 8, 3, folder=tmp_path / "data").close()
    for module in (sources, archives):
        monkeypatch.setattr(module, "CHOICE", 99)
    assert guess(path, 8).fingerprint() != fingerprint
    capsys.readouterr()
    open_store(path, 8, 3, folder=tmp_path / "data").close()
    assert "it is built again" in capsys.readouterr().err


def test_what_is_no_image_folder_is_said(tmp_path: Path) -> None:
    for path, text in (
        (tmp_path / "none", "no folder .*none"),
        (tmp_path, "holds no JPEG, PNG or WebP"),
    ):
        with pytest.raises(ValueError, match=text):
            ImageFolder(path, 8)
    with pytest.raises(ValueError, match=r"image\.channels must be 1 or 3, not 4"):
        ImageFolder(tmp_path, 8, 4)


def test_links_are_followed_once(photos: Path) -> None:
    (photos / "dog" / "loop").symlink_to(photos)
    (photos / "bird").symlink_to(photos / "cat")
    assert len(items(photos)) == 4


def test_a_link_that_leads_nowhere_is_refused_by_name(photos: Path) -> None:
    whole = len(items(photos))
    (photos / "cat" / "gone.png").symlink_to(photos / "nowhere.png")
    found = items(photos)
    assert len(found) == whole + 1
    assert [item.key for item in found if isinstance(item, Rejected)] == ["cat/gone.png"]
    (photos / "nowhere.png").write_bytes((photos / "dog" / "b.png").read_bytes())
    assert not [item for item in items(photos) if isinstance(item, Rejected)]


def test_fingerprint_follows_names_sizes_and_times(photos: Path) -> None:
    seen = {ImageFolder(photos, 8).fingerprint()}
    assert ImageFolder(photos, 8).fingerprint() in seen
    (photos / "dog" / "notes.txt").write_text("other notes")
    assert ImageFolder(photos, 8).fingerprint() in seen
    changes = (
        lambda: os.utime(photos / "dog/b.png", ns=(1, 1)),
        lambda: (photos / "dog/b.png").rename(photos / "dog/c.png"),
        lambda: save(photos / "dog/d.png", noise(9, 9)),
        lambda: (photos / "dog/d.png").unlink() or os.utime(photos / "dog/c.png", ns=(2, 2)),
    )
    for number, change in enumerate(changes):
        change()
        seen.add(ImageFolder(photos, 8).fingerprint())
        assert len(seen) == number + 2
    seen |= {ImageFolder(photos, 9).fingerprint(), ImageFolder(photos, 8, 1).fingerprint()}
    assert len(seen) == 7


@pytest.mark.row("S12")
def test_names_that_break_the_rules_are_rejected(
    tmp_path: Path, tried: Callable[[int], None]
) -> None:
    image = save(tmp_path / "photos" / "good.png", noise(8, 8)).read_bytes()
    for name in (b"bad\xff.png", b"new\nline.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name)).write_bytes(image)
    reasons = {
        item.key: item.reason for item in items(tmp_path / "photos") if isinstance(item, Rejected)
    }
    assert reasons == {
        "bad\\udcff.png": "the name is not valid UTF-8",
        "new\nline.png": "the name holds a control character",
    }
    report = build(ImageFolder(tmp_path / "photos", 8), tmp_path / "a.lmdb")
    assert (report.count, len(report.rejected)) == (1, 2)
    tried(2)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".pjpeg", ".pjp"])
def test_a_jpeg_of_any_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / "a" / f"one{suffix}", noise(8, 8), format="JPEG")
    (item,) = items(tmp_path / "a")
    assert isinstance(item, Record)
    assert np.array_equal(item.image, read_image(path.rename(tmp_path / "one.jpg"), 8, 3))


@pytest.mark.parametrize("suffix", [".bmp", ".HEIF", ".mpo", ".jpx", ".tiff"])
def test_images_that_are_not_read_are_named(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "good.png", noise(8, 8))
    (tmp_path / f"odd{suffix}").write_bytes(b"whatever")
    refused = [item for item in items(tmp_path) if isinstance(item, Rejected)]
    assert refused == [
        (f"odd{suffix}", f"{suffix} files are not read; convert it to PNG"),
    ]


def test_a_file_without_suffix_is_told_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a", noise(8, 8), format="PNG")
    with pytest.raises(ValueError, match="its name has no suffix; end it in .png"):
        read_image(path, 8, 3)


def test_folders_of_any_name_become_stores(photos: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xd7\xd6"))
    photos.rename(folder)
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    for path, name in ((folder, "image folder "), (archive, "archive ")):
        store = open_store(path, 8, 3, folder=tmp_path / "data")
        assert store.source.startswith(f"{name}\\udcd7\\udcd6")
        assert store.count == 4
        store.close()


# ---- odd images (S13, S14) -----------------------------------------------------------------------


def pixel(path: Path, channels: int = 3, size: int = 4) -> list[int]:
    """The middle pixel of an image."""
    return read_image(path, size, channels)[size // 2, size // 2].tolist()


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    image = noise(16, 16)
    assert np.array_equal(read_image(save(tmp_path / "a.png", image), 16, 3), np.asarray(image))
    wide = noise(21, 16)
    found = read_image(save(tmp_path / "b.png", wide), 16, 3)
    assert np.array_equal(found, np.asarray(wide)[:, 2:18])


def test_the_middle_is_resized_with_antialiasing(tmp_path: Path) -> None:
    image = noise(96, 64)
    middle = image.resize((24, 16), Image.Resampling.LANCZOS).crop((4, 0, 20, 16))
    assert np.array_equal(read_image(save(tmp_path / "a.png", image), 16, 3), np.asarray(middle))
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    grey = read_image(save(tmp_path / "b.png", stripes), 16, 1)[:, 2:-2]
    assert abs(grey.astype(int) - 127).max() < 8  # a filter without antialiasing gives 0 or 255


@pytest.mark.row("S13", "odd images: by a stated rule, or refused")
def test_colours_and_grey(tmp_path: Path) -> None:
    colour = save(tmp_path / "a.png", Image.new("RGB", (5, 5), (200, 100, 50)))
    assert pixel(colour) == [200, 100, 50]
    assert pixel(colour, 1) == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    grey = save(tmp_path / "b.png", Image.new("L", (5, 5), 77))
    assert pixel(grey) == [77, 77, 77]
    assert pixel(grey, 1) == [77]
    assert pixel(save(tmp_path / "c.png", Image.new("1", (5, 5), 1)), 1) == [255]


@pytest.mark.row("S13")
def test_transparency_becomes_white_paper(tmp_path: Path, tried: Callable[[int], None]) -> None:
    half = Image.new("RGBA", (5, 5), (*RED, 128))
    assert pixel(save(tmp_path / "a.png", half)) == [255, 127, 127]
    assert pixel(save(tmp_path / "a.webp", half, lossless=True)) == [255, 127, 127]
    assert pixel(save(tmp_path / "b.png", Image.new("LA", (5, 5), (0, 0))), 1) == [255]
    palette = Image.new("P", (5, 5), 1)
    palette.putpalette([*RED, *BLUE])
    assert pixel(save(tmp_path / "c.png", palette)) == list(BLUE)
    assert pixel(save(tmp_path / "d.png", palette, transparency=1)) == [255, 255, 255]
    deep = Image.fromarray(np.full((5, 5), 514, np.uint16))
    assert pixel(save(tmp_path / "e.png", deep, transparency=514)) == [255, 255, 255]
    assert pixel(save(tmp_path / "e.png", deep, transparency=513)) == [2, 2, 2]
    tried(6)


@pytest.mark.row("S13")
@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize(
    ("bits", "values", "shown"),
    [
        (1, [1], [255]),
        (2, [1], [85]),
        (4, [5], [85]),
        (8, [85], [85]),
        (16, [0x1234], [18]),
        (16, [0x12FF, 0x5678, 0xFF00], [0x12, 0x56, 0xFF]),
    ],
)
def test_the_transparent_colour_of_a_png_has_its_bits(
    bits: int, values: list[int], shown: list[int], clear: bool, tmp_path: Path
) -> None:
    row = "".join(f"{value:0{bits}b}" for value in 8 * values)
    pixels = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8) for _ in range(8))
    said = [value if clear else value ^ 1 << bits - 1 for value in values]  # or another colour
    file = write_png(
        tmp_path / "a.png",
        IHDR=struct.pack(">2I5B", 8, 8, bits, len(values) - 1, 0, 0, 0),
        tRNS=struct.pack(f">{len(values)}H", *said),
        IDAT=zlib.compress(pixels),
    )
    assert pixel(file) == (3 * [255] if clear else shown * (3 // len(shown)))


def write_png(path: Path, **chunks: bytes) -> Path:
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in {**chunks, "IEND": b""}.items():
        named = name.encode() + body
        data += struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))
    path.write_bytes(data)
    return path


@pytest.mark.row("S13")
def test_sixteen_bits_become_eight(tmp_path: Path, tried: Callable[[int], None]) -> None:
    for value, expected in ((0, 0), (257 * 7, 7), (65535, 255)):
        deep = Image.fromarray(np.full((5, 5), value, np.uint16))
        assert pixel(save(tmp_path / "a.png", deep), 1) == [expected]
        assert pixel(save(tmp_path / "a.png", deep)) == [expected] * 3
    tried(3)


@pytest.mark.row("S13")
def test_print_colours_become_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = pixel(save(tmp_path / "a.jpg", image, quality=95))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.row("S13")
def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), RED)
    ImageDraw.Draw(image).rectangle((0, 0, 31, 15), fill=BLUE)  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = read_image(save(tmp_path / "a.png", image, exif=exif), 32, 3)
    assert found[16, 2].tolist() == list(RED)
    assert found[16, 29].tolist() == list(BLUE)


@pytest.mark.row("S13")
@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photograph_whose_exif_data_are_cut_is_read(
    tmp_path: Path, turn: int, suffix: str
) -> None:
    image = noise(32, 32)
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x8298] = "somebody's own words"
    whole = save(tmp_path / f"a.{suffix}", image, exif=exif)
    cut = save(tmp_path / f"b.{suffix}", image, exif=exif.tobytes()[:-10])
    with pytest.warns(UserWarning, match="Truncated File Read"), Image.open(cut) as opened:
        opened.getexif()
    assert np.array_equal(read_image(cut, 32, 3), read_image(whole, 32, 3))


@pytest.mark.row("S13")
def test_one_pixel_fills_the_image(tmp_path: Path) -> None:
    assert pixel(save(tmp_path / "a.png", Image.new("RGB", (1, 1), RED)), size=8) == list(RED)


def reason(path: Path) -> str:
    (item,) = items(path.parent)
    assert isinstance(item, Rejected)
    assert item.key == path.name
    return item.reason


@pytest.mark.row("S13")
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animations_are_rejected(suffix: str, tmp_path: Path) -> None:
    more = [noise(8, 8), noise(8, 9).crop((0, 1, 8, 9))]
    path = save(tmp_path / f"a.{suffix}", noise(8, 8), save_all=True, append_images=more)
    assert reason(path) == "it is an animation"


@pytest.mark.row("S13")
def test_a_photograph_with_a_preview_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mpo", Image.new("RGB", (16, 16), RED), save_all=True,
                append_images=[Image.new("RGB", (8, 8), BLUE)], quality=95)  # fmt: skip
    red, _, blue = pixel(path.rename(tmp_path / "a.jpg"))
    assert (red > 240, blue < 15) == (True, True)


@pytest.mark.row("S13")
def test_damaged_and_foreign_files_are_rejected(
    tmp_path: Path, tried: Callable[[int], None]
) -> None:
    whole = save(tmp_path / "whole.jpg", noise(64, 64)).read_bytes()
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in reason(path)
    path.write_text("no image")
    assert "cannot identify image file" in reason(path)
    save(path, noise(8, 8), format="BMP")
    assert "cannot identify image file" in reason(path)
    path.write_bytes(b"")
    assert "cannot identify image file" in reason(path)
    save(path.with_name("b.png"), noise(8, 8))
    save(path, noise(8, 8)).rename(path.with_name("a.gif"))
    assert [item.reason for item in items(path.parent) if isinstance(item, Rejected)] == [
        ".gif files are not read; convert it to PNG"
    ]
    tried(5)


@pytest.mark.row("S14", "decompression bombs: refused by their header")
def test_warnings_of_pillow_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", noise(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert "could be decompression bomb" in reason(path)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return write_png(path, IHDR=header, IDAT=zlib.compress(bytes(1000)))


@pytest.mark.row("S14")
@pytest.mark.parametrize(("side", "text"), [(20000, "400000000 pixels"), (9000, "9000 x 9000")])
def test_huge_images_are_rejected_by_their_header(side: int, text: str, tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.png", side, side)
    tracemalloc.start()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert text in reason(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.row("S14")
def test_large_files_are_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", noise(64, 64))
    monkeypatch.setattr(images, "LARGEST_FILE", 1000)
    assert "at most 1000 are read" in reason(path)


# ---- what is at a path ---------------------------------------------------------------------------


def test_kinds_of_folder(photos: Path, tmp_path: Path) -> None:
    assert kind(photos) == "images"
    (photos / "index.json").write_text('{"labels": []}')
    assert kind(photos) == "images"
    (photos / "index.json").write_text('{"cell": "A1"}')
    assert kind(photos) == "images"
    (photos / "index.json").write_text('{"labels": [')
    assert kind(photos) == "images"
    (photos / "index.json").write_text('{"format": 1, "cell": 64}')
    assert kind(photos) == "sheets"
    (photos / "index.json").write_text('{"format": 1, "cell": 64')
    assert kind(photos) == "sheets"  # which then says that its index is broken
    (tmp_path / "fonts" / "sub").mkdir(parents=True)
    (tmp_path / "fonts" / "sub" / "a.OTF").touch()
    assert kind(tmp_path / "fonts") == "fonts"
    with pytest.raises(ValueError, match="nothing at .*none: data.path names"):
        kind(tmp_path / "none")
    (tmp_path / "photos.rar").touch()
    with pytest.raises(
        ValueError, match=r"photos\.rar is not read: .*\.lmdb.*\.zip.*images.*fonts"
    ):
        kind(tmp_path / "photos.rar")


def test_a_store_is_no_source_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").touch()
    with pytest.raises(ValueError, match=r"a\.lmdb is to be a source of images, but it is"):
        guess(tmp_path / "a.lmdb", 8)


def test_a_folder_of_fonts_and_images_is_what_is_wanted(photos: Path, tmp_path: Path) -> None:
    save_font(make_font({"一": BAR, "丁": CROSS}), photos / "dog" / "a.ttf")
    with pytest.raises(ValueError, match=r"photos holds fonts \(dog/a\.ttf\) and images \(cat/B"):
        kind(photos)
    with pytest.raises(ValueError, match="move one kind of them into a folder of its own"):
        guess(photos, 8)
    assert (kind(photos, "images"), kind(photos, "glyphs")) == ("images", "fonts")
    assert guess(photos, 8, characters="一丁").names["character"] == ["一", "丁"]
    for item in items(photos):
        (photos / item.key).unlink()
    (photos / "cat" / "logo.svg").touch()
    assert kind(photos, "images") == kind(photos) == "fonts"


def test_each_source_reads_its_kind_of_a_folder_of_both(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_font(make_font(dict(zip(REGION_NEUTRAL, BOXES, strict=False))), photos / "a.ttf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entries, "Glyphs", lambda store, *_: store)
    found = create("source", "folder", path=str(photos), size=8, channels=3).store
    assert found.source == "image folder photos"
    given = {"path": str(photos), "size": 8, "channels": 1}
    drawn = create("source", "fonts", **given, prototype="a")
    assert drawn.source == "fonts photos"
    with pytest.raises(ValueError, match="no font in .*photos draws all"):
        create("source", "fonts", **given)
    assert joined._has_glyphs(photos)
    with pytest.raises(
        ValueError, match="data=pairs: 4 images of image folder photos have no partner"
    ):
        create("source", "pairs", **given)


def test_guess_makes_the_source(photos: Path) -> None:
    assert guess(photos, 8).shape == (8, 8, 3)
    assert guess(photos, 8, 1).shape == (8, 8, 1)
    hanzi = guess(embedded("hanzi"), 32)
    assert hanzi.shape == (32, 32, 1)
    with pytest.raises(ValueError, match=r"image\.channels must be 1 for glyph sheets hanzi"):
        guess(embedded("hanzi"), 32, 3)
    with pytest.raises(ValueError, match="'kana' are not part"):
        embedded("kana")


def test_stores_are_kept_under_telling_names(photos: Path, tmp_path: Path) -> None:
    path = store_path(photos, 32, 3)
    assert path.parent == Path("data")
    assert path.name.startswith("photos-")
    assert path.name.endswith("-32x32x3.lmdb")
    assert path == store_path(photos / "dog" / "..", 32, 3)
    (tmp_path / "b").mkdir()
    others = {
        store_path(photos, 64, 3),
        store_path(photos, 32, 1),
        store_path(tmp_path / "b", 32, 3),
    }
    assert len(others | {path}) == 4
    assert store_path(embedded("hanzi"), 32, 1) == Path("data/hanzi-32x32x1.lmdb")
    assert store_path(tmp_path / "a b/ü", 8, 1).name.startswith("_-")


# ---- kept stores ---------------------------------------------------------------------------------


def test_a_folder_is_built_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_store(photos, 8, 3, folder=tmp_path / "data")
    assert first.path == store_path(photos, 8, 3, tmp_path / "data")
    assert first.names == {"label": ["cat", "dog"]}
    assert capsys.readouterr().err == f"building {first.path} from image folder photos\n"
    images = np.empty((4, 8, 8, 3), np.uint8)
    first.read(np.arange(4), images)
    assert np.array_equal(images, [item.image for item in items(photos)])
    first.close()
    before = first.path.stat()
    open_store(photos, 8, 3, folder=tmp_path / "data").close()
    assert first.path.stat() == before or first.path.stat().st_ino == before.st_ino
    assert capsys.readouterr().err == ""


def test_a_changed_folder_is_built_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_store(photos, 8, 3, folder=tmp_path / "data").close()
    save(photos / "dog" / "new.png", noise(9, 9))
    again = open_store(photos, 8, 3, folder=tmp_path / "data")
    assert again.count == 5
    assert "have changed; it is built again" in capsys.readouterr().err
    again.close()
    os.truncate(again.path, 8192)
    assert open_store(photos, 8, 3, folder=tmp_path / "data").count == 5
    assert "it is cut" in capsys.readouterr().err


def test_unreadable_images_stop_training_unless_allowed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    folder = tmp_path / "data"
    with pytest.raises(StoreError, match=r"1 image cannot be used(.|\n)*dog/broken\.png: "):
        open_store(photos, 8, 3, folder=folder)
    capsys.readouterr()
    allowed = open_store(photos, 8, 3, folder=folder, on_error="skip")
    assert (allowed.count, allowed.rejected_count) == (4, 1)
    said = capsys.readouterr().err
    assert f"1 left out of {allowed.path}:\n  dog/broken.png: " in said
    allowed.close()
    with pytest.raises(StoreError, match=r"1 image cannot be used(.|\n)*dog/broken\.png: "):
        open_store(photos, 8, 3, folder=folder)
    (photos / "dog" / "broken.png").unlink()
    assert open_store(photos, 8, 3, folder=folder).rejected_count == 0


def test_a_relative_path_is_refused_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"nothing at gone, seen from {re.escape(str(tmp_path))}:"):
        open_store("gone", 8, 3)
    with pytest.raises(ValueError, match="nothing at /gone: data.path names a folder"):
        open_store("/gone", 8, 3)


def test_a_given_store_must_have_the_shape(photos: Path, tmp_path: Path) -> None:
    build(ImageFolder(photos, 8), tmp_path / "a.lmdb")
    open_store(tmp_path / "a.lmdb", 8, 3).close()
    with pytest.raises(
        StoreError, match=r"8x8x3, not of 16x16x1: set image\.size=8 image\.channels=3"
    ):
        open_store(tmp_path / "a.lmdb", 16, 1)


@pytest.mark.parametrize("changed", [False, True])
def test_a_second_process_waits_for_the_first(
    changed: bool,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, waiting, opened = tmp_path / "data", threading.Event(), []
    target = store_path(photos, 8, 3, folder)
    folder.mkdir()
    if changed:
        open_store(photos, 8, 3, folder=folder).close()
        save(photos / "dog" / "new.png", noise(9, 9))
        capsys.readouterr()
    looks = iter(["one", "two", "three"])
    monkeypatch.setattr(sources.time, "sleep", lambda _: next(looks, None) or waiting.set())
    with building.exclusive(target, ImageFolder(photos, 8)):
        second = threading.Thread(
            target=lambda: opened.append(open_store(photos, 8, 3, folder=folder))
        )
        second.start()
        assert waiting.wait(10)
    second.join()
    assert opened[0].count == 4 + changed
    said = capsys.readouterr().err
    assert said.count(f"{target} is being built by process {os.getpid()}") == 1
    assert said.count("have changed; it is built again") == changed


@pytest.mark.parametrize("moment", ["while it lists", "before it has the lock"])
def test_a_store_that_another_process_has_finished_meanwhile_is_taken(
    moment: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built once more, it would be replaced under the process that reads it."""
    target, mark = store_path(photos, 8, 3, tmp_path / "data"), stamp(photos, "images")
    lock, others = building.Lock, []

    def other() -> None:
        monkeypatch.setattr(building, "Lock", lock)
        others.append(open_store(photos, 8, 3, folder=tmp_path / "data"))

    def listed() -> ImageFolder:
        if moment == "while it lists":
            other()
        return ImageFolder(photos, 8)

    def locked(path: Path) -> object:
        other()
        return lock(path)

    if moment == "before it has the lock":
        monkeypatch.setattr(building, "Lock", locked)
    store = kept_store(listed, target, mark, "raise")
    assert store.count == others[0].count == 4
    assert os.path.samestat(os.fstat(others[0]._file.descriptor), target.stat())
    assert capsys.readouterr().err.splitlines() == [f"building {target} from image folder photos"]
    assert os.listdir(target.parent) == [target.name]


def test_glyphs_that_a_font_lacks_do_not_stop_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "dog" / "broken.png").write_bytes(b"")
    monkeypatch.setattr(sources, "kind", lambda *_: "sheets")
    monkeypatch.setattr(sources, "guess", lambda path, size, *_: ImageFolder(path, size))
    assert open_store(photos, 8, 3, folder=tmp_path / "data").rejected_count == 1


def test_the_embedded_sheets_become_a_store(tmp_path: Path) -> None:
    glyphs = open_store(embedded("hanzi"), 8, 1, folder=tmp_path)
    assert glyphs.path.name == "hanzi-8x8x1.lmdb"
    assert glyphs.names.keys() == {"style", "character"}
    assert verify(glyphs.path).damages == []
    glyphs.close()


# ---- fonts ---------------------------------------------------------------------------------------


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    """Two designs, of which one draws all three characters."""
    folder = tmp_path / "fonts"
    save_font(make_font({"一": BAR, "丁": CROSS, "三": FRAME}, name="Whole"), folder / "a.ttf")
    save_font(make_font({"一": SQUARE, "丁": BAR}, name="Half"), folder / "b.ttf")
    return folder


def test_characters_and_prototype_of_fonts_are_chosen(fonts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    choices = (("一丁三", None), ("一丁", None), ("一丁", "b"))
    stores = [
        open_store(fonts, 8, 1, characters=characters, prototype=prototype, folder=folder)
        for characters, prototype in choices
    ]
    found = [("".join(store.names["character"]), store.facts["prototype"]) for store in stores]
    assert found == [("一丁三", "a"), ("一丁", "a"), ("一丁", "b")]
    assert len({store.path for store in stores}) == len({store.stamp for store in stores}) == 3
    assert store_path(fonts, 8, 1, folder) not in [store.path for store in stores]
    for store in stores:
        store.close()


def test_a_changed_list_of_characters_is_drawn_again(
    fonts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "characters.txt"
    for text, built in (("一 丁", True), ("丁\n一", False), ("一丁三", True)):
        listed.write_text(text, encoding="utf-8")
        store = open_store(fonts, 8, 1, characters=os.fspath(listed), folder=tmp_path / "data")
        assert ("built again" in capsys.readouterr().err) == (built and text != "一 丁")
        assert set(store.names["character"]) == set("".join(text.split()))
        store.close()
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_characters_are_for_fonts_only(photos: Path, fonts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"characters=一 is for a folder of fonts, which .*photos"):
        open_store(photos, 8, 3, characters="一", folder=tmp_path / "data")
    with pytest.raises(ValueError, match=r"prototype=bold is for a folder of fonts, which .*phot"):
        open_store(photos, 8, 3, prototype="bold", folder=tmp_path / "data")
    built = open_store(fonts, 8, 1, characters="一丁", folder=tmp_path / "data")
    with pytest.raises(ValueError, match=r"data\.characters are those of .*\.lmdb"):
        open_store(built.path, 8, 1, characters="一")
    built.close()


def test_the_command_draws_chosen_characters(
    fonts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        parser = argparse.ArgumentParser()
        data.add_parser(parser.add_subparsers(required=True))
        args = parser.parse_args(["data", "build", str(fonts), *map(str, arguments)])
        return args.func(args)

    (tmp_path / "list.txt").write_text("一", encoding="utf-8")
    target, few = tmp_path / "a.lmdb", ("--size", 8, "--characters", tmp_path / "list.txt")
    assert run(target, *few, "--prototype", "b") == 0
    assert "2 images of 8x8x1 from fonts fonts" in capsys.readouterr().out
    opened = Store(target)
    assert (opened.names["character"], opened.facts["prototype"]) == (["一"], "b")
    opened.close()
    with pytest.raises(ValueError, match="prototype=c is not among"):
        run(target, *few, "--prototype", "c", "--overwrite")
    with pytest.raises(ValueError, match=r"STORE must end in \.lmdb"):
        run(tmp_path / "sheets", *few)
