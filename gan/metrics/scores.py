"""Scores of glyph generation by cell and font, and the intervals of their differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from gan.metrics import images
from gan.metrics.glyphs import CELLS, Cells, Control, Draw, Pairs, faithful

METRICS = {
    "l1": images.l1,
    "rmse": images.rmse,
    "ssim": images.ssim,
    "pdar": images.pdar,
    "l1_per_ink": images.l1_per_ink,
    "sharpness": images.sharpness,
}

Measure = Callable[[Cells, Pairs, Tensor], dict[str, Tensor]]
"""What is drawn of pairs [M], ink [M, 1, H, W], to values [M] by metric."""


def distances(cells: Cells, pairs: Pairs, image: Tensor) -> dict[str, Tensor]:
    """Every metric of METRICS between images and the truth."""
    truth = cells.ink(pairs.styles, pairs.characters)
    return {name: metric(image, truth) for name, metric in METRICS.items()}


@dataclass(frozen=True, eq=False)
class CellScores:
    """Means over the targets of each font: `values` [F] by metric.

    Also the fonts' numbers and families [F], the mean ink of the truth [F], and how many targets.
    """

    styles: np.ndarray
    families: np.ndarray
    ink: np.ndarray
    values: dict[str, np.ndarray]
    pairs: int

    def mean(self, metric: str) -> float:
        """The mean over fonts, each counted once."""
        return float(self.values[metric].mean())


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one generator or baseline, by cell."""

    cells: dict[str, CellScores]

    def means(self) -> dict[str, float]:
        """Every mean by a tag such as `UFUC/ssim`."""
        return {
            f"{cell}/{metric}": scores.mean(metric)
            for cell, scores in self.cells.items()
            for metric in scores.values
        }


class Setup(TypedDict, total=False):
    """What is scored and how; see `score_pairs` for what holds unless it is said."""

    references: int
    control: Control
    among: Sequence[str]
    batch: int
    measure: Measure


def score(cells: Cells, draw: Draw, **setup: Unpack[Setup]) -> Scores:
    """The scores of a generator, shown the true pairs or what the control makes of them.

    Raises:
        ValueError: `draw` returns another shape than the prototype's, or a cell has no target.
    """

    def drawn(shown: Pairs) -> Tensor:
        prototype, *others = cells.given(shown)
        image = draw(prototype, *others)
        if image.shape != prototype.shape:
            raise ValueError(
                f"draw must return the shape {[*prototype.shape]} of its prototypes, "
                f"not {[*image.shape]}"
            )
        return image.detach().float().cpu()

    return score_pairs(cells, drawn, **setup)


def score_pairs(
    cells: Cells,
    drawn: Callable[[Pairs], Tensor],
    references: int = 1,
    control: Control = faithful,
    among: Sequence[str] = tuple(CELLS),
    batch: int = 256,
    measure: Measure = distances,
) -> Scores:
    """The scores of anything that takes pairs [B] to ink [B, 1, H, W], whatever it looks at."""
    results = {}
    for cell in among:
        pairs = cells.pairs(cell, references)
        image = torch.cat([drawn(shown) for shown in control(cells, pairs).batches(batch)])
        results[cell] = _cell_scores(cells, pairs, image, measure)
    return Scores(results)


def _cell_scores(cells: Cells, pairs: Pairs, image: Tensor, measure: Measure) -> CellScores:
    styles, font = np.unique(pairs.styles, return_inverse=True)
    measured = measure(cells, pairs, image)
    values = {name: _per_font(value, font) for name, value in measured.items()}
    ink = _per_font(cells.ink(pairs.styles, pairs.characters).mean((1, 2, 3)), font)
    return CellScores(styles, cells.families[styles], ink, values, len(pairs))


class Interval(NamedTuple):
    """A mean over fonts and its 95 % interval."""

    mean: float
    low: float
    high: float


def compare(
    scores: Scores,
    other: Scores,
    metric: str = "l1",
    cell: str = "UFUC",
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The difference `scores - other` of a metric, paired by font; it is real if 0 lies outside.

    Raises:
        ValueError: the two were not scored on the same fonts, or these are of one family.
    """
    a, b = scores.cells[cell], other.cells[cell]
    if a.styles.tolist() != b.styles.tolist():
        fonts = f"{a.styles.tolist()} and {b.styles.tolist()}"
        raise ValueError(f"scores and other must be of the same fonts in {cell}, not of {fonts}")
    return bootstrap(a.values[metric] - b.values[metric], a.families, samples, seed)


def bootstrap(
    values: np.ndarray, families: np.ndarray, samples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of per-font values [F] and its percentile interval, resampling whole families [F].

    Too narrow when families are few: of five equal ones it holds the truth in 5 of 6 cases.

    Raises:
        ValueError: all fonts are of one family.
    """
    names, family = np.unique(families, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"families must hold at least two, not {len(names)}: one gives no interval; "
            "hold out fonts of more families"
        )
    sums, sizes = np.bincount(family, values), np.bincount(family)
    drawn = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _per_font(values: Tensor, font: np.ndarray) -> np.ndarray:
    return np.bincount(font, values.double().numpy()) / np.bincount(font)
