"""The store: what goes in comes out, and whatever is wrong with a file is said, not returned."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest

from gan.data import building, layout, pages, reading, store
from gan.data.builder import fingerprint
from gan.data.building import build
from gan.data.datasets import Images
from gan.data.store import Record, Rejected, Store, StoreBusyError, StoreError, verify

PLAIN = {"subdir": False, "lock": False, "sync": False}


class Noise:
    """A source of random images with a label, a code without names, and some rejected inputs."""

    facts = {"licence": "none", "numbers": [1, 2]}
    names = {"label": ["a", "b", "c"]}

    def __init__(self, count: int, shape: tuple[int, int, int] = (8, 8, 1), seed: int = 0) -> None:
        self.count, self.shape, self.seed = count, shape, seed
        self.name = "noise"
        self.asked: list[int] = []

    def fingerprint(self) -> str:
        return f"{self.count} {self.seed}"

    def __len__(self) -> int:
        return self.count

    def image(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).integers(0, 256, self.shape, np.uint8)

    def __iter__(self) -> Iterator[Record | Rejected]:
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        self.asked.append(seen)
        return map(self.item, range(seen, self.count))

    def item(self, number: int) -> Record | Rejected:
        if number % 50 == 7:
            return Rejected(f"{number:05d}", "unlucky")
        fields = {"label": number % 3, "code": 0x4E00 - number}
        return Record(f"{number:05d}", self.image(number), fields)

    def records(self) -> list[Record]:
        return [item for item in self if isinstance(item, Record)]


class Given(Noise):
    """A source of given records."""

    def __init__(self, *items: Record | Rejected, shape: tuple[int, int, int] = (8, 8, 1)) -> None:
        super().__init__(len(items), shape)
        self.items = items

    def item(self, number: int) -> Record | Rejected:
        return self.items[number]


SMALL = Noise(300)  # 294 images in 3 blocks
IMAGE = np.zeros((8, 8, 1), np.uint8)


def read(opened: Store, rows: np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(opened.count) if rows is None else rows
    out = np.empty((len(rows), *opened.shape), np.uint8)
    opened.read(rows, out)
    return out


def everything(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[str, ...]]:
    with contextlib.closing(Store(path)) as opened:
        return read(opened), opened.fields, tuple(opened.keys)


def refused(path: Path, text: str) -> None:
    with pytest.raises(StoreError, match=text) as caught:
        everything(path)
    assert str(path) in str(caught.value)


def value_of(path: Path, key: bytes) -> bytes:
    with (
        lmdb.open(str(path), readonly=True, **PLAIN) as environment,
        environment.begin() as reading,
    ):
        value = reading.get(key)
    assert value is not None
    return value


def put(path: Path, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(path), **PLAIN) as environment, environment.begin(write=True) as writing:
        if value is None:
            writing.delete(key)
        else:
            writing.put(key, value)


def put_meta(path: Path, **changes: object) -> None:
    with (
        lmdb.open(str(path), readonly=True, **PLAIN) as environment,
        environment.begin(buffers=True) as reading,
    ):
        meta = layout.read_meta(reading)
    payload = layout.json_bytes(vars(meta) | changes)
    put(path, layout.META, layout.meta_header(len(payload)).value(layout.META, payload))


def in_child(function: Callable[[], object]) -> int:
    """Runs a function in a forked child: 0 when it returns, 1 when it raises, minus its signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of ours is in a lock
        child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(2)
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            function()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- what goes in comes out ----------------------------------------------------------------------


def test_images_fields_keys_and_meta_come_back(built: Path) -> None:
    opened, records = Store(built), SMALL.records()
    assert (opened.count, len(opened), opened.shape) == (294, 294, (8, 8, 1))
    assert opened.source == "noise"
    assert opened.names == SMALL.names
    assert opened.facts == SMALL.facts
    assert opened.fingerprint == fingerprint(SMALL)
    assert list(opened.keys) == [record.key for record in records]
    assert np.array_equal(read(opened), [record.image for record in records])
    for name in ("label", "code"):
        assert opened.fields[name].dtype == np.int64
        assert opened.fields[name].tolist() == [record.fields[name] for record in records]
    assert opened.rejected_count == 6
    assert opened.rejected[1] == Rejected("00057", "unlucky")
    opened.close()


