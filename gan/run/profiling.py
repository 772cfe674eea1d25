"""`trainer.profile=N`: a trace of N steps, for TensorBoard's profiler plugin or ui.perfetto.dev."""

from pathlib import Path

from torch.profiler import profile

from gan import distributed

WARMUP = 5  # steps before the trace: compiling, first allocations, optimizer states


class Profile:
    """Watches so many steps of a run, once the first ones have passed, and writes what it saw."""

    def __init__(self, run_dir: Path, steps: int) -> None:
        """`steps` are those to watch; with 0 nothing is watched."""
        self._run_dir, self._steps, self._passed = run_dir, steps, 0
        self._running: profile | None = None

    def step(self) -> Path | None:
        """Take note that a step is over; the trace's path if that was the last to watch."""
        if not self._steps:
            return None
        self._passed += 1
        if self._running is not None:
            self._running.step()
        if self._passed == WARMUP:
            self._running = profile(record_shapes=True)
            self._running.start()
        if self._passed == WARMUP + self._steps:
            return self.close()
        return None

    def close(self) -> Path | None:
        """Write what was seen so far; the trace's path if there is anything."""
        if self._running is None:
            return None
        running, self._running, self._steps = self._running, None, 0
        running.stop()
        folder = self._run_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank{distributed.rank()}.{self._passed}.pt.trace.json.gz"
        running.export_chrome_trace(str(path))
        return path
