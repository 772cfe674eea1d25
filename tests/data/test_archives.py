"""Archives of images: the same pixels as a folder, and every hostile form refused (X5)."""

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.data import archives, images
from gan.data.archives import Archive, ArchiveError, located
from gan.data.sources import ImageFolder, guess, kind, open_store, store_path
from gan.data.store import Record, Rejected, StoreError, build


def png(seed: int = 0, side: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


CONTENT = {
    "cat/a.png": png(1),
    "cat/x/b.PNG": png(2),
    "cat/notes.txt": b"no image",
    "dog/.hidden.png": b"no image either",
    "dog/c.png": png(3),
}


def make(path: Path, content: Mapping[str, bytes]) -> Path:
    """An archive of the kind that its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    kinds = {"tgz": "gz", "gz": "gz", "bz2": "bz2", "xz": "xz"}
    with tarfile.open(path, f"w:{kinds.get(path.suffix[1:], '')}") as archive:
        for name, data in content.items():
            archive.addfile(header(name, len(data)), io.BytesIO(data))
    return path


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> object:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def with_headers(path: Path, *headers: object) -> Path:
    """A good image, then bare headers."""
    with tarfile.open(path, "w") as archive:
        archive.addfile(header("good.png", len(png())), io.BytesIO(png()))
        for one in headers:
            archive.addfile(one)
    return path


def refused(path: Path) -> dict[str, str]:
    return {item.key: item.reason for item in Archive(path, 8) if isinstance(item, Rejected)}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_an_archive_gives_what_its_folder_gives(suffix: str, tmp_path: Path) -> None:
    for name, data in CONTENT.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    folder = ImageFolder(tmp_path / "photos", 8)
    archive = Archive(make(tmp_path / f"photos.{suffix}", CONTENT), 8)
    assert kind(tmp_path / f"photos.{suffix}") == "archive"
    assert archive.name == f"archive photos.{suffix}"
    assert archive.names == folder.names == {"label": ["cat", "dog"]}
    assert len(archive) == 3
    for one, other in zip(archive, folder, strict=True):
        assert isinstance(one, Record)
        assert (one.key, one.fields) == (other.key, other.fields)
        assert np.array_equal(one.image, other.image)
    assert [record.key for record in archive.after(2)] == ["dog/c.png"]


def test_a_path_may_lead_into_an_archive(tmp_path: Path) -> None:
    content = {
        f"{part}/{name}": data for part in ("train", "test") for name, data in CONTENT.items()
    }
    path = make(tmp_path / "photos.zip", {**content, "test/dog/d.png": png(4)})
    assert guess(path, 8).names == {"label": ["test", "train"]}
    train = guess(path / "train", 8)
    assert train.name == "archive photos.zip/train"
    assert train.names == {"label": ["cat", "dog"]}
    assert [item.key for item in train] == ["cat/a.png", "cat/x/b.PNG", "dog/c.png"]
    assert len({guess(place, 8).fingerprint() for place in (path, path / "train")}) == 2
    with pytest.raises(ArchiveError, match=r"photos\.zip/none holds no JPEG"):
        guess(path / "none", 8)
    assert store_path(path / "train", 8, 3).name.startswith("photos.zip_train-")
    with pytest.raises(ArchiveError, match="no archive"):
        located(tmp_path / "none.zip")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_dot_between_folders_means_nothing(suffix: str, tmp_path: Path) -> None:
    content = {"./photos/./cat/a.png": png(1), "././photos/dog/./b.png": png(2)}
    path = make(tmp_path / f"photos.{suffix}", {**content, "photos/./.hidden/c.png": png(3)})
    archive = Archive(path / "photos", 8)
    assert archive.names == {"label": ["cat", "dog"]}
    assert [item.key for item in archive] == ["cat/a.png", "dog/b.png"]


def test_folders_that_all_images_share_are_no_classes(tmp_path: Path) -> None:
    wrapped = {f"photos/all/{name}": data for name, data in CONTENT.items()}
    assert Archive(make(tmp_path / "a.zip", wrapped), 8).names == {"label": ["cat", "dog"]}
    labels = [item.fields["label"] for item in Archive(tmp_path / "a.zip", 8)]
    assert labels == [0, 0, 1]
    one = {name: data for name, data in wrapped.items() if "cat" in name}
    assert Archive(make(tmp_path / "b.zip", one), 8).names == {}
    assert Archive(make(tmp_path / "c.tar", {"./a.png": png(), "./b.png": png()}), 8).names == {}


def test_backslashes_part_folders_in_a_zip_and_are_letters_in_a_tar(tmp_path: Path) -> None:
    content = {name.replace("/", "\\"): data for name, data in CONTENT.items()}
    archive = Archive(make(tmp_path / "a.zip", content), 8)
    assert archive.names == {"label": ["cat", "dog"]}
    plain = Archive(make(tmp_path / "b.zip", CONTENT), 8)
    for one, other in zip(archive, plain, strict=True):
        assert isinstance(one, Record)
        assert (one.key, one.fields) == (other.key, other.fields)
        assert np.array_equal(one.image, other.image)
    assert refused(make(tmp_path / "c.zip", {"a/1.png": png(1), "a\\1.png": png(2)})) == {
        "a/1.png": "it is there twice"
    }
    letters = Archive(make(tmp_path / "a.tar", {"a/1\\2.png": png()}), 8)
    assert [item.key for item in letters] == ["a/1\\2.png"]


def test_a_changed_archive_is_built_again(tmp_path: Path) -> None:
    path = make(tmp_path / "photos.tar.gz", CONTENT)
    first = open_store(path, 8, 3, folder=tmp_path / "data")
    assert (first.count, first.names) == (3, {"label": ["cat", "dog"]})
    first.close()
    make(path, {**CONTENT, "dog/e.png": png(5)})
    second = open_store(path, 8, 3, folder=tmp_path / "data")
    assert (second.count, second.path) == (4, first.path)
    second.close()


# ---- hostile archives (X5) -----------------------------------------------------------------------


@pytest.mark.row("X5", "hostile archives: members refused by name, nothing outside touched")
@pytest.mark.parametrize(
    "name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:out.png"]
)
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_names_that_leave_the_folder_are_refused(suffix: str, name: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = make(inner / f"a.{suffix}", {"good.png": png(), name: png()})
    before = sorted(tmp_path.rglob("*"))
    shown = name.replace("\\", "/") if suffix == "zip" else name
    assert refused(path) == {shown: "it would leave the folder"}
    with pytest.raises(StoreError, match=r"1 image cannot be used(.|\n)*out\.png"):
        open_store(path, 8, 3, folder=inner / "data")
    assert [
        file for file in sorted(tmp_path.rglob("*")) if inner / "data" not in (file, *file.parents)
    ] == before


@pytest.mark.row("X5")
def test_unsafe_names_are_refused_whatever_they_hold(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"good.png": png(), "../.bashrc": b"", "../d/": b""})
    assert refused(path) == dict.fromkeys(("../.bashrc", "../d/"), "it would leave the folder")


@pytest.mark.row("X5")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "it is a link to /etc/passwd"),
        (tarfile.LNKTYPE, "it is a link to /etc/passwd"),
        (tarfile.CHRTYPE, "it is no file"),
        (tarfile.BLKTYPE, "it is no file"),
        (tarfile.FIFOTYPE, "it is no file"),
    ],
)
def test_links_and_devices_are_refused(kind: bytes, reason: str, tmp_path: Path) -> None:
    path = with_headers(tmp_path / "a.tar", header("bad.png", 0, kind, "/etc/passwd"))
    assert refused(path) == {"bad.png": reason}


@pytest.mark.row("X5")
def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", png())
        for name, mode in (("link.png", stat.S_IFLNK), ("pipe.png", stat.S_IFIFO)):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (mode | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    assert refused(tmp_path / "a.zip") == {"link.png": "it is a link", "pipe.png": "it is no file"}


@pytest.mark.row("X5")
def test_large_members_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = {"good.png": png(), "bomb.png": bytes(8 << 20)}
    monkeypatch.setattr(images, "LARGEST_FILE", 1 << 20)
    for name in ("a.zip", "a.tar.gz"):
        path = make(tmp_path / name, bomb)
        tracemalloc.start()
        assert refused(path) == {"bomb.png": "it has 8388608 bytes, at most 1048576 are read"}
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


@pytest.mark.row("X5")
def test_a_zip_member_that_lies_about_its_size_is_not_unpacked_further(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"good.png": png(), "bomb.png": bytes(32 << 20)})
    data = path.read_bytes().replace(struct.pack("<I", 32 << 20), struct.pack("<I", 1000))
    path.write_bytes(data)
    tracemalloc.start()
    assert "CRC" in refused(path)["bomb.png"]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.row("X5")
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_bombs_of_many_members_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / name, {f"{n:04d}.png": bytes(10000) for n in range(200)})
    monkeypatch.setattr(archives, "MOST_BYTES", 100_000)
    monkeypatch.setattr(archives, "MOST_EXPANSION", 1)
    with pytest.raises(ArchiveError, match=rf"{name}: up to 00\d\d\.png it unpacks to more than"):
        Archive(path, 8)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    with pytest.raises(ArchiveError, match=r"0005\.png is one more than 5 members"):
        Archive(path, 8)


@pytest.mark.row("X5")
def test_headers_of_megabytes_are_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(
            header("././@LongLink", 8 << 20, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
        )
        file.write(b"a" * (8 << 20))
    tracemalloc.start()
    with pytest.raises(ArchiveError, match="header of 8388608 bytes"):
        Archive(tmp_path / "a.tar.gz", 8)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.row("X5")
def test_odd_members_are_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", png())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("good.png", png(1))
        archive.writestr("b.gif", b"")
        archive.writestr("c.png", b"no image")
        archive.writestr("d.png", png(), zipfile.ZIP_LZMA)
    found = refused(tmp_path / "a.zip")
    assert found.pop("c.png").startswith("cannot identify image file")
    assert found == {
        "good.png": "it is there twice",
        "b.gif": ".gif files are not read; convert it to PNG",
        "d.png": "its compression is not read",
    }
    report = build(Archive(tmp_path / "a.zip", 8), tmp_path / "a.lmdb")
    assert (report.count, len(report.rejected)) == (1, 4)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def at_a_header(data: bytes) -> bytes:
    """Only the first member, without the end mark."""
    return data[: 512 + -(-len(png()) // 512) * 512]


def scribbled(data: bytes) -> bytes:
    start = len(at_a_header(data))
    return data[:start] + b"\xff" * 512 + data[start + 512 :]


@pytest.mark.row("X5")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.zip", cut),
        ("a.tar", cut),
        ("a.tar", at_a_header),
        ("a.tar", scribbled),
        ("a.tar.gz", cut),
        ("a.tar.xz", cut),
        ("a.tar.bz2", cut),
        ("a.zip", lambda _: b""),
        ("a.tar.gz", lambda _: b"no archive"),
        ("a.tar", lambda _: b"no archive" * 100),
    ],
)
def test_a_damaged_archive_is_never_taken_for_a_shorter_one(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = make(tmp_path / name, {f"{n}.png": png() for n in range(6)})
    Archive(path, 8)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArchiveError, match=rf"{name}.*(damaged|cut)"):
        Archive(path, 8)


@pytest.mark.row("X5")
def test_negative_sizes_do_not_turn_in_circles(tmp_path: Path) -> None:
    info = header("a.png", 0).tobuf()
    raw = bytearray(info)
    raw[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    (tmp_path / "a.tar").write_bytes(bytes(raw) + bytes(1024))
    with pytest.raises(ArchiveError):
        Archive(tmp_path / "a.tar", 8)


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"notes.txt": b""})
    with pytest.raises(ArchiveError, match=r"archive a\.zip holds no JPEG, PNG or WebP image"):
        guess(path, 8)
    with pytest.raises(ValueError, match=r"image\.channels must be 1 or 3, not 2"):
        Archive(path, 8, 2)
    assert os.listdir(tmp_path) == ["a.zip"]