def test_rows_come_in_the_order_asked_for(built: Path) -> None:
    opened, records = Store(built), SMALL.records()
    rows = np.random.default_rng(0).integers(0, opened.count, 500)
    assert np.array_equal(read(opened, rows), [records[row].image for row in rows])
    assert read(opened, rows[:0]).shape == (0, 8, 8, 1)
    opened.close()


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (72, 40, 3), (600, 600, 3)])
def test_other_shapes_come_back_too(shape: tuple[int, int, int], tmp_path: Path) -> None:
    source = Noise(7, shape)
    build(source, tmp_path / "a.lmdb")
    images, _, _ = everything(tmp_path / "a.lmdb")
    assert np.array_equal(images, [record.image for record in source.records()])


@pytest.mark.parametrize(("shape", "count"), [((28, 28, 1), 4000), ((32, 32, 3), 2000)])
def test_file_is_hardly_larger_than_its_pixels(
    shape: tuple[int, int, int], count: int, tmp_path: Path
) -> None:
    source = Noise(count, shape)
    source.item = lambda n: Record(f"{n:05d}", source.image(n), {"label": n % 3})
    report = build(source, tmp_path / "a.lmdb")
    assert report.path.stat().st_size / (report.count * np.prod(shape)) <= 1.03


def test_a_store_opens_fast(tmp_path: Path) -> None:
    build(Noise(3000, (32, 32, 3)), tmp_path / "a.lmdb")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        Store(tmp_path / "a.lmdb").close()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_images_without_fields(tmp_path: Path) -> None:
    source = Given(Record("a", IMAGE, {}), Record("b", IMAGE + 1, {}))
    build(source, tmp_path / "a.lmdb")
    images, fields, keys = everything(tmp_path / "a.lmdb")
    assert (fields, keys, images.shape) == ({}, ("a", "b"), (2, 8, 8, 1))


