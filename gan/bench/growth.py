"""A picture of `gan bench scale`: what a step takes, against what grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gan.bench.paired import Row
from gan.bench.scale import KEYS, WORDS


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the figure as a picture."""
    figure(rows).savefig(path, dpi=120)


def figure(rows: Sequence[Row]) -> Figure:
    """A panel for each case, a line for each model; beside a store's, the process's own memory.

    Times are shown by that of the first point, which ran in the same rounds, with their quartiles.
    """
    measured = [row for row in rows if "value" in row]
    cases = list(dict.fromkeys(row["case"] for row in measured))
    drawn = Figure(figsize=(4.2 * max(1, len(cases)), 3.6))
    panels = drawn.subplots(1, max(1, len(cases)), squeeze=False).ravel()
    for panel, case in zip(panels, cases, strict=False):
        of_case = [row for row in measured if row["case"] == case]
        for model in dict.fromkeys(row["model"] for row in of_case):
            _line(panel, [row for row in of_case if row["model"] == model], KEYS[case])
        panel.set_xlabel(WORDS[case])
        panel.set_ylabel("time of a step by the first's")
        panel.set_ylim(0, 1.2 * max(row["iqr"][1] for row in of_case))
        panel.legend(loc="lower right", fontsize=8, frameon=False)
        if case == "store":
            panel.set_xscale("log")
            _memory(panel.twinx(), of_case)
    drawn.tight_layout()
    return drawn


def _line(panel: Any, points: Sequence[Row], key: str) -> None:
    xs, ratios = [row[key] for row in points], [row["ratio"] for row in points]
    low, high = zip(*(row["iqr"] for row in points), strict=True)
    label = f"{points[0]['model']}, first {points[0]['value']:.3g} ms"
    (line,) = panel.plot(xs, ratios, "o-", label=label)
    panel.vlines(xs, low, high, color=line.get_color())


def _memory(panel: Any, points: Sequence[Row]) -> None:
    own = [row["memory_mb"].get("own", 0.0) for row in points]
    panel.plot([row["records"] for row in points], own, "s--", color="grey", label="own memory")
    panel.set_ylabel("own memory, MB")
    panel.set_ylim(0, 1.5 * max(own) or 1)
    panel.legend(loc="upper right", fontsize=8, frameon=False)
