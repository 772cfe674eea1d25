"""Files that are whole at any time, and stay after a power cut."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan.system import POSIX

PAUSES = () if POSIX else (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)  # seconds


def room(path: Path) -> int:
    """The bytes that are free where a path is, or will be."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def replace(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, which is on the disk when it returns."""
    put(path, text.encode())


def put(path: Path, content: bytes) -> None:
    """The same of bytes; several processes may do it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        move(os.replace, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Let a file, or the names in a folder where folders can be opened, survive a power cut."""
    if not POSIX and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if POSIX else os.O_RDWR)  # or nothing could be flushed
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(rename: Callable[[Any, Any], Any], source: Path, target: Path) -> None:
    """Rename; where a scanner for viruses may hold what was just written, wait for it a little."""
    for pause in PAUSES:
        try:
            rename(source, target)
            return
        except PermissionError:
            time.sleep(pause)
    rename(source, target)
