"""Where each process is, and who holds up the others.

Processes that train together leave notes in the store that they met at: every second one of where
they are, and a last one where they end with an error. So the one that waits in vain can say for
whom. The notes come from a thread that looks at the stack of the main one: a step knows nothing of
it, and a run of one process has none.
"""

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from gan import distributed
from gan.distributed import PLACE, PeerError

if TYPE_CHECKING:
    from gan.trainer import Trainer

BEAT = 1.0  # seconds between two notes
PATIENCE = 3.0  # seconds for those that are alive to say why they end
DEEP = 12  # frames of a stack that are kept
PHASES = {  # what a function on the stack stands for; the innermost counts
    "Trainer.discriminate": "the discriminator's update",
    "Trainer.generate": "the generator's update",
    "Trainer._asked": "between two steps",
    "Trainer.save": "saving",
    "Monitor.scalars": "logging",
    "Monitor.sample": "drawing samples",
    "Monitor.measure": "measuring",
    "Monitor.finish": "the report",
    "__next__": "waiting for data",  # whatever gives it
}

Reports = dict[int, dict[str, Any]]


@contextmanager
def heard(run: "Trainer") -> Iterator[None]:
    """Note for the other processes where this one is, each second, while the block lasts.

    After its first step a process waits for others for no more than `trainer.timeout`.
    """
    if distributed.size() == 1:
        yield
        return
    try:
        with beside(partial(_beat, run, threading.get_ident())):
            yield
    finally:
        with suppress(RuntimeError):  # the store may be gone with its process
            distributed.store().set(PLACE.format(distributed.rank()), "")  # nothing follows it


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Work in a thread of its own until the block ends, which sets the event."""
    closing = threading.Event()
    thread = threading.Thread(target=work, args=(closing,), daemon=True, name="beside")
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()


def _beat(run: "Trainer", main: int, closing: threading.Event) -> None:
    limited, begun = False, run.counts()
    try:
        while not closing.wait(BEAT):
            if not limited and run.counts() != begun:
                distributed.limit(run.settings.timeout)
                limited = True
            note = json.dumps(place(run, sys._current_frames().get(main)))
            distributed.store().set(PLACE.format(distributed.rank()), note)
    except RuntimeError:
        return  # the store is gone with its process; the next collective will tell


def place(run: "Trainer", frame: FrameType | None) -> dict[str, Any]:
    """Clocks, phase, stack and time of a process whose main thread stands in this frame."""
    stack = traceback.extract_stack(frame)
    return {
        **run.counts(),
        "phase": _phase(frame),
        "stack": "".join(traceback.format_list(stack[-DEEP:])),
        "time": time.time(),
    }


def _phase(frame: FrameType | None) -> str:
    while frame is not None:
        for name in (frame.f_code.co_qualname, frame.f_code.co_name):
            if name in PHASES:
                return PHASES[name]
        frame = frame.f_back
    return "the start"


def reports(run: "Trainer", error: BaseException) -> Reports:
    """What this process says of its end and, where it waited in vain, what the others say.

    One that does not answer is represented by its last note, without an `error`.
    """
    if distributed.size() == 1:
        return {}
    _record(error)
    me = distributed.rank()
    last = traceback.TracebackException.from_exception(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    mine = {
        **place(run, frames[-1] if frames else None),
        "error": "".join(last.format_exception_only()).strip(),
        "lost": isinstance(error, PeerError),
        "traceback": "".join(last.format()),
    }
    found: Reports = {me: mine}
    try:
        distributed.store().set(f"end/{me}", json.dumps(mine))
        if isinstance(error, PeerError):
            found |= _others(me)
    except RuntimeError:  # the store is gone, and with it whoever held it
        pass
    return dict(sorted(found.items()))


def _record(error: BaseException) -> None:
    """Put an error into the summary that torchrun prints in the end."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _others(me: int) -> Reports:
    store, missing = distributed.store(), set(range(distributed.size())) - {me}
    found: Reports = {}
    until = time.monotonic() + PATIENCE
    while missing and time.monotonic() < until:
        for rank in [rank for rank in missing if store.check([f"end/{rank}"])]:
            found[rank] = json.loads(store.get(f"end/{rank}"))
            missing.remove(rank)
        time.sleep(distributed.TICK)
    for rank in missing:
        known = store.check([PLACE.format(rank)])
        found[rank] = json.loads((known and store.get(PLACE.format(rank))) or "{}")
    return found


def culprit(found: Reports) -> str:
    """Who ended or held up the others, at which step, and in what."""
    failed = [f"rank {rank} {_where(r)}: {r['error']}" for rank, r in found.items() if _own(r)]
    silent = [
        f"rank {rank} does not answer (killed, or frozen): last heard of {_where(report)}"
        for rank, report in found.items()
        if "error" not in report
    ]
    if failed or silent:
        return "; ".join(failed or silent)
    return "all processes say the same: the network between them has failed"


def speaker(found: Reports) -> int:
    """The first process that can still say why all have ended."""
    return min((rank for rank, report in found.items() if "error" in report), default=0)


def _own(report: Mapping[str, Any]) -> bool:
    return "error" in report and not report["lost"]


def _where(report: Mapping[str, Any]) -> str:
    if not report:
        return "before its first step"
    line = report["stack"].strip().rpartition("\n  File ")[2].partition("\n")[0]
    ago = time.time() - report["time"]
    return f"at step {report['step']} in {report['phase']} ({line}), {ago:.0f} s ago"
