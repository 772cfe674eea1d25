"""Curves of measures over training: a line for each group of runs, a band for its repeats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gan.trained.comparison import Group, named, spread

COLUMNS = 3


def band(group: Group, tag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [N], means and standard deviations over those runs that have a value at each step."""
    curves = [run.curves[tag] for run in group.runs.values() if tag in run.curves]
    steps = sorted(set().union(*curves))
    found = [spread(curve[step] for curve in curves if step in curve) for step in steps]
    means, deviations = [mean for mean, _ in found], [deviation or 0.0 for _, deviation in found]
    return np.array(steps), np.array(means), np.array(deviations)


def draw(groups: Sequence[Group], baseline: Group, tags: Sequence[str], path: Path) -> None:
    """A picture with a panel for each tag that has curves; a band is one deviation to each side."""
    shown = [tag for tag in tags if any(len(band(group, tag)[0]) > 1 for group in groups)]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(5 * min(COLUMNS, max(1, len(shown))), 3.6 * rows + 0.25 * len(groups)))
    panels = figure.subplots(rows, min(COLUMNS, max(1, len(shown))), squeeze=False).ravel()
    for panel, tag in zip(panels, shown, strict=False):
        for group in groups:
            steps, mean, deviation = band(group, tag)
            (line,) = panel.plot(steps, mean, label=named(group, baseline), linewidth=1.2)
            panel.fill_between(
                steps, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2
            )
        panel.set_title(tag.removeprefix("metric/"), fontsize=10)
        panel.set_xlabel("step")
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", fontsize=8, frameon=False)
    height = (0.25 * len(groups) + 0.3) / figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, height, 1, 1))
    figure.savefig(path, dpi=120)
