"""A picture of `gan bench scale`: what a step takes, against what grows."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from gan.bench.paired import Row
from gan.bench.scale import KEYS, WORDS


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the figure as a picture."""
    figure(rows).savefig(path, dpi=120)


def figure(rows: Sequence[Row]) -> Figure:
    """A panel for each case, a line for each model; beside a store's, the process's own memory."""
    measured = [row for row in rows if "value" in row]
    cases = list(dict.fromkeys(row["case"] for row in measured))
    drawn = Figure(figsize=(4.2 * max(1, len(cases)), 3.6))
    panels = drawn.subplots(1, max(1, len(cases)), squeeze=False).ravel()
    for panel, case in zip(panels, cases, strict=False):
        of_case = [row for row in measured if row["case"] == case]
        for model in dict.fromkeys(row["model"] for row in of_case):
            points = [row for row in of_case if row["model"] == model]
            xs = [row[KEYS[case]] for row in points]
            panel.plot(xs, [row["value"] for row in points], "o-", label=model)
        panel.set_xlabel(WORDS[case])
        panel.set_ylabel("ms a step")
        panel.set_ylim(bottom=0)
        if case == "store":
            panel.set_xscale("log")
            beside = panel.twinx()
            own = [row["memory_mb"].get("own", 0.0) for row in of_case]
            beside.plot(xs, own, "s--", color="grey", label="own memory, MB")
            beside.set_ylabel("own memory, MB")
            beside.set_ylim(bottom=0)
        panel.legend(fontsize=8, frameon=False)
    drawn.tight_layout()
    return drawn
