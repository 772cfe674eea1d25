"""Being asked to stop."""

import signal
from collections.abc import Iterable
from types import FrameType, TracebackType


class Stop:
    """True once SIGINT, SIGTERM or SIGUSR1 arrived; the same one again ends the process at once.

    The first one is noted and no more, and leaves the second to the system: it needs no Python to
    run, and a checkpoint that it interrupts has not got its name yet. Other handlers come back on
    exit. May be entered again inside.
    """

    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, also: Iterable[signal.Signals] = ()) -> None:
        """Not asked yet; `also` are more signals to listen to."""
        self.signals = (*self.signals, *also)
        self.name = ""
        self._before: list[dict[signal.Signals, object]] = []

    def __bool__(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.name)

    def __enter__(self) -> "Stop":
        """Listen."""
        self._before.append({n: signal.signal(n, self._note) for n in self.signals})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal` returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
