"""Batches copied out of LMDB's own map: the right images, and only where blocks stand evenly."""

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_store import Noise, in_child, read

from gan.data import grains
from gan.data.building import build
from gan.data.pages import starts
from gan.data.store import Store


def agrees(path, source):
    """Whether a shuffled batch with repeats holds the source's images; and which blocks are odd."""
    with contextlib.closing(Store(path)) as store:
        rows = np.random.default_rng(0).integers(0, store.count, 300)
        expected = np.stack([source.image(int(store.keys[row])) for row in rows])
        right = np.array_equal(read(store, rows), expected)
        file = store._file
        blocks = range(file.meta.blocks)
        return right, [n for n in blocks if not file.grains.whole(np.array([n]))]


@pytest.mark.parametrize(
    ("shape", "count", "odd"),
    [
        ((32, 32, 3), 700, []),  # three rows of 1,024 bytes
        ((64, 64, 1), 300, []),  # one page each
        ((16, 16, 1), 133, [1]),  # the last block has two images and lies within a page
        ((28, 28, 1), 300, [0, 1, 2]),  # rows of 16 bytes
        ((160, 160, 3), 8, [0]),  # so large that views are copied as fast
    ],
)
def test_a_batch_holds_the_images_that_were_asked_for(tmp_path, shape, count, odd):
    source = Noise(count, shape)
    build(source, tmp_path / "some.lmdb")
    assert agrees(tmp_path / "some.lmdb", source) == (True, odd)


@pytest.mark.parametrize(("moved", "odd"), [(range(9), []), ([3], [2]), ([1], [1, 2, 3, 4, 5])])
def test_where_blocks_stand_elsewhere_than_was_found_the_checked_views_are_copied(
    tmp_path, monkeypatch, moved, odd
):
    """A wrong place is told by the address of a block's view before anything is read from it.

    If all are wrong by as much, so is where the map is taken to begin, and the rows are right.
    """
    source = Noise(700, (32, 32, 3))
    build(source, tmp_path / "some.lmdb")
    monkeypatch.setattr(
        grains,
        "starts",
        lambda descriptor: [
            start + 8192 * (value in moved) for value, start in enumerate(starts(descriptor))
        ],
    )
    assert agrees(tmp_path / "some.lmdb", source) == (True, odd)


def test_rows_are_gone_with_their_file(tmp_path):
    build(Noise(100, (32, 32, 3)), tmp_path / "some.lmdb")
    store = Store(tmp_path / "some.lmdb")
    read(store)
    file = store._file
    assert file.grains.rows is not None
    store.close()
    assert file.grains.rows is None


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A store, whether a thread has come to its copy, and the event that lets it go on."""
    build(Noise(300, (32, 32, 3)), tmp_path / "some.lmdb")
    with contextlib.closing(Store(tmp_path / "some.lmdb")) as store:
        read(store)
        here, let_go, take = threading.Event(), threading.Event(), grains.Grains.take

        def waiting(*arguments):
            here.set()
            assert let_go.wait(10)
            take(*arguments)

        monkeypatch.setattr(grains.Grains, "take", waiting)
        yield store, here, let_go


def test_two_threads_copy_at_once(tmp_path, monkeypatch):
    source = Noise(300, (32, 32, 3))
    build(source, tmp_path / "some.lmdb")
    both, take = threading.Barrier(2, timeout=10), grains.Grains.take
    rows = [np.arange(200), np.arange(90, 290)]
    with contextlib.closing(Store(tmp_path / "some.lmdb")) as store, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(
            grains.Grains, "take", lambda *arguments: (both.wait(), take(*arguments))
        )
        found = list(pool.map(lambda r: read(store, r), rows))
    for images, asked in zip(found, rows, strict=True):
        assert np.array_equal(images, [source.image(int(store.keys[row])) for row in asked])


def test_a_file_is_closed_when_nobody_reads_it(held):
    store, here, let_go = held
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read, store)
        assert here.wait(10)
        closing = pool.submit(store.close)
        with pytest.raises(TimeoutError):
            closing.result(0.1)
        assert store._file.grains.rows is not None
        let_go.set()
        closing.result(10)
        assert reading.result().shape == (store.count, 32, 32, 3)


def test_a_child_does_not_wait_for_threads_of_its_parent(held):
    store, here, let_go = held
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, store)
        assert here.wait(10)

        def child():
            signal.alarm(10)
            let_go.set()
            read(store)

        assert in_child(child) == 0
        let_go.set()
        reading.result(10)
