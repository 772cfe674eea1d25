"""What Python does, seen by an audit hook: code, sockets, processes and writes."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CODE = ("exec", "compile", "import", "marshal.", "pickle.find_class", "code.__new__")
TALK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.__new__")
PROCESSES = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")
CHANGES = (
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.putenv", "shutil."),
)

_listeners: list[Callable[[str, tuple], None]] = []
_installed: list[bool] = []


def _hook(event: str, args: tuple) -> None:
    for listener in _listeners:
        listener(event, args)


@contextmanager
def watched(*kinds: tuple[str, ...], writes: bool = True) -> Iterator[list[str]]:
    """Collects the events of these kinds, and files opened for writing."""
    seen: list[str] = []
    prefixes = tuple(prefix for kind in kinds for prefix in kind)

    def listen(event: str, args: tuple) -> None:
        flags = args[2] if event == "open" and isinstance(args[2], int) else 0
        opened = writes and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if event.startswith(prefixes) or opened:
            seen.append(f"{event} {args}"[:300])

    if not _installed:  # a hook stays for ever
        sys.addaudithook(_hook)
        _installed.append(True)
    _listeners.append(listen)
    try:
        yield seen
    finally:
        _listeners.remove(listen)
