"""Being asked to stop."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from gan.system import STOPS


class _Left(BaseException):
    """Work is left where it stands."""


class Stop:
    """True once SIGINT, SIGTERM or SIGUSR1 arrived; the same again, or SIGINT, ends at once.

    On Windows SIGBREAK, which Ctrl-Break sends, stands for SIGUSR1.

    The first is noted and no more, and leaves the next to the system: that needs no Python to run,
    and a checkpoint that it interrupts has not got its name yet. A scheduler gives notice by one
    signal and sends another when time is up, so that SIGUSR1 and SIGTERM together ask for no more
    than one of them. Whatever follows SIGINT ends the process. Other handlers come back on exit.
    May be entered again inside.

    Attributes:
        interrupts: whether a signal is a KeyboardInterrupt now.
    """

    signals = STOPS

    def __init__(self, also: Iterable[signal.Signals] = ()) -> None:
        """Not asked yet; `also` are more signals to listen to."""
        self.signals = (*self.signals, *also)
        self.name, self.interrupts = "", False
        self._before: list[dict[signal.Signals, Any]] = []

    def __bool__(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.name)

    def __enter__(self) -> "Stop":
        """Listen."""
        unheard = () if self else self.signals
        self._before.append({n: signal.signal(n, self._note) for n in unheard})
        return self

    def __exit__(self, *_: object) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside the block, before a run, a signal is a KeyboardInterrupt: nothing is to be saved.

        Raises: KeyboardInterrupt at once where one has come already.
        """
        if self:
            raise KeyboardInterrupt
        before = {n: signal.signal(n, self._interrupt) for n in self.signals}
        self.interrupts = True
        try:
            yield
        finally:
            self.interrupts = False
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Once asked to stop, the block is left where it next calls a module, without an error.

        That may be inside a network: what the block writes has to come after its last call of one.
        """

        def look(*_: object) -> None:
            if self:
                raise _Left

        with suppress(_Left):
            hook = register_module_forward_pre_hook(look)
            try:
                yield
            finally:
                hook.remove()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        last = self.signals if number == signal.SIGINT else (number, signal.SIGINT)
        for again in last:
            signal.signal(again, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        raise KeyboardInterrupt
