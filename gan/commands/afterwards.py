"""What a finished run leaves where `trainer.evaluate` asks for it: the report of `gan evaluate`."""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gan import distributed
from gan.commands.evaluate import facts, note
from gan.run.rundir import FINISHED
from gan.run.signals import Stop


def evaluate(values: Mapping[str, Any], stop: Stop) -> None:
    """Write the report of a finished run's last checkpoint into its directory, once.

    The first process does it, the others wait. The run is whole without: what goes wrong is said,
    and no more.

    Raises: KeyboardInterrupt where a signal asks to stop; the same command then writes the report.
    """
    run_dir = Path(values["run_dir"])
    if not values["trainer"].get("evaluate") or _reported(run_dir):
        return
    try:
        with stop.interrupting():
            distributed.by_first(partial(_evaluate, run_dir, values["trainer"]["device"]))
    except KeyboardInterrupt:
        distributed.say(
            f"{run_dir} is finished; {stop.name} came before its report, which the same command "
            "writes"
        )
        raise


def _reported(run_dir: Path) -> bool:
    """Whether the report is there of the step at which the run is finished."""
    try:
        finished, reported = (
            json.loads((run_dir / name).read_text(encoding="utf-8"))["step"]
            for name in (FINISHED, "evaluation/evaluation.json")
        )
    except (OSError, ValueError, LookupError):
        return False
    return bool(finished == reported)


def _evaluate(run_dir: Path, device: str) -> None:
    from gan import runs
    from gan.metrics import report
    from gan.trained.reports import Options, report_of

    print(f"evaluating {run_dir}, as `gan evaluate` does")
    torch.set_float32_matmul_precision("highest")  # as in a process that has not trained
    try:
        loaded = runs.every(run_dir, distributed.device(device))
        last = [*loaded.values()][-1]
        data = runs.dataset(last)
        found = report_of(loaded, data, last.device, Options())
        data.store.close()
        _, page, *_ = report.write(found, facts(loaded), run_dir / "evaluation")
        note(last, found)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        print(f"gan: no report was written to {run_dir}: {failure}", file=sys.stderr)
    else:
        print(found.verdict, page, sep="\n")
