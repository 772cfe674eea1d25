"""When a run's checkpoints are written, and what happens when they cannot be."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gan import disk, distributed
from gan.checkpoint import CONFIG, CheckpointError
from gan.run import rundir, state

if TYPE_CHECKING:
    from gan.trainer import Trainer

GRACE = 30.0  # seconds that torchrun and most schedulers leave between SIGTERM and SIGKILL


class StorageError(OSError):
    """Checkpoints cannot be written, and training without them is not worth going on."""


class Saves:
    """Writes checkpoints; one that fails is told and tried again when the next is due.

    Attributes:
        origin: the checkpoint that the run was told to start from, if any.
    """

    def __init__(self, folder: Path, allowed: int, tell: Callable[[str, str], None]) -> None:
        """`allowed` is the number of failures in a row at which the run stops."""
        self.folder, self.allowed, self._tell = folder, allowed, tell
        self.origin: str | None = None
        self._failures = 0
        self._slow = False

    def due(self, run: "Trainer") -> bool:
        """Whether a checkpoint is to be written now: by the clock, or as the best so far."""
        if run.due(run.settings.save_every):
            return True
        best = run.monitor.best.at(run.counts()["step"])
        return run.due(run.settings.measure_every) and distributed.anywhere(best, run.device)

    def write(self, run: "Trainer", last: bool = False) -> bool:
        """Write one, from the first process; whether it is there. The `last` one must be.

        Raises:
            StorageError: too many in a row failed, in every process alike.
            RuntimeError: the processes hold different weights.
            TakenError: the run directory was removed, and another process has it now.
        """
        if distributed.size() > 1:
            distributed.require_same(state.fingerprints(run), run.device, "before saving")
        own = distributed.elsewhere(dict(run.recipe.named_buffers()))
        run.monitor.join(run.device)
        started, failure = time.monotonic(), ""

        def save() -> None:
            nonlocal failure
            try:
                rundir.keep(self.folder.parent)
                state.save(run, self.folder, own, self.origin)
                if not (self.folder.parent / CONFIG).exists():  # somebody has removed it
                    with suppress(OSError):  # the checkpoint is there, and has it as well
                        disk.replace(self.folder.parent / CONFIG, run.config)
            except (OSError, CheckpointError) as error:
                failure = str(error)

        distributed.by_first(save)  # the others wait for as long as the disk takes
        if not distributed.anywhere(bool(failure), run.device):
            self._failures = 0
            self._time(time.monotonic() - started)
            return True
        self._failures += 1
        run.monitor.best.undo(run.counts()["step"])
        if last or self._failures >= self.allowed:
            raise StorageError(
                f"{failure or 'the first process could not save'}; that was "
                + ("the last checkpoint of the run" if last else f"{self._failures} times in a row")
            )
        self._tell(
            "save",
            f"{failure}; earlier checkpoints are intact, training goes on and tries again when the "
            f"next one is due ({self._failures} of {self.allowed} failures in a row)",
        )
        return False

    def _time(self, seconds: float) -> None:
        if seconds > GRACE / 3 and not self._slow:
            self._slow = True
            self._tell(
                "save",
                f"a checkpoint took {seconds:.0f} s: a scheduler that kills {GRACE:.0f} s after "
                "asking may cut the last one off; ask earlier (--signal=USR1@120 for SLURM) or "
                "save to a faster disk",
            )
