"""What a run tells: TensorBoard, `metrics.jsonl`, sample pictures and a progress bar, on rank 0."""

import contextlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gan import disk, distributed
from gan.checkpoint import free
from gan.metrics.report import plain
from gan.run import rundir
from gan.run.hand import Hand

PATIENCE = 10.0  # seconds that training waits for a write
ROOM = 1 << 20  # free bytes with which TensorBoard's log is begun again
REST = 60.0  # seconds before that
BOARD, LINES = "tensorboard", "metrics.jsonl"


class Log:
    """Writes to a run directory. A write that fails or hangs is told once, and training goes on."""

    def __init__(
        self, run_dir: Path, counts: Mapping[str, int], steps: int, warmup: int = 0
    ) -> None:
        """Continue at a step: what a killed run wrote beyond it is dropped, to be written again.

        A start at 0 where there are checkpoints keeps the lines of their steps in a file beside.
        `warmup` is the length of the discriminator's; its updates are steps below 0 in TensorBoard.
        """
        self.run_dir, self.active, self._warmup = run_dir, distributed.rank() == 0, warmup
        self._path = run_dir / LINES
        self._told: set[str] = set()
        self._ended: float | None = None  # when TensorBoard's writer did, as the first write failed
        if not self.active:
            return
        self._hands = {BOARD: Hand(), LINES: Hand()}
        (run_dir / "samples").mkdir(parents=True, exist_ok=True)
        kept = go_back(self._path, counts["discriminator_updates"])
        self._open(self._axis(counts) + bool(counts["discriminator_updates"]))
        self._bar = tqdm(
            total=steps,
            initial=counts["step"],
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )
        if kept is not None:
            self.say(f"{kept} keeps the numbers that were there: this run starts at step 0")

    def scalars(self, counts: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Numbers by tag, with the clocks `step`, `images` and `discriminator_updates`."""
        if self.active:
            self._try(LINES, lambda: self._line(plain({**counts, **values})))
            self._try(BOARD, lambda: self._scalars(self._axis(counts), values))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture uint8 [H, W, 3], in TensorBoard and as a PNG file."""
        if self.active:
            self._try(BOARD, lambda: self._picture(step, name, pixels))

    def event(self, counts: Mapping[str, int], kind: str, text: str) -> None:
        """Something that happened, on the terminal, as a line and as TensorBoard text."""
        if self.active:
            self.say(f"{kind}: {text}")
            self.text(counts["step"], f"event/{kind}", text)
            self._try(LINES, lambda: self._line({**counts, "event": kind, "text": text}))

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown literally."""
        if self.active:
            self._try(BOARD, lambda: self._board.add_text(name, _literal(text), step))

    def settings(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run's row in TensorBoard's HParams tab."""
        if self.active:
            plain = {
                k: v if isinstance(v, bool | int | float | str) else str(v)
                for k, v in settings.items()
            }
            self._try(BOARD, lambda: self._settings(plain, metrics))

    def progress(self, step: int, note: str) -> None:
        """Move the progress bar, or print a line where there is no terminal."""
        if not self.active:
            return
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable:
            self.say(f"step {step}/{self._bar.total}  {note}")

    def say(self, text: str) -> None:
        """A line to the terminal, clear of the progress bar; that it fails is told once."""
        if not self.active:
            return
        try:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            self._once("output", f"standard output cannot be written, training goes on: {error}")

    def close(self) -> None:
        """Flush and close everything."""
        if self.active:
            self._try(BOARD, lambda: self._board.close())  # another one, if it has just begun
            self._try(LINES, self._lines.close)
            self._bar.close()

    def _settings(self, plain: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        parts = hparams(dict(plain), dict(metrics))
        writer = self._board._get_file_writer()
        for summary in parts:  # their values are scalars already
            writer.add_summary(summary)

    def _open(self, purge: int | None = None) -> None:
        self._open_board(purge)
        self._lines = self._path.open("a", encoding="utf-8")

    def _open_board(self, purge: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._board = SummaryWriter(str(self.run_dir / BOARD), purge_step=purge, flush_secs=10)
        self._ended = None

    def _on_board(self, write: Callable[[], Any]) -> None:
        """Write to TensorBoard; to another file where a write failed and there is room since."""
        now = time.monotonic()
        if self._ended and now > self._ended + REST and disk.room(self.run_dir) > ROOM:
            self._ended = now
            with contextlib.suppress(OSError):  # what it still held found no room
                self._board.close()
            self._open_board()
        try:
            write()
        except OSError:
            self._ended = self._ended or now
            raise

    def _return(self) -> None:
        """Make the files again where somebody has removed the folder under the run.

        Raises: TakenError where another process has it by now.
        """
        if self._path.exists():
            return
        rundir.keep(self.run_dir)
        warnings.warn(f"{self.run_dir} was removed while training; it is made again", stacklevel=2)
        for close in (self._lines.close, self._board.close):
            with contextlib.suppress(OSError):  # what they still held had its place in there
                close()
        (self.run_dir / "samples").mkdir(parents=True, exist_ok=True)
        self._open()

    def _axis(self, counts: Mapping[str, int]) -> int:
        """The step in TensorBoard: a discriminator's warm-up counts up to 0."""
        return counts["step"] or min(0, counts["discriminator_updates"] - self._warmup)

    def _line(self, values: Mapping[str, Any]) -> None:
        self._return()
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def _picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._board.add_image(f"samples/{name}", pixels, step, dataformats="HWC")
        self._board.flush()
        Image.fromarray(pixels).save(self.run_dir / "samples" / f"{name}-{step:08d}.png")

    def _try(self, file: str, write: Callable[[], Any]) -> None:
        act = partial(self._on_board, write) if file == BOARD else write
        try:
            self._hands[file].do(act, PATIENCE)
        except OSError as error:
            where = self.run_dir / file
            self._once("logs", f"logging to {where} failed, training goes on: {error}")

    def _once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, stacklevel=4)


def noted(
    run_dir: Path,
    counts: Mapping[str, int],
    values: Mapping[str, float],
    text: str,
    pictures: Iterable[np.ndarray],
) -> None:
    """Add what was measured after training to a run's lines (numbers) and its TensorBoard (all)."""
    from torch.utils.tensorboard import SummaryWriter

    line = plain({**counts, **values})
    with (run_dir / LINES).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    with SummaryWriter(str(run_dir / BOARD)) as board:
        for tag, value in values.items():
            board.add_scalar(tag, value, counts["step"])
        board.add_text("evaluation", _literal(text), counts["step"])
        for place, pixels in enumerate(pictures):
            board.add_image(f"evaluation/{place}", pixels, counts["step"], dataformats="HWC")


def _literal(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join("    " + line for line in text.splitlines())


def go_back(path: Path, updates: int) -> Path | None:
    """Drop the lines beyond so many discriminator updates, and a half one at the end.

    Where all steps would go but not their checkpoints, it is kept beside; returned is its new path.
    """
    if not path.exists():
        return None
    lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _updates(line) <= updates]
    aside, saved = None, any(path.parent.glob("checkpoints/*step-*"))
    if not updates and saved and any(0 < _updates(line) < math.inf for line in lines):
        aside = path.rename(free(path.with_name(f"ahead-of-0-{path.name}")))
    if len(kept) < len(lines):
        disk.replace(path, "".join(kept))
    return aside


def _updates(line: str) -> float:
    try:
        return json.loads(line)["discriminator_updates"]
    except (ValueError, LookupError, TypeError):
        return math.inf
