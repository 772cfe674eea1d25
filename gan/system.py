"""What systems differ in: Linux has all of it, macOS lacks some, Windows lacks most.

No more than Python's own modules is needed here: the bare child that scans a store imports it too.
"""

import contextlib
import errno
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_FAR = 1 << 30  # the byte that is locked for a whole file where nobody else may read what is locked
_TICK = 0.1  # seconds between two looks at a lock


def _module(name: str) -> Any:
    """A module of Python's that some systems lack, or None there."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


_fcntl, _msvcrt, _resource = map(_module, ("fcntl", "msvcrt", "resource"))
_THREAD = getattr(_resource, "RUSAGE_THREAD", getattr(_resource, "RUSAGE_SELF", 0))
_seeking = threading.Lock()

POSIX = _fcntl is not None  # elsewhere an open file can be neither renamed nor removed
STOPS: tuple[signal.Signals, ...] = tuple(  # by which a run is asked to stop
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK")
    if hasattr(signal, name)
)
APART: dict[str, Any] = (  # of Popen: a terminal's Ctrl-C does not reach what is started so
    {"process_group": 0}
    if POSIX
    else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
)
STORE: dict[str, Any] = {} if POSIX else {"use_libuv": False}  # of torch's, which is built without


def flags(*names: str) -> int:
    """Those flags of `os.open` that there are, and bytes as they are where there are text files."""
    return sum(getattr(os, name, 0) for name in {*names, "O_BINARY"})


def _read_at(descriptor: int, length: int, start: int) -> bytes:
    with _seeking:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, length)


def _write_at(descriptor: int, content: bytes, start: int) -> int:
    with _seeking:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.write(descriptor, content)


pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _read_at)
pwrite: Callable[[int, bytes, int], int] = getattr(os, "pwrite", _write_at)


def lock(descriptor: int, wait: bool = False) -> None:
    """Lock a file until the descriptor is closed or the process ends; others can read it still.

    Raises: BlockingIOError where another has the lock, unless it is to be waited for.
    """
    if POSIX:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
        return
    while True:
        with _seeking, contextlib.suppress(PermissionError):  # as it calls a lock that is held
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
            return
        if not wait:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        time.sleep(_TICK)


def in_place(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that others find at its path.

    Raises: FileNotFoundError where there is none.
    """
    return not POSIX or os.path.samestat(os.fstat(descriptor), os.stat(path))


def after_fork(**hooks: Callable[[], Any]) -> None:
    """As `os.register_at_fork`, where processes fork."""
    getattr(os, "register_at_fork", lambda **_: None)(**hooks)


def send(number: signal.Signals) -> None:
    """Send this process a signal from any thread; elsewhere `os.kill` would end it at once."""
    if POSIX:
        os.kill(os.getpid(), number)
    else:
        signal.raise_signal(number)


def ended_by(status: int) -> str:
    """What has ended a process with this exit status, or "" where it ended by itself."""
    if status < 0:
        return signal.Signals(-status).name
    return f"{status:#x}" if status >= 0xC0000000 else ""  # an exception of Windows'


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> float:
    """Bytes of memory, or infinity where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load() -> float | None:
    """How many processes have wanted a core in the last minute, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def waits() -> int:
    """How often this thread has waited for a disk so far; 0 where the system does not say."""
    return _resource.getrusage(_THREAD).ru_majflt if _resource else 0


def of_children() -> float:
    """Seconds of processor time of the children that have ended; 0 where the system hides it."""
    if _resource is None:
        return 0.0
    children = _resource.getrusage(_resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
