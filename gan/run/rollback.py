"""Where numbers stay bad: back to the newest checkpoint, and on from there with other data."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gan import checkpoint
from gan.step.guard import DivergedError

if TYPE_CHECKING:
    from gan.trainer import Trainer


def survived(run: "Trainer", train: Callable[[], None]) -> None:
    """Train a trainer; `trainer.rollbacks` times go back rather than stop.

    Raises: DivergedError once they are used up, or where there is no checkpoint.
    """
    for left in reversed(range(run.settings.rollbacks + 1)):
        try:
            train()
        except DivergedError as error:
            if not left or not _back(run, str(error.last)):
                raise
        else:
            return


def _back(run: "Trainer", why: str) -> bool:
    """Whether there is a checkpoint to go back to; batches since then are not read again."""
    path = checkpoint.newest(run.monitor.run_dir / "checkpoints", lambda skipped: None)
    if path is None:
        return False
    position = run.stream.position
    run.monitor.close()
    run.resume(path)
    skipped, run.stream.position = position - run.stream.position, position
    run.monitor.start(run.counts, run.config)
    run.monitor.tell("rollback", f"{why}: back to {path}, and past the {skipped} batches since")
    return True
