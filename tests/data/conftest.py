"""A small store that many tests read, and copies of it that they damage."""

import shutil
from pathlib import Path

import pytest

from gan.data.store import build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store, not to be changed."""
    from test_store import SMALL  # here, as it needs a POSIX system

    path = tmp_path_factory.mktemp("store") / "small.lmdb"
    build(SMALL, path)
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A small store to be damaged."""
    return Path(shutil.copy(built, tmp_path / "copy.lmdb"))
