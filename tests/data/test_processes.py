"""One store in many processes, forked, spawned and served, with workers and without (S10, S11)."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_store import everything, in_child
from torch.utils.data import DataLoader, Dataset

from gan.data.store import Store, build


class Rows(Dataset):
    """Images of a store by row, as a user's own data set might have them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return self.store.count

    def __getitem__(self, row: int) -> np.ndarray:
        out = np.empty((1, *self.store.shape), np.uint8)
        self.store.read(np.array([row]), out)
        return out[0]


slow = pytest.mark.slow
WAYS = [
    pytest.param("fork", 0, id="alone"),
    pytest.param("fork", 2, id="fork"),
    pytest.param("spawn", 2, id="spawn", marks=slow),
    pytest.param("forkserver", 2, id="forkserver", marks=slow),
    pytest.param("spawn", 1, id="spawn one", marks=slow),
    pytest.param("forkserver", 1, id="forkserver one", marks=slow),
]


@pytest.mark.row("S10")
@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("method", "workers"), WAYS)
def test_training_and_evaluation_read_one_file(method: str, workers: int, built: Path) -> None:
    expected = everything(built)[0]
    with (
        contextlib.closing(Store(built)) as training,
        contextlib.closing(Store(built)) as evaluation,
    ):
        context = multiprocessing.get_context(method) if workers else None
        loaders = [
            DataLoader(
                Rows(store),
                49,
                num_workers=workers,
                multiprocessing_context=context,
                persistent_workers=workers > 0,
            )
            for store in (training, evaluation)
        ]
        for loader in loaders:
            images = np.concatenate([batch.numpy() for batch in loader])
            assert np.array_equal(images, expected)
        assert np.array_equal(Rows(training)[5], expected[5])  # the parent's own is as it was


@pytest.mark.row("S11")
def test_four_processes_leave_nothing_behind(built: Path) -> None:
    expected = everything(built)[0]
    before = {file: file.stat().st_mtime_ns for file in built.parent.iterdir()}
    for _ in range(4):
        assert in_child(lambda: np.array_equal(everything(built)[0], expected) or os._exit(9)) == 0
    assert {file: file.stat().st_mtime_ns for file in built.parent.iterdir()} == before


@pytest.mark.slow
@pytest.mark.row("L10", "three passes over 5,000 records: memory grows by less than 5 %")
def test_passes_keep_their_memory(tmp_path: Path, tried: Callable[[int], None]) -> None:
    from test_store import Noise

    build(Noise(5000, (32, 32, 3)), tmp_path / "a.lmdb")
    with contextlib.closing(Store(tmp_path / "a.lmdb")) as opened:
        sizes = []
        for _ in range(3):
            for rows in np.array_split(np.arange(opened.count), 50):
                opened.read(rows, np.empty((len(rows), *opened.shape), np.uint8))
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages)
    assert sizes[2] < 1.05 * sizes[0]
    tried(3)
