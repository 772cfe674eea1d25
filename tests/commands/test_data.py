"""`gan data build` and `gan data verify`."""

import argparse
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from gan.commands import data
from gan.data.store import Store, StoreError


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *map(str, arguments)])
    return args.func(args)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def test_build_makes_a_store_and_lists_what_it_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "stores" / "a.lmdb"
    assert run("build", photos, target, "--size", 16) == 0
    out = capsys.readouterr().out
    assert f"{target}: 3 images of 16x16x3 from image folder photos" in out
    assert "1 left out:" in out
    assert "broken.png: cannot identify image file" in out
    opened = Store(target)
    images = np.empty((3, 16, 16, 3), np.uint8)
    opened.read(np.arange(3), images)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    opened.close()


def test_pipes_are_left_out_and_not_waited_for(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipe.png", "index.json"):
        os.mkfifo(photos / name)
    assert run("build", photos, tmp_path / "a.lmdb", "--size", 16) == 0
    out = capsys.readouterr().out
    assert "3 images of" in out
    assert "2 left out:" in out
    assert "pipe.png: it is no regular file" in out


def test_build_replaces_only_on_request(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.lmdb"
    run("build", photos, target, "--size", 16)
    with pytest.raises(StoreError, match="--overwrite"):
        run("build", photos, target, "--size", 8, "--channels", 1)
    assert run("build", photos, target, "--size", 8, "--channels", 1, "--overwrite") == 0
    assert Store(target).shape == (8, 8, 1)


def test_build_needs_a_store_name_for_images(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"STORE must end in \.lmdb, unlike .*other"):
        run("build", photos, tmp_path / "other")
    with pytest.raises(ValueError, match="nothing at .*none"):
        run("build", tmp_path / "none", tmp_path / "a.lmdb")


@pytest.mark.parametrize("size", ["0", "-3", "x", "1.5"])
def test_build_refuses_odd_sizes(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("build", "a", "b.lmdb", "--size", size)
    assert caught.value.code == 2
    assert "--size" in capsys.readouterr().err


def test_fonts_become_the_embedded_sheets_by_their_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gan.data import sheets

    (tmp_path / "a.ttf").touch()
    made = sheets.Sheets(tmp_path / "hanzi", 32, 1000, ["index.versions: other"], False)
    monkeypatch.setattr(sheets, "build_sheets", lambda *_, overwrite: made)
    assert run("build", tmp_path, tmp_path / "hanzi") == 0
    out = capsys.readouterr().out
    assert "index.versions: other" in out
    assert "left as it is; --overwrite" in out
    with pytest.raises(ValueError, match="--channels is not for .*hanzi"):
        run("build", tmp_path, tmp_path / "hanzi", "--channels", 1)
    with pytest.raises(ValueError, match=r"STORE must end in \.lmdb, unlike .*glyphs"):
        run("build", tmp_path, tmp_path / "glyphs")


def test_an_archive_becomes_a_store_with_what_was_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(photos, "photos")
        archive.add(photos / "0.png", "../0.png")
    assert run("build", tmp_path / "photos.tar.gz", tmp_path / "a.lmdb", "--size", 8) == 0
    out = capsys.readouterr().out
    assert "3 images of 8x8x3 from archive photos.tar.gz" in out
    assert "2 left out:" in out
    assert "photos/broken.png: cannot identify image file" in out
    assert "../0.png: it would leave the folder" in out


def test_a_set_of_torchvision_becomes_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = datasets.FakeData(5, (3, 8, 8))
    monkeypatch.setattr(datasets, "CIFAR10", lambda *_, download, train: fake)
    build = ("build", tmp_path, tmp_path / "a.lmdb", "--dataset", "cifar10", "--size", 8)
    assert run(*build, "--part", "test") == 0
    assert "5 images of 8x8x3 from torchvision's CIFAR10 (test)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("build", tmp_path, tmp_path / "b.lmdb", "--dataset", "imagenet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "test"], "--part is for the data sets of torchvision"),
        (["--download"], "--download is for the data sets of torchvision"),
        (["--dataset", "mnist", "--characters", "一"], "--characters is for fonts"),
    ],
)
def test_options_that_would_not_be_read_are_refused(
    photos: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run("build", photos, tmp_path / "a.lmdb", *options)


def test_verify_tells_the_damaged_blocks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.lmdb"
    run("build", photos, target, "--size", 16)
    assert run("verify", target) == 0
    assert f"{target}: 3 images, all whole" in capsys.readouterr().out
    whole = target.read_bytes()
    pixels = bytes([1, 0, 0] * 256)
    target.write_bytes(whole.replace(pixels, bytes([9, 0, 0] * 256)))
    assert run("verify", target) == 1
    out = capsys.readouterr().out
    assert "block 0, images 0 to 2: " in out
    assert "CRC" in out
    os.truncate(target, 100)
    assert run("verify", target) == 1
    with pytest.raises(StoreError, match="no such store"):
        run("verify", tmp_path / "none.lmdb")
