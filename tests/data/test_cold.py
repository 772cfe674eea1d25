"""What is asked of a disk before it is needed, and that nothing is asked without a wait."""

import contextlib
import itertools
import os
import random

import lmdb
import numpy as np
import pytest
from test_store import Noise, read

from gan.data import cold
from gan.data.building import build
from gan.data.layout import block_key
from gan.data.pages import checked_bytes, starts
from gan.data.store import Store


def test_values_begin_where_they_are_found(tmp_path):
    """Small and large ones, in a tree of more than one level."""
    path, chance = tmp_path / "some.lmdb", random.Random(0)
    values = {b"key/%05d" % n: chance.randbytes(chance.choice([5, 900, 9000])) for n in range(700)}
    plain = {"subdir": False, "lock": False, "sync": False, "map_size": 64 << 20}
    with lmdb.open(str(path), **plain) as file:
        with file.begin(write=True) as transaction:
            for key in chance.sample(sorted(values), len(values)):
                transaction.put(key, values[key])
        assert file.stat()["depth"] > 1
        assert file.stat()["branch_pages"] > 0
    with path.open("rb") as file:
        checked_bytes(file.fileno())
        begins = list(starts(file.fileno()))
        found = [
            os.pread(file.fileno(), len(values[key]), start)
            for key, start in zip(sorted(values), begins, strict=True)
        ]
    assert found == [values[key] for key in sorted(values)]


@pytest.fixture
def asked(monkeypatch):
    """The pieces of files that were asked for, as (start, bytes)."""
    pieces = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda descriptor, start, size, kind: pieces.append((start, size))
    )
    return pieces


@pytest.fixture
def disk(monkeypatch):
    """A disk that is waited for in every read while its `slow` is true."""
    seen = itertools.count()
    slow = {"slow": False}
    monkeypatch.setattr(cold, "waits", lambda: next(seen) if slow["slow"] else 0)
    return slow


@pytest.fixture
def store(tmp_path):
    """480 images of 16 x 16 x 3 pixels in blocks of up to 128."""
    build(Noise(490, (16, 16, 3)), tmp_path / "a.lmdb")
    with contextlib.closing(Store(tmp_path / "a.lmdb")) as opened:
        yield opened


def bytes_of(store, pieces):
    """What stands in the file at these pieces, joined."""
    with store.path.open("rb") as file:
        return b"".join(os.pread(file.fileno(), size, start) for start, size in pieces)


def test_a_block_is_asked_for_once_before_its_first_touch(store, asked, disk, monkeypatch):
    monkeypatch.setattr(cold, "STEP", 50_000)  # less than a block of 98,352 bytes
    rows = np.array([5, 300, 7, 301])
    number = [5 // store._file.meta.per_block, 300 // store._file.meta.per_block]
    read(store, rows)
    assert len(asked) == 4  # two pieces a block
    expected = [bytes(store._file.transaction.get(block_key(block))) for block in number]
    assert sorted([bytes_of(store, asked[:2]), bytes_of(store, asked[2:])]) == sorted(expected)
    read(store, rows)
    assert len(asked) == 4


def test_images_are_asked_for_after_a_wait_and_for_some_time(store, asked, disk, monkeypatch):
    monkeypatch.setattr(cold, "PATIENCE", 3)
    read(store)  # touches all blocks
    rows = np.array([400, 3, 3, 129])
    disk["slow"] = True
    read(store, rows)  # has to wait
    disk["slow"] = False
    asked.clear()
    for _ in range(3):
        found = read(store, rows)
        assert bytes_of(store, asked) == found.tobytes()
        asked.clear()
    read(store, rows)
    assert not asked


def test_where_all_is_in_memory_nothing_is_waited_for(store):
    read(store)
    before = cold.waits()
    read(store)
    assert cold.waits() == before


def test_a_machine_that_cannot_be_asked_reads_all_the_same(store, disk, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    disk["slow"] = True
    assert np.array_equal(read(store), read(store))
