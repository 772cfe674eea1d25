"""Evaluations of glyphs pooled over runs of other seeds and, above all, other held-out fonts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gan.metrics.claims import Verdict
from gan.metrics.glyph_report import AMONG, told
from gan.metrics.report import FOLDER, NUMBERS
from gan.metrics.scores import CellScores, Scores
from gan.run.rundir import FINISHED
from gan.trained.comparison import Repeat

Said = Mapping[str, Any]  # what a run's `evaluation.json` says
OWN = ("judges", "reference_characters", "enough")  # which no option decides


@dataclass(frozen=True)
class Pooled:
    """Scores by row, as one evaluation of all runs together would have them.

    A font that several runs have scored in a cell counts once, with the mean of its values.

    Attributes:
        rows: those that all runs have.
        ceiling: shares of held-out real glyphs that the judges read rightly, means over runs.
        repeats: the runs' seeds and splits.
        paired: whether generators saw references beside their characters.
    """

    rows: Mapping[str, Scores]
    ceiling: Mapping[str, float]
    repeats: Sequence[Repeat]
    paired: bool

    def told(self) -> tuple[Verdict, str]:
        """The claim over all runs, and the tables, as `gan evaluate` has them of one."""
        of = [split for _, split in self.repeats]
        seeds, splits = max(map(of.count, of)), len(set(of))
        return told(self.rows, self.ceiling, seeds, splits, paired=self.paired)


def pooled(runs: Mapping[Repeat, Path]) -> Pooled:
    """The evaluations of runs by seed and split.

    Raises: ValueError for a run whose evaluation has no rows by font, is of other fonts or of an
    earlier step than its end, or was made in another way.
    """
    said = {run: _evaluation(run) for run in runs.values()}
    first, *_ = said.values()
    families = first["split"]["families"]
    for run, other in said.items():
        if other["split"]["families"] != families:
            raise ValueError(f"{run} was evaluated on other fonts: compare it apart")
        if any(_way(other, of) != _way(first, of) for of in ("protocol", "adaptation")):
            raise ValueError(
                f"{run} was evaluated in another way: evaluate all with the same options"
            )
    shared = [row for row in first["rows"] if all(row in other["rows"] for other in said.values())]
    judges = [other["protocol"]["judges"]["held_out_accuracy"] for other in said.values()]
    every = [other["rows"] for other in said.values()]
    rows = {
        row: Scores({c: _pooled([rows[row][c] for rows in every], families) for c in AMONG})
        for row in shared
    }
    ceiling = {field: float(np.mean([judge[field] for judge in judges])) for field in judges[0]}
    return Pooled(rows, ceiling, [*runs], first["protocol"].get("paired", False))


def _evaluation(run: Path) -> Said:
    file = run / FOLDER / NUMBERS
    try:
        said: Said = json.loads(file.read_text(encoding="utf-8"))
        whole = set(AMONG) <= set(said["rows"]["W-Net"]) and said["split"]["families"]
        if not (whole and said["protocol"]["judges"]["held_out_accuracy"]):
            raise ValueError("a part is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run} has no evaluation by font: gan evaluate {run}") from error
    end = _end(run)
    if end not in (None, said.get("step")):
        raise ValueError(
            f"{run} was evaluated at step {said.get('step')} and has ended at step {end}: "
            f"gan evaluate {run}"
        )
    return said


def _end(run: Path) -> int | None:
    """The step at which a run's training ended; None if it has not."""
    try:
        return int(json.loads((run / FINISHED).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _way(said: Said, of: str) -> dict[str, Any]:
    """How an evaluation was made, without what differs between runs by their nature."""
    return {key: value for key, value in (said.get(of) or {}).items() if key not in OWN}


def _pooled(cells: Sequence[Said], families: Mapping[str, int]) -> CellScores:
    """One cell of a row, over the fonts that any run has scored there."""
    names = list(families)
    found: dict[str, dict[int, list[float]]] = {}  # metric -> font -> its values
    for cell in cells:
        styles = [names.index(font) for font in cell["fonts"]]
        by_font = {m: v["by_font"] for m, v in cell.items() if isinstance(v, dict)}
        for metric, values in {"ink": cell["ink"], **by_font}.items():
            for style, value in zip(styles, values, strict=True):
                found.setdefault(metric, {}).setdefault(style, []).append(float(value))
    styles = sorted(found["ink"])
    means = {
        metric: np.array([np.mean(fonts[style]) for style in styles])
        for metric, fonts in found.items()
        if set(fonts) == set(styles)  # one that all runs have
    }
    kinds = np.array([*families.values()])[styles]
    ink, targets = means.pop("ink"), sum(cell["targets"] for cell in cells)
    return CellScores(np.array(styles), kinds, ink, means, targets)