def test_wrong_requests_are_refused(built: Path) -> None:
    opened = Store(built)
    for rows in ([0, 294], [-1, 5]):
        with pytest.raises(StoreError, match=r"small\.lmdb: rows .* leave 0 to 293"):
            read(opened, np.array(rows))
    with pytest.raises(ValueError, match=r"uint8 \(2, 8, 8, 1\), not float32 \(2, 8, 8, 1\)"):
        opened.read(np.arange(2), np.empty((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        opened.read(np.arange(2), np.empty((4, 8, 8, 1), np.uint8)[::2])
    opened.close()


@pytest.mark.row(
    "S10", "several data sets on one file, in threads, forks, spawned processes, forkservers"
)
def test_threads_may_share_a_store(built: Path) -> None:
    expected, wrong = everything(built)[0], []

    def feed(seed: int) -> None:
        shared = Store(built)
        for _ in range(50):
            rows = np.random.default_rng(seed).integers(0, shared.count, 64)
            wrong.append(not np.array_equal(read(shared, rows), expected[rows]))
        shared.close()

    threads = [threading.Thread(target=feed, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 150
    assert not any(wrong)


# ---- one environment per process and file (M6, S9, S10) ------------------------------------------


@pytest.mark.row("S10")
def test_all_stores_on_a_file_share_what_is_open(built: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.lmdb"
    link.symlink_to(built)
    first, second = Store(built), Store(link)
    assert len(store._files) == 1
    first.close()
    assert read(second, np.arange(3)).shape == (3, 8, 8, 1)
    second.close()
    assert not store._files
    assert read(first, np.arange(3)).shape == (3, 8, 8, 1)  # opened again
    first.close()


def test_a_forgotten_store_does_not_stay_open(built: Path, copy: Path) -> None:
    Store(copy)
    Store(built).close()
    assert not store._files


def test_lmdb_itself_refuses_a_second_environment(built: Path) -> None:
    with contextlib.closing(Store(built)), pytest.raises(lmdb.Error, match="already open"):
        lmdb.open(str(built), readonly=True, **PLAIN)


@pytest.mark.row("S10")
def test_a_forked_child_reads_what_its_parent_has_open(built: Path) -> None:
    opened = Store(built)
    expected = read(opened)

    def child() -> None:
        assert np.array_equal(read(opened), expected)
        assert np.array_equal(everything(built)[0], expected)

    assert in_child(child) == 0
    assert np.array_equal(read(opened), expected)
    opened.close()


def test_a_fork_needs_the_inherited_environment_closed(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Store(built)
    monkeypatch.setattr(reading.StoreFile, "close", lambda self: setattr(self, "closed", True))
    assert in_child(lambda: read(opened)) == 1
    monkeypatch.undo()
    opened.close()


@pytest.mark.slow
@pytest.mark.row("S10")
def test_a_spawned_process_reads_a_pickled_store(built: Path) -> None:
    with contextlib.closing(Store(built)) as opened:
        assert len(pickle.dumps(opened)) < 500
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(getattr, (opened, "keys")) == opened.keys


@pytest.mark.row("S9", "a store replaced under its readers: they keep what they opened")
def test_a_reader_keeps_the_old_content_of_a_replaced_store(copy: Path) -> None:
    opened = Store(copy)
    expected, pickled = read(opened), pickle.dumps(opened)
    build(Noise(100, seed=1), copy, overwrite=True)
    assert np.array_equal(read(opened), expected)
    with pytest.raises(StoreError, match="replaced while this process reads the old file"):
        Store(copy)
    opened.close()
    for late in (lambda: read(opened), lambda: pickle.loads(pickled)):
        with pytest.raises(StoreError, match="replaced since it was opened"):
            late()
    assert everything(copy)[0].shape == (98, 8, 8, 1)


@pytest.mark.row("S11", "readers leave nothing behind")
def test_readers_leave_no_file_behind(copy: Path) -> None:
    copy.parent.chmod(0o555)
    everything(copy)
    copy.parent.chmod(0o755)
    assert os.listdir(copy.parent) == [copy.name]


# ---- damage (S1, S2, S4, S5, X6) -----------------------------------------------------------------


@pytest.mark.row("S1", "a store cut anywhere, or while it is read: said before LMDB reads it")
def test_every_cut_is_found_before_lmdb_sees_the_file(
    copy: Path, tried: Callable[[int], None]
) -> None:
    whole = copy.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 200).astype(int):
        copy.write_bytes(whole[:size])
        refused(copy, rf"it is cut: {size} bytes of {len(whole)}|empty|first pages are cut")
    tried(200)


def test_a_cut_kills_a_reader_that_does_not_look(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = copy.stat().st_size
    os.truncate(copy, 12288)
    monkeypatch.setattr(reading, "checked_bytes", lambda _: size)
    assert in_child(lambda: everything(copy)) == -signal.SIGBUS


def cut_while_open(path: Path) -> Store:
    opened = Store(path)
    os.truncate(path, 8192)
    return opened


@pytest.mark.row("S1")
def test_a_cut_in_place_is_found_before_the_next_batch(
    copy: Path, tried: Callable[[int], None]
) -> None:
    opened = cut_while_open(copy)
    for use in (lambda: read(opened), lambda: opened.fields, lambda: opened.keys):
        with pytest.raises(StoreError, match="it is cut: 8192 bytes of"):
            use()
    opened.close()
    tried(3)


def test_a_cut_in_place_kills_a_reader_that_does_not_look(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading.StoreFile, "check_size", lambda self: None)
    assert in_child(lambda: read(cut_while_open(copy))) == -signal.SIGBUS


def mutant(value: bytes, chance: random.Random) -> bytes:
    """A value with noise, a hole, an insertion, a cut, or another header."""
    start = chance.randrange(len(value))
    stop = min(len(value), start + chance.randrange(1, 40))
    place = chance.randrange(48)
    noise = chance.randbytes(stop - start)
    return {
        "noise": value[:start] + noise + value[stop:],
        "flip": value[:start]
        + bytes([value[start] ^ 1 << chance.randrange(8)])
        + value[start + 1 :],
        "delete": value[:start] + value[stop:],
        "insert": value[:start] + noise + value[start:],
        "cut": value[:start],
        "header": chance.randbytes(48) + value[48:],
        "field": value[:place] + chance.randbytes(1) + value[place + 1 :],
    }[chance.choice(["noise", "flip", "delete", "insert", "cut", "header", "field"])]


def undetected(path: Path, count: int, seed: int = 0) -> int:
    """How many of `count` stores with one mutated value are read without an error."""
    missed, chance = 0, random.Random(seed)
    keys = [b"block/%08d" % n for n in range(3)] + [b"index/00000000", b"__meta__"]
    whole, values = path.read_bytes(), {key: value_of(path, key) for key in keys}
    for _ in range(count):
        key = chance.choice(keys)
        changed = mutant(values[key], chance)
        if changed == values[key]:
            continue
        path.write_bytes(whole)
        put(path, key, changed)
        try:
            everything(path)
        except StoreError:
            continue
        missed += 1
    path.write_bytes(whole)
    return missed


@pytest.mark.row("S2", "mutated values: none undetected")
def test_mutated_values_are_refused(copy: Path, tried: Callable[[int], None]) -> None:
    assert undetected(copy, 1000) == 0
    tried(1000)


@pytest.mark.row("S2")
@pytest.mark.slow
def test_many_mutated_values_are_refused(copy: Path, tried: Callable[[int], None]) -> None:
    assert undetected(copy, 10_000, seed=1) == 0
    tried(10000)


def test_mutated_values_pass_without_checksums(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: layout.Header, key: bytes, value: memoryview) -> memoryview:
        if len(value) != 48 + self.length:
            raise StoreError("length")
        return memoryview(value)[48:]

    monkeypatch.setattr(layout.Header, "payload", unchecked)
    assert undetected(copy, 50) > 5


@pytest.mark.row("S2")
def test_a_damaged_block_is_named_at_its_first_touch(copy: Path) -> None:
    value = value_of(copy, b"block/00000001")
    put(copy, b"block/00000001", value[:-1] + bytes([value[-1] ^ 1]))
    opened = Store(copy)
    per_block = opened._file.meta.per_block
    assert read(opened, np.arange(per_block)).shape[0] == per_block
    expected = rf"block 1, images {per_block} to {2 * per_block - 1}: .*CRC.*gan data verify"
    with pytest.raises(StoreError, match=expected):
        read(opened)
    opened.close()


@pytest.mark.row("S4", "missing keys, wrong counts, incomplete stores: named")
def test_incomplete_stores_are_refused(copy: Path, tried: Callable[[int], None]) -> None:
    whole = copy.read_bytes()
    for changes, text in (
        ({"complete": False}, "not complete"),
        ({"count": 0, "index": []}, "no image"),
        ({"count": 600}, "do not add up"),
        ({"count": 600, "index": [[600, 10]]}, r"has 5 values, expected \d+"),
        ({"shape": [8, 8]}, "malformed"),
        ({"shape": [1 << 20, 1 << 20, 3]}, "larger than 64 MiB"),
        ({"names": {"label": ["a"]}}, "label leaves the range"),
        ({"surprise": 1}, "malformed"),
    ):
        copy.write_bytes(whole)
        put_meta(copy, **changes)
        refused(copy, text)
    copy.write_bytes(whole)
    put(copy, b"block/00000001", None)
    refused(copy, "has 4 values, expected 5")
    copy.write_bytes(whole)
    put(copy, layout.META, None)
    refused(copy, "without our meta record")
    tried(10)


@pytest.mark.row("S4")
def test_a_field_out_of_its_range_is_refused(copy: Path) -> None:
    put_meta(copy, fields={"label": [0, 1], "code": [0, 5]})
    refused(copy, "the field label does not span 0 to 1")


@pytest.mark.row("S4")
def test_another_format_version_is_named(copy: Path) -> None:
    value = bytearray(value_of(copy, layout.META))
    value[4:6] = (9).to_bytes(2, "little")
    put(copy, layout.META, bytes(value))
    refused(copy, "format version 9, this program reads 1")


@pytest.mark.row("S5", "what is no store: named")
def test_what_is_no_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Callable[[int], None]
) -> None:
    path = tmp_path / "a.lmdb"
    refused(path, "cannot be opened: No such file")
    path.write_bytes(b"")
    refused(path, "it is empty")
    path.write_text("to be, or not to be\n" * 1000)
    refused(path, "not an LMDB file")
    path.unlink()
    put(path, b"some", b"thing")
    refused(path, "without our meta record")
    path.unlink()
    path.mkdir()
    refused(path, "not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, "not a regular file")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading.os, "open", denied)
    refused(path, "cannot be opened: Permission denied")
    tried(7)


def claim_4_gib(path: Path, key: bytes) -> None:
    """Changes the length that LMDB has noted for the value of a key."""
    pages, at = bytearray(path.read_bytes()), -1
    while (at := pages.find(key, at + 1)) >= 8:
        pages[at - 8 : at - 4] = b"\xff\xff\xff\xff"
    path.write_bytes(pages)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.row("X6", "pickles, depth and huge lengths in stores and indices: format errors")
def test_pickles_and_huge_lengths_are_format_errors(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tried: Callable[[int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, bomb = copy.read_bytes(), pickle.dumps(Bomb())
    for key in (b"block/00000000", b"index/00000000", layout.META):
        copy.write_bytes(whole)
        put(copy, key, bomb)
        refused(copy, "has .* bytes, not|begins with|malformed")
        copy.write_bytes(whole)
        claim_4_gib(copy, key)
        refused(copy, "its tree is damaged")
    assert not (tmp_path / "exploded").exists()
    tried(6)


def test_a_huge_length_kills_a_reader_that_trusts_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_4_gib(copy, b"block/00000000")
    monkeypatch.setattr(pages, "_check_leaf_node", lambda *_: None)
    assert in_child(lambda: everything(copy)) in (-signal.SIGSEGV, -signal.SIGBUS)


@pytest.mark.row("S3", "mutated pages: no wrong pixel in silence, no hang")
@pytest.mark.slow
def test_damaged_pages_never_give_wrong_pixels_in_silence(copy: Path) -> None:
    whole, chance = copy.read_bytes(), random.Random(0)
    content = everything(copy)[0]
    for _ in range(60):
        pages = bytearray(whole)
        for _ in range(3):
            pages[chance.randrange(len(pages))] = chance.randrange(256)
        copy.write_bytes(pages)
        if not verify(copy).damages:
            assert np.array_equal(everything(copy)[0], content)


# ---- verify --------------------------------------------------------------------------------------


def test_verify_lists_all_damaged_blocks(copy: Path) -> None:
    assert verify(copy).damages == []
    assert verify(copy).count == 294
    for key in (b"block/00000000", b"block/00000002"):
        value = value_of(copy, key)
        put(copy, key, value[:60] + b"?!" + value[62:])
    parts = [damage.part for damage in verify(copy).damages]
    assert len(parts) == 2
    assert [part.split(",")[0] for part in parts] == ["block 0", "block 2"]
    assert parts[1].endswith("to 293")
    os.truncate(copy, 8192)
    assert [damage.part for damage in verify(copy).damages] == ["the file"]
    with pytest.raises(StoreError, match="no such store"):
        verify(copy.with_name("other.lmdb"))


@pytest.mark.row("S2")
def test_verify_compares_the_content_hash(copy: Path) -> None:
    first = SMALL.records()[0].image.tobytes()
    key, value = b"block/00000000", value_of(copy, b"block/00000000")
    count = int.from_bytes(value[28:32], "little")
    payload = bytes(len(first)) + value[48 + len(first) :]  # with a good checksum of its own
    put(copy, key, layout.block_header((8, 8, 1), 0, count).value(key, payload))
    assert [damage.part for damage in verify(copy).damages] == ["content hash"]


def test_verify_survives_the_death_of_its_reader(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = 'import os\nprint(\'["part", "block 1"]\', flush=True)\nos.kill(os.getpid(), 7)\n'
    monkeypatch.setattr(store, "CHILD", dies)
    ((part, reason),) = verify(built).damages
    assert part == "block 1"
    assert "SIGBUS" in reason


# ---- building (S6, S7, S8, S12) ------------------------------------------------------------------


def test_sync_comes_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, sync, replace = [], os.fsync, os.replace
    name = "/proc/self/fd/{}".format
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(os.readlink(name(fd))), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    build(Noise(10), tmp_path / "a.lmdb")
    assert order == [str(tmp_path / ".a.lmdb.building"), "replace", str(tmp_path)]
    assert os.listdir(tmp_path) == ["a.lmdb"]


LARGE = Noise(2300, (4, 4, 1))  # three commits


@pytest.fixture(scope="module")
def content_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(LARGE, tmp_path_factory.mktemp("whole") / "a.lmdb").content_hash


def killed_at(number: int, path: Path) -> int:
    """Builds in a child that is killed at one of the source's items."""
    source = Noise(LARGE.count, LARGE.shape)
    source.item = lambda n: os.kill(os.getpid(), 9) if n == number else LARGE.item(n)
    return in_child(lambda: build(source, path))


def kills(path: Path, numbers: list[int], content_hash: str) -> None:
    for number in numbers:
        assert killed_at(number, path) == -signal.SIGKILL
        assert not path.exists()
    source = Noise(LARGE.count, LARGE.shape)
    assert build(source, path).content_hash == content_hash
    commits = [0, *np.flatnonzero(np.cumsum([n % 50 != 7 for n in range(2300)]) % 128 == 0) + 1]
    assert source.asked[0] in commits
    assert source.asked[0] > max(numbers) - 1100
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.row(
    "S6", "builders killed at any item: the target absent or whole, nothing done twice"
)
def test_a_killed_builder_goes_on_after_its_last_commit(
    tmp_path: Path,
    content_hash: str,
    capfd: pytest.CaptureFixture[str],
    tried: Callable[[int], None],
) -> None:
    kills(tmp_path / "a.lmdb", [3, 1500, 2299], content_hash)
    assert "a.lmdb: going on after process" in capfd.readouterr().err
    tried(3)


@pytest.mark.row("S6")
@pytest.mark.slow
def test_fifty_kills_lose_nothing(
    tmp_path: Path, content_hash: str, tried: Callable[[int], None]
) -> None:
    numbers = sorted(random.Random(0).sample(range(2300), 50))
    kills(tmp_path / "a.lmdb", numbers, content_hash)
    tried(50)


@pytest.mark.row("S6")
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_builder_killed_at_the_very_end_goes_on(
    function: str, tmp_path: Path, content_hash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lmdb"
    monkeypatch.setattr(os, function, lambda *_: os.kill(os.getpid(), 9))
    assert in_child(lambda: build(LARGE, path)) == -signal.SIGKILL
    monkeypatch.undo()
    assert not path.exists()
    source = Noise(LARGE.count, LARGE.shape)
    assert build(source, path).content_hash == content_hash
    assert source.asked == [2300]


def test_a_source_that_cannot_go_on_is_read_again(tmp_path: Path, content_hash: str) -> None:
    class Plain:
        name, shape, names, facts = "noise", LARGE.shape, LARGE.names, LARGE.facts
        fingerprint = LARGE.fingerprint

        def __len__(self) -> int:
            return len(LARGE)

        def __iter__(self) -> Iterator[Record | Rejected]:
            return iter(LARGE)

    assert killed_at(1500, tmp_path / "a.lmdb") == -signal.SIGKILL
    assert build(Plain(), tmp_path / "a.lmdb").content_hash == content_hash


@pytest.mark.row("S6")
def test_another_source_does_not_go_on(tmp_path: Path, content_hash: str) -> None:
    path = tmp_path / "a.lmdb"
    killed_at(1500, path)
    changed = Noise(LARGE.count, LARGE.shape, seed=1)
    first, second = fingerprint(LARGE)[:12], fingerprint(changed)[:12]
    with pytest.raises(StoreError, match=rf"building: .*{first}.*{second}.*--overwrite"):
        build(changed, path)
    assert build(changed, path, overwrite=True).content_hash != content_hash


@pytest.mark.row("S7", "the map grows")
def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_FIRST_MAP", 1 << 20)
    source = Noise(3000, (32, 32, 1))
    build(source, tmp_path / "a.lmdb")
    assert np.array_equal(everything(tmp_path / "a.lmdb")[0], [r.image for r in source.records()])
    monkeypatch.setattr(building.lmdb, "MapFullError", KeyError)
    with pytest.raises(StoreError, match="MDB_MAP_FULL"):
        build(source, tmp_path / "b.lmdb")


@pytest.mark.row("S8", "a full disk while building: explained, resumed")
def test_a_full_disk_is_explained_and_resumed(tmp_path: Path, content_hash: str) -> None:
    path = tmp_path / "a.lmdb"

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        try:
            build(LARGE, path)
        except StoreError as error:
            (tmp_path / "error").write_text(str(error))

    assert in_child(child) == 0
    message = (tmp_path / "error").read_text()
    assert "a.lmdb.building cannot be written" in message
    assert "MiB are free, the store needs 1 MiB" in message
    assert not path.exists()
    assert build(LARGE, path).content_hash == content_hash


@pytest.mark.row("S6")
def test_only_one_process_builds_a_store(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    busy = f"a.lmdb is being built by process {os.getpid()}"
    with building.exclusive(path, Noise(10)), pytest.raises(StoreBusyError, match=busy):
        build(Noise(10), path)
    build(Noise(10), path)


def test_a_store_is_replaced_only_on_request(copy: Path) -> None:
    before = copy.read_bytes()
    with pytest.raises(StoreError, match=r"copy\.lmdb exists.*--overwrite"):
        build(Noise(10), copy)
    assert copy.read_bytes() == before
    with pytest.raises(StoreError, match=r"ends in \.lmdb, unlike .*photos"):
        build(Noise(10), copy.with_name("photos"))
    (copy.parent / "b.lmdb").mkdir()
    with pytest.raises(StoreError, match=r"b\.lmdb exists"):
        build(Noise(10), copy.parent / "b.lmdb", overwrite=True)


def test_rejected_inputs_are_listed_or_refused(tmp_path: Path) -> None:
    bad = [Rejected(f"{n}.png", f"reason {n}") for n in range(25)]
    source = Given(*bad, Record("a", IMAGE, {}))
    with pytest.raises(StoreError, match="25 images cannot be used") as caught:
        build(source, tmp_path / "a.lmdb", on_error="raise")
    assert "19.png: reason 19\n  and 5 more" in str(caught.value)
    assert "leave out (data.on_error=skip)" in str(caught.value)
    report = build(source, tmp_path / "a.lmdb")
    assert source.asked[-1] == 26  # nothing is done twice
    assert (report.count, report.rejected) == (1, bad)
    assert report.content_hash == Store(report.path).content_hash


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="noise holds no image"):
        build(Given(), tmp_path / "a.lmdb")
    for on_error in ("skip", "raise"):  # neither of which would help
        with pytest.raises(StoreError, match="1 image cannot be used, and there is no other; rep"):
            build(Given(Rejected("a", "b")), tmp_path / "a.lmdb", on_error=on_error)
    assert not (tmp_path / "a.lmdb").exists()


@pytest.mark.parametrize(
    ("code", "said"), [(-1, "has negative values"), (2**31 - 1, "has the value 2147483647, but")]
)
def test_numbers_that_are_no_classes_are_refused(tmp_path: Path, code: int, said: str) -> None:
    fields = ({"label": 0, "code": 0}, {"label": 1, "code": code})
    build(Given(*(Record(str(n), IMAGE, f) for n, f in enumerate(fields))), tmp_path / "a.lmdb")
    with contextlib.closing(Store(tmp_path / "a.lmdb")) as store:
        assert Images(store, "label").facts == {"classes": 3}
        with pytest.raises(StoreError, match=f"data.label=code {said}"):
            Images(store, "code")


@pytest.mark.row("S12", "odd names and fields: refused while building")
@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([Record("a", IMAGE, {}), Record("a", IMAGE, {})], "occurs twice"),
        ([Record("a" * 600, IMAGE, {})], "600 bytes"),
        ([Record("a\udcff", IMAGE, {})], "UTF-8"),
        ([Record("../a", IMAGE, {})], "relative path"),
        ([Record("/a", IMAGE, {})], "relative path"),
        ([Record("", IMAGE, {})], "relative path"),
        ([Record("a\nb", IMAGE, {})], "control"),
        ([Record("a", IMAGE, {"label": 3})], "label is 3, expected an integer from 0 to 2"),
        ([Record("a", IMAGE, {"label": -1})], "label is -1"),
        ([Record("a", IMAGE, {"code": 1 << 31})], "code is 2147483648"),
        ([Record("a", IMAGE, {"code": 0.5})], "code is 0.5"),
        ([Record("a", IMAGE, {}), Record("b", IMAGE, {"code": 1})], r"has the fields \['code'\]"),
        ([Record("a", IMAGE[:, :, 0], {})], r"uint8 \(8, 8\), expected uint8 \(8, 8, 1\)"),
        ([Record("a", IMAGE.astype(float), {})], "float64"),
    ],
)
def test_odd_records_are_refused(records: list[Record], problem: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"noise: .* is refused: .*{problem}"):
        build(Given(*records), tmp_path / "a.lmdb")
    assert not (tmp_path / "a.lmdb").exists()


def test_the_child_of_verify_imports_no_more_of_the_package_than_it_needs(built: Path) -> None:
    code = f"{reading.CHILD}\nassert not {{'torch', 'gan.data.store'}} & {{*sys.modules}}"
    command = [sys.executable, "-P", "-c", code, store.PACKAGE, str(built)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert '["count", ' in said


def test_crc_covers_the_key() -> None:
    header = layout.block_header((1, 1, 1), 0, 4)
    value = header.value(b"a", b"1234")
    assert bytes(header.payload(b"a", value)) == b"1234"
    crc = zlib.crc32(b"a" + header.packed() + b"1234")
    assert crc.to_bytes(4, "little") == value[36:40]
    with pytest.raises(StoreError, match="b is damaged"):
        header.payload(b"b", value)
