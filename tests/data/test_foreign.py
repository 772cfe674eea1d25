"""LMDB folders of other programs: read as they are, refused when they are not whole."""

import io
import os
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from gan.data import foreign
from gan.data.datasets import Images
from gan.data.entries import lmdb as entry
from gan.data.foreign import ForeignImages, ForeignStore
from gan.data.images import read_image
from gan.data.sources import guess, kind, open_store
from gan.data.store import Rejected, Store, StoreError, build
from gan.data.stream import Stream


def encoded(seed: int, format: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed, 16, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def make(path: Path, values: Mapping[bytes, bytes]) -> Path:
    with (
        lmdb.open(os.fspath(path), map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    (path / "lock.mdb").unlink()
    return path


LSUN = {
    b"\x00\xfe" * 20: encoded(0, "WEBP"),
    b"0a3f" * 10: encoded(1, "JPEG"),
    b"ffff" * 10: encoded(2, "WEBP"),
}
BASICSR = {
    b"b/0001": encoded(3, "PNG"),
    b"a": encoded(4, "PNG", "RGBA"),
    b"c": encoded(5, "PNG", "I;16"),
}


@pytest.fixture
def lsun(tmp_path: Path) -> Path:
    return make(tmp_path / "church_train_lmdb", LSUN)


@pytest.fixture
def basicsr(tmp_path: Path) -> Path:
    path = make(tmp_path / "photos.lmdb", BASICSR)
    (path / "meta_info.txt").write_text(
        "b/0001.png (15,16,3) 1\na.png (16,16,4) 1\nc.png (17,16,1) 1\n"
    )
    return path


def expected(data: bytes, tmp_path: Path, suffix: str = ".png") -> np.ndarray:
    """What `ImageFolder` makes of an image."""
    file = tmp_path / f"one{suffix}"
    file.write_bytes(data)
    return read_image(file, 8, 3)


def everything(store: Store) -> np.ndarray:
    images = np.empty((store.count, *store.shape), np.uint8)
    store.read(np.arange(store.count), images)
    return images


def test_lsun_is_read_as_it_is(lsun: Path, tmp_path: Path) -> None:
    assert kind(lsun) == "lmdb"
    store = ForeignStore(lsun, 8, 3)
    assert store.source == "LSUN's LMDB church_train_lmdb"
    assert store.keys == ((b"\x00\xfe" * 20).hex(), "0a3f" * 10, "ffff" * 10)
    assert (len(store), store.shape, store.fields) == (3, (8, 8, 3), {})
    images = np.stack([expected(value, tmp_path) for _, value in sorted(LSUN.items())])
    assert np.array_equal(everything(store), images)
    some = np.empty((4, 8, 8, 3), np.uint8)
    store.read(np.array([2, 0, 2, 1]), some)
    assert np.array_equal(some, images[[2, 0, 2, 1]])
    assert sorted(os.listdir(lsun)) == ["data.mdb"]


def test_images_of_the_right_size_are_decoded_in_place(tmp_path: Path) -> None:
    """Seed 4 is of 16 x 16 pixels, the others lose their edge; PNG is Pillow's."""
    values = {
        f"{number}".encode(): encoded(seed, format)
        for number, (seed, format) in enumerate([(4, "JPEG"), (7, "JPEG"), (4, "PNG"), (4, "JPEG")])
    }
    store = ForeignStore(make(tmp_path / "photos_lmdb", values), 16, 3)
    order = np.array([3, 1, 2, 0, 1])
    images = np.empty((5, 16, 16, 3), np.uint8)
    store.read(order, images)
    for place, row in enumerate(order):
        file = tmp_path / f"{row}.png"
        file.write_bytes(values[b"%d" % row])
        assert np.array_equal(images[place], read_image(file, 16, 3))


def test_basicsr_is_read_in_the_order_of_its_list(basicsr: Path, tmp_path: Path) -> None:
    store = ForeignStore(basicsr, 8, 3)
    assert store.source == "BasicSR's LMDB photos.lmdb"
    assert store.keys == ("b/0001", "a", "c")
    images = np.stack([expected(value, tmp_path) for value in BASICSR.values()])
    assert np.array_equal(everything(store), images)
    assert sorted(os.listdir(basicsr)) == ["data.mdb", "meta_info.txt"]


def test_training_reads_both(
    lsun: Path, basicsr: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in (lsun, basicsr):
        dataset = entry(os.fspath(path), 8, 3)
        assert isinstance(dataset, Images)
        notice = capsys.readouterr().err
        assert f"{path} is read as it is" in notice
        assert (
            f"no checksums, and every image is decoded again and again; `gan data build {path}"
            in notice
        )
        stream = Stream(dataset, 2, seed=0, device=torch.device("cpu"), keys=["real"])
        assert next(stream)["real"].shape == (2, 3, 8, 8)
        stream.close()
    assert not (tmp_path / "data").exists()


def test_both_become_stores(lsun: Path, basicsr: Path, tmp_path: Path) -> None:
    for path in (lsun, basicsr):
        source = guess(path, 8)
        report = build(source, tmp_path / f"{path.stem}-store.lmdb")
        built, read = Store(report.path), ForeignStore(path, 8, 3)
        assert built.keys == read.keys
        assert np.array_equal(everything(built), everything(read))
        assert [item.key for item in source.after(2)] == [read.keys[2]]
        built.close()
    prints = {ForeignImages(lsun, size).fingerprint() for size in (8, 16)}
    os.utime(lsun / "data.mdb", ns=(1, 1))
    assert len(prints | {ForeignImages(lsun, 8).fingerprint()}) == 3


@pytest.mark.row("X11", "other programs' stores: cut, damaged and hostile ones refused")
def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a_lmdb", {b"a": encoded(0, "WEBP"), b"b": b"\xff\xd8\xff broken"})
    images = np.empty((1, 8, 8, 3), np.uint8)
    store = ForeignStore(path, 8, 3)
    with pytest.raises(StoreError, match="a_lmdb: b: .*gan data build"):
        store.read(np.array([1]), images)
    store.read(np.array([0]), images)
    _, second = ForeignImages(path, 8)
    assert isinstance(second, Rejected)


@pytest.mark.row("X11")
def test_large_values_are_refused(lsun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ForeignStore(lsun, 8, 3)
    monkeypatch.setattr(foreign, "LARGEST_FILE", 10)
    with pytest.raises(StoreError, match=f"{'0a3f' * 10} has .* bytes, at most 10 are read"):
        store.read(np.array([1]), np.empty((1, 8, 8, 3), np.uint8))


@pytest.mark.row("X11")
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "it holds no image"),
        ({b"a": pickle.dumps([print])}, r"begins with b'\\x80\\x04.*no JPEG, PNG or WebP"),
        ({b"length": b"1", b"256-00000": encoded(0, "JPEG")}, "rosinality"),
        ({b"num-samples": b"1", b"image-000000001": encoded(0, "JPEG")}, "text recognition"),
        ({b"__meta__": b"{}", b"block/00000000": b""}, "moved into a folder"),
    ],
)
def test_other_layouts_are_named(
    values: Mapping[bytes, bytes], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=f"data.mdb: .*{reason}"):
        open_store(make(tmp_path / "a.lmdb", values), 8, 3)


@pytest.mark.row("X11")
def test_no_pickled_key_cache_is_read(lsun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision unpickles such files, beside the data or in the current folder."""

    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (os.fspath(lsun / "harm"),)

    monkeypatch.chdir(lsun)
    for name in ("_cache_church_train_lmdb", "_cache_", "keys.pkl"):
        (lsun / name).write_bytes(pickle.dumps(Harm()))
    everything(ForeignStore(lsun, 8, 3))
    assert not (lsun / "harm").exists()


@pytest.mark.row("X11")
def test_the_list_must_agree_with_the_entries(basicsr: Path) -> None:
    file = basicsr / "meta_info.txt"
    whole = file.read_text()
    for text, odd in (
        (whole + "d.png (1,1,3) 1\n", "4 images and the LMDB file has 3, they differ at 'd'"),
        (whole.replace("a.png", "x.png"), "they differ at 'a'"),
        (whole.replace("a.png", "c.png"), "they differ at 'a'"),
        ("", "0 images and the LMDB file has 3"),
    ):
        file.write_text(text)
        with pytest.raises(StoreError, match=rf"meta_info\.txt: it names .*{odd}"):
            ForeignStore(basicsr, 8, 3)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="it is no text"):
        ForeignStore(basicsr, 8, 3)


@pytest.mark.row("X11")
def test_a_cut_file_is_refused_before_it_is_opened(lsun: Path) -> None:
    file, whole = lsun / "data.mdb", (lsun / "data.mdb").read_bytes()
    store = ForeignStore(lsun, 8, 3)
    for length in (0, 100, 8192, len(whole) - 4096):
        file.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"data\.mdb: it is"):
            ForeignStore(lsun, 8, 3)
        with pytest.raises(StoreError, match="changed since it was opened"):
            everything(store)


@pytest.mark.row("X11")
def test_a_value_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    large = encoded(0, "PNG") + bytes(9000)  # has pages of its own
    path = make(tmp_path / "a_lmdb", {b"k" * 9: large})
    data = (path / "data.mdb").read_bytes()
    node = data.index(b"k" * 9) - 8
    assert int.from_bytes(data[node : node + 4], "little") == len(large)
    (path / "data.mdb").write_bytes(data[:node] + b"\xff\xff\xff\xff" + data[node + 4 :])
    with pytest.raises(StoreError, match="4294967295 bytes leaves the file"):
        ForeignStore(path, 8, 3)


def test_what_read_is_given_is_checked(lsun: Path) -> None:
    store = ForeignStore(lsun, 8, 3)
    with pytest.raises(ValueError, match="out must be uint8"):
        store.read(np.arange(2), np.empty((3, 8, 8, 3), np.uint8))
    for row in (-1, 3):
        with pytest.raises(StoreError, match="leave 0 to 2"):
            store.read(np.array([row]), np.empty((1, 8, 8, 3), np.uint8))
    store.read(np.arange(0), np.empty((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"image\.channels must be 1 or 3"):
        ForeignStore(lsun, 8, 4)


def test_threads_copies_and_forks_read_the_same(lsun: Path) -> None:
    store = ForeignStore(lsun, 8, 3)
    images, found = everything(store), []
    for one in (store, pickle.loads(pickle.dumps(store)), ForeignStore(lsun, 8, 3)):
        threads = [threading.Thread(target=lambda s=one: found.append(everything(s))) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(one, images) for one in found)
    assert len(found) == 6
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(everything(store), images) else 1)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
