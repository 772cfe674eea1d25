"""How well characters are drawn that training has not seen, in styles it has not seen."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan.data.datasets import evenly
from gan.metrics.baselines import baselines
from gan.metrics.claims import FIELDS, doubts
from gan.metrics.glyph_judges import Judged
from gan.metrics.glyphs import CELLS, Cells, Draw, common_characters, shuffled_reference
from gan.metrics.judges import Judge
from gan.metrics.scores import Scores, compare, distances, score
from gan.metrics.tables import signed, table
from gan.recipe import Recipe
from gan.run.best import Better

AMONG = [cell for cell in CELLS if cell != "validation"]
MOST = 256  # characters of each part of the split that take part in a measure


class GlyphEvaluation:
    """Scores on cells of seen and unseen styles and characters, with one reference glyph each.

    Judges, where there are any, are those of `gan evaluate`: they learn from real glyphs of every
    cell, as one that has never met a font cannot name it, and from nothing that is drawn; nothing
    that is trained looks through them.
    """

    better: Mapping[str, Better] = {
        "validation_l1": "less",
        "validation_l1_per_ink": "less",
        "validation_rmse": "less",
        "validation_ssim": "more",
        "validation_sharpness": "more",
        "validation_content": "more",
        "validation_style": "more",
    }

    def __init__(
        self,
        recipe: Recipe,
        dataset: Any,
        device: torch.device,
        judge: Callable[[], Judge] | None = None,
    ) -> None:
        """`dataset` gives the store, its table of rows and both splits.

        `judge` makes one of characters and styles when it is first needed; None does without.
        """
        self.recipe, self.device, self._make = recipe, device, judge
        if judge is None:
            self.better = {n: b for n, b in self.better.items() if _metric(n) not in FIELDS}
        (self.cells, self._characters), self.fonts = cells_of(dataset), dataset.style_names
        self.families = dict(zip(self.fonts, dataset.families.tolist(), strict=True))

    @cached_property
    def judge(self) -> Judge | None:
        """A classifier of characters and styles, trained once."""
        return self._make() if self._make else None

    @cached_property
    def baselines(self) -> dict[str, Scores]:
        """The scores of every baseline, once for the last generator and the best."""
        return baselines(self.cells, AMONG)

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Distances and judged shares on validation styles and characters, which are not trained.

        `content` and `style` are the shares that a judge reads as the right character and font.
        """
        scores = self._score(generator, ["validation"]).cells["validation"]
        return {name: scores.mean(_metric(name)) for name in self.better}

    def report(self, generator: nn.Module) -> str:
        """A table of the generator beside every baseline, and what the reference is worth."""
        copy, ours = self.baselines["prototype copy"], self._score(generator, AMONG)
        draw = self.draw(generator)
        shuffled = score(self.cells, draw, control=shuffled_reference, among=AMONG)
        rows = {**self.baselines, "W-Net": ours, "W-Net, shuffled reference": shuffled}
        lines = [
            "Unseen styles and characters (UFUC), L1 paired by font, 95 % intervals over families:",
            f"  shuffled reference minus W-Net: {signed(compare(shuffled, ours))}",
            f"  prototype copy minus W-Net:     {signed(compare(copy, ours))}",
        ]
        return "\n".join([table(rows), "", *lines, *self._read(ours)])

    def by_font(self, generator: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
        """Every metric of each unseen font on unseen characters."""
        cells = self._score(generator, ["UFUC"]).cells
        return {
            name: {
                self.fonts[style]: {metric: float(v[place]) for metric, v in cell.values.items()}
                for place, style in enumerate(cell.styles)
            }
            for name, cell in cells.items()
        }

    def _score(self, generator: nn.Module, among: Sequence[str]) -> Scores:
        judged = Judged(self.judge, self._characters, self.device) if self.judge else distances
        return score(self.cells, self.draw(generator), among=among, measure=judged)

    def _read(self, scores: Scores) -> list[str]:
        """What the judges make of the headline's cell, beside what they make of real glyphs."""
        if self.judge is None:
            return []
        named = {name: self.judge.ceiling[field] for name, field in FIELDS.items()}
        shares = (
            f"{name} {scores.cells['UFUC'].mean(name):.1%} (of held-out real glyphs: {right:.1%})"
            for name, right in named.items()
        )
        return [f"  that judges read rightly: {', '.join(shares)}", *doubts(named)]

    def draw(self, generator: nn.Module) -> Draw:
        """The generator as a function of ink."""

        def drawn(prototype: Tensor, references: Tensor, shown: Tensor) -> Tensor:
            given = {"prototype": prototype, "reference": references, "shown": shown}
            batch = {name: (1 - 2 * ink).to(self.device) for name, ink in given.items()}
            return (1 - self.recipe.samples(generator, batch)["generated"]) / 2

        return drawn


def _metric(name: str) -> str:
    return name.removeprefix("validation_")


def cells_of(dataset: Any) -> tuple[Cells, np.ndarray]:
    """The dataset's glyphs and splits; of a large character set an even selection.

    Characters for training alone take no part, so that results with and without are comparable.
    Also the dataset's number of each character that takes part.
    """
    split = dataset.measured
    parts = [evenly(part, MOST) for part in (split.train, split.validation, split.test)]
    characters = np.concatenate(parts)
    bounds = np.cumsum([0, *map(len, parts)])
    numbers = [np.arange(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    rows = dataset.rows[:, characters]  # [S, N], -1 where a glyph is missing
    glyphs = _glyphs(dataset.store, rows)
    prototype = glyphs[dataset.prototype]
    usable = (rows >= 0) & (rows[dataset.prototype] >= 0)
    styles = np.concatenate([dataset.styles.train, dataset.styles.validation, dataset.styles.test])
    cells = Cells(
        glyphs,
        usable,
        prototype,
        dataset.styles,
        type(split)(*numbers),
        dataset.families,
        common_characters(usable, styles, numbers[0]),
    )
    return cells, characters


def _glyphs(store: Any, rows: np.ndarray) -> np.ndarray:
    """Bytes [S, N, H, W] of the rows [S, N], blank where a glyph is missing."""
    present = rows.reshape(-1) >= 0
    glyphs = np.full((rows.size, *store.shape), 255, dtype=np.uint8)
    read = np.empty((int(present.sum()), *store.shape), dtype=np.uint8)
    store.read(rows.reshape(-1)[present], read)
    glyphs[present] = read
    return glyphs[..., 0].reshape(*rows.shape, *store.shape[:2])
