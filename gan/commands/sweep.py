"""Jobs of a multirun: what each of them says is kept, and the end tells how all of them went.

Beside a job's run directory lie `NAME.log`, with everything that it has printed, and a hidden
`.NAME.json`, with how it has ended. Both are files of the sweep's folder, which jobs on other
machines share.
"""

import contextlib
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from gan import distributed, system
from gan.commands.composing import UsageError, parsed
from gan.commands.ranks import MISTAKE, RankError
from gan.config.check import check
from gan.distributed import FirstError, PeerError
from gan.run import rundir
from gan.run.peers import beside
from gan.run.signals import Stop

ID = "GAN_SWEEP"  # an environment variable that jobs inherit: which call of the command they are of
LOKY = "LokyProcess"  # the name of joblib's workers, before their number
STARTER = os.getppid()
LINES = 8  # of a failed job's log that are shown


class JobError(RuntimeError):
    """A job has failed; what it said is in its log."""


class Tee(io.TextIOBase):
    """Writes to a stream and to a file, progress bars to the stream alone."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        """Neither is closed by this."""
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        """The number of characters written."""
        if "\r" not in text:
            with contextlib.suppress(OSError):  # a full disk does not stop a training
                self.file.write(text)
                self.file.flush()
        return self.stream.write(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether there is a terminal behind the stream."""
        return self.stream.isatty()


def begin() -> str:
    """A new name for this call of the command, which all its jobs will know."""
    os.environ[ID] = uuid.uuid4().hex
    return os.environ[ID]


def folder(hydra: Any) -> Path:
    """The folder of a sweep."""
    given = parsed(hydra.overrides.task)
    chosen = [str(o.value()) for o in given if o.key_or_group == "run_dir" and not o.is_delete()]
    return Path(chosen[-1] if chosen else hydra.sweep.dir)


def place(hydra: Any) -> tuple[Path, str]:
    """The folder of a sweep, and the name of a job's run directory in it."""
    return folder(hydra), str(hydra.sweep.subdir)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A stop that listens to submitit too, whose own handler then submits the job again."""
    name = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    again = [signal.Signals[name]] if "SUBMITIT_EXECUTOR" in os.environ else []
    try:
        with Stop(again) as stop, _attended():
            yield stop
    except KeyboardInterrupt:
        if again and stop.name == name:
            signal.raise_signal(again[0])  # in a job's first task it does not return
            raise SystemExit(0) from None  # any other status might end the first before it is done
        raise


@contextmanager
def _attended() -> Iterator[None]:
    """End a worker of joblib's whose sweep has been killed, once the run in it has saved.

    It would train what it was given to the end, and the next job too.
    """
    if not multiprocessing.current_process().name.startswith(LOKY):
        yield
        return
    try:
        with beside(_look_after):
            yield
    finally:
        if os.getppid() != STARTER:
            os._exit(1)


def _look_after(closing: threading.Event) -> None:
    while not closing.wait(1.0):
        if os.getppid() != STARTER:
            system.send(signal.SIGTERM)
            return


def join_tasks() -> None:
    """Give the tasks of a submitit job the variables that torchrun gives its processes."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "WORLD_SIZE" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment

    task = TorchDistributedEnvironment()
    if task.world_size > 1:
        bound = "SLURM_GPUS_PER_TASK" in os.environ  # each task sees its own alone
        os.environ |= {
            "RANK": str(task.rank),
            "LOCAL_RANK": "0" if bound else str(task.local_rank),
            "WORLD_SIZE": str(task.world_size),
            "MASTER_ADDR": task.master_addr,
            "MASTER_PORT": str(task.master_port),
        }


@contextmanager
def recorded(folder: Path, name: str) -> Iterator[None]:
    """Keep what a job prints and how it ends; `name` is its run directory in the sweep's folder.

    Raises: JobError for whatever error ends the job, in words that travel between processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("a", encoding="utf-8") as log:
        _note(folder, name, "cut off")
        out, err = Tee(sys.stdout, log), Tee(sys.stderr, log)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
        except FirstError as error:  # of another task, which has said why
            raise JobError(f"{name}: {error}") from error
        except (UsageError, PeerError, RankError) as error:
            log.write(f"{error}\n")
            mistake = isinstance(error, UsageError) or getattr(error, "status", None) == MISTAKE
            _note(folder, name, "mistake" if mistake else "failed")
            raise JobError(f"{name}: {error}") from error
        except Exception as error:
            log.write(traceback.format_exc())
            _note(folder, name, "failed")
            raise JobError(f"{name}: {error}") from error
        except BaseException:
            _note(folder, name, "stopped")
            raise
        _note(folder, name, "done")


def lightened(error: JobError) -> JobError:
    """The error without frames, which hold a whole trainer: Hydra keeps it to the sweep's end."""
    _let_go(error)
    return error


def _let_go(error: BaseException | None) -> None:
    if error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        _let_go(error.__cause__)
        _let_go(error.__context__)


def _note(folder: Path, name: str, state: str) -> None:
    if int(os.environ.get("RANK", 0)):  # of the tasks of a job the first keeps the record
        return
    record = {"job": name, "sweep": os.environ.get(ID), "state": state}
    (folder / f".{name}.json").write_text(json.dumps(record), encoding="utf-8")


