"""Lock files: one process at a time, and the second learns who is at it.

The system gives a lock up with its process, so what a dead one has left is no obstacle.
"""

import contextlib
import os
import socket
import time
from pathlib import Path

from gan import system


class HeldError(RuntimeError):
    """Another process holds the lock; the message says which."""


class Lock:
    """A lock file that this process holds until `release`, with the names of holder and past.

    Attributes:
        stale: the process that held it before and ended without giving it up, or "".
    """

    def __init__(self, path: Path) -> None:
        """Take the lock at once.

        Raises:
            HeldError: naming the process that holds it.
            OSError: it cannot be written; then it is not held, and no file is left.
        """
        self.path = path
        self._descriptor = _locked(path)
        try:
            self.stale = _read(self._descriptor)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            os.ftruncate(self._descriptor, 0)
            holder = f"process {os.getpid()} on {socket.gethostname()}, {now}"
            system.pwrite(self._descriptor, holder.encode(), 0)
        except OSError:  # a full disk has no room for the names
            self.release()
            raise

    def release(self) -> None:
        """Give the lock up and remove its file, unless that is another process's by now."""
        if system.POSIX:
            if self.in_place():
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
            os.close(self._descriptor)
            return
        os.ftruncate(self._descriptor, 0)  # it may have to stay, but nobody has left it held
        os.close(self._descriptor)
        with contextlib.suppress(OSError):  # another process has it open
            self.path.unlink()

    def in_place(self) -> bool:
        """Whether the file that is locked is the one that others find."""
        try:
            return system.in_place(self._descriptor, self.path)
        except FileNotFoundError:
            return False


def _locked(path: Path) -> int:
    """A descriptor that holds the lock file at this path."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | system.flags("O_CLOEXEC"), 0o644)
        try:
            system.lock(descriptor)
            if system.in_place(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise HeldError(holder) from None
        except FileNotFoundError:
            pass  # the last holder has just removed it
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock: one that has just taken it needs a moment to write its name."""
    for _ in range(100):
        if name := _read(descriptor):
            return name
        time.sleep(0.01)
    return "another process"


def _read(descriptor: int) -> str:
    return system.pread(descriptor, 1 << 10, 0).decode(errors="replace")
