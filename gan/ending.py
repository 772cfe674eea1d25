"""How a run ends: its files closed, its lock given back, and `stopped.json` if it is not done."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gan import checkpoint, diagnosis, distributed, peers, rundir
from gan.distributed import PeerError
from gan.guard import DivergedError
from gan.saves import StorageError

STOPPED = "stopped.json"


@contextmanager
def told(run: Any) -> Iterator[None]:
    """Whatever ends a trainer's run inside the block, leave the record that scripts can read.

    `stopped.json` has the reason (`signal`, `non-finite`, `storage`, `stall`, `process`, `error`),
    a detail, both clocks, the newest checkpoint and the time and, where several processes train,
    what each of them says; a finished run has none.
    """
    try:
        with peers.heard(run):
            yield
        if run.step >= run.settings.steps:
            _forget(run)
        else:
            run.monitor.log.say(
                f"stopped by {run.stop.name}; the same command goes on at step {run.step}"
            )
            _write(run, "signal", run.stop.name)
    except BaseException as error:
        if isinstance(error, DivergedError):
            error.args = (f"{error}; see {diagnosis.write(run, error)}",)
        found = peers.reports(run, error)
        if isinstance(error, PeerError):
            error.args = (f"{error}: {peers.culprit(found)}",)
        _write(run, _reason(error), f"{type(error).__name__}: {error}", found)
        raise
    finally:
        run.stream.close()
        run.monitor.close()
        rundir.release(run.monitor.run_dir)


def _reason(error: BaseException) -> str:
    kinds = {
        DivergedError: "non-finite",
        StorageError: "storage",
        TimeoutError: "stall",
        PeerError: "process",
        KeyboardInterrupt: "signal",
    }
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "error")


def _write(run: Any, reason: str, detail: str, found: peers.Reports | None = None) -> None:
    speaker = peers.speaker(found) if found and reason == "process" else 0
    if distributed.rank() != speaker:
        return
    newest = checkpoint.newest(run.monitor.run_dir / "checkpoints", notice=lambda skipped: None)
    record = {
        "reason": reason,
        "detail": detail,
        **run.counts(),
        "checkpoint": str(newest) if newest else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"processes": found} if found else {}),
    }
    temporary = run.monitor.run_dir / f".{STOPPED}"
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, run.monitor.run_dir / STOPPED)
    except OSError as error:  # the disk may be the very reason
        run.monitor.tell("log", f"{STOPPED} could not be written: {error}")


def _forget(run: Any) -> None:
    if not distributed.rank():
        (run.monitor.run_dir / STOPPED).unlink(missing_ok=True)
