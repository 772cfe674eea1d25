"""Files that somebody has changed on purpose: no crash, no hang, no code, no pixel wrong unseen."""

import io
import random
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_store import claim_4_gib, everything, in_child, put, value_of
from watching import CHANGES, CODE, PROCESSES, TALK, watched

from gan.data import layout, pages
from gan.data.archives import Archive, ArchiveError
from gan.data.images import read_image, record
from gan.data.layout import Record, Rejected
from gan.data.store import PACKAGE, Store, StoreError, verify

Tried = Callable[[int], None]
PAGE = 4096


# ---- crafted trees -------------------------------------------------------------------------------


def branch(children: list[int]) -> bytes:
    """A page of LMDB that leads to other pages."""
    starts = [PAGE - 8 * (n + 1) for n in range(len(children))]
    page = bytearray(PAGE)
    struct.pack_into("=HHH", page, 10, 1, 16 + 2 * len(children), starts[-1])
    struct.pack_into(f"={len(starts)}H", page, 16, *starts)
    for start, child in zip(starts, children, strict=True):
        struct.pack_into("=HHHH", page, start, child & 0xFFFF, child >> 16, 0, 0)
    return bytes(page)


def labyrinth(path: Path, store: Path, levels: int, ways: int) -> None:
    """An LMDB file whose every page leads many times to the next: ways ** levels ways to a leaf."""
    meta = bytearray(store.read_bytes()[: 2 * PAGE])
    last = levels + 2
    for start in (0, PAGE):
        struct.pack_into("=HH", meta, start + 92, 0, levels + 1)
        struct.pack_into("=QQQ", meta, start + 120, ways**levels, 2, last)
    leaf = bytearray(PAGE)
    struct.pack_into("=HHH", leaf, 10, 2, 18, PAGE - 16)
    struct.pack_into("=H", leaf, 16, PAGE - 16)
    struct.pack_into("=HHHH", leaf, PAGE - 16, 4, 0, 0, 4)
    pages = [branch([level + 3] * ways) for level in range(levels)]
    path.write_bytes(bytes(meta) + b"".join(pages) + bytes(leaf))


