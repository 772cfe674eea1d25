"""JPEGs decoded by simplejpeg: Pillow's pixels, and Pillow's verdict about whatever is odd."""

import io
import random
import re
import sys
from functools import partial

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from test_hostile_files import mutated

from gan.data import jpeg
from gan.data.images import decoded, fitted

KINDS = [("L", -1), ("RGB", 0), ("RGB", 1), ("RGB", 2)]  # mode, sampling of the chroma
ORIENTATION = 0x0112


def written(mode="RGB", size=(17, 33), seed=0, **options):
    """A JPEG: half of it noise, half smooth, so that chroma is both sharp and interpolated."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width)[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))


def outcome(data, size=16, channels=3):
    """The pixels, or the error in words, which may name an object by its place in memory."""
    try:
        return decoded(io.BytesIO(data), size, channels).tobytes()
    except Exception as error:
        return re.sub(" at 0x[0-9a-f]+", "", repr(error))


def by_pillow(data, monkeypatch, size=16, channels=3):
    with monkeypatch.context() as patched:
        patched.setattr(jpeg, "agreeing", lambda: None)
        return outcome(data, size, channels)


@pytest.mark.parametrize("size", [(1, 1), (7, 16), (16, 16), (63, 40), (130, 97)])
@pytest.mark.parametrize(("mode", "sampling"), KINDS)
def test_pixels_are_those_of_pillow(mode, sampling, size):
    for quality in (10, 75, 100):
        data = written(mode, size, subsampling=sampling, quality=quality, restart_marker_rows=1)
        with opened(data) as image:
            found = jpeg.pixels(image, mode)
            assert np.array_equal(found, np.asarray(image).reshape(found.shape))


@pytest.mark.parametrize(("mode", "sampling"), KINDS)
def test_pixels_are_decoded_where_they_are_wanted(mode, sampling):
    data = written(mode, (16, 16), subsampling=sampling)
    many = np.full((3, 16, 16, len(mode)), 7, np.uint8)  # L: one channel, RGB: three
    with opened(data) as image:
        truth = jpeg.pixels(image, mode)
        found = fitted(image, 16, len(mode), many[1])
    assert np.shares_memory(found, many[1])
    assert np.array_equal(many[1], truth)
    assert (many[[0, 2]] == 7).all()


@pytest.mark.parametrize(("size", "apart"), [((16, 16), 2), ((21, 16), 1)])
def test_a_place_of_another_form_is_left_alone(size, apart):
    place = np.zeros((16, 16, 3 * apart), np.uint8)[:, :, ::apart]
    data = written(size=size)
    with opened(data) as image:
        found = fitted(image, 16, 3, place)
        again = jpeg.pixels(image, "RGB", place)
    assert found.tobytes() == outcome(data)
    assert again is not None  # not left to Pillow for that
    assert not place.any()


def test_the_middle_is_cut_out(monkeypatch):
    for size in ((16, 21), (21, 16)):
        data = written(size=size)
        assert outcome(data) == by_pillow(data, monkeypatch)


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return written(size=(16, 20), exif=exif)


def without(data, what, other):
    assert what in data
    return data.replace(what, other)


ODD = {
    "progressive": written(progressive=True),
    "print colours": written("CMYK"),
    "grey": written("L"),
    "turned": turned(6),
    "chroma of a kind that was not tried": simplejpeg.encode_jpeg(
        np.random.default_rng(0).integers(0, 256, (17, 33, 3), np.uint8), colorsubsampling="440"
    ),
    "no end": written()[:-2],
    "cut": written(quality=95)[:-200],
    "a hole": without(written(restart_marker_blocks=1), b"\xff\xd1", b"\xff\xd3"),
    "arithmetic coding": without(written(), b"\xff\xc0", b"\xff\xc9"),
    "12 bits": without(written(), b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("what", ODD)
def test_odd_files_are_left_to_pillow(what, mode, monkeypatch):
    data = ODD[what]
    try:
        with opened(data) as image:
            found = jpeg.pixels(image, mode)
            assert (found is None) == ((what, mode) != ("grey", "L"))
    except OSError:
        assert what == "12 bits"  # Pillow refuses the header
    size, channels = 17, 1 if mode == "L" else 3
    assert outcome(data, size, channels) == by_pillow(data, monkeypatch, size, channels)


def test_an_upright_photograph_is_not_odd():
    with opened(turned(1)) as image:
        assert jpeg.pixels(image, "RGB").shape == (20, 16, 3)


@pytest.mark.parametrize("size", [(64, 64), (32, 8), (8, 8)])
def test_no_more_is_decoded_than_pillow_found_in_the_header(size):
    """Two parsers may disagree about a crafted file: the buffer has Pillow's size."""
    with opened(written(size=(16, 16))) as image:
        image.fp = io.BytesIO(written(size=size))
        assert jpeg.pixels(image, "RGB") is None


@pytest.mark.row("S13")
@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_files_have_pillows_outcome(count, monkeypatch, tried):
    chance = random.Random(count)
    wholes = [written(mode, (16, 16), subsampling=sampling) for mode, sampling in KINDS]
    for _ in range(count):
        data = mutated(chance.choice(wholes), chance)
        channels = chance.choice((1, 3))
        assert outcome(data, 16, channels) == by_pillow(data, monkeypatch, 16, channels)
    tried(count)


@pytest.mark.parametrize("faster", ["fastdct", "fastupsample"])
def test_a_decoder_that_gives_other_pixels_is_not_used(faster, monkeypatch):
    assert jpeg.agreeing() is simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", partial(simplejpeg.decode_jpeg, **{faster: True})
    )
    assert jpeg.agreeing.__wrapped__() is None


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert jpeg.agreeing.__wrapped__() is None


def test_an_image_that_is_decoded_already_is_left_to_pillow(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()
        assert jpeg.pixels(image, "RGB") is None
        assert fitted(image, 16, 3).shape == (16, 16, 3)
