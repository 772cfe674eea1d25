"""What a run tells: TensorBoard, `metrics.jsonl`, sample pictures and a progress bar, on rank 0."""

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gan import distributed


class Log:
    """Writes to a run directory. A write that fails is reported once and never stops training."""

    def __init__(self, run_dir: Path, step: int, steps: int) -> None:
        """Continue at a step: TensorBoard drops what an interrupted run wrote beyond it."""
        self.run_dir, self.active, self._failed = run_dir, distributed.rank() == 0, False
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        (run_dir / "samples").mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=10
        )
        self._lines = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def scalars(self, counts: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Numbers by tag, with the clocks `step`, `images` and `discriminator_updates`."""
        if self.active:
            self._try(lambda: self._scalars(counts, values))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture uint8 [H, W, 3], in TensorBoard and as a PNG file."""
        if self.active:
            self._try(lambda: self._picture(step, name, pixels))

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown literally."""
        if self.active:
            literal = "\n".join("    " + line for line in text.splitlines())
            self._try(lambda: self._board.add_text(name, literal, step))

    def settings(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run's row in TensorBoard's HParams tab."""
        if self.active:
            plain = {
                k: v if isinstance(v, bool | int | float | str) else str(v)
                for k, v in settings.items()
            }
            self._try(lambda: self._settings(plain, metrics))

    def progress(self, step: int, note: str) -> None:
        """Move the progress bar, or print a line where there is no terminal."""
        if not self.active:
            return
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable:
            self.say(f"step {step}/{self._bar.total}  {note}")

    def say(self, text: str) -> None:
        """A line to the terminal, clear of the progress bar."""
        if self.active:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Flush and close everything."""
        if self.active:
            self._try(self._board.close)
            self._try(self._lines.close)
            self._bar.close()

    def _settings(self, plain: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        parts = hparams(dict(plain), dict(metrics))  # type: ignore[no-untyped-call]  # torch's own
        writer = self._board._get_file_writer()  # type: ignore[no-untyped-call]  # likewise
        for summary in parts:  # their values are scalars already
            writer.add_summary(summary)

    def _scalars(self, counts: Mapping[str, int], values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._board.add_scalar(tag, value, counts["step"])
        finite = {tag: value if np.isfinite(value) else str(value) for tag, value in values.items()}
        self._lines.write(json.dumps({**counts, **finite}) + "\n")
        self._lines.flush()

    def _picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._board.add_image(f"samples/{name}", pixels, step, dataformats="HWC")
        self._board.flush()
        Image.fromarray(pixels).save(self.run_dir / "samples" / f"{name}-{step:08d}.png")

    def _try(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"logging to {self.run_dir} failed, training goes on: {error}", stacklevel=3
                )
            self._failed = True