@pytest.mark.row("S3", "mutated pages and crafted trees: no wrong pixel in silence, no hang")
def test_a_page_is_reached_in_one_way_only(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    labyrinth(path, built, levels=7, ways=300)  # 2e17 ways
    with pytest.raises(StoreError, match="tree is damaged: it leads to page"):
        Store(path)
    labyrinth(path, built, levels=1, ways=1)
    with pytest.raises(StoreError, match="tree is damaged: page 2 has 1 nodes"):
        Store(path)


def test_a_branch_of_one_kills_a_reader_that_does_not_look(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labyrinth(tmp_path / "a.lmdb", built, levels=1, ways=1)
    monkeypatch.setattr(pages, "_count_entries", lambda *_: 1)
    assert in_child(lambda: Store(tmp_path / "a.lmdb")) == -signal.SIGABRT


def test_a_labyrinth_is_walked_without_the_list_of_pages(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, walked, count = tmp_path / "a.lmdb", [], pages._count_entries

    def forgetful(*arguments: object) -> int:
        walked.append(1)
        return count(*arguments[:4], set())

    labyrinth(path, built, levels=3, ways=9)
    monkeypatch.setattr(pages, "_count_entries", forgetful)
    with pytest.raises(StoreError):
        Store(path)
    assert len(walked) == 1 + 9 + 9**2 + 9**3


# ---- mutated files -------------------------------------------------------------------------------


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, a hole, something put in, or its end cut off."""
    kind = chance.choice(["bytes", "bytes", "hole", "insert", "cut", "swap"])
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 64))
    if kind == "bytes":
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 5)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(changed)
    return {
        "hole": data[:at] + bytes(end - at) + data[end:],
        "insert": data[:at] + chance.randbytes(end - at) + data[at:],
        "cut": data[:at],
        "swap": data[:at] + data[end:] + data[at:end],
    }[kind]


READ = """
import sys, types
import numpy as np
package = types.ModuleType("gan")
package.__path__ = [sys.argv[1]]
sys.modules["gan"] = package  # without what importing it would import
from gan.data.store import Store, StoreError
wanted = np.load(sys.argv[2])
for line in sys.stdin:
    try:
        opened = Store(line.strip())
        out = np.empty((opened.count, *opened.shape), np.uint8)
        opened.read(np.arange(opened.count), out)
        opened.fields, opened.keys
        opened.close()
        print("same" if np.array_equal(out, wanted) else "OTHER", flush=True)
    except StoreError:
        print("refused", flush=True)
"""


def fates(built: Path, folder: Path, count: int, seed: int) -> dict[str, int]:
    """What becomes of readers of mutated copies: the reading is done in a child process."""
    whole, chance = built.read_bytes(), random.Random(seed)
    np.save(folder / "truth.npy", everything(built)[0])
    command = [sys.executable, "-P", "-c", READ, PACKAGE, str(folder / "truth.npy")]
    found: dict[str, int] = {}
    child = None
    for number in range(count):
        path = folder / f"{number}.lmdb"
        path.write_bytes(mutated(whole, chance))
        if child is None:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{path}\n")
        child.stdin.flush()
        fate = child.stdout.readline().strip()
        if not fate:
            fate, child = f"died of {-child.wait(60)}", None
        found[fate] = found.get(fate, 0) + 1
        path.unlink()
    if child is not None:
        child.communicate()
    return found


@pytest.mark.row("S3")
@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_never_give_wrong_pixels(
    count: int, built: Path, tmp_path: Path, tried: Tried
) -> None:
    found = fates(built, tmp_path, count, seed=count)
    assert "OTHER" not in found
    assert not [fate for fate in found if fate.startswith("died of") and fate != "died of 7"]
    assert found.get("died of 7", 0) <= 0.02 * count  # SIGBUS: what only `verify` protects from
    assert found["refused"] > 0.3 * count
    tried(count)


@pytest.mark.slow
@pytest.mark.row("S3")
def test_verify_tells_every_fate(built: Path, tmp_path: Path, tried: Tried) -> None:
    whole, chance, content = built.read_bytes(), random.Random(3), everything(built)[0]
    path = tmp_path / "a.lmdb"
    for _ in range(100):
        path.write_bytes(mutated(whole, chance))
        if not verify(path).damages:
            assert np.array_equal(everything(path)[0], content)
    tried(100)


@pytest.mark.row("X6")
def test_hostile_stores_run_nothing(copy: Path, tried: Tried) -> None:
    everything(copy)  # and every import that reading needs is done
    whole = copy.read_bytes()
    for key in (b"block/00000000", b"index/00000000", layout.META):
        for change in (lambda key: put(copy, key, b"\x80\x04" + value_of(copy, key)),):
            copy.write_bytes(whole)
            change(key)
            with watched(CODE, TALK, PROCESSES, CHANGES) as seen, pytest.raises(StoreError):
                everything(copy)
            assert seen == []
        copy.write_bytes(whole)
        claim_4_gib(copy, key)
        with watched(CODE, TALK, PROCESSES, CHANGES) as seen, pytest.raises(StoreError):
            everything(copy)
        assert seen == []
    tried(6)


# ---- images and archives -------------------------------------------------------------------------


def encoded(format: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.mark.row("S13")
@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_images_become_images_or_are_rejected(
    count: int, tmp_path: Path, tried: Tried
) -> None:
    chance, wholes = random.Random(count), {f: encoded(f) for f in ("PNG", "JPEG", "WEBP")}
    for number in range(count):
        format = chance.choice(sorted(wholes))
        file = tmp_path / f"{number}.{format.lower()}"
        file.write_bytes(mutated(wholes[format], chance))
        item = record(file.name, lambda file=file: read_image(file, 8, 3), {})
        assert isinstance(item, Rejected) or item.image.shape == (8, 8, 3)
        file.unlink()
    tried(count)


def archive(path: Path) -> bytes:
    image = encoded("PNG")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for number in range(3):
                made.writestr(f"folder/{number}.png", image)
    else:
        with tarfile.open(path, f"w:{'gz' if path.suffix == '.gz' else ''}") as made:
            for number in range(3):
                info = tarfile.TarInfo(f"folder/{number}.png")
                info.size = len(image)
                made.addfile(info, io.BytesIO(image))
    return path.read_bytes()


@pytest.mark.row("X5")
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_archives_are_refused_or_read_in_place(
    count: int, tmp_path: Path, tried: Tried
) -> None:
    chance = random.Random(count)
    paths = [tmp_path / f"a{suffix}" for suffix in (".zip", ".tar", ".tar.gz")]
    wholes = {path: archive(path) for path in paths}
    for path in paths:  # and every import that reading needs is done
        list(Archive(path, 8))
    for _ in range(count):
        path = chance.choice(paths)
        path.write_bytes(mutated(wholes[path], chance))
        with watched(TALK, PROCESSES, CHANGES) as seen:
            try:
                items = list(Archive(path, 8))
            except ArchiveError:
                items = []
        assert seen == []
        assert all(isinstance(item, Record | Rejected) for item in items)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    tried(count)