def jobs(folder: Path, call: str) -> dict[str, str]:
    """How the jobs of one call of the command have ended, by name: `done`, `mistake`, ..."""
    states = {}
    for path in sorted(folder.glob(".*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["sweep"] == call:
                states[record["job"]] = record["state"]
        except (ValueError, KeyError, TypeError):
            continue
    return states


def ended(folder: Path, call: str, status: int) -> int:
    """Print the table of all runs in the sweep's folder and what failed; the exit status.

    It is 2 where nothing but the user's mistakes went wrong, and 1 where anything else did.
    """
    states = jobs(folder, call)
    if not states:  # it did not come to the first job
        return status
    _compared(folder)
    bad = {name: state for name, state in states.items() if state not in ("done", "stopped")}
    if bad:
        print(f"gan: {len(bad)} of {len(states)} jobs failed", file=sys.stderr)
    for name, state in bad.items():
        log = folder / f"{name}.log"
        said = log.read_text(encoding="utf-8").splitlines()[-LINES:] if log.exists() else []
        how = " was cut off, or still runs" if state == "cut off" else ""
        print(f"\n{name}{how}, the end of {log}:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in said), file=sys.stderr)
    if "stopped" in states.values():
        print("gan: the sweep was stopped; the same command finishes it", file=sys.stderr)
        return 1
    if bad:
        return 2 if set(bad.values()) == {"mistake"} else 1
    return status


def _compared(folder: Path) -> None:
    from gan.commands.compare import compare

    try:
        print(f"\n{compare([folder], out=folder)}\n\n{folder / 'compare.md'}")
    except (ValueError, OSError) as error:  # no job has come so far, or there is no room
        print(f"gan: no table of the sweep: {error}", file=sys.stderr)


def value(hydra: Any, run_dir: Path, best: str | None) -> float | None:
    """What a search goes by: the best value of the measure `trainer.best`, or None without one.

    A run that went by another measure when it was trained has this one in its curve.
    """
    if best is None:
        return None
    from gan.trained import comparison

    record, name = comparison.read(run_dir), best.removeprefix("metric/")
    found = record.last(f"best/{name}")
    if found is not None or not searches(hydra):
        return found
    values = filter(math.isfinite, record.curves.get(f"metric/{name}", {}).values())
    choose = max if _direction(hydra) == "maximize" else min
    return choose(values, default=worst(hydra))


def worst(hydra: Any) -> float:
    """What a search is told of a run that has diverged."""
    return -math.inf if _direction(hydra) == "maximize" else math.inf


def require_search(hydra: Any, best: str | None) -> None:
    """Refuse a search that goes by nothing, or in the wrong direction."""
    direction = _direction(hydra)
    if direction is None:
        return
    if best is None:
        raise UsageError(
            "a search goes by trainer.best: name a measure, such as "
            "trainer.best=metric/validation_l1"
        )
    better = _better(best.removeprefix("metric/"))
    wanted = {"less": "minimize", "more": "maximize"}.get(better or "", direction)
    if direction != wanted:
        raise UsageError(
            f"hydra.sweeper.direction={direction}, but {better} is better of {best}: use "
            f"hydra.sweeper.direction={wanted}"
        )


def _better(name: str) -> str | None:
    from gan.metrics.evaluation import LabelEvaluation
    from gan.metrics.glyph_evaluation import GlyphEvaluation
    from gan.metrics.image_evaluation import better
    from gan.metrics.pairs import BETTER
    from gan.metrics.translation import GlyphTranslation

    parts = (LabelEvaluation, GlyphEvaluation, GlyphTranslation)
    images = map(better, ("classifier", "random", "inception", "vgg16"))
    known = (BETTER, *(part.better for part in parts), *images)
    return next((which[name] for which in known if name in which), None)


def searches(hydra: Any) -> bool:
    """Whether the sweeper looks for the best of what the jobs return."""
    return _direction(hydra) is not None


def _direction(hydra: Any) -> str | None:
    """Which way a search goes; None where the sweeper does not search."""
    direction = hydra.sweeper.get("direction")
    return None if direction is None else str(getattr(direction, "name", direction))


def finished(values: Mapping[str, Any]) -> bool:
    """Whether a job of this configuration has come to its end before."""
    run_dir = Path(values["run_dir"])
    if not (run_dir / rundir.FINISHED).exists() or not rundir.finished(check(values)):
        return False
    distributed.say(f"{run_dir} is finished")
    return True


def own_devices(processes: int) -> list[int]:
    """The accelerators of one of joblib's workers for a job of so many processes; [] is all."""
    worker = multiprocessing.current_process().name
    return devices_of(worker, torch.cuda.device_count(), processes)


def devices_of(worker: str, there: int, each: int) -> list[int]:
    """Those of a worker such as `LokyProcess-3`, where there are enough for two workers."""
    kind, _, number = worker.partition("-")
    places = there // each
    if kind != LOKY or not number or places < 2:
        return []
    first = (int(number) - 1) % places * each
    return list(range(first, first + each))
