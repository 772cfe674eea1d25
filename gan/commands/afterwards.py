"""What a finished run leaves where `trainer.evaluate` asks for it: the report of `gan evaluate`."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gan import distributed
from gan.commands import sweep
from gan.commands.evaluate import WEIGHTS, facts, note
from gan.metrics.report import FOLDER, NUMBERS
from gan.run.rundir import FINISHED
from gan.run.signals import Stop


def evaluate(values: Mapping[str, Any], stop: Stop) -> None:
    """Write the report of a finished run's last checkpoint into its directory, once.

    The first process does it, the others wait. The run is whole without: what goes wrong is said,
    and no more.

    Raises: KeyboardInterrupt where a signal asks to stop; the same command then writes the report.
    """
    run_dir, trainer = Path(values["run_dir"]), values.get("trainer") or {}
    if not trainer.get("evaluate"):
        return
    devices = sweep.own_devices(values.get("processes", 1))
    if devices:  # a job that was found finished has chosen none
        torch.cuda.set_device(devices[0])
    try:
        with stop.interrupting():  # every process takes its turn: only the first one looks
            distributed.by_first(partial(_evaluate, run_dir, trainer))
    except distributed.FirstError:  # the first one was asked to stop: all else it tells itself
        raise KeyboardInterrupt from None
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
            for name in (FINISHED, f"{FOLDER}/{NUMBERS}")
        )
    except (OSError, ValueError, LookupError):
        return False
    return bool(finished == reported)


def _evaluate(run_dir: Path, trainer: Mapping[str, Any]) -> None:
    if _reported(run_dir):
        return
    from gan import runs
    from gan.metrics import report
    from gan.trained.reports import Options, report_of

    weights = {name: Path(trainer[name]) for name in WEIGHTS if trainer.get(name)}
    print(f"evaluating {run_dir}, as `gan evaluate` does")
    torch.set_float32_matmul_precision("highest")  # as in a process that has not trained
    try:
        loaded = runs.every(run_dir, distributed.device(trainer.get("device", "auto")))
        last = [*loaded.values()][-1]
        data = runs.dataset(last)
        with closing(data.store):
            found = report_of(loaded, data, last.device, Options(weights=weights))
        note(last, found)  # before the files, by which a report counts as made
        _, page, *_ = report.write(found, facts(loaded), run_dir / FOLDER)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        print(f"gan: no report was written to {run_dir}: {failure}", file=sys.stderr)
    else:
        print(found.verdict, page, sep="\n")
