"""Being asked to stop."""

import signal
from types import FrameType


class Stop:
    """True once SIGINT, SIGTERM or SIGUSR1 arrived; a second SIGINT ends the process at once.

    The handlers set a flag and do nothing else; the earlier ones come back on exit.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        """Not asked yet."""
        self.name = ""

    def __bool__(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.name)

    def __enter__(self) -> "Stop":
        """Listen."""
        self._before = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
