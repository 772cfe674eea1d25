"""A thread that does what may hang, so that its caller need not."""

import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

Act = Callable[[], Any]


class Hand:
    """Does one thing after another, and nothing new while one of them hangs."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Act | None] = SimpleQueue()
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()
        self._hangs = False
        Thread(target=_work, args=(self._asked, self._answers), daemon=True).start()
        weakref.finalize(self, self._asked.put, None)

    def do(self, act: Act, patience: float) -> None:
        """Have it done within so many seconds; let it be where an earlier act still hangs.

        Raises: what the act raises, and TimeoutError where it begins to hang.
        """
        if self._hangs and self._answers.empty():
            return
        if self._hangs:
            self._answers.get()
            self._hangs = False
        self._asked.put(act)
        try:
            error = self._answers.get(timeout=patience)
        except Empty:
            self._hangs = True
            raise TimeoutError(f"no answer within {patience:.0f} s") from None
        if error is not None:
            raise error


def _work(asked: "SimpleQueue[Act | None]", answers: "SimpleQueue[BaseException | None]") -> None:
    while (act := asked.get()) is not None:
        try:
            act()
        except BaseException as error:
            answers.put(error)
        else:
            answers.put(None)
