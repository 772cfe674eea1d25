"""How a run ends: its files closed, its lock given back, `stopped.json` or `finished.json` left."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from gan import checkpoint, disk, distributed
from gan.distributed import PeerError
from gan.run import diagnosis, peers, rundir
from gan.run.rundir import FINISHED, TakenError
from gan.run.saves import StorageError
from gan.step.guard import DivergedError

if TYPE_CHECKING:
    from gan.trainer import Trainer

STOPPED = "stopped.json"


@contextmanager
def told(run: "Trainer") -> Iterator[None]:
    """Whatever ends a trainer's run inside the block, leave the record that scripts can read.

    `stopped.json` has the reason (`signal`, `non-finite`, `storage`, `stall`, `process`, `error`),
    a detail, both clocks, the newest checkpoint and the time and, where several processes train,
    what each of them says. A finished run has `finished.json` instead, with the clocks, the time,
    and what its monitor has measured by font: a signal may leave its report to the next start.
    """
    try:
        if run.step < run.settings.steps:  # what is there is of an earlier end
            _forget(run, FINISHED)
            _forget(run, STOPPED)
        with peers.heard(run):
            yield
            if run.step >= run.settings.steps:
                run.monitor.finish(run.counts(), run.generators(), run.config, run.stop)
        if finished(run):
            _forget(run, STOPPED)
            _write(run, FINISHED, run.monitor.outcome)
        else:
            by = next(filter(None, distributed.gathered(run.stop.name)))  # any process is asked
            run.monitor.log.say(f"stopped by {by}; {rundir.again(run)} goes on at step {run.step}")
            _forget(run, FINISHED)
            _stopped(run, "signal", by)
    except BaseException as error:
        if isinstance(error, DivergedError):
            error.args = (f"{error}; see {diagnosis.write(run, error)}",)
        found = peers.reports(run, error)
        if isinstance(error, PeerError):
            error.args = (f"{error}: {peers.culprit(found)}",)
        if not isinstance(error, TakenError):
            _stopped(run, _reason(error), f"{type(error).__name__}: {error}", found)
        raise
    finally:
        with ExitStack() as closing:  # the last one first, and each of them whatever fails
            closing.callback(rundir.release, run.monitor.run_dir)
            closing.callback(run.monitor.close)
            closing.callback(run.stream.close)


def finished(run: "Trainer") -> bool:
    """Whether the last step is done, and its report made."""
    return run.step >= run.settings.steps and not run.monitor.owed


def _reason(error: BaseException) -> str:
    kinds = {
        DivergedError: "non-finite",
        StorageError: "storage",
        TimeoutError: "stall",
        PeerError: "process",
        KeyboardInterrupt: "signal",
    }
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "error")


def _stopped(run: "Trainer", reason: str, detail: str, found: peers.Reports | None = None) -> None:
    newest = checkpoint.newest(run.monitor.run_dir / "checkpoints", notice=lambda skipped: None)
    where = {"checkpoint": str(newest) if newest else None}
    said = {"processes": found} if found else {}
    speaker = peers.speaker(found) if found and reason == "process" else 0
    _write(run, STOPPED, {"reason": reason, "detail": detail, **where, **said}, speaker)


def _write(run: "Trainer", name: str, facts: Mapping[str, Any], speaker: int = 0) -> None:
    if distributed.rank() != speaker:
        return
    record = {**facts, **run.counts(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    try:
        disk.replace(run.monitor.run_dir / name, json.dumps(record, indent=2) + "\n")
    except OSError as error:  # the disk may be the very reason
        run.monitor.tell("log", f"{name} could not be written: {error}")


def _forget(run: "Trainer", name: str) -> None:
    if not distributed.rank():
        (run.monitor.run_dir / name).unlink(missing_ok=True)
